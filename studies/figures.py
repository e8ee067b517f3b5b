"""The studies' figures: rows in, an SVG file for the docs out, by matplotlib's svg backend.

Called by each study's report. Words stay text, on white, so that a page shows them as they are in a light or dark theme.
Same rows, same bytes: no date, no random ids.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from studies import svg
from studies.rows import Row
from studies.statistics import at_kl, largest_kl, t_interval
from studies.svg import BLUE, GREEN, HEIGHT, MUTED, ORANGE, PALETTE, PURPLE, TALL

SOME = (0, (2.5, 1))  # dashes: fewer than all of the seeds
GRID_POINTS = 60
CHANCE = 0.5  # accuracy of a coin on pairs
MARKED_UP_TO = 20  # points; a line of more has no markers


def gold_over_kl(
    path: Path,
    rows_by_arm: Mapping[str, Sequence[Row]],
    title: str,
    max_kl: float = math.inf,
    curve: str = "gold",
    label: str = "gold",
) -> None:
    """Gold, or another curve, over sequence KL (nats), a colour an arm: thin lines for the seeds, thick for their mean at
    equal KL.

    The mean goes as far as half of the seeds get, dashed where not all do; what lies beyond max_kl is cut off, and the axis
    says so. Raises ValueError for more arms than colours.
    """
    if len(rows_by_arm) > len(PALETTE):
        raise ValueError(f"a figure has {len(PALETTE)} colours; got {len(rows_by_arm)} arms; draw fewer in one figure")
    figure = svg.figure(HEIGHT, title)
    axes = figure.add_subplot()
    for arm, colour in zip(rows_by_arm, PALETTE, strict=False):
        rows = _rows(rows_by_arm, arm)
        _runs(axes, rows, colour, curve)
        _mean_at_kl(axes, rows, colour, f"{arm} {_seeds(rows)}", curve)
    cut = max_kl < axes.get_xlim()[1]
    svg.finish(axes, f"sequence KL to the reference (nats){f'; runs go on beyond {max_kl:g}' if cut else ''}", label)
    if cut:
        _cut(axes, max_kl)
    svg.legend(axes, svg.entries(axes) + _kl_key())
    svg.write(figure, path)


def proxy_and_gold(
    path: Path, rows_by_arm: Mapping[str, Sequence[Row]], title: str, arm: str, ceiling: str | None = None
) -> None:
    """What the reward model predicts of an arm, its gold, and the ceiling arm's gold, over the steps; below, its accuracy.

    Means over seeds with 95 % t bands, thin lines for the seeds. Accuracy is the curve "onpolicy_accuracy", which may be NaN
    at most steps. Raises ValueError where an arm has no rows or a row lacks a curve.
    """
    rows, figure = _rows(rows_by_arm, arm), svg.figure(TALL, title)
    quality, accuracy = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (2, 1)})
    _band(quality, rows, "proxy", ORANGE, "quality that the reward model predicts")
    _band(quality, rows, "gold", BLUE, "gold quality")
    if ceiling is not None:
        _band(quality, _rows(rows_by_arm, ceiling), "gold", GREEN, "gold quality when trained on gold (ceiling)")
    _band(accuracy, rows, "onpolicy_accuracy", PURPLE, "reward model's accuracy on the policy's own pairs")
    accuracy.axhline(CHANCE, color=MUTED, linewidth=1.1, linestyle=(0, (1, 2)), label="accuracy by chance")
    svg.finish(quality, "", "quality", bounded=True)
    svg.finish(accuracy, "step", "accuracy", bounded=True)
    svg.legend(quality, svg.entries(quality) + _band_key(rows))
    svg.legend(accuracy, svg.entries(accuracy))
    svg.write(figure, path)


def dots(path: Path, values: Mapping[str, Mapping[str, Sequence[float]]], order: Sequence[str], x: str) -> None:
    """A line for each name of `order`, from above; on it, a colour an arm, small dots for the seeds of values[arm][name] and a
    large one for their mean with its 95 % t interval. An arm without a name leaves its place empty."""
    figure = svg.figure(HEIGHT, "")
    axes = figure.add_subplot()
    for at, (arm, colour) in enumerate(zip(values, PALETTE, strict=False)):
        shift = 0.2 * (at - (len(values) - 1) / 2)
        for name, seeds in values[arm].items():
            y, mean = order.index(name) + shift, t_interval(seeds)
            axes.plot(seeds, [y] * len(seeds), color=colour, marker="o", markersize=3, linewidth=0, alpha=0.45)
            axes.plot([mean.low, mean.high], [y, y], color=colour, linewidth=2.0)
            axes.plot([mean.mean], [y], color=colour, marker="o", markersize=6)
        axes.plot([], [], color=colour, linewidth=2.0, marker="o", markersize=6, label=arm)
    svg.finish(axes, x, "")
    axes.set_yticks(range(len(order)), [name.replace("_", "-") for name in order], color=svg.INK)
    axes.invert_yaxis()
    key = [
        Line2D([], [], color=MUTED, linewidth=2.0, marker="o", markersize=6, label="mean, 95 % t interval"),
        Line2D([], [], color=MUTED, linewidth=0, marker="o", markersize=3, label="one seed"),
    ]
    svg.legend(axes, svg.entries(axes) + key)
    svg.write(figure, path)


@dataclass(frozen=True)
class Panel:
    """Lines over numbers: values[line][x] are those of the seeds."""

    values: Mapping[str, Mapping[float, Sequence[float]]]
    x: str
    y: str


def panels(path: Path, drawn: Sequence[Panel]) -> None:
    """One below the other, a colour a line: means over the seeds with 95 % t intervals, set apart a little where lines share
    their places. Raises ValueError for more lines than colours."""
    figure = svg.figure(TALL, "")
    for axes, panel in zip(figure.subplots(len(drawn), 1, squeeze=False)[:, 0], drawn, strict=True):
        if len(panel.values) > len(PALETTE):
            raise ValueError(f"a panel has {len(PALETTE)} colours; got {len(panel.values)} lines; draw fewer")
        places = sorted({x for line in panel.values.values() for x in line})
        gap = 0.3 * min((b - a for a, b in pairwise(places)), default=1.0) / len(panel.values)
        for at, ((name, line), colour) in enumerate(zip(panel.values.items(), PALETTE, strict=False)):
            _intervals(axes, line, gap * (at - (len(panel.values) - 1) / 2), colour, name)
        svg.finish(axes, panel.x, panel.y)
        svg.legend(axes, svg.entries(axes))
    svg.write(figure, path)


# ---- lines


def _intervals(axes: Axes, line: Mapping[float, Sequence[float]], shift: float, colour: str, name: str) -> None:
    means = {x + shift: t_interval(seeds) for x, seeds in line.items()}
    for x, mean in means.items():
        axes.plot([x, x], [mean.low, mean.high], color=colour, linewidth=1.1, alpha=0.7)
    axes.plot(
        list(means), [m.mean for m in means.values()], color=colour, linewidth=2.0, marker="o", markersize=4, label=name
    )


def _runs(axes: Axes, rows: Sequence[Row], colour: str, curve: str) -> None:
    """Each seed as it ran: KL is an estimate and may go back. A dot where the run ends."""
    for row in rows:
        kl, gold = _known(row.curve("kl"), row.curve(curve))
        axes.plot(kl, gold, color=colour, linewidth=0.8, alpha=0.4)
        axes.plot(kl[-1:], gold[-1:], color=colour, marker="o", markersize=3.5, alpha=0.7)


def _mean_at_kl(axes: Axes, rows: Sequence[Row], colour: str, label: str, curve: str) -> None:
    reached = sorted(_reach(row, curve) for row in rows)
    all_of_them, half_of_them = reached[0], reached[len(rows) // 2]
    for start, end, style in ((0.0, all_of_them, "-"), (max(all_of_them, 0.0), half_of_them, SOME)):
        levels = np.linspace(start, end, GRID_POINTS) if end > start else np.empty(0)
        axes.plot(
            levels, [_mean_at(rows, level, curve) for level in levels], color=colour, linewidth=2.0, linestyle=style
        )
    axes.plot([], [], color=colour, linewidth=2.0, label=label)


def _reach(row: Row, curve: str) -> float:
    largest = largest_kl(row, curve)
    return largest if math.isfinite(largest) else 0.0


def _mean_at(rows: Sequence[Row], level: float, curve: str) -> float:
    """Over the seeds that get there; the levels drawn have at least one."""
    values = [at_kl(row.curve("kl"), row.curve(curve), float(level)) for row in rows]
    return float(np.mean([value for value in values if value is not None]))


def _band(axes: Axes, rows: Sequence[Row], name: str, colour: str, label: str) -> None:
    """Seeds, their mean and its 95 % t interval at each step where a seed is measured."""
    steps = _steps(rows)
    for row in rows:
        axes.plot(*_known(steps, row.curve(name)), color=colour, linewidth=0.8, alpha=0.4)
    columns = zip(*(row.curve(name) for row in rows), strict=True)
    known = [(step, [v for v in column if math.isfinite(v)]) for step, column in zip(steps, columns, strict=True)]
    points = [(step, t_interval(values)) for step, values in known if values]
    at, intervals = [step for step, _ in points], [interval for _, interval in points]
    lows, highs = [interval.low for interval in intervals], [interval.high for interval in intervals]
    axes.fill_between(at, lows, highs, color=colour, alpha=0.18, linewidth=0)
    marker = "o" if len(at) <= MARKED_UP_TO else ""
    axes.plot(
        at,
        [i.mean for i in intervals],
        color=colour,
        linewidth=2.0,
        marker=marker,
        markersize=4,
        label=f"{label} {_seeds(rows)}",
    )


def _steps(rows: Sequence[Row]) -> list[float]:
    steps = rows[0].curve("step")
    for row in rows:
        assert row.curve("step") == steps, f"{row.label} has other steps than {rows[0].label}; one arm has one schedule"
    return steps


def _known(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    points = [point for point in zip(x, y, strict=True) if all(map(math.isfinite, point))]
    return [at for at, _ in points], [value for _, value in points]


def _rows(rows_by_arm: Mapping[str, Sequence[Row]], arm: str) -> Sequence[Row]:
    rows = rows_by_arm.get(arm, ())
    if not rows:
        raise ValueError(f"arm {arm!r} has no rows to draw; got rows of {', '.join(rows_by_arm) or 'no arm'}")
    return rows


# ---- the page


def _cut(axes: Axes, max_x: float) -> None:
    """Shows x up to max_x, and y as far as the lines go there."""
    lines = [np.asarray(line.get_xydata(), float) for line in axes.get_lines()]
    shown = [float(y) for points in lines for x, y in points if x <= max_x]
    room = 0.05 * (max(shown) - min(shown))
    axes.set_xlim(axes.get_xlim()[0] * max_x / axes.get_xlim()[1], max_x)
    axes.set_ylim(min(shown) - room, max(shown) + room)


def _kl_key() -> list[Line2D]:
    return [
        Line2D([], [], color=MUTED, linewidth=2.0, label="mean over the seeds"),
        Line2D([], [], color=MUTED, linewidth=2.0, linestyle=SOME, label="mean of those left"),
        Line2D([], [], color=MUTED, linewidth=0.8, marker="o", markersize=3.5, label="one seed; dot: its end"),
    ]


def _band_key(rows: Sequence[Row]) -> list[Line2D]:
    if len(rows) == 1:
        return [Line2D([], [], color=MUTED, linewidth=2.0, label="one seed")]
    return [
        Line2D([], [], color=MUTED, linewidth=2.0, label="mean over the seeds"),
        Line2D([], [], color=MUTED, linewidth=8, alpha=0.25, label="95 % t interval of the mean"),
        Line2D([], [], color=MUTED, linewidth=0.8, label="one seed"),
    ]


def _seeds(rows: Sequence[Row]) -> str:
    """A legend keeps it on one line: the space does not break."""
    return "(1\N{NO-BREAK SPACE}seed)" if len(rows) == 1 else f"({len(rows)}\N{NO-BREAK SPACE}seeds)"
