"""The models of study `denoising`: a hidden layer and a score on states that are computed once.

    f = relu(W h + b),  score = w . f

Trained by AdamW on mini-batches of pairs, with targets and margins (learner/ranks/losses.py) and, where one is asked for, a
contrastive term on f of two views under dropout (learner/reward_model/contrastive.py). Every model has the same number of
updates, on few pairs as on many. Called by denoising.py and strengths.py. WIDTH, LEARNING_RATE and UPDATES were chosen on
seed 0 with clean labels: of widths 64 to 256, rates .001 to .006 and 2 to 8 passes nothing was better by more than .008,
and more passes only fitted the training pairs better.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import dropout, relu

from common.config.config import ContrastiveConfig
from learner.ranks.losses import bradley_terry
from learner.ranks.schedule import cosine
from learner.reward_model.contrastive import contrastive_loss

WIDTH, LEARNING_RATE, WARMUP = 128, 3e-3, 0.03
UPDATES, BATCH_PAIRS = 400, 64
NUM_VIEWS = 2


@dataclass(frozen=True)
class Labelled:
    """What a model is trained on: states [N, H] of responses, rows [P, 2] of the labelled better and worse one, and the target
    and margin (nats) of each pair [P]."""

    states: Tensor
    rows: Tensor
    targets: Tensor
    margins: Tensor


class Scorer(nn.Module):
    """states [..., H] -> scores [...]; weights at random from `seed`."""

    def __init__(self, inputs: int, seed: int):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(WIDTH, inputs, generator=draw) * (2 / inputs) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(WIDTH))
        self.head = nn.Parameter(torch.randn(WIDTH, generator=draw) / WIDTH**0.5)

    def features(self, states: Tensor) -> Tensor:
        """The hidden layer's outputs."""
        return relu(states @ self.weight.T + self.bias)

    def forward(self, states: Tensor) -> Tensor:
        """The scores of states."""
        return self.features(states) @ self.head

    @torch.no_grad()
    def differences(self, states: Tensor, rows: Tensor) -> Tensor:
        """Score of the first less score of the second, [P]."""
        scores = self(states)
        return scores[rows[:, 0]] - scores[rows[:, 1]]


class Contrast:
    """Two views of a batch under dropout on h and f, and the contrastive loss between them; owns the prototypes of swav."""

    def __init__(self, settings: ContrastiveConfig):
        self.settings = settings
        self.prototypes = nn.Parameter(torch.randn(settings.prototypes, WIDTH))

    def loss(self, model: Scorer, states: Tensor, pairs: Tensor, labels: Sequence[Tensor]) -> Tensor:
        """The views' mean Bradley-Terry loss, and weight * the contrastive loss (none of kind none)."""
        asked = self.settings
        views = [dropout(model.features(dropout(states, asked.dropout)), asked.dropout) for _ in range(NUM_VIEWS)]
        loss = torch.stack([pair_loss(view @ model.head, pairs, labels) for view in views]).mean()
        if asked.kind == "none":
            return loss
        first, second = views
        return loss + asked.weight * contrastive_loss(
            first, second, pairs, asked.kind, asked.temperature, self.prototypes
        )


def train(labelled: Labelled, start: Scorer, seed: int, contrastive: ContrastiveConfig | None = None) -> Scorer:
    """A copy of `start` after UPDATES steps; `seed` draws the order of the pairs, dropout and prototypes."""
    model = copy.deepcopy(start)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        contrast = None if contrastive is None else Contrast(contrastive)
        optimizer = _optimizer(model, contrast)
        for step, batch in enumerate(_batches(len(labelled.rows))):
            loss = _loss(model, labelled, batch, contrast)
            optimizer.zero_grad()
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * cosine(step, UPDATES, WARMUP)
            optimizer.step()
    return model


def subset(labelled: Labelled, indices: NDArray[np.intp]) -> Labelled:
    """These of the pairs."""
    at = torch.from_numpy(indices)
    return Labelled(labelled.states, labelled.rows[at], labelled.targets[at], labelled.margins[at])


def averaged(models: Sequence[Scorer]) -> Scorer:
    """A model with the mean of their weights (WARM, 2401.12187)."""
    mean = copy.deepcopy(models[0])
    mean.load_state_dict(
        {name: torch.stack([model.state_dict()[name] for model in models]).mean(0) for name in mean.state_dict()}
    )
    return mean


def pair_loss(scores: Tensor, pairs: Tensor, labels: Sequence[Tensor]) -> Tensor:
    """Mean over pairs [P, 2] of indices into scores, with (targets, margins) [P]."""
    return bradley_terry(scores[pairs[:, 0]] - scores[pairs[:, 1]], *labels).mean()


def _loss(model: Scorer, labelled: Labelled, batch: Tensor, contrast: Contrast | None) -> Tensor:
    """The loss of the pairs of a batch; a response that stands in several of them is passed once."""
    responses, pairs = labelled.rows[batch].unique(return_inverse=True)
    states, labels = labelled.states[responses], (labelled.targets[batch], labelled.margins[batch])
    if contrast is None:
        return pair_loss(model(states), pairs, labels)
    return contrast.loss(model, states, pairs, labels)


def _batches(count: int) -> Iterator[Tensor]:
    """UPDATES batches of indices, pass after pass in a new order; the end of a pass begins a batch with the next one."""
    left = torch.empty(0, dtype=torch.long)
    for _ in range(UPDATES):
        while len(left) < min(BATCH_PAIRS, count):
            left = torch.cat([left, torch.randperm(count)])
        batch, left = left[:BATCH_PAIRS], left[BATCH_PAIRS:]
        yield batch


def _optimizer(model: Scorer, contrast: Contrast | None) -> torch.optim.Optimizer:
    """Prototypes are directions: they are not decayed."""
    groups: list[dict[str, object]] = [{"params": list(model.parameters())}]
    if contrast is not None and contrast.settings.kind.startswith("swav"):
        groups.append({"params": [contrast.prototypes], "weight_decay": 0.0})
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)
