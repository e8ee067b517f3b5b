"""What the transform makes of a step's rewards: the monitors of the step line. Pure; called by learner/worker.py on rank 0.

Computed from the terms of the records, which are log-probabilities with a floor: u = log(eps + (1 - 2 eps) sigmoid(z)).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from common.config.aggregations import AGGREGATIONS
from common.config.config import AggregationConfig
from common.types import ScoredGroup

FAR = 3.0  # |z| from which a term counts as saturated (above; its slope is below .05), or as linear or floored (below)
FULL, FLAT = 0.9, 0.5  # slopes of a term below: linear from FULL up, as the plain log-sigmoid's; floored under FLAT


def transform_metrics(
    groups: Sequence[ScoredGroup], terms: Sequence[str], aggregation: AggregationConfig
) -> dict[str, float]:
    """Over the step's responses: the shares of their terms that are far above the reference (reward/saturated_frac), far below
    it with the whole slope (reward/linear_frac) or with the slope that the floor took away (reward/floored_frac);
    reward/all_good (the mean probability that all terms are good at once), and by term reward/binding/<term>, the share of
    responses in which raising that term would raise the reward most (weight x slope, floor included). Penalties do not
    count. Nothing for an aggregation that has no transform."""
    if not AGGREGATIONS[aggregation.kind].transformed:
        return {}
    rewards = [reward for group in groups for reward in group.rewards]
    u = np.array([reward.terms for reward in rewards], dtype=np.float64)
    weights = np.array([reward.weights for reward in rewards], dtype=np.float64)
    low, high = floored(np.array([-FAR, FAR]), aggregation.probability_floor)
    steep = slope(u, aggregation.probability_floor)
    binding = np.argmax(weights * steep, axis=1)
    return {
        "reward/saturated_frac": float((u > high).mean()),
        "reward/linear_frac": float(((u < low) & (steep >= FULL)).mean()),
        "reward/floored_frac": float(((u < low) & (steep < FLAT)).mean()),
        "reward/all_good": float(np.exp(u.sum(axis=1)).mean()),
        **{f"reward/binding/{name}": float((binding == m).mean()) for m, name in enumerate(terms)},
    }


def floored(z: NDArray[np.float64], eps: float) -> NDArray[np.float64]:
    """u of z."""
    return np.log(eps + (1 - 2 * eps) / (1 + np.exp(-z)))


def slope(u: NDArray[np.float64], eps: float) -> NDArray[np.float64]:
    """du/dz of u, elementwise: what raising z pays. 1 - sigmoid(z) where there is no floor, and 0 at the floor."""
    p = probability(u, eps)
    return (1 - 2 * eps) * p * (1 - p) / np.exp(u) if eps else 1 - p


def probability(u: NDArray[np.float64], eps: float) -> NDArray[np.float64]:
    """sigmoid(z) of u, elementwise, in [0, 1] whatever the rounding of u."""
    return np.clip((np.exp(u) - eps) / (1 - 2 * eps), 0.0, 1.0)
