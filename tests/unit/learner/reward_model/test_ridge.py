"""Ridge heads: against dense solves per objective, whatever rows lack ratings and however they are cut into blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.reward_model.ridge import ALPHAS, Block, Sums, fit_ridge

NAMES = ["a", "b", "c", "d"]
SOURCES = ([0, 1], [2], [3])  # a and b are always rated together
NAN = float("nan")


def rows(n: int, seed: int, hidden: int = 6, noise: float = 0.3) -> Block:
    """Ratings linear in the features, each row rated by one source only."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, hidden, generator=generator)
    truth = torch.randn(hidden, len(NAMES), generator=torch.Generator().manual_seed(99))
    ratings = features @ truth + noise * torch.randn(n, len(NAMES), generator=generator)
    source = torch.randint(0, len(SOURCES), (n,), generator=generator)
    for i, columns in enumerate(SOURCES):
        others = [k for k in range(len(NAMES)) if k not in columns]
        ratings[(source == i).nonzero(), torch.tensor(others)] = NAN
    return features, ratings


def cut(block: Block, size: int) -> Iterator[Block]:
    yield from zip(block[0].split(size), block[1].split(size), strict=True)


def dense(block: Block, column: int, alpha: float) -> np.ndarray:
    """Least squares on stacked rows [X; sqrt(alpha) I] of the objective's own rows: no Gram matrix anywhere."""
    x, y = (part.double().numpy() for part in block)
    known = np.isfinite(y[:, column])
    stacked = np.vstack([x[known], math.sqrt(alpha) * np.eye(x.shape[1])])
    target = np.concatenate([y[known, column], np.zeros(x.shape[1])])
    return np.linalg.lstsq(stacked, target, rcond=None)[0]


def joined(*blocks: Block) -> Block:
    features, ratings = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return features, ratings


@pytest.mark.parametrize("alpha", [1e-4, 1.0, 1e4])
def test_each_objective_is_its_own_dense_solve(alpha: float) -> None:
    training, held_out = rows(200, 0), rows(60, 1)
    fit = fit_ridge([training], [held_out], NAMES, [alpha])
    assert fit.weight.dtype == torch.float32 and fit.alphas == (alpha,) * 4
    for k in range(4):
        want = dense(joined(training, held_out), k, alpha)
        np.testing.assert_allclose(fit.weight[k].numpy(), want, rtol=1e-5, atol=1e-7)
    known = joined(training, held_out)[1].isfinite().sum(0)
    assert fit.num_ratings == tuple(known.tolist())


def test_alpha_is_the_best_on_the_held_out_rows() -> None:
    training, held_out = rows(30, 2, hidden=20, noise=3.0), rows(300, 3, hidden=20, noise=3.0)
    fit = fit_ridge([training], [held_out], NAMES)
    for k in range(4):
        known = held_out[1][:, k].isfinite().numpy()
        x, y = held_out[0].double().numpy()[known], held_out[1].double().numpy()[known, k]
        errors = [float(np.mean((x @ dense(training, k, alpha) - y) ** 2)) for alpha in ALPHAS]
        assert fit.alphas[k] == ALPHAS[int(np.argmin(errors))]
        assert fit.r2[k] == pytest.approx(1 - min(errors) / y.var(), abs=1e-9)
    assert len(set(fit.alphas)) > 1, "objectives pick for themselves"


def test_the_grid_is_the_papers() -> None:
    assert [round(math.log10(alpha)) for alpha in ALPHAS] == list(range(-4, 5))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 90), st.integers(0, 10))
def test_blocks_of_any_size_give_the_same(size: int, seed: int) -> None:
    training, held_out = rows(80, seed), rows(40, seed + 100)
    whole = fit_ridge([training], [held_out], NAMES)
    parts = fit_ridge(cut(training, size), cut(held_out, size), NAMES)
    assert parts.alphas == whole.alphas and parts.num_ratings == whole.num_ratings
    torch.testing.assert_close(parts.weight, whole.weight, rtol=1e-6, atol=1e-7)
    assert parts.r2 == pytest.approx(whole.r2, abs=1e-9)


def test_rows_are_cut_for_memory_and_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit_ridge([rows(80, 0)], [rows(40, 1)], NAMES)
    monkeypatch.setattr("learner.reward_model.ridge.ROWS", 7)
    torch.testing.assert_close(fit_ridge([rows(80, 0)], [rows(40, 1)], NAMES).weight, whole.weight)


