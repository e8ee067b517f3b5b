"""Two views of each response under dropout, and the pull of the contrastive loss on its hidden state.

    1  hidden states of both views of all responses of the step, without gradient, gathered over micro-batches and ranks
    2  the contrastive loss of the whole batch and its gradient by those states (learner/reward_model/contrastive.py)
    3  the trained passes, under the same dropout, add  sum(gradient . state): the chain rule, one micro-batch at a time

so the negatives are the whole step's, however it is cut (GradCache, 2101.06983). Owned by learner/reward_model/stage_1.py;
every rank holds the same prototypes and moves them by the same gradient. Dropout is put on the outputs of the attentions
and MLPs, because today's decoders have none of their own (2401.06080, section 3: 0.05).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from common.config.config import RewardTrainingConfig
from learner.reward_model.contrastive import contrastive_loss
from rewarder.model import GatedRewardModel

NUM_VIEWS = 2
DROPPED = ("self_attn", "mlp")  # names of the modules on whose outputs dropout is put


class Contrast:
    """The contrastive term of one stage 1. Raises ValueError where the backbone has no modules to put dropout on."""

    def __init__(self, config: RewardTrainingConfig, model: GatedRewardModel, seed: int, rank: int):
        self._settings, self._seed, self._rank = config.contrastive, seed, rank
        self._dropped = [module for name, module in model.backbone.named_modules() if name.endswith(DROPPED)]
        if not self._dropped:
            raise ValueError(
                f"{type(model.backbone).__name__} has no modules named {' or '.join(DROPPED)}, and a second view of a response "
                "needs dropout on their outputs; set learner.reward_model.contrastive.kind: none"
            )
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(self._settings.prototypes, model.sizes.hidden, generator=generator)
        self._prototypes = nn.Parameter(drawn.to(model.device))
        self._learning_rate = config.learning_rate
        self._optimizer = torch.optim.AdamW([self._prototypes], lr=config.learning_rate, weight_decay=0.0)

    @contextmanager
    def view(self, step: int, micro_batch: int, index: int) -> Iterator[None]:
        """Dropout that is the same whenever this view of this micro-batch is passed; backward must be inside too, where
        activations are computed again."""
        seed = int(np.random.SeedSequence([self._seed, step, micro_batch, index, self._rank]).generate_state(1)[0])
        hook = functools.partial(_drop, self._settings.dropout)
        handles = [module.register_forward_hook(hook) for module in self._dropped]
        device = self._prototypes.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()

    def pull(self, states: Tensor, pairs: Tensor) -> tuple[Tensor, float]:
        """weight * d(loss)/d(states) [2, N, H], and the loss, for the states of the whole step and its pairs [P, 2]."""
        states, settings = states.requires_grad_(), self._settings
        self._optimizer.zero_grad()
        loss = contrastive_loss(states[0], states[1], pairs, settings.kind, settings.temperature, self._prototypes)
        (settings.weight * loss).backward()
        assert states.grad is not None, "the loss reads every state"
        return states.grad, loss.item()

    def step(self, scale: float) -> None:
        """Moves the prototypes (of swav) at learning_rate * scale."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate * scale
        self._optimizer.step()


def _drop(share: float, module: nn.Module, inputs: object, output: Tensor | Sequence[object]) -> object:
    """A module's output, or the first of its outputs, under dropout."""
    if isinstance(output, Tensor):
        return dropout(output, share)
    first, *rest = output
    assert isinstance(first, Tensor), f"{type(module).__name__} returns its hidden states first"
    return (dropout(first, share), *rest)
