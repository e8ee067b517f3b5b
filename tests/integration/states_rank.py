"""One rank of tests/integration/test_states.py.

Plays every ZeRO stage on one small net and writes what came out as `CASE/STAGE/...` tensors, each rank its own.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from common.config.file import load_config
from learner.ranks.engine import TAG, Engine, init_process_group, num_ranks
from learner.ranks.states import UnsafeState

ROOT = Path(__file__).parent.parent.parent
STAGES = (0, 1, 2, 3)
BAD = (
    "nan",
    "inf",
    "large",
)  # what a bad batch holds; of the largest float the square of the gradient's norm is no float


class Net(nn.Module):
    """Weights above and below ZeRO-3's threshold of 100,000 elements."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second, self.last = nn.Linear(5, 321), nn.Linear(321, 321), nn.Linear(321, 1)

    def forward(self, rows: Tensor) -> Tensor:
        return self.last(self.second(torch.tanh(self.first(rows))))


class Trained:
    """An engine, and steps on rows that are this rank's own."""

    def __init__(self, stage: int, rank: int, device: torch.device):
        settings = ["aggregation.kind=final_score", "learner.autocast=false"]
        learner = load_config(ROOT / "configs" / "base.yaml", settings).learner
        learner = replace(learner, zero_stage=stage, ranks=num_ranks(), grad_clip=0.5, weight_decay=0.01)
        self._rank, self.engine = rank, Engine(Net(), learner, 0.01, device)

    def step(self, number: int, scale: float = 1.0) -> float:
        """Two micro-batches and a step; `scale` multiplies the loss of the last rank's second one."""
        generator = torch.Generator().manual_seed(100 * number + self._rank)
        for part in (0, 1):
            rows = torch.randn(4, 5, generator=generator)
            loss = self.engine.module(rows).square().mean()
            last = part == 1 and self._rank == num_ranks() - 1
            self.engine.backward(loss * scale if last else loss)
        return self.engine.step()

    def weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.engine.full_parameters()}


class Payload:
    """Runs a command where it is unpickled."""

    def __init__(self, command: str):
        self._command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self._command,)


def work(rank: int, ranks: int, port: int, out: Path) -> None:
    torch.set_num_threads(1)
    device = init_process_group(rank, ranks, "127.0.0.1", port, gpus=0)
    found = dict[str, Tensor]()
    for stage in STAGES:
        for case, tensors in cases(stage, rank, device, out / f"stage [{stage}] *"):
            found |= {f"{case}/{stage}/{name}": tensor.contiguous() for name, tensor in tensors.items()}
    save_file(found, out / f"rank{rank}.safetensors")
    dist.barrier()
    dist.destroy_process_group()


def cases(stage: int, rank: int, device: torch.device, directory: Path) -> Iterator[tuple[str, dict[str, Tensor]]]:
    straight = Trained(stage, rank, device)
    for number in (1, 2):
        straight.step(number)
    yield "straight", straight.weights()
    for kind, scale in zip(BAD, (float("nan"), float("inf"), 3e38), strict=True):
        yield kind, bad_batch(Trained(stage, rank, device), scale)
    yield "loaded", loaded(straight, Trained(stage, rank, device), directory)
    straight.step(3)
    yield "saved", straight.weights()
    yield "planted", planted(Trained(stage, rank, device), directory, rank)


def bad_batch(trained: Trained, scale: float) -> dict[str, Tensor]:
    """A step, a bad one, a forgotten one, a step: the weights at the end, whether the bad ones changed any, and the norm."""
    trained.step(1)
    before = trained.weights()
    norm = trained.step(7, scale)
    trained.engine.backward(trained.engine.module(torch.ones(4, 5)).sum())
    trained.engine.forget_gradient()
    same = all(torch.equal(before[name], value) for name, value in trained.weights().items())
    trained.step(2)
    return {**trained.weights(), "same": torch.tensor(same), "norm": torch.tensor(norm)}


def loaded(saved: Trained, fresh: Trained, directory: Path) -> dict[str, Tensor]:
    """The weights one step after a load, from a directory whose name is a pattern to glob."""
    directory.mkdir(exist_ok=True)
    dist.barrier()
    saved.engine.save(directory)
    dist.barrier()
    fresh.engine.load(directory)
    fresh.step(3)
    return fresh.weights()


def planted(trained: Trained, directory: Path, rank: int) -> dict[str, Tensor]:
    """Whether a file with a command in it is refused by name, on every rank; the test looks whether it ran."""
    marker = directory.parent / f"ran-{trained.engine._zero_stage}"
    if rank == 0:
        for file in sorted((directory / TAG).glob("*_states.pt")):
            torch.save({"module": Payload(f"touch {marker}")}, file, pickle_module=pickle)
    dist.barrier()
    try:
        trained.engine.load(directory)
    except UnsafeState as error:
        return {"refused": torch.tensor("was not read" in str(error))}
    return {"refused": torch.tensor(False)}
