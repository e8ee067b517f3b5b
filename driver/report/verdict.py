"""The report's one sentence: did the policy get better, by which measure, and how sure is that.

Called by driver/report/page.py; driver/report/templates/verdict.html says it in words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from driver.report.records import Gold, RunFiles

TREND_STEPS = 5
NUM_ERRORS = 2
Step = tuple[float, float]  # mean reward and its standard error


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
    """Means of the reward over its first and last `size` measured steps, with NUM_ERRORS standard errors each (NaN where the
    steps say nothing of theirs); change is rose or fell where these do not overlap, else unclear. NaN where no step was
    measured."""

    measured: int
    first: float
    last: float
    size: int
    first_error: float = math.nan
    last_error: float = math.nan
    change: str = "unclear"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Gold's where the judge compared two policies; else `gold` is None and the reward's is said."""

    gold: GoldVerdict | None
    reward: RewardVerdict


def verdict(run: RunFiles) -> Verdict:
    """The facts of the sentence."""
    judged = [gold for gold in run.golds if gold.step is not None and math.isfinite(gold.gold.mean)]
    return Verdict(_gold_verdict(judged, run) if len(judged) >= 2 else None, _trend(_rewards(run)))


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
    return _trend([values for at, values in zip(run.steps, _rewards(run), strict=True) if at > step]).change == "rose"


def _rewards(run: RunFiles) -> list[Step]:
    return list(zip(run.series("reward/mean"), run.series("reward/mean_se"), strict=True))


def _trend(steps: Sequence[Step]) -> RewardVerdict:
    """Is the mean of the last steps above that of the first by more than their noise? The standard error of a mean over steps
    is made of the steps' own, which are over groups: a step's groups are other prompts than another's."""
    known = [step for step in steps if math.isfinite(step[0])]
    size = min(TREND_STEPS, len(known) // 2) or len(known)
    if not size:
        return RewardVerdict(0, math.nan, math.nan, 0)
    (first, before), (last, after) = _mean(known[:size]), _mean(known[-size:])
    rose, fell = last - after > first + before, last + after < first - before  # False where an error is not known
    change = "rose" if rose else "fell" if fell else "unclear"
    return RewardVerdict(len(known), first, last, size, before, after, change)


def _mean(steps: Sequence[Step]) -> Step:
    """Mean and NUM_ERRORS standard errors of it."""
    means, errors = zip(*steps, strict=True)
    return sum(means) / len(steps), NUM_ERRORS * math.sqrt(sum(error**2 for error in errors)) / len(steps)
