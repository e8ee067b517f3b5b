"""python launch.py --config FILE [key=value ...] [--stages a,b,...] [--resume] [--check]

Reads the configuration, checks everything that can be checked before a model is loaded, and runs the stages in order.
Exit codes: 0 done, 1 a stage failed, 2 bad input (every problem listed), 130 and 143 interrupted.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
from contextlib import ExitStack
from types import FrameType

from common.config.config import Config
from common.config.file import ConfigError, load_config, save_config
from common.config.stages import COMMANDS, STAGES
from common.errors import RunError
from common.files import write_whole
from common.json_text import json_text
from driver.preflight.environment import environment
from driver.preflight.preflight import check
from driver.record.progress import fail, say
from driver.record.run_lock import RunHeld, held


def main() -> None:
    """Runs the command."""
    arguments = parse()
    config, stages = read(arguments)
    preflight(config, stages, arguments)
    signals = StopSignals()
    try:
        with ExitStack() as cleanup:
            claim(config, cleanup)
            write_run_files(config)
            run(config, stages, cleanup)
    except SystemExit as stop:  # inside ray.get, Ray replaces the exit's code by 1
        raise SystemExit(128 + signals.received if signals.received else stop.code) from None
    say(f"run: {config.run_dir}")
    gc.freeze()  # else the interpreter, when it ends, searches all that the libraries hold for garbage: a second or two


def parse() -> argparse.Namespace:
    """The command's arguments."""
    parser = argparse.ArgumentParser(description="Online iterative RLHF.", epilog="Keys: configs/base.yaml")
    parser.add_argument(
        "--config", required=True, help="YAML file; configs/quickstart.yaml runs on a 2-core CPU machine"
    )
    known = f"{','.join(STAGES)}; or commands: {','.join(COMMANDS)}"
    parser.add_argument("--stages", help=f"only these stages, comma-separated, of {known}")
    parser.add_argument("--resume", action="store_true", help="go on with the run of this name")
    parser.add_argument("--check", action="store_true", help="print the plan and every problem, then stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser.parse_args()


def read(arguments: argparse.Namespace) -> tuple[Config, list[str]]:
    """The resolved configuration and the stages to run now."""
    try:
        config = load_config(arguments.config, arguments.overrides)
    except ConfigError as error:
        fail(str(error))
    wanted = arguments.stages.split(",") if arguments.stages else config.stages
    known = (*STAGES, *COMMANDS)
    if unknown := [stage for stage in wanted if stage not in known]:
        fail(
            f"--stages has {', '.join(unknown)}; the stages are {', '.join(STAGES)}; the commands {', '.join(COMMANDS)}"
        )
    return config, [stage for stage in known if stage in wanted]


def preflight(config: Config, stages: list[str], arguments: argparse.Namespace) -> None:
    """Prints the plan; exits with 2 if anything is wrong, with 0 after --check."""
    try:
        report = check(config, stages, arguments.resume)
    except RunError as error:  # a file that an earlier run wrote is not whole
        fail(f"1 problem(s):\n- {error}")
    if arguments.check or report.problems:
        say("\n".join(report.plan))
    if report.rows:
        say("\n".join(report.rows))
    if report.problems:
        fail("\n".join([f"{len(report.problems)} problem(s):", *(f"- {problem}" for problem in report.problems)]))
    if arguments.check:
        raise SystemExit(0)
    for line in report.said:
        say(line)


def claim(config: Config, cleanup: ExitStack) -> None:
    """Makes the run's directory ours until everything has ended; exits with 2 if another process works on it."""
    config.run_dir.mkdir(parents=True, exist_ok=True)
    try:
        cleanup.enter_context(held(config.run_dir))
    except RunHeld as error:  # it came between the preflight and now
        fail(f"1 problem(s):\n- {error}")


def write_run_files(config: Config) -> None:
    """Writes the resolved configuration and the environment into the run's directory."""
    save_config(config, config.run_dir / "config.yaml")
    write_whole(config.run_dir / "environment.json", json_text(environment(), indent=1))


def run(config: Config, stages: list[str], cleanup: ExitStack) -> None:
    """Runs the stages; whatever happens, the roles are stopped before this returns."""
    from driver.cluster.cluster import Cluster  # torch, ray and transformers load after the checks, not before
    from driver.stages import run_stages

    cluster = Cluster(config)
    cleanup.callback(cluster.close)
    try:
        run_stages(config, stages, cluster, os.environ.get(config.redis.password_env), cleanup)
    except (RunError, OSError) as error:
        fail(f"error: {error}", code=1)


class StopSignals:
    """SIGINT and SIGTERM become an exit, so that cleanup runs; a second one ends the process at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        print(f"{signal.Signals(number).name}: stopping; go on later with --resume", file=sys.stderr, flush=True)
        self.received = number
        raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
