"""learner/reward_model/unrated.py: what is not rated is predicted by hand, and a group's temperature does not depend on it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from learner.reward_model.unrated import Residuals, fit_residuals, group_gap
from rewarder.calibrate import fit_temperature

NAN = float("nan")
SEEDS = 12


def test_what_is_rated_is_taken_as_it_is() -> None:
    gaps = torch.tensor([[0.4, -0.2], [0.1, -0.1]])
    weights = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
    gap = group_gap(gaps, torch.zeros(2, 2), weights, Residuals(torch.ones(2), torch.eye(2)))
    torch.testing.assert_close(gap.mean.float(), torch.tensor([0.25, 0.0]))
    assert gap.spread.tolist() == [0.0, 0.0] and gap.probability_first().tolist() == [1.0, 0.5]


def test_what_is_not_rated_is_predicted_by_hand() -> None:
    """Slope 2 and variances 1 and 4 with covariance 1: seen residual .5, so the other is .5 with variance 4 - 1 = 3."""
    residuals = Residuals(torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 1.0], [1.0, 4.0]]))
    gaps, differences = torch.tensor([[0.7, NAN]]), torch.tensor([[0.2, 0.1]])
    gap = group_gap(gaps, differences, torch.tensor([[0.5, 0.5]]), residuals)
    assert float(gap.mean) == pytest.approx(0.5 * 0.7 + 0.5 * (2 * 0.1 + 0.5))
    assert float(gap.spread) == pytest.approx(0.5 * math.sqrt(3))


def test_an_objective_that_no_pair_rates_is_as_uncertain_as_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    differences = torch.randn(4000, 3, generator=generator)
    gaps = 0.5 * differences + 0.2 * torch.randn(4000, 3, generator=generator)
    gaps[:, 2] = NAN
    residuals = fit_residuals(gaps, differences)
    torch.testing.assert_close(residuals.slope, torch.full((3,), 0.5), atol=0.02, rtol=0)
    assert float(residuals.covariance[2, 2]) == pytest.approx(0.04, rel=0.1)
    with pytest.raises(ValueError, match="no pair of 4000 rates any of 3 objectives"):
        fit_residuals(torch.full_like(gaps, NAN), differences)


def test_residuals_that_go_together_are_found_where_few_pairs_rate_both() -> None:
    """Correlation .5 of five objectives at 60 % missing: each is drawn to the mean, which many pairs know."""
    differences, full, _ = drawn(5, 400, 0.5, 3)
    kept = torch.rand(full.shape, generator=torch.Generator().manual_seed(4)) < 0.16
    covariance = fit_residuals(full.where(kept, NAN), differences).covariance
    scale = covariance.diagonal().rsqrt()
    correlation = (covariance * scale[:, None] * scale)[~torch.eye(5, dtype=torch.bool)]
    assert float(correlation.mean()) == pytest.approx(0.5, abs=0.12)
    assert bool((torch.linalg.eigvalsh(covariance) > 0).all())


def drawn(objectives: int, prompts: int, correlation: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """(score differences, rating differences, gate weights) [P, k] of all pairs of four responses; ratings are in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    scores = 0.5 + 0.15 * (0.6 * normal(prompts, 4, 1) + 0.8 * normal(prompts, 4, objectives))
    shared, own = correlation**0.5 * normal(prompts, 4, 1), (1 - correlation) ** 0.5 * normal(prompts, 4, objectives)
    ratings = (scores + torch.linspace(0.08, 0.3, objectives) * (shared + own)).clamp(0, 1)
    weights = torch.softmax(normal(prompts, 1, objectives), -1).expand(prompts, 4, objectives)
    first, second = torch.combinations(torch.arange(4)).T
    differences, gaps = ((values[:, first] - values[:, second]).flatten(0, 1) for values in (scores, ratings))
    return differences, gaps, weights[:, first].flatten(0, 1)


@pytest.mark.parametrize(("objectives", "missing"), [(2, 0.35), (5, 0.35), (5, 0.6), (8, 0.35)])
@pytest.mark.parametrize("correlation", [0.0, 0.4])
def test_a_temperature_does_not_depend_on_what_is_missing(objectives: int, missing: float, correlation: float) -> None:
    """Over draws, the fit's ratio to that of all ratings is 1 within three standard errors and 3 %, and a fit over what both
    sides have rated is far above it for five independent objectives."""
    ratios, left_out = [], []
    for seed in range(SEEDS):
        differences, full, weights = drawn(objectives, 250, correlation, seed)
        lost = torch.rand(2, *full.shape, generator=torch.Generator().manual_seed(seed + 100)) < missing
        gaps = full.masked_fill(lost.any(0), NAN)
        known = gaps.isfinite().any(-1)
        gap = group_gap(gaps[known], differences[known], weights[known], fit_residuals(gaps, differences))
        served = (weights * differences).sum(-1)
        right = fit_temperature(served, 0.5 * (1 + torch.sign((weights * full).sum(-1))))
        ratios.append(fit_temperature(served[known], gap.probability_first()) / right)
        left_out.append(_of_what_is_rated(differences[known], gaps[known], weights[known]) / right)
    mean, error = _mean_and_error(ratios)
    assert abs(mean - 1) < 0.03 + 3 * error, (mean, error)
    if objectives >= 5 and correlation == 0:
        assert _mean_and_error(left_out)[0] > 1.2


def _of_what_is_rated(differences: Tensor, gaps: Tensor, weights: Tensor) -> float:
    """What was fitted up to commit 72a8a65: the mean over what is rated on both sides."""
    share = weights * gaps.isfinite()
    share = share / share.sum(-1, keepdim=True)
    rated = (share * gaps.nan_to_num(0.0)).sum(-1)
    return fit_temperature((share * differences).sum(-1), 0.5 * (1 + torch.sign(rated)))


def _mean_and_error(values: list[float]) -> tuple[float, float]:
    sample = torch.tensor(values)
    return float(sample.mean()), float(sample.std() / math.sqrt(len(values)))
