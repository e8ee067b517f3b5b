"""What the ratings of some objectives say of a group's mean over all of them. Pure maths.

    D = sum_k w_k (rating_k of the first - rating_k of the second), over all objectives of the group, by the gate

Serving takes the mean over every objective of a group, and its temperature must fit that mean. Where an objective is not
rated on both sides of a pair, its share of D is not known. Here it is predicted, not left out: a mean over the rated
objectives alone is noisier than the mean that is served, and its temperature came out 1.6 times too large where 35 % of the
ratings of five objectives were missing. The prediction is a Normal distribution: a rating's difference is a slope times the
score's difference plus a residual, and the residuals of what is rated tell of those that are not by their covariance. All
of it is fitted on the same pairs.

Called by learner/reward_model/calibration.py. P pairs, k objectives of the group.
Source: conditional Normal distribution (regression imputation, Little and Rubin, Statistical Analysis with Missing Data).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_EIGENVALUE = 1e-6  # of the residuals' correlations; pairwise estimates need not be positive definite
PRIOR_PAIRS = (
    30.0  # a correlation of two residuals is drawn to the mean correlation as if by so many pairs that rate both
)


@dataclass(frozen=True)
class Residuals:
    """How ratings lie around scores, as differences within pairs: slope [k] of rating on score, and the residuals' covariance
    [k, k], in rating units squared."""

    slope: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class GroupGap:
    """D of each pair as a Normal distribution: mean [P] and standard deviation [P], 0 where everything is rated."""

    mean: Tensor
    spread: Tensor

    def probability_first(self) -> Tensor:
        """P(D > 0) of each pair [P]; half of a tie."""
        certain = 0.5 * (1.0 + torch.sign(self.mean))
        return torch.where(self.spread > 0, torch.special.ndtr(self.mean / self.spread.clamp_min(1e-30)), certain)


def fit_residuals(gaps: Tensor, differences: Tensor) -> Residuals:
    """Slope and covariance from rating differences [P, k], NaN where a side is not rated, and score differences [P, k].

    An objective that no pair rates gets the mean slope and variance of the others. Raises ValueError where none is rated."""
    rated = gaps.isfinite()
    count = rated.sum(0)
    if not bool(count.any()):
        raise ValueError(f"no pair of {len(gaps)} rates any of {gaps.shape[1]} objectives on both sides")
    known, scores = gaps.nan_to_num(0.0), differences * rated
    squares = scores.square().sum(0)
    slope = torch.where(squares > 0, (known * scores).sum(0) / squares.clamp_min(1e-30), torch.ones_like(squares))
    slope = torch.where(count > 0, slope, slope[count > 0].mean())
    residual = (known - slope * scores) * rated
    together = rated.to(residual.dtype).T @ rated.to(residual.dtype)
    variance = residual.square().sum(0) / count.clamp_min(1)
    deviation = torch.where(count > 0, variance, variance[count > 0].mean()).sqrt().clamp_min(1e-12)
    products = (residual.T @ residual) / (deviation[:, None] * deviation)
    return Residuals(slope, _positive(_correlation(products, together)) * deviation[:, None] * deviation)


def _correlation(products: Tensor, together: Tensor) -> Tensor:
    """Correlations [k, k] from the sums of products of scaled residuals and the numbers of pairs that rate both, each drawn to
    the mean of all: few pairs may rate two objectives both where much is missing."""
    apart = ~torch.eye(len(products), dtype=torch.bool)
    mean = products[apart].sum() / together[apart].sum().clamp_min(1)
    drawn = (products + PRIOR_PAIRS * mean) / (together + PRIOR_PAIRS)
    return drawn.clamp(-1, 1).fill_diagonal_(1)


def _positive(correlation: Tensor) -> Tensor:
    """The nearest correlation matrix [k, k] without directions of no variance: eigenvalues are raised, the diagonal is 1."""
    values, vectors = torch.linalg.eigh(correlation)
    raised = (vectors * values.clamp_min(SMALLEST_EIGENVALUE)) @ vectors.T
    scale = raised.diagonal().rsqrt()
    return raised * scale[:, None] * scale


def group_gap(gaps: Tensor, differences: Tensor, weights: Tensor, residuals: Residuals) -> GroupGap:
    """D of each pair over all objectives: what is rated as it is, the rest predicted; gaps, differences and weights [P, k]."""
    gaps, differences, weights = gaps.double(), differences.double(), weights.double()
    mean, variance = torch.zeros(len(gaps), dtype=torch.float64), torch.zeros(len(gaps), dtype=torch.float64)
    rated = gaps.isfinite()
    for pattern in rated.unique(dim=0):
        rows = (rated == pattern).all(-1)
        mean[rows], variance[rows] = _predicted(gaps[rows], differences[rows], weights[rows], pattern, residuals)
    return GroupGap(mean, variance.clamp_min(0).sqrt())


def _predicted(
    gaps: Tensor, differences: Tensor, weights: Tensor, rated: Tensor, residuals: Residuals
) -> tuple[Tensor, Tensor]:
    """Mean and variance of D for pairs that rate the same objectives (rated [k])."""
    slope, covariance = residuals.slope.double(), residuals.covariance.double()
    mean = (weights[:, rated] * gaps[:, rated]).sum(-1)
    if bool(rated.all()):
        return mean, torch.zeros_like(mean)
    seen = gaps[:, rated] - slope[rated] * differences[:, rated]
    carried = torch.linalg.solve(covariance[rated][:, rated], covariance[rated][:, ~rated])  # [rated, missing]
    left = covariance[~rated][:, ~rated] - covariance[~rated][:, rated] @ carried
    missing = slope[~rated] * differences[:, ~rated] + seen @ carried
    share = weights[:, ~rated]
    return mean + (share * missing).sum(-1), ((share @ left) * share).sum(-1)
