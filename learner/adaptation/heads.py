"""How well each objective's head does on the policy's own samples: correlation and R2 with the judge's ratings. Pure maths.

Called by learner/adaptation/round.py with the rated responses of prompts that give evidence, which no fit has seen. The noise
of the ratings is in both numbers: a perfect head does not reach 1. A head whose correlation is near 0 is one that the policy
can exploit (docs/adaptation.md). Intervals: bootstrap over prompts, whose responses are alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

RESAMPLES = 400
LEAST = 8  # rated responses, of at least two prompts
STREAM = 5  # of the round's seed

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class HeadStanding:
    """How one objective stands: how many responses are rated, and correlation and R2 with 95 % intervals (low, high); None
    where too few are rated or all ratings are alike."""

    rated: int
    correlation: tuple[float, float, float] | None
    r2: tuple[float, float, float] | None


def standings(scores: Tensor, ratings: Tensor, prompt_of: Tensor, seed: int) -> list[HeadStanding]:
    """One of each objective; scores and ratings [N, K] (NaN where not rated), prompt_of [N]."""
    columns = zip(scores.double().T.numpy(), ratings.double().T.numpy(), strict=True)
    return [_standing(score, rating, prompt_of.numpy(), seed) for score, rating in columns]


def numbers(name: str, found: Mapping[str, HeadStanding]) -> dict[str, float | None]:
    """Writes them as a decision's numbers: <name>correlation/<objective> and <name>onpolicy_r2/<objective>, each with _low and
    _high."""
    told: dict[str, float | None] = {}
    for objective, head in found.items():
        for what, values in ((f"{name}correlation", head.correlation), (f"{name}onpolicy_r2", head.r2)):
            value, low, high = (None, None, None) if values is None else values
            told |= {f"{what}/{objective}": value, f"{what}_low/{objective}": low, f"{what}_high/{objective}": high}
    return told


def _standing(score: Floats, rating: Floats, prompt_of: NDArray[np.int64], seed: int) -> HeadStanding:
    known = np.isfinite(rating)
    score, rating = score[known], rating[known]
    prompts, place = np.unique(prompt_of[known], return_inverse=True)
    if len(rating) < LEAST or len(prompts) < 2 or np.ptp(rating) == 0 or np.ptp(score) == 0:
        return HeadStanding(len(rating), None, None)
    sums = _sums(score, rating, place, len(prompts))
    rng = np.random.default_rng([seed, STREAM])
    drawn = rng.multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)), RESAMPLES) @ sums
    whole = sums.sum(0)[None]
    return HeadStanding(len(rating), *(_with_interval(what(whole)[0], what(drawn)) for what in (_correlation, _r2)))


def _sums(score: Floats, rating: Floats, place: NDArray[np.int64], count: int) -> Floats:
    """[prompts, 6]: of each prompt the number, and sums of s, y, s^2, y^2 and s y, both from the mean rating on."""
    s, y = score - rating.mean(), rating - rating.mean()
    return np.stack(
        [np.bincount(place, v, count).astype(np.float64) for v in (np.ones_like(s), s, y, s * s, y * y, s * y)], 1
    )


def _correlation(sums: Floats) -> Floats:
    n, s, y, ss, yy, sy = sums.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return (sy / n - s * y / n**2) / np.sqrt((ss / n - (s / n) ** 2) * (yy / n - (y / n) ** 2))


def _r2(sums: Floats) -> Floats:
    n, _, y, ss, yy, sy = sums.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 - (ss - 2 * sy + yy) / (yy - y * y / n)


def _with_interval(value: float, drawn: Floats) -> tuple[float, float, float]:
    low, high = np.quantile(drawn[np.isfinite(drawn)], [0.025, 0.975])
    return float(value), float(low), float(high)
