"""Ray's files of the tests lie in a directory of their own: a cluster that ran here before is not found, and none is left.
Property tests have no time limit of their own: a busy machine is no failure. Every test, and what is set up for it, draws the
same random numbers, whatever ran before it in its process; TEST_SEED=1 gives it others, to see what hangs on them."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

SEED = int(os.environ.get("TEST_SEED", "0"))
TESTS = Path(__file__).parent
# Files are given out in this order: a long one that starts last keeps one process busy while the others have nothing to do.
# test_run.py makes the run that other files of tests/e2e start from.
LONGEST_FIRST = ("e2e/test_run.py", "integration", "e2e", "chaos", "unit/studies", "unit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _place(item.path.relative_to(TESTS).as_posix()))


def _place(file: str) -> int:
    return next(place for place, prefix in enumerate(LONGEST_FIRST) if file.startswith(prefix))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)


@pytest.fixture(scope="session", autouse=True)
def ray_directory() -> Iterator[None]:
    directory = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # Ray's sockets lie in it: their paths must be short
    os.environ["RAY_TMPDIR"] = directory
    # Ray lets its workers give way to everything else (15), so that beside other tests a run would stand still.
    os.environ.setdefault("RAY_worker_niceness", "0")
    yield
    shutil.rmtree(directory, ignore_errors=True)
