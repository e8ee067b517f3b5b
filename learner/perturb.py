"""The trained weights moved aside and put back, and a gradient taken aside, under every ZeRO stage.

Owned by learner/engine.py, whose verbs take_gradient, shift, restore, keep and dot these are. MetaRM (2405.00438) needs them:
its inner step takes the gradient of one loss, moves the weights along it, and takes the gradient of another loss there.

The weights are moved in the tensors that the optimizer updates (`_masters`: the parameters at ZeRO 0, this rank's float32 part
above) and then brought to where forward passes read them (`_publish`), as after a step. A vector is this rank's part of all of
them, one after the other: whole at ZeRO 0, each element on one rank above, with zeros where DeepSpeed pads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

CHUNK = 2**24  # elements; torch.dot takes no more than 2**31 - 1, and float64 copies of a chunk are small


class Weights:
    """The trained weights of a DeepSpeed engine without offload; this one is for ZeRO 0. All verbs are collective."""

    def __init__(self, engine: Any):
        self._engine, self._optimizer = engine, engine.optimizer
        self._before: list[Tensor] = []

    @property
    def shifted(self) -> bool:
        """Whether a shift has been neither restored nor kept."""
        return bool(self._before)

    @torch.no_grad()
    def take_gradient(self) -> Tensor:
        """What was accumulated, averaged over ranks, float32 [elements of this rank's part]; nothing of it remains."""
        masters = self._masters()
        passes, self._engine._unmanaged_backward_count = (
            self._engine._unmanaged_backward_count,
            0,
        )  # step's count of passes
        if passes == 0:  # DeepSpeed has nothing to reduce then and fails
            return torch.cat([torch.zeros_like(master).flatten() for master in masters])
        vector = torch.cat([gradient.flatten() for gradient in self._reduced()]).float()
        assert vector.numel() == sum(master.numel() for master in masters)
        self.clear_gradient()
        return self._averaged(vector)

    @torch.no_grad()
    def shift(self, vector: Tensor, scale: float) -> None:
        """Adds scale * vector to the weights."""
        masters = self._masters()
        if not self._before:
            self._before = [master.clone() for master in masters]
        parts = vector.split([master.numel() for master in masters])
        for master, part in zip(masters, parts, strict=True):
            master.add_(part.view_as(master), alpha=scale)
        self._publish()

    @torch.no_grad()
    def restore(self) -> None:
        """Puts back the bits from before the first shift, if there was one."""
        if not self._before:
            return
        for master, before in zip(self._masters(), self._before, strict=True):
            master.copy_(before)
        self._before = []
        self._publish()

    def keep(self) -> None:
        """Makes the shifted weights the weights; they already are those that a step updates."""
        self._before = []

    def dot(self, a: Tensor, b: Tensor) -> float:
        """Inner product of two vectors, summed in float64."""
        return float(
            sum(torch.dot(x.double(), y.double()) for x, y in zip(a.split(CHUNK), b.split(CHUNK), strict=True))
        )

    def clear_gradient(self) -> None:
        """Forgets what was accumulated."""
        self._engine.zero_grad()

    # ---- what differs between the stages ------------------------------------------------------------------------------

    def _masters(self) -> list[Tensor]:
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    def _reduced(self) -> list[Tensor]:
        masters = self._masters()
        return [torch.zeros_like(master) if master.grad is None else master.grad for master in masters]

    def _averaged(self, vector: Tensor) -> Tensor:
        dist.all_reduce(vector)  # at ZeRO 0 gradients stay local until DeepSpeed's step
        return vector.div_(dist.get_world_size())

    def _publish(self) -> None:
        pass
