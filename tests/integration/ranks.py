"""Ranks as processes: every rank of a module under tests/integration plays all its cases and writes what came out."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).parent.parent.parent
# Of relative_difference: up to 0.006 seen with three kinds of CPU kernels, 2 and more where a case was another.
SAME = 0.05


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


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


def relative_difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> float:
    """How far apart two fits ended, as a share of how far the other one went, of the tensor where that is most. Not of the
    weight: Adam turns float noise in a gradient near 0 into part of that weight's step, seldom into a whole one."""
    assert ours.keys() == theirs.keys() == start.keys()
    return max(_share(ours[name] - theirs[name], theirs[name] - start[name]) for name in theirs)


def _share(apart: Tensor, went: Tensor) -> float:
    return float(apart.double().norm() / went.double().norm()) if apart.any() else 0.0
