"""What can be done about wrong labels, and how well the reward models that come out of it order pairs.

    labels    leave out, turn, soften pairs, or give them margins, by their strength (learner/reward_model/denoising.py)
    contrast  a contrastive term on two views of each response (learner/reward_model/contrastive.py); `dropout`: the views
    without it many      warm, the average of the weights of models from one start; ensemble, the mean of the scores of any
    models oracle    the truth

`flip_known` turns as many of the weakest as are wrong, which nobody knows. Accuracies are means over REPEATS trainings from the
same weights and in the same order of pairs whatever the treatment; warm and ensemble are one model of MEMBERS. Called by
denoising.py, and by real_pairs.py for what needs no truth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.config.config import ContrastiveConfig, DenoisingConfig, RewardTrainingConfig
from learner.preferences.strength import Moments
from learner.reward_model.denoising import denoise
from studies.noisy_pairs import Pairs, World
from studies.scorers import Labelled, Scorer, averaged, subset, train
from studies.strengths import MEMBERS, Mask

REPEATS = 3
LABELS: Mapping[str, Mapping[str, Any]] = {  # learner.reward_model.denoising
    "baseline": {},
    "flip": {"flip": 0.1},
    "soft": {"smoothing": 0.2},
    "margin": {"margin": 1.0},
    "soft_margin": {"smoothing": 0.2, "margin": 1.0},
    "flip_margin": {"flip": 0.1, "margin": 1.0},
    "ensemble_targets": {"targets": "ensemble"},
    "select": {"keep": [0.2, 1.0]},
}
IN_SAMPLE = ("flip", "soft_margin")  # with strengths in sample too
SWAV = {"temperature": 0.1, "dropout": 0.05}
CONTRASTS: Mapping[str, Mapping[str, Any]] = {  # learner.reward_model.contrastive
    "dropout": {"kind": "none"},
    "simcse": {"kind": "simcse"},
    "simcse_diff": {"kind": "simcse_diff"},
    "swav": {"kind": "swav", "weight": 0.1, **SWAV},
    "swav_diff": {"kind": "swav_diff", "weight": 0.5, "prototypes": 20, **SWAV},
}
_OTHERS = (*(f"{name}_in_sample" for name in IN_SAMPLE), *CONTRASTS, "warm", "ensemble")
WITHOUT_TRUTH = (*LABELS, *_OTHERS)
METHODS = (*LABELS, "flip_known", *_OTHERS, "oracle")
Committee = Sequence[Scorer]  # models whose mean score decides; a method has one, or REPEATS of one model each
Committees = Sequence[Committee]


@dataclass(frozen=True)
class Bench:
    """Trains models on a seed's pairs and tests them."""

    world: World
    seed: int

    def inside(self, labelled: Labelled) -> float:
        """Accuracy in distribution of models that are trained on these."""
        return mean_accuracy(trained(labelled, self.seed), self.world.test)

    def both(self, name: str, committees: Committees) -> dict[str, float]:
        """Mean accuracy in and out of distribution."""
        sides = {"in": self.world.test, "out": self.world.shifted}
        return {f"{side}/{name}": mean_accuracy(committees, pairs) for side, pairs in sides.items()}


def outcomes(
    bench: Bench,
    settings: RewardTrainingConfig,
    turned: Mask,
    found: Mapping[str, Moments],
    models: Sequence[Scorer],
) -> dict[str, float]:
    """in/METHOD and out/METHOD of all METHODS, for the training pairs with these labels turned; `found` has their strengths
    out_of_fold and in_sample, and `models` are trained on all of them."""
    labelled = labelled_pairs(bench.world.training, turned)
    known = replace(settings.denoising, flip=float(turned.mean()))
    methods = dict(without_truth(settings, labelled, found, models, bench.seed))
    methods["flip_known"] = trained(denoised(labelled, found["out_of_fold"], known), bench.seed)
    methods["oracle"] = trained(labelled_pairs(bench.world.training, np.zeros_like(turned)), bench.seed)
    return {key: value for name in METHODS for key, value in bench.both(name, methods[name]).items()}


def without_truth(
    settings: RewardTrainingConfig,
    labelled: Labelled,
    found: Mapping[str, Moments],
    models: Sequence[Scorer],
    seed: int,
) -> Iterator[tuple[str, Committees]]:
    """The methods WITHOUT_TRUTH, one after another, trained on these pairs; `found` and `models` as in `outcomes`."""
    asked = {name: (changes, "out_of_fold") for name, changes in LABELS.items()}
    asked |= {f"{name}_in_sample": (LABELS[name], "in_sample") for name in IN_SAMPLE}
    for name, (changes, which) in asked.items():
        yield name, trained(denoised(labelled, found[which], replace(settings.denoising, **changes)), seed)
    for name, changes in CONTRASTS.items():
        yield name, trained(labelled, seed, replace(settings.contrastive, **changes))
    yield "warm", [[averaged(_one_start(labelled, seed))]]
    yield "ensemble", [models]


def trained(labelled: Labelled, seed: int, contrastive: ContrastiveConfig | None = None) -> Committees:
    """REPEATS models, from the same weights and in the same order of pairs whatever the labels are."""
    inputs, first = labelled.states.shape[1], seed * REPEATS
    return [[train(labelled, Scorer(inputs, n), n, contrastive)] for n in range(first, first + REPEATS)]


def labelled_pairs(pairs: Pairs, turned: Mask) -> Labelled:
    """The pairs with those labels turned, plain: target 1, margin 0."""
    rows = torch.where(torch.from_numpy(turned)[:, None], pairs.rows.flip(1), pairs.rows)
    return Labelled(pairs.states, rows, torch.ones(len(rows)), torch.zeros(len(rows)))


def denoised(labelled: Labelled, by: Moments, settings: DenoisingConfig) -> Labelled:
    """The pairs that are kept, with sides, targets and margins as their strength says (learner/reward_model/denoising.py)."""
    found = denoise(by.mean, by.std, settings)
    turned, targets, margins = (torch.from_numpy(v) for v in (found.flipped, found.targets, found.margins))
    rows = torch.where(turned[:, None], labelled.rows.flip(1), labelled.rows)
    return subset(Labelled(labelled.states, rows, targets.float(), margins.float()), np.flatnonzero(found.kept))


def right(committee: Committee, pairs: Pairs) -> Tensor:
    """[P] bool: whether the mean score orders a pair as its rows do."""
    total = torch.stack([model.differences(pairs.states, pairs.rows) for model in committee]).mean(0)
    return total > 0


def mean_accuracy(committees: Committees, pairs: Pairs) -> float:
    """Mean over committees of the share of pairs that each orders rightly."""
    return float(np.mean([float(right(committee, pairs).float().mean()) for committee in committees]))


def _one_start(labelled: Labelled, seed: int) -> list[Scorer]:
    """Models that can be averaged: from the same weights, in MEMBERS orders of the pairs."""
    first = seed * MEMBERS
    start = Scorer(labelled.states.shape[1], first)
    return [train(labelled, start, order) for order in range(first, first + MEMBERS)]
