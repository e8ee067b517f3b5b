"""Ray's files of the tests lie in a directory of their own: a cluster that ran here before is not found, and none is left."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def ray_directory() -> Iterator[None]:
    directory = tempfile.mkdtemp(
        prefix="ray-", dir="/tmp"
    )  # short: Ray's sockets lie in it, and their paths are limited
    os.environ["RAY_TMPDIR"] = directory
    yield
    shutil.rmtree(directory, ignore_errors=True)
