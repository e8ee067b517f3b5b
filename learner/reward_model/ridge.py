"""Linear heads in closed form: ridge regression of each objective's ratings on hidden states, in one pass over the rows.

    w_k = argmin  sum over the rows n that rate objective k of (w_k . h_n - y_nk)^2  +  alpha_k |w_k|^2

Called by learner/reward_model/training.py where learner.reward_model.stage_1 is ridge. Pure maths. No intercept: the
checkpoint's `regression_layer` has no bias (rewarder/layout.py), and a constant in a score cancels where it is centred on
r_ref.

The rows are summed into Gram matrices and forgotten. Objectives whose ratings stand in the very same rows (one source rates
them together) share a Gram matrix; a shared one is copied at the first row that rates only some of its objectives. Memory:
16 C H^2 bytes for C such classes (training and held-out rows; C <= K) and about as much as five matrices of H^2 while one is
solved: 0.4 GB for 1,024 features and 19 classes, 2.6 GB for the 4,096 features and 7 sources of the released reward model.

Source: Wang et al. 2406.12845, whose script has the same grid of alphas, picks them on 20 % of the rows (ours: of the prompts)
and keeps the fit on the other 80 %; here the picked alpha is fitted again on all rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ALPHAS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)
ROWS = 4096  # in double precision at a time

Block = tuple[Tensor, Tensor]
"""features [B, H] and ratings [B, K], NaN where a rating is missing; any B."""


@dataclass(frozen=True)
class RidgeFit:
    """weight [K, H] float32, fitted on all rows; for each objective the alpha that was picked, the held-out R2 by which it was
    (of the fit without the held-out rows; NaN where the held-out ratings are all alike), and its number of ratings."""

    weight: Tensor
    alphas: tuple[float, ...]
    r2: tuple[float, ...]
    num_ratings: tuple[int, ...]


@dataclass
class Gram:
    """sum of h h^T [H, H] over the rows that rate these objectives."""

    columns: list[int]
    matrix: Tensor

    def split(self, known: Tensor) -> list[Gram]:
        """One for each set of columns that these rows rate alike; known [B, K]."""
        alike: dict[bytes, list[int]] = {}
        for column in self.columns:
            alike.setdefault(known[:, column].numpy().tobytes(), []).append(column)
        first, *others = alike.values()
        return [Gram(first, self.matrix), *(Gram(columns, self.matrix.clone()) for columns in others)]


class Sums:
    """All that ridge needs of rows: Gram matrices, cross products [H, K], each objective's count, sum and sum of squares."""

    def __init__(self, blocks: Iterable[Block], objectives: Sequence[str], hidden: int | None = None) -> None:
        self.grams: list[Gram] = []
        self.rows = 0
        self.cross = torch.zeros(hidden or 0, len(objectives), dtype=torch.float64)
        self.total, self.squares, self.count = (torch.zeros(len(objectives), dtype=torch.float64) for _ in range(3))
        for features, ratings in blocks:
            _check_block(features, ratings, objectives, hidden, self.rows)
            if not self.grams:
                self._start(hidden := features.shape[1])
            for start in range(0, len(features), ROWS):
                self._add(features[start : start + ROWS].double(), ratings[start : start + ROWS].double())
            self.rows += len(features)
        if not self.rows:
            raise ValueError("ridge got no rows; want hidden states and ratings of prompts on both sides of the split")

    @property
    def hidden(self) -> int:
        """The number of features."""
        return len(self.cross)

    def gram(self, column: int) -> Gram:
        """The Gram matrix that a column belongs to."""
        return next(gram for gram in self.grams if column in gram.columns)

    def squared_error(self, column: int, weights: Tensor) -> Tensor:
        """sum of (w . h - y)^2 over the rows that rate the objective, for weights [H, A] -> [A]."""
        quadratic = (weights * (self.gram(column).matrix @ weights)).sum(0)
        return (quadratic - 2 * self.cross[:, column] @ weights + self.squares[column]).clamp_min(0)

    def r2(self, column: int, squared_error: float) -> float:
        """The share of a column's variance that a fit with this squared error explains; NaN for a constant column."""
        spread = float(self.squares[column] - self.total[column].square() / self.count[column])
        return 1 - squared_error / spread if spread > 1e-12 * float(self.squares[column]) else float("nan")

    def _start(self, hidden: int) -> None:
        num_objectives = self.cross.shape[1]
        self.grams = [Gram(list(range(num_objectives)), torch.zeros(hidden, hidden, dtype=torch.float64))]
        self.cross = torch.zeros(hidden, num_objectives, dtype=torch.float64)

    def _add(self, features: Tensor, ratings: Tensor) -> None:
        known, filled = ~ratings.isnan(), ratings.nan_to_num()
        self.cross.addmm_(features.T, filled)
        self.total += filled.sum(0)
        self.squares += filled.square().sum(0)
        self.count += known.sum(0)
        self.grams = [part for gram in self.grams for part in gram.split(known)]
        for gram in self.grams:
            rated = features[known[:, gram.columns[0]]]
            gram.matrix.addmm_(rated.T, rated)


