"""DeepSpeed behind a few verbs: forward, backward, step, save, load, and MetaRM's (learner/ranks/perturb.py). The only
importer of deepspeed.

Owned by learner/worker.py, one per rank, used by every stage that takes a gradient. Parameters are float32 (sharded from
ZeRO stage 1 up by DeepSpeed's rules); passes may run in bfloat16 autocast. Gradient accumulation is ours: any number of
`backward`, then one `step`, because micro-batches are cut by tokens and their number differs from step to step.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.config.config import LearnerConfig
from learner.ranks.perturb import trained_weights
from learner.ranks.precision import autocasts
from learner.ranks.states import plain_path, safe_load

TAG = "deepspeed"


def init_process_group(rank: int, ranks: int, address: str, port: int, gpus: float) -> torch.device:
    """Joins the learner's process group (gloo on CPU, NCCL on GPUs) and returns this rank's device."""
    local = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": 0, "LOCAL_SIZE": 1}
    os.environ.update({key: str(value) for key, value in local.items()})
    os.environ.update({"MASTER_ADDR": address, "MASTER_PORT": str(port)})
    if gpus == 0:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed  # reads DS_ACCELERATOR when it is imported
    import deepspeed.ops

    # Its shared-memory all-reduce for CPUs, which training does not use, would be compiled here and leave 69 MB in /dev/shm
    # for good (0.19).
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("nccl" if gpus else "gloo", verbose=False)
    return torch.device("cuda", 0) if gpus else torch.device("cpu")


def init_single_rank() -> None:
    """A process group of one, for a role of one process that uses what is written for ranks; CPU tensors only."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # pyright: ignore[reportPrivateImportUsage]


