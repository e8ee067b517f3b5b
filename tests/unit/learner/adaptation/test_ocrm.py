"""learner/adaptation/ocrm.py: the weights of original pairs by hand, and their laws; log_ratios is in
tests/integration/test_tiers.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from learner.adaptation.ocrm import pair_weights

RATIOS = arrays(np.float32, st.tuples(st.integers(1, 20), st.just(2)), elements=st.floats(-50, 50, width=32))


def test_without_a_mixture_the_weights_are_powers_of_the_ratio() -> None:
    """exp(.5 (log 4 + log 1)) = 2, exp(.5 (log 1/4)) = 1/2, exp(.5 (log 2 + log 1/2)) = 1; over their mean 3.5 / 3."""
    ratios = np.log(np.array([[4, 1], [1, 0.25], [2, 0.5]], dtype=np.float32))
    assert pair_weights(ratios, 0.5, 0.0) == pytest.approx(np.array([2, 0.5, 1]) / (3.5 / 3), rel=1e-6)


def test_a_mixture_by_hand() -> None:
    """rho = 1 / (.1 + .9 / (pi / ref)): of 3: 1 / .4 = 2.5, of 1: 1, of 1/9: 1 / 8.2."""
    ratios = np.log(np.array([[3, 1], [1, 1], [1, 1 / 9]], dtype=np.float32))
    by_hand = np.array([2.5, 1, 1 / 8.2])
    assert pair_weights(ratios, 1.0, 0.1) == pytest.approx(by_hand / by_hand.mean(), rel=1e-6)


def test_against_the_policy_itself_nothing_is_weighed() -> None:
    assert pair_weights(np.array([[3, -2], [0, 9]], dtype=np.float32), 1.0, 1.0) == pytest.approx(1.0)


@given(st.floats(-50, 50, width=32), st.integers(1, 20), st.floats(0, 1), st.sampled_from([0.0, 0.1, 0.5]))
def test_equal_ratios_weigh_all_the_same(ratio: float, pairs: int, strength: float, mixture: float) -> None:
    assert pair_weights(np.full((pairs, 2), ratio, dtype=np.float32), strength, mixture) == pytest.approx(1.0)


@given(RATIOS, st.floats(0.001, 1), st.sampled_from([0.0, 0.1, 0.5]))
def test_the_mean_is_1_and_more_likely_pairs_weigh_more(ratios: np.ndarray, strength: float, mixture: float) -> None:
    weights = pair_weights(ratios, strength, mixture)
    assert weights.mean() == pytest.approx(1.0) and (weights >= 0).all()
    more = ratios.copy()
    more[0] += 1
    moved = pair_weights(more, strength, mixture)
    assert moved[0] >= weights[0] * (1 - 1e-9) and (moved[1:] <= weights[1:] * (1 + 1e-9)).all()


@given(RATIOS, st.floats(0.001, 1))
def test_a_mixture_bounds_how_much_more_a_pair_weighs(ratios: np.ndarray, strength: float) -> None:
    """Each rho is 10 at most, so a pair weighs at most 10^(2 strength) times what one at equal probabilities does."""
    weights = pair_weights(np.concatenate([ratios, np.zeros((1, 2), dtype=np.float32)]), strength, 0.1)
    assert weights.max() / weights[-1] <= 10 ** (2 * strength) * (1 + 1e-6)
    huge = pair_weights(np.array([[1000, 1000], [0, 0]], dtype=np.float32), 1.0, 0.1)
    assert huge[0] / huge[1] == pytest.approx(100) and math.isfinite(huge.sum())


def test_ratios_of_whole_responses_do_not_overflow() -> None:
    weights = pair_weights(np.array([[-4000, -4000], [0, 0], [3000, 3000]], dtype=np.float32), 1.0, 0.0)
    assert weights.tolist() == [0, 0, 3]
