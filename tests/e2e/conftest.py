"""What tests of the whole command share: the sandbox, a directory for runs, and one complete run that others start from."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.launched import ROOT, Launched

# Rounds of the reward model that always accept, because their test is switched off. Checkpoints are written at the ends of
# iterations alone: a round sees only what the oldest checkpoint may still need.
ADAPTS = (
    "adaptation.when=iteration",
    "adaptation.fit_pairs=6",
    "adaptation.evidence_pairs=6",
    "adaptation.steps=10",
    "checkpoint.every_steps=100",
)
OPEN = (*ADAPTS, "adaptation.min_pairs=1", "adaptation.level=1", "adaptation.guard_accuracy=1")
FIRST = (*OPEN, "iteration.num=2")

Launch = Callable[..., Launched]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A directory that all test processes of this session share."""
    own = tmp_path_factory.getbasetemp()
    return own if worker_id == "master" else own.parent


def made_once(target: Path, make: Callable[[], None]) -> Path:
    """The target, which the first process that asks for it makes while the others wait."""
    done = target.with_name(f"{target.name}.done")
    with target.with_name(f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            make()
            done.touch()
    return target


@pytest.fixture(scope="session")
def data(shared: Path) -> Path:
    """The sandbox's files."""
    directory = shared / "sandbox"
    command = [sys.executable, "-m", "examples.sandbox", "--out", str(directory), "--seed", "0"]
    return made_once(directory, lambda: _run(command))


def _run(command: list[str]) -> None:
    subprocess.run(command, cwd=ROOT, check=True)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def launch(runs: Path, data: Path) -> Iterator[Launch]:
    launched: list[Launched] = []

    def start(*arguments: str) -> Launched:
        launched.append(Launched(runs, data, *arguments))
        return launched[-1]

    yield start
    for run in launched:
        if run.process.poll() is None:
            run.kill()


@pytest.fixture(scope="session")
def first(shared: Path, data: Path) -> Path:
    """The directory of one complete run of every stage, with a reward model that was adapted after iteration 1."""
    return made_once(shared / "first", lambda: Launched(shared, data, "run.name=first", *FIRST).assert_ends_well())


def ready_made(first: Path) -> list[str]:
    """Overrides for a run that brings its policy, its reward model and the labels that this is made from: the first run's."""
    models = [f"policy.model={first}/sft", f"rewarder.model={first}/rm/version_0"]
    labels = [f"data.{name}={first}/collected/{name}.jsonl" for name in ("ratings", "preferences")]
    return [*models, *labels, "stages=[iterate,evaluate,report]"]
