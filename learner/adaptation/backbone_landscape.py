"""Tiers lora, top and full: the losses of a round through the backbone, under DeepSpeed, on every rank.

    L  stage 1's losses (learner/reward_model/stage_1.py: ratings, Bradley-Terry of the debiased gated score over its scale, of
       the pairs' own head) on fresh labels and earlier rounds' in one batch + original_weight * the same on original data
    J  the difference loss on the meta prompts, a prompt's samples always in one micro-batch

Called by learner/adaptation/round.py. Gradients are reduced over ranks before anything moves along them; second derivatives
are central finite differences, with the signs in J frozen (its kink makes them garbage otherwise).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from learner.adaptation.fit import Method
from learner.adaptation.meta_rm import Loss, differences, spread, spread_pairs
from learner.ranks.batch import rank_micro_batches
from learner.ranks.engine import Engine, num_ranks, reduce_sum
from learner.reward_model.data import PromptSet, flatten
from learner.reward_model.stage_1 import stage_1_losses
from learner.reward_model.training import gated_score
from rewarder.model import GatedRewardModel, RewardOutput
from rewarder.scoring import pad_conversations

PROBE = 0.001  # length of a finite difference's step in the parameters
ROUGH_PROBE = 0.03  # of low-rank updates in a bfloat16 backbone, whose rounding is most of a smaller difference


@dataclass(frozen=True)
class FitSets:
    """Labels of the policy's samples, original data, unlabelled samples of the policy, labels of earlier rounds that are drawn
    apart, and fresh labels that are left out of the fit."""

    fresh: Sequence[PromptSet]
    original: Sequence[PromptSet]
    meta: Sequence[PromptSet]
    older: Sequence[PromptSet] = ()
    validation: Sequence[PromptSet] = ()


@dataclass(frozen=True)
class Part:
    """The prompts of one pass, what its losses count by, and its weight: 0 where a rank has none left and runs the pass that
    ZeRO-3 waits for."""

    sets: list[PromptSet]
    num_known: Tensor
    num_units: int
    weight: float


class BackboneLandscape:
    """Trains `model`, which `engine` wraps."""

    def __init__(self, engine: Engine, model: GatedRewardModel, sets: FitSets, method: Method, scale: float):
        self._engine, self._model, self._sets = engine, model, sets
        self._method, self._scale = method, scale
        self._precision: Callable[[], AbstractContextManager[object]] = engine.precision
        rough = method.settings.tier == "lora" and model.backbone.dtype != torch.float32
        self._probe = ROUGH_PROBE if rough else PROBE
        self._rng = np.random.default_rng([method.seed, 2])
        self._parts: dict[Loss, list[Part]] = {}

    # ---- Landscape ----------------------------------------------------------------------------------------------------

    def gradient(self, loss: Loss, at: Tensor | None = None) -> tuple[float, Tensor]:
        """The value and the gradient of a loss; nothing stays in the update."""
        value = self.accumulate(loss, 1.0, at)
        return value, self._engine.take_gradient()

    def accumulate(self, loss: Loss, weight: float, at: Tensor | None = None) -> float:
        """Adds weight * gradient to the update and answers the loss."""
        with self._moved(at):
            return self._backward(loss, weight, [None] * len(self._parts[loss]))

    def accumulate_curvature(self, loss: Loss, weight: float, vector: Tensor) -> None:
        """Adds weight * H_loss(theta) vector to the update, from a finite difference of gradients."""
        length = self.dot(vector, vector) ** 0.5
        if length == 0:
            return
        self._precision = nullcontext  # what bfloat16 rounds off is more than the difference
        signs = [self._signs(part) if loss == "spread" else None for part in self._parts[loss]]
        for side in (1, -1):
            with self._moved(side * self._probe / length * vector):
                self._backward(loss, side * weight * length / (2 * self._probe), signs)
        self._precision = self._engine.precision

    def dot(self, a: Tensor, b: Tensor) -> float:
        """The inner product over all ranks."""
        return self._engine.dot(a, b)

    def keep(self, by: Tensor) -> None:
        """Moves the parameters by a vector, for good."""
        self._engine.shift(by, 1.0)
        self._engine.keep()

    # ---- Fit ----------------------------------------------------------------------------------------------------------

    def draw(self) -> None:
        """Draws the batches of the next update."""
        settings, sets = self._method.settings, self._sets
        fresh, original = (
            self._draw(sets.fresh, settings.batch_pairs),
            self._draw(sets.original, self._method.batch_original),
        )
        labelled = [*fresh, *self._draw(sets.older, settings.batch_older)]
        weight = self._method.original_weight(bool(labelled))
        meta = self._draw(sets.meta, settings.meta.prompts)
        self._parts = {
            "pairs": [*self._cut(labelled, 1.0), *self._cut(original, weight)],
            "spread": self._cut(meta, 1.0),
        }

    @property
    def model(self) -> GatedRewardModel:
        """The model whose parameters are walked."""
        return self._model

    @torch.no_grad()
    def held_out(self) -> float:
        """The loss on the fresh labels that are left out of the fit."""
        values = [part.weight * self._pairs(part) for part in self._cut(self._sets.validation, 1.0)]
        return float(reduce_sum(torch.stack(values).sum().double().cpu()))

    def step(self, scale: float) -> None:
        """Makes the update with the learning rate times `scale`."""
        self._engine.step(scale)

    # ---- passes -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _moved(self, at: Tensor | None) -> Iterator[None]:
        if at is not None:
            self._engine.shift(at, 1.0)
        yield
        if at is not None:
            self._engine.restore()

    def _backward(self, loss: Loss, weight: float, signs: Sequence[Tensor | None]) -> float:
        total = torch.zeros(1, dtype=torch.float64)
        for part, frozen in zip(self._parts[loss], signs, strict=True):
            value = part.weight * (self._spread(part, frozen) if loss == "spread" else self._pairs(part))
            self._engine.backward(weight * value * num_ranks())
            total += value.detach().double().cpu()
        return float(reduce_sum(total))

    def _pairs(self, part: Part) -> Tensor:
        """The loss of the ratings, of the gated score, and of the head that pairs train."""
        output, labels = self._forward(part)
        column = self._method.preference
        ratings, pairs, pair_labels = labels
        of_pass = ratings, pairs, pair_labels, part.num_known, part.num_units
        losses = stage_1_losses(output, self._model.reward_transform_matrix, *of_pass, column, self._scale)
        regression, gated, head = losses.unbind()
        return gated + head + self._method.regression_weight * regression

    def _spread(self, part: Part, signs: Tensor | None) -> Tensor:
        reward, prompt_of = self._rewards(part)
        return spread(reward, spread_pairs(prompt_of, part.num_units), signs)

    @torch.no_grad()
    def _signs(self, part: Part) -> Tensor:
        reward, prompt_of = self._rewards(part)
        return differences(reward, spread_pairs(prompt_of, part.num_units)).sign()

    def _rewards(self, part: Part) -> tuple[Tensor, Tensor]:
        output, _ = self._forward(part)
        reward = gated_score(output, self._model.reward_transform_matrix) / self._scale
        return reward, flatten(part.sets)[-1].to(reward.device)

    def _forward(self, part: Part) -> tuple[RewardOutput, list[Tensor]]:
        rendered, *labels, _ = flatten(part.sets)
        with self._precision():
            output = self._engine.module(*pad_conversations(rendered, self._model.device))
        return output, [values.to(self._model.device) for values in labels]

    # -------------------------------------------------------------------------------------------------------------------

    def _draw(self, sets: Sequence[PromptSet], most: int) -> list[PromptSet]:
        if not sets or not most:
            return []
        return [sets[i] for i in self._rng.choice(len(sets), min(most, len(sets)), replace=False)]

    def _cut(self, sets: Sequence[PromptSet], weight: float) -> list[Part]:
        """This rank's passes over a batch; a pair loss counts by the batch's pairs, J by its prompts."""
        if not sets:
            return []
        known = torch.from_numpy(sum(np.isfinite(prompt.ratings).sum(0) for prompt in sets)).to(self._model.device)
        units = sum(len(prompt.pairs) for prompt in sets) or len(sets)
        lengths = [sum(len(c.ids) for c in prompt.conversations) for prompt in sets]
        cut = rank_micro_batches(lengths, self._method.micro_batch_tokens, self._method.rank, num_ranks())
        return [Part([sets[i] for i in rows or [0]], known, units, weight * bool(rows)) for rows in cut]
