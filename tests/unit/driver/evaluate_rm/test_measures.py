"""Accuracy, calibration and length slope of a scorer, by hand and against independent computations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from driver.evaluate_rm.measures import Outcome, accuracy, calibrated, length_slope, pair_accuracy, reliability


def test_a_pair_is_won_strictly() -> None:
    outcomes = [
        Outcome((1.0,), (0.0,)),
        Outcome((1.0,), (1.0,)),
        Outcome((0.0,), (1.0,)),
        Outcome((2.0, 1.5), (1.0, 0.0)),
    ]
    found = pair_accuracy(outcomes)
    assert (found.share.mean, found.rows, found.tied) == (0.5, 4, 1)
    assert not Outcome((2.0, 1.0), (1.5,)).won  # every right answer must beat every wrong one


def test_an_accuracy_has_wilsons_interval() -> None:
    found = accuracy([1.0] * 8 + [0.0] * 2, 0)
    assert (found.share.low, found.share.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Agresti and Coull 1998


def test_reliability_by_hand() -> None:
    logit = math.log(0.72 / 0.28)  # 0.72: in the bin from 0.7 to 0.75
    low, high = reliability(np.array([logit, logit, -logit, logit, 0.0]))
    assert (low.confidence, low.accuracy.mean, low.pairs) == (0.5, 0.5, 1)
    assert (high.confidence, high.accuracy.mean, high.pairs) == (pytest.approx(0.72), 0.75, 4)


def pairs(n: int, scale: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Differences right - wrong of `scale` times a true logit, and which half each is in."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, n)
    right_first = rng.random(n) < 1 / (1 + np.exp(-logits))
    return scale * np.where(right_first, logits, -logits), np.arange(n) % 2 == 0


def test_a_calibrated_scorer_shows_its_temperature_and_a_small_error() -> None:
    differences, half = pairs(4000, 0.05)
    found = calibrated(differences, half, np.zeros(4000))
    assert found.temperature == pytest.approx(0.05, rel=0.1) and found.ece < 0.03 and found.nll < math.log(2)
    weighted = sum(place.pairs * abs(place.confidence - place.accuracy.mean) for place in found.bins) / 4000
    assert found.ece == pytest.approx(weighted)  # the plot and the number are of the same bins
    assert sum(place.pairs for place in found.bins) == 4000 and math.isnan(found.slope.mean)


def test_a_half_never_sees_its_own_temperature() -> None:
    """Differences of one half at ten times the scale: each half gets the other's temperature, and looks ill calibrated."""
    differences, half = pairs(2000, 1.0)
    apart = np.where(half, 10 * differences, differences)
    assert calibrated(apart, half, np.zeros(2000)).ece > 3 * calibrated(differences, half, np.zeros(2000)).ece


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        (np.ones(30), "15 pairs in a half"),
        (-np.ones(80), "no better than chance"),
        (np.zeros(80), "no better than chance"),
    ],
)
def test_where_no_temperature_fits_the_reason_is_given(differences: np.ndarray, words: str) -> None:
    found = calibrated(differences, np.arange(len(differences)) % 2 == 0, np.zeros(len(differences)))
    assert words in found.reason and math.isnan(found.ece) and found.bins == ()


def test_the_slope_is_least_squares_with_an_intercept() -> None:
    rng = np.random.default_rng(1)
    extra = rng.integers(-200, 200, 300).astype(float)
    logits = 0.7 + 0.3 * extra / 100 + rng.normal(0, 0.5, 300)
    found = length_slope(logits, extra)
    coefficients, covariance = np.polyfit(extra / 100, logits, 1, cov=True)
    assert found.mean == pytest.approx(coefficients[0])
    assert found.low < 0.3 < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * math.sqrt(covariance[0, 0]), rel=0.15)


def test_the_robust_error_by_hand() -> None:
    x = np.array([-1.0, 1.0] * 5) * 100
    logits = np.array([0.0, 2.0, 0.0, 4.0] + [1.0, 3.0] * 3)
    found = length_slope(logits, x)
    left, right = logits[::2], logits[1::2]
    assert found.mean == pytest.approx((right.mean() - left.mean()) / 2)
    residuals = np.concatenate([left - left.mean(), right - right.mean()])
    error = math.sqrt(10 / 8 * (residuals @ residuals)) / 10
    assert found.high - found.mean == pytest.approx(1.959964 * error)


def test_no_slope_without_lengths_that_differ() -> None:
    assert math.isnan(length_slope(np.ones(50), np.full(50, 7.0)).mean)
    assert math.isnan(length_slope(np.ones(5), np.array([0.0, 1, 2, 3, 4])).mean)
