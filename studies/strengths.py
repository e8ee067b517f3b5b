"""How strong a pair is by many models, and how well that tells its label from truth. Pure but for training the members.

    d[m, i]   score of the labelled better less that of the other, of pair i by member m
    strength  mean and population standard deviation of d over the members that count for the pair

Out of fold, those that did not train on the pair, or on any pair of its prompt; in sample, as many that trained on all pairs.
Members differ in their weights at the start and in the order of the pairs. Called by denoising.py. Source: Wang et al.
2401.06080, section 2 (there in sample); out of fold is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from learner.preferences.folds import folded
from learner.preferences.strength import Moments, moments
from studies.scorers import Labelled, Scorer, subset, train

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Part = NDArray[np.intp]
MEMBERS, FOLDS, PARTS = 10, 2, 10
SPLITS = 32  # stream of the seed


def left_out(groups: NDArray[np.int64], seed: int) -> Mask:
    """[MEMBERS, P]: the pairs that a member does not see, one part in FOLDS of the groups [P] (prompts, or each pair its own);
    drawn anew for every FOLDS members, which leave out each pair once."""
    return folded(groups, int(groups.max()) + 1, MEMBERS, FOLDS, [seed, SPLITS])


def members(labelled: Labelled, plan: Mask, seed: int) -> list[Scorer]:
    """A model for each row of the plan [M, P], trained on the pairs that it does not leave out."""
    seeds, inputs = range(seed * len(plan), (seed + 1) * len(plan)), labelled.states.shape[1]
    kept = [subset(labelled, np.flatnonzero(~out)) for out in plan]
    return [train(part, Scorer(inputs, number), number) for part, number in zip(kept, seeds, strict=True)]


def out_of_fold(labelled: Labelled, groups: NDArray[np.int64], seed: int) -> Moments:
    """By the members that saw no pair of its group."""
    plan = left_out(groups, seed)
    return moments(differences(members(labelled, plan, seed), labelled), plan)


def everywhere(labelled: Labelled, seed: int) -> list[Scorer]:
    """Members that trained on all pairs."""
    return members(labelled, np.zeros((MEMBERS, len(labelled.rows)), bool), seed)


def in_sample(models: Sequence[Scorer], labelled: Labelled) -> Moments:
    """By models that trained on all pairs."""
    found = differences(models, labelled)
    return moments(found, np.ones_like(found, dtype=bool))


def differences(models: Sequence[Scorer], labelled: Labelled) -> Floats:
    """d [M, P]."""
    return torch.stack([model.differences(labelled.states, labelled.rows) for model in models]).double().numpy()


def auc(scores: Floats, positive: Mask) -> float:
    """The chance that one that is positive has a higher score than one that is not, a tie counting half; NaN where either kind
    is missing."""
    wanted, others = np.sort(scores[positive]), scores[~positive]
    if not len(wanted) or not len(others):
        return float("nan")
    above = len(wanted) - np.searchsorted(wanted, others, side="right")
    equal = len(wanted) - np.searchsorted(wanted, others, side="left") - above
    return float((above + equal / 2).mean() / len(wanted))


def parts(mean: Floats) -> list[Part]:
    """PARTS equal parts (to one pair) of the pairs, from the weakest to the strongest."""
    return np.array_split(np.argsort(mean, kind="stable"), PARTS)


def grown(ordered: Sequence[Part]) -> list[Part]:
    """The first part, the first two, .. all but the last."""
    return [np.concatenate(ordered[:count]) for count in range(1, len(ordered))]


def agreement(turned: Mask, ordered: Sequence[Part]) -> list[float]:
    """Share of labels in each part that agree with truth."""
    return [float(1 - turned[part].mean()) for part in ordered]
