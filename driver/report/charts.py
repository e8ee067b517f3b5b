"""The report's charts: numbers in, inline SVG out, by matplotlib's svg backend.

Called by the report's sections. Colours become CSS variables, so that a chart follows the page's light or dark theme.
All words but tick labels stay in the page; a label for screen readers is escaped. Same numbers, same bytes.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from driver.report.records import Interval

# Okabe and Ito's palette, which colour-blind readers can tell apart, and the inks of the page
COLOURS = {
    "blue": "#0072b2",
    "orange": "#e69f00",
    "green": "#009e73",
    "purple": "#cc79a7",
    "red": "#d55e00",
    "sky": "#56b4e9",
    "ink": "#1b1f23",
    "muted": "#6b7278",
    "rule": "#e3e6e8",
}
STACK = ("blue", "orange", "green", "purple", "sky", "red")
CARD, SPARK = (352, 172), (140, 80)
MARKED_UP_TO, MOST_TICKS = 8, 6
SMOOTH_FROM, SMOOTH_SPARK_FROM = 20, 200  # measured steps
SMOOTH_STEPS, SMOOTH_SHARE = 5, 15  # the running mean spans a fifteenth of the run, at least 5 steps
UNUSED = re.compile(
    r"<metadata>.*?</metadata>|<style.*?</style>| font-family: [^;]*;| transform=\"rotate\(-0 .*?\"", re.S
)
EMPTY = re.compile(r"<defs>\s*</defs>|<g/>|\n\s*(?=\n)")
SVG_TAG = re.compile(r"^.*?<svg[^>]*viewBox=\"([^\"]*)\"[^>]*>", re.S)


@dataclass(frozen=True, slots=True)
class Steps:
    """The x axis that a run's charts share: steps, and the iterations' borders."""

    values: Sequence[float]
    borders: Sequence[float]


@dataclass(frozen=True, slots=True)
class Scale:
    """The y axis: limits (NaN: from the data), a dotted level (NaN: none), log, smooth (adds the running mean)."""

    low: float = math.nan
    high: float = math.nan
    level: float = math.nan
    log: bool = False
    smooth: bool = False


def line_chart(steps: Steps, values: Sequence[float], colour: str, scale: Scale, label: str) -> Markup:
    """One value over the steps."""
    figure, (axes,) = _card(1)
    _line(axes, steps.values, values, colour, scale.smooth)
    _finish(axes, steps, scale)
    return as_svg(figure, label)


def two_line_charts(steps: Steps, upper: Sequence[float], lower: Sequence[float], label: str) -> Markup:
    """Two values of different units, one above the other; the lower one is a share that starts at 0."""
    figure, axes = _card(2)
    _line(axes[0], steps.values, upper, "purple", True)
    _line(axes[1], steps.values, lower, "orange", False)
    _finish(axes[0], steps, Scale())
    axes[0].tick_params(labelbottom=False)
    _finish(axes[1], steps, Scale(low=0.0, high=max([0.02, *(v for v in lower if math.isfinite(v))]) * 1.15))
    axes[1].yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.3g} %"))
    return as_svg(figure, label)


def stacked_chart(steps: Steps, parts: Sequence[Sequence[float]], label: str) -> Markup:
    """Parts of a whole, one bar a step, drawn as areas with flat tops."""
    figure, (axes,) = _card(1)
    edges = np.repeat(np.asarray(steps.values, float), 2) + np.tile([-0.5, 0.5], len(steps.values))
    base = np.zeros(len(edges))
    for part, colour in zip(parts, _cycle(len(parts)), strict=True):
        top = base + np.repeat(np.nan_to_num(np.asarray(part, float)), 2)
        axes.fill_between(edges, base, top, color=COLOURS[colour], linewidth=0)
        base = top
    _finish(axes, steps, Scale(low=0.0, high=float(base.max()) * 1.05 or 1.0))
    return as_svg(figure, label)


def interval_chart(steps: Steps, at: Sequence[float], points: Sequence[Interval], level: float, label: str) -> Markup:
    """Means with their intervals at some of the steps, and a dotted level."""
    figure, (axes,) = _card(1)
    _intervals(axes, at, points, "green")
    _finish(axes, steps, Scale(level=level))
    return as_svg(figure, label)


def spark(steps: Steps, values: Sequence[float], colour: str, scale: Scale, label: str) -> Markup:
    """A small chart of a row that shares its span, so that slopes compare."""
    figure, axes = _small()
    _line(axes, steps.values, values, colour, len(values) >= SMOOTH_SPARK_FROM)
    _finish(axes, steps, scale, small=True)
    return as_svg(figure, label)


def interval_spark(at: Sequence[float], points: Sequence[Interval], scale: Scale, label: str) -> Markup:
    """A small chart of means with intervals."""
    figure, axes = _small()
    _intervals(axes, at, points, "green")
    _finish(axes, Steps(at, ()), scale, small=True)
    return as_svg(figure, label)


# ---- parts


def _cycle(count: int) -> list[str]:
    return [STACK[index % len(STACK)] for index in range(count)]


def coloured(names: Iterable[str]) -> list[tuple[str, str]]:
    """The entries of a legend: the colour that the charts give each name, and the name, in order."""
    return [(STACK[at % len(STACK)], name) for at, name in enumerate(names)]


def _card(rows: int) -> tuple[Figure, list[Axes]]:
    figure = figure_of(CARD)
    height, bottom, gap = 0.83, 0.13, 0.07
    part = (height - gap * (rows - 1)) / rows
    places = [(0.135, bottom + (rows - 1 - row) * (part + gap), 0.845, part) for row in range(rows)]
    return figure, [figure.add_axes(place) for place in places]


def _small() -> tuple[Figure, Axes]:
    figure = figure_of(SPARK)
    return figure, figure.add_axes((0.24, 0.2, 0.73, 0.7))


def figure_of(size: tuple[int, int]) -> Figure:
    """72 dots to the inch: one point is one pixel of the page."""
    figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72)
    figure.patch.set_visible(False)
    FigureCanvasSVG(figure)
    return figure


def _line(axes: Axes, x: Sequence[float], values: Sequence[float], colour: str, smooth: bool) -> None:
    known = int(np.isfinite(values).sum())
    smooth = smooth and known >= SMOOTH_FROM
    marker = "o" if known <= MARKED_UP_TO else ""
    faint: dict[str, Any] = {"linewidth": 0.9, "alpha": 0.45} if smooth else {"linewidth": 1.5}
    axes.plot(x, values, color=COLOURS[colour], marker=marker, markersize=3.5, **faint)
    if smooth:
        axes.plot(x, _running_mean(values), color=COLOURS[colour], linewidth=1.9)


def _running_mean(values: Sequence[float]) -> list[float]:
    """Mean of the known values of the steps around each step."""
    known = np.asarray(values, float)
    half = max(SMOOTH_STEPS, len(known) // SMOOTH_SHARE) // 2
    windows = [known[max(0, at - half) : at + half + 1] for at in range(len(known))]
    means = [float(np.nansum(window) / max(np.isfinite(window).sum(), 1)) for window in windows]
    return [mean if math.isfinite(value) else math.nan for mean, value in zip(means, known, strict=True)]


def _intervals(axes: Axes, at: Sequence[float], points: Sequence[Interval], colour: str) -> None:
    axes.plot(at, [point.mean for point in points], color=COLOURS[colour], linewidth=1.2, marker="o", markersize=4)
    axes.vlines(at, [p.low for p in points], [p.high for p in points], color=COLOURS[colour], linewidth=1.8)


def _finish(axes: Axes, steps: Steps, scale: Scale, small: bool = False) -> None:
    axes.patch.set_visible(False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(COLOURS["rule"])
    axes.grid(axis="y", color=COLOURS["rule"], linewidth=0.8)
    axes.set_axisbelow(True)
    for border in steps.borders:
        axes.axvline(border, color=COLOURS["muted"], linewidth=0.7, alpha=0.3 if small else 0.6, zorder=0.5)
    if math.isfinite(scale.level):
        axes.axhline(scale.level, color=COLOURS["red"], linewidth=1.2, linestyle=(0, (1, 2)), zorder=3)
    axes.tick_params(length=0, labelsize=9 if small else 10, labelcolor=COLOURS["muted"], pad=3)
    _x_axis(axes, steps, small)
    _y_axis(axes, scale, small)


def _x_axis(axes: Axes, steps: Steps, small: bool) -> None:
    first, last = min(steps.values, default=0), max(steps.values, default=1)
    pad = 0.5 if first == last else (last - first) * 0.02
    axes.set_xlim(first - pad, last + pad)
    ends: list[float] = sorted({first, last}.union(() if small else steps.borders))
    few = small or 0 < len(steps.borders) <= MOST_TICKS
    axes.xaxis.set_major_locator(FixedLocator(ends) if few else MaxNLocator(MOST_TICKS, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))


def _y_axis(axes: Axes, scale: Scale, small: bool) -> None:
    axes.margins(y=0.12)
    if scale.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=5))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(2 if small else 4, steps=[1, 2, 2.5, 5, 10]))
    if math.isfinite(scale.low) and math.isfinite(scale.high):
        axes.set_ylim(scale.low, scale.high)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: tick(y)))


def tick(value: float) -> str:
    """A tick label: no more digits than needed."""
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e7):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e").replace("-", "\N{MINUS SIGN}")
    text = f"{value / 1000:.4g}k" if size >= 10_000 else f"{value:.4g}"
    return text.replace("-", "\N{MINUS SIGN}")


def as_svg(figure: Figure, label: str) -> Markup:
    """The figure as an <svg> element, which a page takes as it is: named for screen readers, themed, without ids that
    nothing refers to."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    body = EMPTY.sub("", UNUSED.sub("", text.getvalue()))
    body = SVG_TAG.sub(lambda tag: f'<svg viewBox="{tag[1]}" role="img" aria-label="{escape(label)}">', body, count=1)
    used = set(re.findall(r"#([\w-]+)[\")]", body))
    body = re.sub(r' id="([\w.-]+)"', lambda found: found[0] if found[1] in used else "", body)
    for name, colour in COLOURS.items():
        body = body.replace(colour, f"var(--{name})")
    return Markup(body.strip())
