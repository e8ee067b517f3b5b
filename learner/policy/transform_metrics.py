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

FAR = 3.0  # |z| from which a term counts as saturated (above; its slope is below .05) or linear (below; above .95)


def transform_metrics(
    groups: Sequence[ScoredGroup], terms: Sequence[str], aggregation: AggregationConfig
) -> dict[str, float]:
    """Over the step's responses: reward/saturated_frac and reward/linear_frac of their terms, reward/all_good (the mean
    probability that all terms are good at once), and by term reward/binding/<term>, the share of responses in which raising
    that term would raise the reward most (weight x slope; with equal weights the smallest z). Penalties do not count.
    Nothing for an aggregation that has no transform."""
    if not AGGREGATIONS[aggregation.kind].transformed:
        return {}
    rewards = [reward for group in groups for reward in group.rewards]
    u = np.array([reward.terms for reward in rewards], dtype=np.float64)
    weights = np.array([reward.weights for reward in rewards], dtype=np.float64)
    low, high = floored(np.array([-FAR, FAR]), aggregation.probability_floor)
    binding = np.argmax(weights * (1 - probability(u, aggregation.probability_floor)), axis=1)
    return {
        "reward/saturated_frac": float((u > high).mean()),
        "reward/linear_frac": float((u < low).mean()),
        "reward/all_good": float(np.exp(u.sum(axis=1)).mean()),
        **{f"reward/binding/{name}": float((binding == m).mean()) for m, name in enumerate(terms)},
    }


def floored(z: NDArray[np.float64], eps: float) -> NDArray[np.float64]:
    """u of z."""
    return np.log(eps + (1 - 2 * eps) / (1 + np.exp(-z)))


def probability(u: NDArray[np.float64], eps: float) -> NDArray[np.float64]:
    """sigmoid(z) of u, elementwise, in [0, 1] whatever the rounding of u."""
    return np.clip((np.exp(u) - eps) / (1 - 2 * eps), 0.0, 1.0)
