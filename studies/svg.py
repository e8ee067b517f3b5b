"""The page that the studies' figures are drawn on: sizes, inks, axes, legends, and the file.

Called by figures.py. Words stay text, on white, so that a page shows them as they are in a light or dark theme. Same rows, same
bytes: no date, no random ids.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's palette, which colour-blind readers can tell apart, and the inks of the page
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#e69f00", "#009e73", "#cc79a7"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, "#d55e00", "#56b4e9", "#1b1f23")
INK, MUTED, RULE = "#1b1f23", "#6b7278", "#e3e6e8"
DPI = 96  # so that a size in pixels is that size on a page
WIDTH, HEIGHT, TALL = 900, 460, 580  # pixels
LABEL_CHARS = 26  # a longer label is broken into lines


def figure(height: int, title: str) -> Figure:
    """An empty figure with a title."""
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)  # inches
    figure = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI, layout=layout, facecolor="white")
    FigureCanvasSVG(figure)
    figure.suptitle(title, x=0.012, ha="left", fontsize=12, color=INK)
    return figure


def finish(axes: Axes, x: str, y: str, bounded: bool = False) -> None:
    """bounded: a share, so no room is given to what a band has outside of 0 to 1; lines are never cut."""
    axes.set_xlabel(x, fontsize=10, color=INK)
    axes.set_ylabel(y, fontsize=10, color=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.grid(color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9, labelcolor=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    if bounded:
        low, high = axes.get_ylim()
        drawn = [float(value) for line in axes.get_lines() for value in np.asarray(line.get_ydata(), float)]
        axes.set_ylim(max(low, min([0.0, *drawn]) - 0.02), min(high, max([1.0, *drawn]) + 0.02))


def entries(axes: Axes) -> list[Line2D]:
    """The lines that a legend names."""
    return [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]


def legend(axes: Axes, entries: Sequence[Line2D]) -> None:
    """Beside the panel, where it hides no line; the layout makes room."""
    labels = [textwrap.fill(str(entry.get_label()), LABEL_CHARS) for entry in entries]
    place = {"loc": "upper left", "bbox_to_anchor": (1.02, 1.0), "borderaxespad": 0.0}
    axes.legend(entries, labels, frameon=False, fontsize=9, labelcolor=INK, labelspacing=0.7, **place)


def write(figure: Figure, path: Path) -> None:
    """Writes a figure as SVG; same numbers, same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "studies"}):
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
