"""Ranks as processes: every rank of a module under tests/integration plays all its cases and writes what came out."""

from __future__ import annotations

import math
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).parent.parent.parent
SAME = (
    0.01  # of relative_difference; up to 0.0012 seen on three kinds of CPU, and 0.12 and more where a case was another
)


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
    """How far apart two fits ended, as a share of how far the other one went, both over all weights of `start`. No largest
    difference: Adam turns float noise in a gradient near 0 into part of a step of that weight, seldom into a whole one."""
    assert ours.keys() == theirs.keys() and start.keys() <= ours.keys()
    apart, went = (
        sum(float((end[name].double() - theirs[name].double()).square().sum()) for name in start)
        for end in (ours, start)
    )
    return math.sqrt(apart / went)
