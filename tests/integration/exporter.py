"""A learner without Ray that exports: python -m tests.integration.exporter CONFIG POLICY REWARD_MODEL [LIMIT ...]

Writes the export of the run in CONFIG with the policy's weights from POLICY, then once more for each LIMIT, in bytes: no file
may become larger (the kernel refuses the write, as a full disk does). Prints one JSON line for each failure.
"""

from __future__ import annotations

import json
import resource
import socket
import sys
from pathlib import Path

from common.config.file import load_config
from driver.export.stage import Export, ExportError
from learner.worker import LearnerWorker


def main() -> None:
    config_file, policy, reward_model, *limits = sys.argv[1:]
    config = load_config(config_file)
    learner = LearnerWorker(0, config)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    learner.connect("127.0.0.1", port)
    learner.load_policy(policy, None)

    def write_policy(aside: Path) -> None:
        try:
            learner.export(str(aside))
        except Exception as error:  # as driver/cluster/cluster.py does for a role
            raise RuntimeError(f"learner-0 failed in export: {error}") from error

    Export(config).write(3, write_policy, None, reward_model)
    for limit in limits:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
        try:
            Export(config).write(3, write_policy, None, reward_model)
        except ExportError as error:
            print(json.dumps({"limit": int(limit), "error": str(error)}), flush=True)


if __name__ == "__main__":
    main()
