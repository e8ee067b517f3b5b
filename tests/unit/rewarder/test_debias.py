"""The debiasing matrix and its search: ArmoRM pitfalls 13 (r @ T zeroes the verbosity column) and 17 (penalties only),
and the search."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from rewarder.aggregate import debias
from rewarder.debias import PENALTIES, fit_debias, ranks, spearman


def spearman_by_scipy(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.asarray(spearmanr(a, b))[0])


def test_grid_is_the_papers() -> None:
    assert len(PENALTIES) == 24 and list(PENALTIES) == sorted(PENALTIES)
    assert PENALTIES[:9] == (0, 0.01, 0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.2) and PENALTIES[-1] == 0.95


@given(st.lists(st.integers(-5, 5), min_size=3, max_size=40), st.integers(0, 100))
def test_ranks_and_correlation_are_scipys(values: list[int], seed: int) -> None:
    a = torch.tensor(values).double()
    b = torch.randint(0, 4, a.shape, generator=torch.Generator().manual_seed(seed)).double()
    assert ranks(a).tolist() == rankdata(a).tolist()
    if len(set(values)) > 1 and len(set(b.tolist())) > 1:
        assert spearman(a, b) == pytest.approx(spearman_by_scipy(a.numpy(), b.numpy()), abs=1e-9)


def planted(n: int = 4000) -> torch.Tensor:
    noise = torch.randn(n, 4, generator=torch.Generator().manual_seed(0)).double()
    v = noise[:, 2]
    return torch.stack([noise[:, 0] + 0.5 * v, noise[:, 1], v, noise[:, 3] - 0.7 * v], 1)


def test_planted_penalties() -> None:
    rewards = planted()
    matrix = fit_debias(rewards, 2)
    assert matrix[2, 0].item() == pytest.approx(-0.5, abs=0.051)
    assert abs(matrix[2, 1].item()) <= 0.05 and matrix[2, 3].item() == 0  # signed: negative correlation is left alone
    assert matrix[2, 2].item() == 0
    off_row = torch.cat([matrix[:2], matrix[3:]])
    assert torch.equal(off_row, torch.eye(4)[[0, 1, 3]])
    debiased = debias(rewards, matrix)
    assert not debiased[:, 2].any() and spearman(debiased[:, 0], rewards[:, 2]) <= 0.03


@pytest.mark.parametrize("threshold", [0.03, 0.2, -0.2])
def test_penalty_is_the_first_that_reaches_the_threshold(threshold: float) -> None:
    rewards = planted()
    r, v = rewards[:, 0].numpy(), rewards[:, 2].numpy()
    want = next(penalty for penalty in PENALTIES if spearman_by_scipy(r - penalty * v, v) <= threshold)
    assert fit_debias(rewards, 2, threshold)[2, 0].item() == pytest.approx(-want)


def test_never_reached_stays_at_one() -> None:
    v = torch.randn(500, generator=torch.Generator().manual_seed(0))
    assert fit_debias(torch.stack([3 * v, v], 1), 1)[1].tolist() == [-1, 0]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000))
def test_only_penalties(seed: int) -> None:
    rewards = torch.randn(60, 3, generator=torch.Generator().manual_seed(seed))
    row = fit_debias(rewards, 0)[0]
    assert row[0] == 0 and bool((row[1:] <= 0).all()) and bool((row >= -1).all())


def test_bad_rewards_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 3"):
        fit_debias(torch.zeros(2, 2), 0)
    with pytest.raises(ValueError, match="verbosity_index"):
        fit_debias(planted(), 4)
    with pytest.raises(ValueError, match=r"\[1\] are constant"):
        fit_debias(torch.tensor([[1.0, 2.0], [2.0, 2.0], [3.0, 2.0]]), 0)
    with pytest.raises(ValueError, match="not finite"):
        fit_debias(torch.tensor([[1.0], [math.nan], [2.0]]), 0)
