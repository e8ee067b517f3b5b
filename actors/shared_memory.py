"""Where weights wait in memory while an engine loads them, and what killed processes left there.

Used by actors/worker.py and the studies' lab. A kill in the middle of a load would else keep a version's weights in memory
until the machine restarts.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

ROOT = Path("/dev/shm")
PREFIX = "iter-rlhf-"


def directory(name: str, root: Path = ROOT) -> Path:
    """This process's directory in shared memory, not made yet; removes those of processes that are no more."""
    for left in root.glob(f"{PREFIX}*"):
        owner = left.name.removeprefix(PREFIX).partition("-")[0]
        if not (owner.isdigit() and Path("/proc", owner).exists()):
            shutil.rmtree(left, ignore_errors=True)
    return root / f"{PREFIX}{os.getpid()}-{name}"
