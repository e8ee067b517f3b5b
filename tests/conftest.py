"""Ray's files of the tests lie in a directory of their own: a cluster that ran here before is not found, and none is left.
Property tests have no time limit of their own: a busy machine is no failure."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="session", autouse=True)
def ray_directory() -> Iterator[None]:
    directory = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # Ray's sockets lie in it: their paths must be short
    os.environ["RAY_TMPDIR"] = directory
    yield
    shutil.rmtree(directory, ignore_errors=True)
