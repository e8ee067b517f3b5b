"""The report's one sentence: did the policy get better, by which measure, and how sure is that.

Called by driver/report/page.py; driver/report/templates/verdict.html says it in words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from driver.report.records import Gold, RunFiles

TREND_STEPS = 5


@dataclass(frozen=True, slots=True)
class GoldVerdict:
    """What the judge's first and last evaluation say. `peak` is the best evaluation where gold has fallen since beyond the
    intervals; `is_gamed` says that the reward rose meanwhile. kl is in nats, NaN where it was not measured."""

    first: Gold
    last: Gold
    change: str
    intervals: str
    kl: float
    peak: Gold | None
    is_gamed: bool


@dataclass(frozen=True, slots=True)
class RewardVerdict:
    """Means of the reward over its first and last `size` measured steps; NaN where none of the steps was measured."""

    measured: int
    first: float
    last: float
    size: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """Gold's where the judge compared two policies; else `gold` is None and the reward's is said."""

    gold: GoldVerdict | None
    reward: RewardVerdict


def verdict(run: RunFiles) -> Verdict:
    """The facts of the sentence."""
    judged = [gold for gold in run.golds if gold.step is not None and math.isfinite(gold.gold.mean)]
    return Verdict(_gold_verdict(judged, run) if len(judged) >= 2 else None, _trend(run.series("reward/mean")))


def _gold_verdict(judged: Sequence[Gold], run: RunFiles) -> GoldVerdict:
    first, last = judged[0], judged[-1]
    up, down = first.gold.high < last.gold.low, first.gold.low > last.gold.high
    change = "rose" if up else "fell" if down else "did not clearly change"
    best = max(judged, key=lambda gold: gold.gold.mean)
    has_fallen = best.gold.low > last.gold.high
    return GoldVerdict(
        first,
        last,
        change,
        "do not overlap" if up or down else "overlap",
        run.last("policy/kl_sequence"),
        best if has_fallen else None,
        has_fallen and _rose_since(run, best.step or 0),
    )


def _rose_since(run: RunFiles, step: int) -> bool:
    """Whether the mean reward has risen since a step."""
    since = [value for at, value in zip(run.steps, run.series("reward/mean"), strict=True) if at > step]
    trend = _trend(since)
    return trend.last > trend.first


def _trend(values: Sequence[float]) -> RewardVerdict:
    known = [value for value in values if math.isfinite(value)]
    size = min(TREND_STEPS, (len(known) + 1) // 2)
    if not size:
        return RewardVerdict(0, math.nan, math.nan, 0)
    return RewardVerdict(len(known), sum(known[:size]) / size, sum(known[-size:]) / size, size)
