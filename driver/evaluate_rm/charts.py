"""The charts of evaluate_rm.html and explain.html: numbers in, inline SVG out, in the look of the run's report.

Called by driver/evaluate_rm/page.py and driver/explain/page.py. Same numbers, same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from driver.evaluate_rm.measures import Bin
from driver.report.charts import COLOURS, STACK, as_svg, figure_of

SQUARE = (300, 280)
ROW, AXIS, BARS_WIDTH = 22, 24, 520  # pixels
NAME_CHARS = 32


def reliability_chart(bins: Mapping[str, Sequence[Bin]], label: str) -> Markup:
    """Share that was right over the predicted winner's probability, a colour a scorer; the diagonal is what a calibrated
    scorer shows."""
    figure = figure_of(SQUARE)
    axes = figure.add_axes((0.12, 0.1, 0.85, 0.86))
    axes.plot([0.5, 1], [0.5, 1], color=COLOURS["red"], linewidth=1.2, linestyle=(0, (1, 2)))
    for found, colour in zip(bins.values(), STACK, strict=False):
        x = [place.confidence for place in found]
        axes.plot(x, [place.accuracy.mean for place in found], color=COLOURS[colour], marker="o", markersize=4)
        low, high = [place.accuracy.low for place in found], [place.accuracy.high for place in found]
        axes.vlines(x, low, high, color=COLOURS[colour], linewidth=1.4, alpha=0.7)
    axes.set_xlim(0.48, 1.02)
    axes.set_ylim(0.0, 1.03)
    plain(axes, "y")
    return as_svg(figure, label)


def contribution_chart(names: Sequence[str], contributions: Mapping[str, Sequence[float]], label: str) -> Markup:
    """For each objective, from the top, a bar of each response's contribution to its score (response -> [K])."""
    count, sides = len(names), len(contributions)
    figure, height = figure_of((BARS_WIDTH, ROW * count + AXIS)), ROW * count + AXIS
    axes = figure.add_axes((0.36, AXIS / height, 0.62, ROW * count / height))
    thick = 0.8 / sides
    for side, (values, colour) in enumerate(zip(contributions.values(), _cycle(sides), strict=True)):
        axes.barh(np.arange(count) + (side - (sides - 1) / 2) * thick, values, thick, color=COLOURS[colour])
    axes.axvline(0, color=COLOURS["muted"], linewidth=0.8)
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_yticks(range(count), [_short(name) for name in names], parse_math=False)  # a name may hold a $
    plain(axes, "x")
    return as_svg(figure, label)


def _cycle(count: int) -> list[str]:
    return [STACK[index % len(STACK)] for index in range(count)]


def _short(name: str) -> str:
    return name if len(name) <= NAME_CHARS else f"{name[: NAME_CHARS - 1]}\N{HORIZONTAL ELLIPSIS}"


def plain(axes: Axes, grid: Literal["x", "y"]) -> None:
    """A grid in one direction, a base line, and small grey tick labels."""
    axes.patch.set_visible(False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(COLOURS["rule"])
    axes.grid(axis=grid, color=COLOURS["rule"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=10, labelcolor=COLOURS["muted"], pad=3)
