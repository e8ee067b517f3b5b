"""Runs the real command, `python launch.py`, as a user would, and finds what a run left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parent.parent.parent
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

    def wait(self, timeout_s: float = 300) -> int:
        return self.process.wait(timeout_s)

    def wait_for(self, text: str, timeout_s: float = 240) -> None:
        """Until the output has `text`."""
        deadline = time.monotonic() + timeout_s
        while text not in self.log.read_text():
            assert self.process.poll() is None, f"ended before {text!r}:\n{self.log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"no {text!r} within {timeout_s} s:\n{self.log.read_text()[-3000:]}"
            time.sleep(0.1)

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.wait(60)

    def alive(self) -> list[str]:
        """Command lines of processes of this run that are still alive."""
        return [_describe(process) for process in psutil.process_iter() if _environ(process).get(MARK) == self.mark]

    def assert_gone(self, within_s: float = 120) -> None:
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


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sandbox")
    subprocess.run(
        [sys.executable, "-m", "examples.sandbox", "--out", str(directory), "--seed", "0"], cwd=ROOT, check=True
    )
    return directory


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def launch(runs: Path, data: Path) -> Iterator[Callable[..., Launched]]:
    launched: list[Launched] = []

    def start(*arguments: str) -> Launched:
        launched.append(Launched(runs, data, *arguments))
        return launched[-1]

    yield start
    for run in launched:
        if run.process.poll() is None:
            run.kill()


@pytest.fixture(scope="session")
def first(runs: Path, data: Path) -> Path:
    """One complete run; its directory."""
    run = Launched(runs, data, "run.name=first")
    assert run.wait() == 0, run.log.read_text()[-4000:]
    run.assert_gone()
    return runs / "first"


def ready_made(first: Path) -> list[str]:
    """Overrides for a run that brings its policy, its reward model and the labels that this is made from: the first run's."""
    models = [f"policy.model={first}/sft", f"rewarder.model={first}/rm/version_0"]
    labels = [f"data.{name}={first}/collected/{name}.jsonl" for name in ("ratings", "preferences")]
    return [*models, *labels, "stages=[iterate,evaluate,report]"]
