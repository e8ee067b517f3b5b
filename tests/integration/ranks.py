"""Ranks as processes: every rank of a module under tests/integration plays all its cases and writes what came out."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from multiprocessing import set_forkserver_preload
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor
from torch.multiprocessing import start_processes  # pyright: ignore[reportPrivateImportUsage]

PRELOADED = ["deepspeed", "transformers", "transformers.models.llama.modeling_llama"]
# Of relative_difference: up to 0.006 seen with three kinds of CPU kernels, 2 and more where a case was another.
SAME = 0.05


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def start(work: Callable[..., None], ranks: int, *arguments: object) -> None:
    """Runs work(rank, ranks, port, *arguments) in one process for each rank; an error of a rank is raised here.

    The processes are forked from a server that has imported what all of them need, which takes several seconds.
    """
    os.environ["DS_ACCELERATOR"] = "cpu"  # DeepSpeed reads it when the server imports it
    set_forkserver_preload(PRELOADED)
    start_processes(work, (ranks, free_port(), *arguments), nprocs=ranks, start_method="forkserver")


def play(work: Callable[[int, int, int, Path], None], ranks: int, out: Path) -> list[dict[str, Tensor]]:
    """What each rank wrote."""
    start(work, ranks, out)
    return [load_file(out / f"rank{rank}.safetensors") for rank in range(ranks)]


def relative_difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> float:
    """How far apart two fits ended, as a share of how far the other one went, of the tensor where that is most. Not of the
    weight: Adam turns float noise in a gradient near 0 into part of that weight's step, seldom into a whole one."""
    assert ours.keys() == theirs.keys() == start.keys()
    return max(_share(ours[name] - theirs[name], theirs[name] - start[name]) for name in theirs)


def _share(apart: Tensor, went: Tensor) -> float:
    return float(apart.double().norm() / went.double().norm()) if apart.any() else 0.0
