"""The trained weights moved aside and put back, and a gradient taken aside, under every ZeRO stage.

Owned by learner/ranks/engine.py, whose verbs take_gradient, shift, restore, keep and dot these are. MetaRM (2405.00438)
needs them: its inner step takes the gradient of one loss, moves the weights along it, and takes the gradient of another
loss there.

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

    _partitioned = False

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
        if self._engine._unmanaged_backward_count == 0:  # DeepSpeed, which has nothing to reduce then, would fail
            return torch.cat([torch.zeros_like(master).flatten() for master in masters])
        self._engine._unmanaged_backward_count = 0  # step counts the passes of its update by it
        vector = torch.cat([gradient.flatten() for gradient in self._reduced()]).float()
        assert vector.numel() == sum(master.numel() for master in masters)
        self.clear_gradient()
        if not self._partitioned:  # gradients stay local until DeepSpeed's step
            dist.all_reduce(vector)
            vector /= dist.get_world_size()
        return vector

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
        """Inner product of two vectors over all ranks, summed in float64."""
        pairs = zip(a.split(CHUNK), b.split(CHUNK), strict=True)
        total = torch.stack([torch.dot(x.double(), y.double()) for x, y in pairs]).sum()
        if self._partitioned:
            dist.all_reduce(total)
        return float(total)

    def after_step(self) -> None:
        """Called when the optimizer has stepped."""

    def clear_gradient(self) -> None:
        """Forgets what was accumulated."""
        self._engine.zero_grad()

    # ---- what differs between the stages ------------------------------------------------------------------------------

    def _masters(self) -> list[Tensor]:
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    def _reduced(self) -> list[Tensor]:
        masters = self._masters()
        return [torch.zeros_like(master) if master.grad is None else master.grad for master in masters]

    def _publish(self) -> None:
        pass


class PartitionedWeights(Weights):
    """ZeRO 1 and 2: the optimizer's float32 parts are copies, from which DeepSpeed puts the whole parameters together."""

    _partitioned = True

    def __init__(self, engine: Any, stage: int):
        super().__init__(engine)
        self._stage = stage

    def clear_gradient(self) -> None:
        """Forgets the gradient that was accumulated."""
        self._optimizer.zero_grad()
        for group in self._optimizer.averaged_gradients:
            self._optimizer.averaged_gradients[group] = None  # as step does: it is this rank's part, and taken

    def _reduced(self) -> list[Tensor]:
        # What DeepSpeed's step begins with; its readers of gradients (deepspeed.utils.safe_get_*) need that done, and then
        # gather them whole.
        if self._stage == 1:
            self._optimizer.set_gradient_accumulation_boundary(True)
            self._optimizer.reduce_gradients()
        else:
            self._optimizer.finalize_gradient_accumulation_boundary()
        groups = range(len(self._optimizer.param_groups))
        return [gradient for group in groups for gradient in self._optimizer.averaged_gradients[group]]

    def _publish(self) -> None:
        self._optimizer.update_lp_params()


class ShardedWeights(Weights):
    """ZeRO 3: every parameter is a shard on each rank, gathered for a pass; small ones stay gathered."""

    _partitioned = True

    def after_step(self) -> None:
        """Clears what a step of the optimizer leaves behind."""
        # DeepSpeed (0.19) never clears its shards of gradients: the first backward after a step overwrites those that it
        # reaches, and a parameter that it does not reach keeps the gradient of the step before. Delete when step clears them.
        self.clear_gradient()

    def clear_gradient(self) -> None:
        """Forgets the gradient that was accumulated."""
        for gradient in self._gradients():
            gradient.zero_()

    def _parameters(self) -> list[Any]:
        return [parameter for parameter in self._engine.module.parameters() if parameter.requires_grad]

    def _masters(self) -> list[Tensor]:  # as deepspeed.utils.safe_get_local_fp32_param: views, for nothing is offloaded
        return [self._optimizer.get_local_fp32_param(parameter) for parameter in self._parameters()]

    def _gradients(self) -> list[Tensor]:  # as deepspeed.utils.safe_get_local_grad: views, averaged in each backward
        return [self._optimizer.get_local_fp32_grad_for_param(parameter) for parameter in self._parameters()]

    def _reduced(self) -> list[Tensor]:
        return self._gradients()

    def _publish(self) -> None:
        # As DeepSpeed's step does: nothing that was gathered before is read again, and what stays gathered is gathered anew.
        self._optimizer.parameter_offload.partition_all_parameters()
        for parameter, master in zip(self._parameters(), self._masters(), strict=True):
            parameter.ds_tensor.data.copy_(master)
        resident = self._optimizer.persistent_parameters
        if resident:
            resident[0].all_gather(resident)


def trained_weights(engine: Any, zero_stage: int) -> Weights:
    """The weights that a DeepSpeed engine trains at that ZeRO stage."""
    if zero_stage == 0:
        return Weights(engine)
    return ShardedWeights(engine) if zero_stage == 3 else PartitionedWeights(engine, zero_stage)
