"""What the studies say of numbers over seeds: means with intervals, paired differences, gold at matched KL. Pure maths.

Called by the studies' tables and figures. Run a study as a module (`python -m studies.NAME`): run as a file, its folder
comes first on the path and this file hides the standard library's `statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from learner.reward_model.held_out import NORMAL_95
from studies.rows import Row

KL_LEVELS = (2.0, 5.0, 10.0)  # nats: where the house compares arms ("matched KL")


@dataclass(frozen=True, slots=True)
class Interval:
    """The mean of n values with its interval; low and high are NaN where n is 1. The values' unit."""

    mean: float
    low: float
    high: float
    n: int

    def format(self, digits: int = 3, signed: bool = False) -> str:
        """'0.744 ± 0.013'; '0.744 [0.725, 0.751]' where that is lopsided; '0.744 (n = 1)'; signed: '+0.744' for a gain."""
        mean = f"{self.mean:{'+' if signed else ''}z.{digits}f}"
        if self.n == 1:
            return f"{mean} (n = 1)"
        below, above = self.mean - self.low, self.high - self.mean
        if abs(above - below) > 0.5 * 10**-digits:
            return f"{mean} [{self.low:z.{digits}f}, {self.high:z.{digits}f}]"
        return f"{mean} ± {(above + below) / 2:.{digits}f}"


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """The mean and its Student t interval, for values of independent seeds. Raises ValueError where none or not finite."""
    _check(values, level)
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Interval(mean, math.nan, math.nan, n)
    half = float(stdtrit(n - 1, (1 + level) / 2) * np.std(values, ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def paired_interval(first: Mapping[int, float], second: Mapping[int, float], level: float = 0.95) -> Interval:
    """first - second by seed, over the seeds that both have: what the seeds share cancels. Raises ValueError below 2."""
    seeds = sorted(first.keys() & second.keys())
    if len(seeds) < 2:
        got = f"got {seeds} of {sorted(first)} and {sorted(second)}"
        raise ValueError(f"a paired interval needs at least 2 seeds that both arms have; {got}; run the missing seeds")
    return t_interval([first[seed] - second[seed] for seed in seeds], level)


def clustered_interval(values: Sequence[float], clusters: Sequence[int]) -> Interval:
    """The mean and its 95 % normal interval where values of one cluster go together: each cluster's summed deviations from
    the mean count as one (Liang and Zeger 1986, with G / (G - 1)). n is the number of clusters. Raises ValueError below 2."""
    _check(values, 0.95)
    known, which = np.asarray(values, float), np.unique(clusters, return_inverse=True)[1]
    n, mean = int(which.max()) + 1, float(known.mean())
    if n < 2:
        raise ValueError(f"a clustered interval needs at least 2 clusters; all {len(known)} values are of one")
    sums = np.bincount(which, known - mean)
    half = NORMAL_95 * math.sqrt(n / (n - 1) * float((sums**2).sum())) / len(known)
    return Interval(mean, mean - half, mean + half, n)


def bootstrap_interval(
    values: Sequence[float], num_samples: int = 10_000, seed: int = 0, level: float = 0.95
) -> Interval:
    """The mean and its percentile bootstrap interval (Efron 1979): for many values, it is too narrow for a few seeds."""
    _check(values, level)
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1; got {num_samples}")
    known, draw = np.asarray(values, float), np.random.default_rng(seed)
    n, mean = len(known), float(known.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, n)
    means = [known[draw.integers(n, size=n)].mean() for _ in range(num_samples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), n)


def at_kl(kl: Sequence[float], values: Sequence[float], level: float) -> float | None:
    """The value where a run first reaches KL = level (nats), linear between two points; None if it never gets there.

    Points where either is NaN are left out. A run that starts at or above the level gives its first value.
    """
    known = _measured(kl, values)
    index = next((index for index, (at, _) in enumerate(known) if at >= level), None)
    if index is None:
        return None
    if index == 0:
        return known[0][1]
    (before, start), (after, end) = known[index - 1], known[index]
    share = (level - before) / (after - before)
    return (1 - share) * start + share * end


def largest_kl(row: Row, metric: str = "gold") -> float:
    """The largest KL (nats) at which the row knows the metric; at_kl reaches just the levels up to it. NaN if none."""
    return max((kl for kl, _ in _measured(row.curve("kl"), row.curve(metric))), default=math.nan)


def matched_kl(
    rows: Sequence[Row], levels: Sequence[float] = KL_LEVELS, metric: str = "gold"
) -> dict[float, dict[int, float]]:
    """One arm's metric at each KL level (nats), by seed; a seed that never gets there is left out."""
    seeds = [row.seed for row in rows]
    if len({row.arm for row in rows}) > 1 or len(set(seeds)) < len(seeds):
        raise ValueError(f"matched KL is of one arm with one row a seed; got {[row.label for row in rows]}")
    found = {level: [(r.seed, at_kl(r.curve("kl"), r.curve(metric), level)) for r in rows] for level in levels}
    return {level: {seed: value for seed, value in pairs if value is not None} for level, pairs in found.items()}


def _measured(kl: Sequence[float], values: Sequence[float]) -> list[tuple[float, float]]:
    """The points of a run where both are known, in the run's order."""
    if len(kl) != len(values):
        raise ValueError(f"a run has one KL for each value; got {len(kl)} KLs for {len(values)} values")
    return [point for point in zip(kl, values, strict=True) if all(map(math.isfinite, point))]


def _check(values: Sequence[float], level: float) -> None:
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"an interval needs finite values, at least one; got {list(values)}")
    if not 0 < level < 1:
        raise ValueError(f"the level of an interval must be between 0 and 1; got {level}")