def fit_ridge(
    training: Iterable[Block],
    held_out: Iterable[Block],
    objectives: Sequence[str],
    alphas: Sequence[float] = ALPHAS,
) -> RidgeFit:
    """The heads of all objectives; alpha_k is the one of `alphas` (ascending, > 0) with the least error on the held-out rows,
    which must be of other prompts. An objective that no held-out row rates takes the alpha with the least error over those
    that some rate, each over its mean square. Each side is read once, on the CPU, in float64.

    Raises ValueError for features or ratings that are not finite (NaN is a missing rating), sizes that do not fit, an
    objective without a rating to fit, and held-out rows that rate nothing."""
    if not alphas or list(alphas) != sorted(alphas) or alphas[0] <= 0:
        raise ValueError(f"alphas are {list(alphas)}; want at least one, ascending, above 0")
    fitted = Sums(training, objectives)
    picking = Sums(held_out, objectives, fitted.hidden)
    _check_rated(fitted, picking, objectives)
    picked = _pick(fitted, picking, alphas)
    weight = _refit(fitted, picking, [alpha for alpha, _ in picked])
    r2 = tuple(picking.r2(k, error) for k, (_, error) in enumerate(picked))
    counts = tuple(int(n) for n in fitted.count + picking.count)
    return RidgeFit(weight.float(), tuple(alpha for alpha, _ in picked), r2, counts)


def _pick(fitted: Sums, picking: Sums, alphas: Sequence[float]) -> list[tuple[float, float]]:
    """(alpha, its held-out squared error) of each objective."""
    errors = torch.zeros(fitted.cross.shape[1], len(alphas), dtype=torch.float64)
    for gram in fitted.grams:
        values, vectors = _eigen(gram.matrix)
        projected = vectors.T @ fitted.cross[:, gram.columns]
        for i, column in enumerate(gram.columns):
            weights = torch.stack([projected[:, i] / (values + alpha) for alpha in alphas], 1)
            errors[column] = picking.squared_error(column, vectors @ weights)
    varied = picking.squares > 0
    pooled = (errors[varied] / picking.squares[varied, None]).sum(0).argmin()
    best = torch.where(picking.count > 0, errors.argmin(1), pooled).tolist()
    return [(alphas[at], float(errors[column, at])) for column, at in enumerate(best)]


def _refit(fitted: Sums, picking: Sums, alphas: Sequence[float]) -> Tensor:
    """The weights [K, H] on all rows; objectives that share both Gram matrices share a decomposition."""
    cross, weight = fitted.cross + picking.cross, torch.zeros_like(fitted.cross).T
    for ours in fitted.grams:
        for theirs in picking.grams:
            if not (shared := [column for column in ours.columns if column in theirs.columns]):
                continue
            values, vectors = _eigen(ours.matrix + theirs.matrix)
            for column in shared:
                weight[column] = vectors @ ((vectors.T @ cross[:, column]) / (values + alphas[column]))
    return weight


def _eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, those that rounding made negative at 0, and eigenvectors."""
    values, vectors = torch.linalg.eigh(matrix)
    return values.clamp_min(0), vectors


def _check_block(
    features: Tensor, ratings: Tensor, objectives: Sequence[str], hidden: int | None, rows_before: int
) -> None:
    wanted = f"want features [B, {'H' if hidden is None else hidden}] and ratings [B, {len(objectives)}]"
    shapes = f"a block has features {list(features.shape)} and ratings {list(ratings.shape)}"
    if (
        features.ndim != 2
        or ratings.shape != (len(features), len(objectives))
        or hidden not in (None, features.shape[1])
    ):
        raise ValueError(f"{shapes}; {wanted}, one column for each of {', '.join(objectives)}")
    wrong = ~features.isfinite().all(1)
    if bool(wrong.any()):
        row = rows_before + int(wrong.nonzero()[0])
        raise ValueError(
            f"features of {int(wrong.sum())} of {len(features)} rows are not finite, first row {row}; the backbone's passes "
            "overflow: use rewarder.dtype float32 or bfloat16, and check its weights"
        )
    if bool(ratings.isinf().any()):
        row, column = ratings.isinf().nonzero()[0].tolist()
        raise ValueError(
            f"row {rows_before + row} rates {objectives[column]} {float(ratings[row, column])}; want a finite number, or "
            "NaN where there is no rating"
        )


def _check_rated(fitted: Sums, picking: Sums, objectives: Sequence[str]) -> None:
    todo = "rate more prompts, name a program in rewarder.programs, or drop the objective from rewarder.objectives"
    if wrong := [name for name, count in zip(objectives, fitted.count.tolist(), strict=True) if not count]:
        raise ValueError(f"ridge has no rating to fit {', '.join(wrong)} on; {todo}")
    if not bool(picking.count.any()):
        raise ValueError(f"ridge has no rating of a held-out prompt to pick an alpha by; {todo}")
