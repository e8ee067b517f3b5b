"""One rank of tests/integration/test_perturb.py.

Plays every case at every ZeRO stage on one small net and writes what came out as `CASE/STAGE/...` tensors, each rank its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from common.config.file import load_config
from learner.ranks.engine import Engine, init_process_group, num_ranks

ROOT = Path(__file__).parent.parent.parent
STAGES, STEPS, ROWS, RHO = (0, 1, 2, 3), 4, 8, 0.2
LEARNING_RATE, BETAS, WEIGHT_DECAY, GRAD_CLIP = 0.01, (0.9, 0.999), 0.01, 0.25


class Net(nn.Module):
    """Weights above and below ZeRO-3's threshold of 100,000 elements, of sizes that no number of ranks divides, and one that
    only the outer loss needs. `frozen` leaves the first layer out of the training."""

    def __init__(self, frozen: bool):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Linear(5, 321), nn.Linear(321, 321)
        self.inner, self.outer = nn.Linear(321, 1), nn.Linear(321, 3)
        self.first.requires_grad_(not frozen)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.second(torch.tanh(self.first(rows))))
        return self.inner(hidden), self.outer(hidden)


def rows_of(step: int) -> tuple[Tensor, Tensor]:
    """Rows [8, 5] of the inner and of the outer loss."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(ROWS, 5, generator=generator), torch.randn(ROWS, 5, generator=generator)


def inner_loss(output: tuple[Tensor, Tensor]) -> Tensor:
    """The part of some rows in the mean over all."""
    return torch.sin(3 * output[0]).sum() / ROWS


def outer_loss(output: tuple[Tensor, Tensor]) -> Tensor:
    return ((output[1] - 1).pow(4).sum() + output[0].square().sum()) / ROWS


class Played:
    """An engine, and the two passes of a step: on this rank's rows, in two micro-batches."""

    def __init__(self, stage: int, rank: int, frozen: bool = False):
        config = load_config(ROOT / "configs" / "quickstart.yaml").learner
        config = replace(config, autocast=False, zero_stage=stage, betas=list(BETAS))
        config = replace(config, weight_decay=WEIGHT_DECAY, grad_clip=GRAD_CLIP)
        self.engine = Engine(Net(frozen), config, LEARNING_RATE, torch.device("cpu"))
        self._stage, self._rank = stage, rank
        self.out: dict[str, Tensor] = {}

    def backward(self, loss: Callable[[tuple[Tensor, Tensor]], Tensor], rows: Tensor) -> None:
        for part in rows[self._rank :: num_ranks()].chunk(2):
            self.engine.backward(loss(self.engine.module(part)) * num_ranks())

    def inner_gradient(self, step: int) -> Tensor:
        self.backward(inner_loss, rows_of(step)[0])
        return self.engine.take_gradient()

    def shift(self, step: int) -> None:
        gradient = self.inner_gradient(step)
        norm = self.engine.dot(gradient, gradient) ** 0.5
        self.engine.shift(gradient, RHO / norm)
        self.out[f"norm{step}"] = torch.tensor(norm)

    def step(self, step: int) -> None:
        self.backward(outer_loss, rows_of(step)[1])
        self.engine.restore()
        self.out[f"grad_norm{step}"] = torch.tensor(self.engine.step())

    def note(self, name: str) -> None:
        """The whole parameters, and what a forward pass reads."""
        for key, value in self.engine.full_parameters():
            self.out[f"{name}/{key}"] = value.clone().contiguous()
        with torch.no_grad():
            self.out[f"{name}/forward"] = torch.cat(self.engine.module(rows_of(99)[0]), -1)

    def note_moved(self, name: str) -> None:
        """Also a small parameter as it lies, which ZeRO-3 leaves gathered after a step and so here."""
        self.out[f"{name}/resident"] = self.engine._engine.module.inner.weight.detach().clone()
        self.note(name)

    def note_moments(self) -> None:
        optimizer = self.engine._engine.optimizer
        state = (optimizer.optimizer if self._stage else optimizer).state
        for index, moments in enumerate(state.values()):
            self.out[f"moments/{index}"] = torch.cat([moments["exp_avg"].flatten(), moments["exp_avg_sq"].flatten()])


def metarm(played: Played) -> None:
    for step in range(STEPS):
        played.shift(step)
        played.step(step)
    played.note("end")


def plain(played: Played) -> None:
    for step in range(STEPS):
        played.step(step)
    played.note("end")
    played.note_moments()


def taken(played: Played) -> None:
    """As `plain`, with a gradient taken before, between and after the steps, and one where there is none."""
    for step in range(STEPS):
        assert played.inner_gradient(step).abs().max() > 0
        assert played.engine.take_gradient().abs().max() == 0
        played.step(step)
    played.inner_gradient(0)
    played.note("end")
    played.note_moments()


def restored(played: Played) -> None:
    played.step(0)
    played.note_moved("before")
    played.engine.restore()
    gradient = played.inner_gradient(1)
    played.engine.shift(gradient, 0.3)
    played.engine.shift(gradient, 0.4)
    played.note_moved("shifted")
    with pytest.raises(AssertionError, match="restore"):
        played.engine.step()
    played.engine.restore()
    played.note_moved("after")


def kept(played: Played) -> None:
    for step in range(STEPS):
        played.shift(step)
        played.engine.keep()
        played.step(step)
    played.note("end")


def frozen(played: Played) -> None:
    metarm(played)


CASES = (metarm, plain, taken, restored, kept, frozen)


def work(rank: int, ranks: int, port: int, out: Path) -> None:
    torch.set_num_threads(1)
    init_process_group(rank, ranks, "127.0.0.1", port, gpus=0)
    results: dict[str, Tensor] = {}
    for stage in STAGES:
        for case in CASES:
            played = Played(stage, rank, frozen=case is frozen)
            case(played)
            results |= {f"{case.__name__}/{stage}/{key}": value for key, value in played.out.items()}
            played.engine.free()
    save_file(results, out / f"rank{rank}.safetensors")
    dist.barrier()
    dist.destroy_process_group()  # gloo's threads may not outlive it: std::terminate at exit
