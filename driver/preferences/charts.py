"""The charts of preferences/page.html: numbers in, inline SVG out, in the look of the run's report.

Called by driver/preferences/page.py. Same numbers, same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from driver.evaluate_rm.charts import plain
from driver.report.charts import COLOURS, STACK, as_svg, figure_of, tick
from learner.preferences.strength import Bucket, Histogram

WIDE = (560, 250)


def histogram_chart(found: Histogram, label: str) -> Markup:
    """Counts by strength: the first list as bars, the others as outlines, and a dotted line at 0."""
    figure = figure_of(WIDE)
    axes = figure.add_axes((0.075, 0.1, 0.915, 0.88))
    for at, (counts, colour) in enumerate(zip(found.counts.values(), STACK, strict=False)):
        width, alpha = (0.0, 0.45) if at == 0 else (1.6, 1.0)
        axes.stairs(counts, found.edges, color=COLOURS[colour], fill=at == 0, linewidth=width, alpha=alpha)
    axes.axvline(0, color=COLOURS["red"], linewidth=1.2, linestyle=(0, (1, 2)))
    axes.set_xlim(found.edges[0], found.edges[-1])
    axes.set_ylim(bottom=0)
    _finish(axes)
    return as_svg(figure, label)


def bucket_chart(buckets: Sequence[Bucket], label: str) -> Markup:
    """From the weakest to the strongest: the mean with one standard deviation to each side; below, the standard deviation."""
    figure = figure_of(WIDE)
    upper, lower = figure.add_axes((0.075, 0.42, 0.915, 0.56)), figure.add_axes((0.075, 0.1, 0.915, 0.25))
    mean, std = np.array([bucket.mean for bucket in buckets]), np.array([bucket.std for bucket in buckets])
    at = np.arange(len(buckets))
    upper.axhline(0, color=COLOURS["red"], linewidth=1.2, linestyle=(0, (1, 2)))
    upper.vlines(at, mean - std, mean + std, color=COLOURS["blue"], linewidth=1.8, alpha=0.6)
    upper.plot(at, mean, color=COLOURS["blue"], linewidth=0, marker="o", markersize=5)
    lower.bar(at, std, 0.7, color=COLOURS["orange"])
    for axes in (upper, lower):
        axes.set_xlim(-0.6, len(buckets) - 0.4)
        axes.set_xticks(at, [f"{100 * (place + 0.5) / len(buckets):.3g}" for place in at])
        _finish(axes, y_ticks=4 if axes is upper else 2)
    upper.tick_params(labelbottom=False)
    return as_svg(figure, label)


def _finish(axes: Axes, y_ticks: int = 4) -> None:
    plain(axes, "y")
    axes.tick_params(labelsize=10)
    axes.yaxis.set_major_locator(MaxNLocator(y_ticks, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: tick(y)))
