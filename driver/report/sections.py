"""What the report's sections on what was learned show: gold, objectives, terms, and gold of each objective.

Called by driver/report/page.py with a run's records; the templates gold.html and objectives.html put it into words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from driver.report.charts import Scale, Steps, interval_spark, spark
from driver.report.records import Gold, Interval, RunFiles


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row's interval lies in the range of all rows: left end, width and mean in per cent, one decimal."""

    left: str
    width: str
    mean: str


@dataclass(frozen=True, slots=True)
class GoldTable:
    """The judged policies with the place of each one's interval (None where nothing was measured), and every objective that
    one of them has."""

    names: list[str]
    rows: list[tuple[Gold, Place | None]]


@dataclass(frozen=True, slots=True)
class Part:
    """One line of a small multiple: what its values are, from the first to the last, and their chart or nothing."""

    what: str
    values: Sequence[float]
    chart: Markup | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """One small multiple: the name of an objective or term, and what is shown of it."""

    name: str
    parts: Sequence[Part]


def gold(golds: Sequence[Gold]) -> GoldTable:
    """The table of what the judge said."""
    return GoldTable(_judged_objectives(golds), [(gold, _place(gold.gold, _span(golds))) for gold in golds])


def _judged_objectives(golds: Sequence[Gold]) -> list[str]:
    return list(dict.fromkeys(name for gold in golds for name in gold.objectives))


def _span(golds: Sequence[Gold]) -> tuple[float, float]:
    """The range that all intervals lie in, a little widened."""
    ends = [end for gold in golds for end in (gold.gold.low, gold.gold.mean, gold.gold.high) if math.isfinite(end)]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    pad = 0.04 * (high - low) or 0.5
    return low - pad, high + pad


def _place(value: Interval, span: tuple[float, float]) -> Place | None:
    if not math.isfinite(value.mean):
        return None
    ends = [end if math.isfinite(end) else value.mean for end in (value.low, value.high)]
    low, high, mean = (100 * (at - span[0]) / (span[1] - span[0]) for at in (*ends, value.mean))
    return Place(f"{low:.1f}", f"{high - low:.1f}", f"{mean:.1f}")


# ---- small multiples


def objectives(run: RunFiles, steps: Steps) -> list[Cell]:
    """The score and the gate weight of each objective; all scores span the same range, and all weights start at 0."""
    scores = {name: run.series(f"reward/{name}") for name in run.objectives}
    gates = {name: run.series(f"gate/{name}") for name in run.objectives}
    known = [value for values in gates.values() for value in values if math.isfinite(value)]
    top = max(known, default=1.0) or 1.0
    scales, gate = same_span(list(scores.values())), Scale(low=-0.04 * top, high=1.1 * top)
    return [
        Cell(
            name,
            (
                Part("score", scores[name], spark(steps, scores[name], "blue", scale, f"score of {name}")),
                Part("gate", gates[name], spark(steps, gates[name], "orange", gate, f"gate weight of {name}")),
            ),
        )
        for name, scale in zip(run.objectives, scales, strict=True)
    ]


def terms(run: RunFiles, steps: Steps) -> list[Cell]:
    """The mean of each reward term, and the share of responses in which it binds."""
    names = [name.removeprefix("reward/term/") for name in run.names("reward/term/")]
    series = [run.series(f"reward/term/{name}") for name in names]
    good = run.settings.good
    scales = same_span([[*values, good] for values in series])
    return [
        Cell(
            name,
            (
                Part("mean", values, spark(steps, values, "blue", replace(scale, level=good), f"term {name}")),
                Part("binding", run.series(f"reward/binding/{name}")),
            ),
        )
        for name, values, scale in zip(names, series, scales, strict=True)
    ]


def gold_objectives(run: RunFiles) -> list[Cell]:
    """The judge's mean of each objective after each iteration."""
    judged = [gold for gold in run.golds if gold.step is not None]
    names = _judged_objectives(judged)
    points = [[gold.objectives.get(name, Interval(math.nan)) for gold in judged] for name in names]
    scales = same_span([[end for p in column for end in (p.low, p.mean, p.high)] for column in points])
    at = [float(gold.step or 0) for gold in judged]
    return [
        Cell(name, [Part("gold", [p.mean for p in column], interval_spark(at, column, scale, f"gold of {name}"))])
        for name, column, scale in zip(names, points, scales, strict=True)
    ]


def same_span(series: Sequence[Sequence[float]]) -> list[Scale]:
    """One scale a series: each around its own middle, all as wide as the widest."""
    known = [[value for value in values if math.isfinite(value)] or [0.0] for values in series]
    widest = max((max(values) - min(values) for values in known), default=0.0) * 1.2 or 1.0
    middles = [(max(values) + min(values)) / 2 for values in known]
    return [Scale(low=middle - widest / 2, high=middle + widest / 2) for middle in middles]
