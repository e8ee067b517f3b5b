"""Ranks as processes: every rank of a module under tests/integration plays all its cases and writes what came out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from tests.integration.test_learner import free_port

ROOT = Path(__file__).parent.parent.parent


def play(module: str, ranks: int, out: Path) -> list[dict[str, Tensor]]:
    """What each rank wrote."""
    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(rank), str(ranks), str(port), str(out)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    for process in reversed(started):  # rank 0 waits for those that failed
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors[-3000:]
    return [load_file(out / f"rank{rank}.safetensors") for rank in range(ranks)]


def largest_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((value - theirs[name]).abs().max()) for name, value in ours.items())
