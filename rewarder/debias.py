"""The verbosity debiasing matrix T, fitted once per RM on predicted scores. Pure maths.

Owns the search for the penalties. The learner's reward-model stage calls `fit_debias` before the gate is trained and
stores T as `reward_transform_matrix`; `aggregate.debias` applies it.

Source: Wang et al. 2406.12845, section on verbosity: r'_k = r_k - lambda_k r_v with Spearman(r'_k, r_v) <= threshold.
"""

from __future__ import annotations

import torch
from torch import Tensor

PENALTIES = (0.0, 0.01, 0.025, 0.05, 0.075, 0.1, 0.125, 0.15, *(round(0.05 * i, 2) for i in range(4, 20)))


def ranks(values: Tensor) -> Tensor:
    """Ranks [N] from 1 as float64, ties at the mean of their places; values [N]."""
    _, inverse, counts = torch.unique(values, sorted=True, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[inverse]


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation of a [N] and b [N], ties at mean ranks; 0 where one of them is constant."""
    x, y = ranks(a), ranks(b)
    x, y = x - x.mean(), y - y.mean()
    scale = float(x.norm() * y.norm())
    return float(x @ y) / scale if scale > 0 else 0.0


def fit_debias(rewards: Tensor, verbosity_index: int, threshold: float = 0.03) -> Tensor:
    """T [K, K] float32 with r' = r @ T: identity, less lambda_k in row v; the verbosity column becomes 0.

    rewards [N, K] are raw predicted scores of all responses of a reference set, pooled. lambda_k is the first of
    PENALTIES with signed Spearman(r_k - lambda r_v, r_v) <= threshold, 1 where none reaches it. Raises ValueError for
    values that are not finite, a constant objective, or an index out of range."""
    _check(rewards, verbosity_index)
    r = rewards.detach().double()
    verbosity = r[:, verbosity_index]
    matrix = torch.eye(r.shape[1])
    for k in range(r.shape[1]):
        penalty = 1.0 if k == verbosity_index else _penalty(r[:, k], verbosity, threshold)
        matrix[verbosity_index, k] -= penalty
    return matrix


def _penalty(objective: Tensor, verbosity: Tensor, threshold: float) -> float:
    for penalty in PENALTIES:
        if spearman(objective - penalty * verbosity, verbosity) <= threshold:
            return penalty
    return 1.0


def _check(rewards: Tensor, verbosity_index: int) -> None:
    if rewards.ndim != 2 or rewards.shape[0] < 3:
        raise ValueError(f"rewards have shape {tuple(rewards.shape)}; want [N, K] with at least 3 responses")
    if not 0 <= verbosity_index < rewards.shape[1]:
        raise ValueError(f"verbosity_index is {verbosity_index}; want 0 to {rewards.shape[1] - 1}")
    if not bool(torch.isfinite(rewards).all()):
        raise ValueError("rewards have values that are not finite; fit the regression layer again")
    constant = (rewards == rewards[0]).all(0).nonzero().flatten().tolist()
    if constant:
        raise ValueError(
            f"objectives {constant} are constant over {rewards.shape[0]} responses; no correlation to remove"
        )