class Engine:
    """One trainable module under DeepSpeed and AdamW. Use `engine.module` as the module; gradients are averaged over ranks,
    so a loss that is normalised by a global count is multiplied by `num_ranks()`."""

    def __init__(self, module: nn.Module, config: LearnerConfig, learning_rate: float, device: torch.device):
        import deepspeed

        self._autocast, self._device = autocasts(config.autocast, device), device
        self._learning_rate, self._zero_stage = learning_rate, config.zero_stage
        trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            trainable, lr=learning_rate, betas=(config.betas[0], config.betas[1]), weight_decay=config.weight_decay
        )
        self._grad_clip, self._grad_norm = config.grad_clip, 0.0
        if config.zero_stage == 0:
            optimizer.register_step_pre_hook(self._clip)
        ds_config = _ds_config(config.zero_stage, config.grad_clip if config.zero_stage else 0.0)
        engine, *_ = deepspeed.initialize(model=module.to(device), optimizer=optimizer, config=ds_config)
        self._engine: Any = engine  # DeepSpeed ships no usable types
        self._engine.checkpoint_engine.load = safe_load(_records())  # its own runs what a file says (0.19)
        self._weights = trained_weights(engine, config.zero_stage)

    @property
    def module(self) -> Callable[..., Any]:
        """The forward pass, through DeepSpeed's hooks."""
        return self._engine

    @property
    def torch_module(self) -> nn.Module:
        """For passes without gradient. Under ZeRO-3 that is the engine (it gathers), else the bare module."""
        return self._engine if self._zero_stage == 3 else self._engine.module

    def precision(self) -> AbstractContextManager[object]:
        """The context of trained passes: bfloat16 autocast, or none."""
        return torch.autocast(self._device.type, torch.bfloat16) if self._autocast else nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Adds the loss's gradient to those accumulated since the last step."""
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self, scale: float = 1.0) -> float:
        """Updates the parameters at learning_rate * scale; returns the gradient norm before clipping. Where that is not finite,
        nothing was updated, on no rank, and the gradient is gone."""
        self._check_not_shifted()
        for group in self._engine.optimizer.param_groups:
            group["lr"] = self._learning_rate * scale
        try:
            self._engine.step()
        except _NotFinite:  # ZeRO 0; above, DeepSpeed's own step leaves the parameters alone
            self.forget_gradient()
        self._weights.after_step()
        if self._zero_stage > 0:
            self._grad_norm = float(self._engine.get_global_grad_norm() or 0.0)
        return self._grad_norm

    def _clip(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        # DeepSpeed reports no gradient norm at stage 0; its gradients are reduced, whole and unclipped when the optimizer
        # steps, so both are done here.
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.get_total_norm([part.grad for part in parameters if part.grad is not None])
        self._grad_norm = float(norm)
        if not math.isfinite(self._grad_norm):
            raise _NotFinite
        torch.nn.utils.clip_grads_with_norm_(parameters, self._grad_clip or float("inf"), norm)

    def forget_gradient(self) -> None:
        """Forgets what `backward` accumulated since the last step. Collective."""
        self.take_gradient()

    def take_gradient(self) -> Tensor:
        """What `backward` accumulated since the last step or take, averaged over ranks, as one flat float32 vector; nothing of
        it reaches the next step. This rank's part of the trainable parameters: whole at ZeRO 0, the local shard above.
        Zeros where there was no gradient. Collective."""
        return self._weights.take_gradient()

    def shift(self, vector: Tensor, scale: float) -> None:
        """Adds scale * vector, laid out as `take_gradient`'s, to the weights of the next forward passes. Shifts add up until
        `restore` or `keep`, one of which must come before a step. Collective."""
        self._weights.shift(vector, scale)

    def restore(self) -> None:
        """Puts back the weights from before the first shift, bit by bit; without a shift, nothing. Collective."""
        self._weights.restore()

    def keep(self) -> None:
        """Makes the shifted weights the weights that the next step updates; the optimizer's moments stay."""
        self._weights.keep()

    def dot(self, a: Tensor, b: Tensor) -> float:
        """Inner product over all ranks of two vectors laid out as `take_gradient`'s. Collective."""
        return self._weights.dot(a, b)

    def _check_not_shifted(self) -> None:
        assert not self._weights.shifted, "the weights are shifted; restore() or keep() them before step, save and load"

    def full_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """(name, whole parameter) in one order on every rank; each is gathered alone, so one parameter's memory suffices.

        Every rank must walk the whole iterator (the gather is collective)."""
        import deepspeed

        for name, parameter in self._engine.module.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=self._zero_stage == 3):
                yield name, parameter.detach()

    def save(self, directory: Path) -> None:
        """Writes parameters and optimizer state of every rank; collective. The caller commits the directory."""
        self._check_not_shifted()
        self._engine.save_checkpoint(str(directory), tag=TAG, save_latest=False)

    def load(self, directory: Path) -> None:
        """Restores what `save` wrote, at the same number of ranks and ZeRO stage. Raises UnsafeState, before anything is run,
        where a file holds more than states."""
        self._check_not_shifted()
        with plain_path(directory) as plain:
            path, _ = self._engine.load_checkpoint(str(plain), tag=TAG)
        if path is None:
            raise RuntimeError(
                f"{directory}: DeepSpeed found no checkpoint there; remove the directory and resume again"
            )

    def free(self) -> None:
        """Gives the optimizer state and hooks back; the module stays."""
        self._engine.destroy()


class _NotFinite(Exception):
    """A gradient that must not reach the parameters."""


def _records() -> list[type]:
    """The classes of DeepSpeed's that its files of optimizer state hold: data alone."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, ZeroStageEnum, fragment_address]


def freeze(module: nn.Module, zero_stage: int, device: torch.device) -> Callable[..., Any]:
    """A module for inference beside the trained one; sharded over the ranks where ZeRO-3 shards the trained one."""
    module = module.to(device).eval().requires_grad_(False)
    if zero_stage < 3:
        return module
    import deepspeed

    engine: Any = deepspeed.initialize(model=module, config=_ds_config(3, 0.0))[0]
    engine.eval()
    return engine


def num_ranks() -> int:
    """Ranks of the learner."""
    return dist.get_world_size()


def reduce_sum(values: Tensor) -> Tensor:
    """Sum over ranks, in place. NCCL reduces only what is on a GPU, so a CPU tensor goes there and back."""
    if dist.get_backend() != "nccl" or values.is_cuda:
        dist.all_reduce(values)
        return values
    moved = values.cuda()
    dist.all_reduce(moved)
    return values.copy_(moved)


def _ds_config(zero_stage: int, grad_clip: float) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": grad_clip,
        "zero_optimization": {"stage": zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
