"""Tiers gate and heads: the losses of a round on cached hidden states, with exact derivatives of both orders.

Called by learner/adaptation/round.py. Small enough that every rank does the same on its own copy, so nothing is reduced.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import linear

from learner.adaptation.fit import Method
from learner.adaptation.meta_rm import Loss, spread, spread_pairs
from learner.ranks.losses import masked_regression
from learner.reward_model.training import GATE_PAIRS, Features, gated_score, head_losses, pair_losses
from rewarder.model import GatedRewardModel, RewardOutput

RATED_ROWS = 1024  # of one update
HEADS = "regression_layer.weight"


@dataclass(frozen=True)
class FitFeatures:
    """Hidden states of what a fit draws from: fresh labels, original data, unlabelled samples, labels of earlier rounds that
    are drawn apart, and fresh labels that are left out; None where there are none."""

    fresh: Features | None
    original: Features
    meta: Features | None
    older: Features | None = None
    validation: Features | None = None


@dataclass(frozen=True)
class Batch:
    """What an update takes of one of them: indices of its pairs and of its rated rows, and the weight of the loss."""

    features: Features
    pairs: Tensor
    rated: Tensor
    weight: float


class CachedLandscape:
    """L: Bradley-Terry of the debiased gated score over its scale, on fresh pairs, earlier rounds' and original ones (tier
    heads: and their ratings, and the pairs' own head); J on the meta prompts. `model` is trained in place."""

    def __init__(self, model: GatedRewardModel, sets: FitFeatures, method: Method, scale: float):
        self._model, self._method, self._scale = model, method, scale
        self._sets, self._meta = sets, sets.meta
        self._heads = method.settings.tier == "heads"
        self._rng = np.random.default_rng([method.seed, 1])
        nothing = torch.empty(0, dtype=torch.long)  # drawn anew by each `draw`
        self._batches: list[Batch] = []
        self._meta_rows, self._comparisons = nothing, spread_pairs(nothing, 1)
        prefix = ("gating.", HEADS) if self._heads else ("gating.",)
        self._parameters = {name: p for name, p in model.named_parameters() if name.startswith(prefix)}
        self._optimizer = torch.optim.AdamW(self._parameters.values(), lr=0.0, weight_decay=0.0)
        self._optimizer.zero_grad()

    # ---- Landscape ----------------------------------------------------------------------------------------------------

    def gradient(self, loss: Loss, at: Tensor | None = None) -> tuple[float, Tensor]:
        """The value and the gradient of a loss; nothing stays in the update."""
        value = self._loss(loss, at)
        return value.item(), _flat(torch.autograd.grad(value, list(self._parameters.values()), materialize_grads=True))

    def accumulate(self, loss: Loss, weight: float, at: Tensor | None = None) -> float:
        """Adds weight * gradient to the update and answers the loss."""
        value, gradient = self.gradient(loss, at)
        self._add(weight * gradient)
        return value

    def accumulate_curvature(self, loss: Loss, weight: float, vector: Tensor) -> None:
        """Adds weight * H_loss(theta) vector to the update, exactly, by a second backward pass."""
        parameters = list(self._parameters.values())
        first = torch.autograd.grad(self._loss(loss, None), parameters, create_graph=True, materialize_grads=True)
        along = (_flat(first) * vector).sum()
        second = torch.autograd.grad(along, parameters, materialize_grads=True)
        self._add(weight * _flat(second))

    def dot(self, a: Tensor, b: Tensor) -> float:
        """The inner product."""
        return float(a @ b)

    @torch.no_grad()
    def keep(self, by: Tensor) -> None:
        """Moves the parameters by a vector, for good."""
        for parameter, part in zip(self._parameters.values(), self._split(by), strict=True):
            parameter += part

    # ---- Fit ----------------------------------------------------------------------------------------------------------

    def draw(self) -> None:
        """Draws the batches of the next update."""
        sets, settings = self._sets, self._method.settings
        parts = [(sets.fresh, settings.batch_pairs), (sets.older, settings.batch_older)]
        labelled = [(features, share) for features, share in parts if features is not None]
        total = sum(share for _, share in labelled)
        self._batches = [self._batch(features, share / total) for features, share in labelled]
        self._batches.append(self._batch(sets.original, self._method.original_weight(bool(labelled))))
        if self._meta is not None:
            prompts = self._draw(self._meta.prompt_of.unique(), self._method.settings.meta.prompts)
            self._meta_rows = torch.isin(self._meta.prompt_of, prompts).nonzero().flatten()
            self._comparisons = spread_pairs(self._meta.prompt_of[self._meta_rows], len(prompts))

    @property
    def model(self) -> GatedRewardModel:
        """The model whose parameters are walked."""
        return self._model

    @torch.no_grad()
    def held_out(self) -> float:
        """The loss on the fresh labels that are left out of the fit."""
        features = self._sets.validation
        assert features is not None, "a fit that stops early has labels to look at"
        every = Batch(features, torch.arange(len(features.pairs)), _rated_rows(features), 1.0)
        return float(self._labelled(dict(self._parameters), every))

    def step(self, scale: float) -> None:
        """Makes the update with the learning rate times `scale`."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._method.settings.learning_rate * scale
        self._optimizer.step()
        self._optimizer.zero_grad()

    # ---- losses -------------------------------------------------------------------------------------------------------

    def _loss(self, loss: Loss, at: Tensor | None) -> Tensor:
        parts = self._split(at) if at is not None else [0.0] * len(self._parameters)
        values = {name: p + part for (name, p), part in zip(self._parameters.items(), parts, strict=True)}
        return self._spread(values) if loss == "spread" else self._pairs(values)

    def _spread(self, values: dict[str, Tensor]) -> Tensor:
        assert self._meta is not None, "J needs unlabelled samples"
        return spread(self._score(self._output(values, self._meta, self._meta_rows)), self._comparisons)

    def _pairs(self, values: dict[str, Tensor]) -> Tensor:
        """The weighted sum over the batches of what their pairs say, and their ratings."""
        return torch.stack([batch.weight * self._labelled(values, batch) for batch in self._batches]).sum()

    def _labelled(self, values: dict[str, Tensor], batch: Batch) -> Tensor:
        gated, head = self._bradley_terry(values, batch.features, batch.pairs)
        if not self._heads:
            return gated
        if not len(batch.rated):
            return gated + head
        ratings = batch.features.ratings[batch.rated].to(self._model.device)
        output, known = self._output(values, batch.features, batch.rated), ratings.isfinite()
        regression = masked_regression(output.scores, ratings.nan_to_num(), known, known.sum(0))
        return gated + head + self._method.regression_weight * regression

    def _bradley_terry(self, values: dict[str, Tensor], features: Features, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """The losses of the gated score and of the head that pairs train (0 without one, and without pairs)."""
        if not len(drawn):
            nothing = torch.zeros((), device=self._model.device)
            return nothing, nothing
        output = self._output(values, features, features.pairs[drawn].flatten())
        labels = features.pair_labels[drawn].to(self._model.device)
        neighbours = torch.arange(2 * len(drawn), device=self._model.device).reshape(-1, 2)
        gated = pair_losses(self._score(output), neighbours, labels).mean()
        if (column := self._method.preference) is None:
            return gated, torch.zeros_like(gated)
        return gated, head_losses(output.scores[:, column], neighbours, labels).mean()

    def _output(self, values: dict[str, Tensor], features: Features, rows: Tensor) -> RewardOutput:
        device = self._model.device
        prompt, response = features.prompt[rows].to(device), features.response[rows].to(device)
        gating = {name.removeprefix("gating."): v for name, v in values.items() if name.startswith("gating.")}
        weight = values.get(HEADS, self._model.regression_layer.weight.detach())
        scores, gate = linear(response, weight), functional_call(self._model.gating, gating, (prompt,))
        return RewardOutput(scores, gate, prompt, response)

    def _score(self, output: RewardOutput) -> Tensor:
        return gated_score(output, self._model.reward_transform_matrix.detach()) / self._scale

    # -------------------------------------------------------------------------------------------------------------------

    def _batch(self, features: Features, weight: float) -> Batch:
        pairs = self._draw(torch.arange(len(features.pairs)), GATE_PAIRS)
        return Batch(features, pairs, self._draw(_rated_rows(features), RATED_ROWS), weight)

    def _draw(self, rows: Tensor, most: int) -> Tensor:
        picked = self._rng.choice(len(rows), min(most, len(rows)), replace=False) if len(rows) else []
        return rows[torch.from_numpy(np.sort(np.asarray(picked, dtype=np.int64)))]

    def _split(self, vector: Tensor) -> list[Tensor]:
        parameters = list(self._parameters.values())
        parts = vector.split([parameter.numel() for parameter in parameters])
        return [part.view_as(parameter) for part, parameter in zip(parts, parameters, strict=True)]

    def _add(self, gradient: Tensor) -> None:
        for parameter, part in zip(self._parameters.values(), self._split(gradient), strict=True):
            parameter.grad = part if parameter.grad is None else parameter.grad + part


def _rated_rows(features: Features) -> Tensor:
    """The rows with a rating."""
    return features.ratings.isfinite().any(1).nonzero().flatten()


def _flat(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
