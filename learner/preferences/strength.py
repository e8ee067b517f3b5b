"""Preference strength: what many reward models say of each pair, as numbers. Pure maths.

    d[m, i] = score of the chosen - score of the rejected, of pair i by member m
    strength of pair i = mean over members of d[m, i], with their population standard deviation

Called by learner/preferences/worker.py (checks) and driver/preferences/results.py (all else). Letters: M members, P pairs.
Source: Wang et al. 2401.06080, section 2 (there over all members, which all trained on the pair). Counting only members that
did not train on a pair is ours: a model that has seen a wrong label has begun to learn it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray

from rewarder.debias import spearman

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
BUCKETS, BINS, FEWEST_SHARED = 20, 48, 10
QUANTILES = (0.01, 0.05, 0.1, 0.2, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
SAME = 1e-5  # logits: what rounding makes of equal scores
SHOWN = (0.5, 99.5)  # per cent: what a histogram spans; the rest is in its first and last bar


@dataclass(frozen=True)
class Moments:
    """Weighs each pair over the `members` [P] that count: mean and population standard deviation [P], NaN where none does."""

    mean: Floats
    std: Floats
    members: NDArray[np.int64]


@dataclass(frozen=True)
class Bucket:
    """A part of the pairs, in order of their mean: how many, from where to where, the mean of the means and of the stds."""

    pairs: int
    low: float
    high: float
    mean: float
    std: float


@dataclass(frozen=True)
class Histogram:
    """Counts between edges [B + 1], of each named list of values."""

    edges: list[float]
    counts: dict[str, list[int]]


@dataclass(frozen=True)
class Agreement:
    """Spearman's correlation of two members' differences, over all twos of them: mean, lowest, highest (NaN for none), and the
    number of twos."""

    mean: float
    low: float
    high: float
    twos: int


def check_differences(differences: Floats, member: int) -> None:
    """ValueError for a member whose differences [P] are not finite, or all the same but for rounding (a constant reward)."""
    wrong = int((~np.isfinite(differences)).sum())
    if wrong:
        raise ValueError(
            f"member {member}: {wrong} of {len(differences)} score differences are not finite; lower "
            "learner.preferences.learning_rate, and use rewarder.dtype float32 or bfloat16"
        )
    if np.ptp(differences) < SAME:
        size, mean = len(differences), float(differences.mean())
        raise ValueError(
            f"member {member}: the score differences of all {size} pairs are {mean:.3g} (to {SAME:g}): it says nothing of any; "
            "check that the responses of a pair differ in tokens that the policy knows and that its weights are whole, and "
            "change learner.preferences.learning_rate"
        )


def strength(differences: Floats, left_out: Mask) -> Moments:
    """Over the members that left a pair out; over all where every member trained on it. differences and left_out [M, P]."""
    return moments(differences, np.where(left_out.any(0), left_out, True))


def in_sample(differences: Floats, left_out: Mask) -> Moments:
    """Over the members that trained on a pair."""
    return moments(differences, ~left_out)


def moments(differences: Floats, counted: Mask) -> Moments:
    """Over the members that are counted [M, P] for a pair."""
    members = counted.sum(0)
    divisor = np.where(members > 0, members, np.nan)
    values = np.where(counted, differences, 0.0).astype(np.float64)
    mean = values.sum(0) / divisor
    spread = np.where(counted, values - mean, 0.0)
    return Moments(mean, np.sqrt((spread**2).sum(0) / divisor), members)


def accuracies(differences: Floats, counted: Mask) -> list[float]:
    """Gives each member the share of its counted pairs whose chosen response it scores higher; NaN where it has none."""
    return [
        float((gaps[kept] > 0).mean()) if kept.any() else float("nan")
        for gaps, kept in zip(differences, counted, strict=True)
    ]


def agreement(differences: Floats, counted: Mask) -> Agreement:
    """Between members, on the pairs that count for both (at least FEWEST_SHARED)."""
    correlations = [
        spearman(torch.from_numpy(differences[a][shared]), torch.from_numpy(differences[b][shared]))
        for a, b in combinations(range(len(differences)), 2)
        if (shared := counted[a] & counted[b]).sum() >= FEWEST_SHARED
    ]
    if not correlations:
        return Agreement(float("nan"), float("nan"), float("nan"), 0)
    return Agreement(float(np.mean(correlations)), min(correlations), max(correlations), len(correlations))


def buckets(moments: Moments, count: int = BUCKETS) -> list[Bucket]:
    """Equal parts (to one pair) of the pairs, from the weakest to the strongest; fewer where there are fewer pairs."""
    order = np.argsort(moments.mean, kind="stable")
    return [_bucket(moments, part) for part in np.array_split(order, min(count, len(order)))]


def quantiles(mean: Floats) -> dict[str, float]:
    """The quantiles of the strengths, by level."""
    return {f"{level:g}": float(value) for level, value in zip(QUANTILES, np.quantile(mean, QUANTILES), strict=True)}


def histogram(values: dict[str, Floats], bins: int = BINS) -> Histogram:
    """Counts each list on common edges with one at 0, that span SHOWN of all of them; what lies beyond is counted at the
    ends."""
    low, high = np.percentile(np.concatenate(list(values.values())), SHOWN)
    width = max(high - low, 1e-12) / bins
    edges = width * np.arange(np.floor(low / width), np.ceil(high / width) + 1)
    inside = {name: np.clip(numbers, edges[0], edges[-1]) for name, numbers in values.items()}
    return Histogram(edges.tolist(), {name: np.histogram(v, edges)[0].tolist() for name, v in inside.items()})


def rank_correlation(a: Floats, b: Floats) -> float:
    """Spearman's."""
    return spearman(torch.from_numpy(a), torch.from_numpy(b))


def weakest(mean: Floats, count: int) -> list[int]:
    """Indices of the pairs of lowest mean, lowest first."""
    return np.argsort(mean, kind="stable")[:count].tolist()


def _bucket(moments: Moments, part: NDArray[np.intp]) -> Bucket:
    mean, std = moments.mean[part], moments.std[part]
    return Bucket(len(part), float(mean[0]), float(mean[-1]), float(mean.mean()), float(std.mean()))
