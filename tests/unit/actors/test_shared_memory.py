"""actors/shared_memory.py: what killed processes left in memory is removed, what living ones use is not."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from actors.shared_memory import PREFIX, directory


def test_only_what_dead_processes_left_is_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    dead, alive, other = (
        tmp_path / name for name in (f"{PREFIX}{ended.pid}-actor-0", f"{PREFIX}{os.getppid()}-actor-0", "psm_abc")
    )
    for path in (dead, alive, other):
        path.mkdir()
        (path / "weights").write_text("w")
    made = directory("actor-1", tmp_path)
    assert made == tmp_path / f"{PREFIX}{os.getpid()}-actor-1" and not made.exists()
    assert not dead.exists() and (alive / "weights").exists() and (other / "weights").exists()