def test_objectives_that_are_rated_together_share_a_matrix() -> None:
    sums = Sums(cut(rows(80, 0), 1), NAMES)
    assert sorted(gram.columns for gram in sums.grams) == [[0, 1], [2], [3]]
    x, y = rows(80, 0)
    for k in range(4):
        rated = x[y[:, k].isfinite()].double()
        torch.testing.assert_close(sums.gram(k).matrix, rated.T @ rated)
    full = Sums([(x, torch.zeros(80, 4))], NAMES)
    assert [gram.columns for gram in full.grams] == [[0, 1, 2, 3]]


def test_fewer_rows_than_features_and_equal_ratings_are_solved() -> None:
    few, more = (torch.randn(3, 8), torch.full((3, 4), 0.5)), (torch.randn(2, 8), torch.full((2, 4), 0.5))
    fit = fit_ridge([few], [more], NAMES)
    assert bool(fit.weight.isfinite().all()) and all(math.isnan(value) for value in fit.r2)


def test_sums_are_in_double_precision() -> None:
    """Ratings far from 0 with a small part that matters: float32 sums would lose it."""
    generator = torch.Generator().manual_seed(0)
    features = torch.cat([torch.full((4000, 1), 100.0), torch.randn(4000, 1, generator=generator)], 1)
    ratings = (features @ torch.tensor([[1.0], [1e-3]])).double()
    fit = fit_ridge([(features[:3000], ratings[:3000])], [(features[3000:], ratings[3000:])], ["a"])
    torch.testing.assert_close(fit.weight, torch.tensor([[1.0, 1e-3]]), rtol=1e-3, atol=0)


def bad(block: Block, row: int, value: float, column: int, of: int) -> Block:
    parts = block[0].clone(), block[1].clone()
    parts[of][row, column] = value
    return parts


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ([], "got no rows"),
        ([(torch.zeros(0, 6), torch.zeros(0, 4))], "got no rows"),
        ([rows(9, 0), bad(rows(9, 0), 4, NAN, 2, 0)], "features of 1 of 9 rows are not finite, first row 13"),
        ([bad(rows(9, 0), 4, math.inf, 2, 0)], "not finite, first row 4"),
        ([bad(rows(9, 0), 4, math.inf, 2, 1)], "row 4 rates c inf; want a finite number"),
        ([rows(9, 0), rows(9, 0, hidden=5)], r"features \[9, 5\] .* want features \[B, 6\]"),
        (
            [(torch.zeros(9, 6), torch.zeros(9, 3))],
            r"ratings \[9, 3\]; want .* ratings \[B, 4\], one column for each of a",
        ),
        ([(torch.zeros(9, 6), torch.zeros(8, 4))], r"ratings \[8, 4\]"),
    ],
)
def test_bad_rows_are_named(training: list[Block], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_ridge(training, [rows(40, 1)], NAMES)


def test_objectives_without_ratings_are_named_together() -> None:
    training, held_out = rows(40, 0), rows(40, 1)
    training[1][:, 2:] = NAN
    with pytest.raises(ValueError, match=r"ridge has no rating to fit c, d on; rate more prompts"):
        fit_ridge([training], [held_out], NAMES)
    held_out[1][:] = NAN
    with pytest.raises(ValueError, match="ridge has no rating of a held-out prompt to pick an alpha by"):
        fit_ridge([rows(40, 0)], [held_out], NAMES)


def test_an_objective_that_no_held_out_row_rates_takes_the_alpha_that_suits_the_others() -> None:
    """A few ratings of a rare objective may all be of training prompts."""
    training, held_out = rows(80, 0), rows(40, 1)
    training[1][:], held_out[1][:] = training[1][:, :1], held_out[1][:, :1]  # four objectives that are one
    whole = fit_ridge([training], [held_out], NAMES)
    held_out[1][:, 3] = NAN
    found = fit_ridge([training], [held_out], NAMES)
    assert found.alphas == whole.alphas and math.isnan(found.r2[3])
    assert found.num_ratings[3] == whole.num_ratings[3] - int(held_out[1][:, 0].isfinite().sum())


@pytest.mark.parametrize("alphas", [[], [1.0, 0.1], [0.0, 1.0]])
def test_bad_alphas_are_refused(alphas: list[float]) -> None:
    with pytest.raises(ValueError, match="want at least one, ascending, above 0"):
        fit_ridge([rows(9, 0)], [rows(40, 1)], NAMES, alphas)
