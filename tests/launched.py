"""The real command, `python launch.py`, run as a user would, and what is left of it afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import psutil

from common.metrics import read_rows

ROOT = Path(__file__).parent.parent
MARK = "ITER_RLHF_TEST_RUN"


class Launched:
    """A running command; every process that it starts inherits its mark."""

    def __init__(self, directory: Path, data: Path, *arguments: str, config: str = "tests/e2e/tiny.yaml"):
        self.mark = uuid.uuid4().hex
        self.log = directory / f"launch-{self.mark[:8]}.log"
        environment = {**os.environ, MARK: self.mark, "TINY_DATA": str(data), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "launch.py", "--config", config, f"run.dir={directory}", *arguments]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def wait(self, timeout_s: float = 1200) -> int:
        """The exit code; a run that takes longer is killed."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def assert_ends_well(self) -> None:
        """Waits for the end: exit code 0, and no process of the run is left."""
        assert self.wait() == 0, self.log.read_text()[-4000:]
        self.assert_gone()

    def wait_for(self, text: str, timeout_s: float = 1200) -> None:
        """Until the output has `text`."""
        deadline = time.monotonic() + timeout_s
        while text not in self.log.read_text():
            assert self.process.poll() is None, f"ended before {text!r}:\n{self.log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"no {text!r} within {timeout_s} s:\n{self.log.read_text()[-3000:]}"
            time.sleep(0.1)

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.wait(240)

    def alive(self) -> list[str]:
        """Command lines of processes of this run that are still alive."""
        return [_describe(process) for process in psutil.process_iter() if _environ(process).get(MARK) == self.mark]

    def assert_gone(self, within_s: float = 240) -> None:
        """Fails, naming them, if processes of the run outlive it by more than within_s."""
        deadline = time.monotonic() + within_s
        while (left := self.alive()) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert left == []


def _environ(process: psutil.Process) -> dict[str, str]:
    try:
        return {} if process.status() == psutil.STATUS_ZOMBIE else process.environ()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return {}


def _describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:120]}"
    except psutil.NoSuchProcess:
        return f"{process.pid} (gone)"


def timeless(run: Path) -> list[dict[str, Any]]:
    """The step lines without what a clock measured, and without the queue's depths, which depend on how soon a busy machine
    acknowledges."""
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "queue/")) and not k.endswith("_per_s")}
        for row in read_rows(run / "metrics.jsonl")
    ]
