"""The figure of how strong a run's pairs are: histograms of preference strength, out of fold and in sample.

    python -m studies.strength_figure RUN/preferences/pairs.jsonl FILE.svg

Reads what stage `preferences` wrote (docs/preferences.md); of the training pairs alone, since a held-out pair has none in
sample. Same rows, same bytes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from common.data.rows import read_checked
from common.data.sources import DataError, Fields
from common.data.strengths import IN_SAMPLE_MEAN, MEAN
from learner.preferences.strength import Floats, Histogram, histogram
from studies import svg

HEIGHT = 320  # pixels
OUT_OF_FOLD, IN_SAMPLE = "out of fold", "in sample"


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m studies.strength_figure", description="Draw preference strength.")
    parser.add_argument("pairs", type=Path, help="pairs.jsonl of stage preferences")
    parser.add_argument("figure", type=Path, help="SVG to write")
    arguments = parser.parse_args()
    try:
        found = strengths_of(arguments.pairs)
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    draw(arguments.figure, histogram(found), len(found[OUT_OF_FOLD]))
    return 0


def strengths_of(path: Path) -> dict[str, Floats]:
    """Mean strength of the training pairs, of both kinds. Raises DataError for a file that no stage `preferences` wrote."""
    rows = [row for row in read_checked(path, _row, None) if row[1] is not None]
    return {name: np.array([row[at] for row in rows], float) for at, name in enumerate((OUT_OF_FOLD, IN_SAMPLE))}


def draw(path: Path, found: Histogram, num_pairs: int) -> None:
    """Out of fold as bars, in sample as an outline, and a dotted line at 0."""
    figure = svg.figure(HEIGHT, f"preference strength of {num_pairs:,} training pairs")
    axes = figure.add_subplot()
    axes.stairs(found.counts[OUT_OF_FOLD], found.edges, fill=True, color=svg.BLUE, alpha=0.45, label=OUT_OF_FOLD)
    axes.stairs(found.counts[IN_SAMPLE], found.edges, color=svg.ORANGE, linewidth=1.8, label=IN_SAMPLE)
    axes.axvline(0, color=svg.INK, linewidth=1.2, linestyle=(0, (1, 2)))
    svg.finish(axes, "strength (mean of chosen minus rejected, logits)", "pairs")
    axes.legend(frameon=False, fontsize=9, labelcolor=svg.INK)
    svg.write(figure, path)


def _row(fields: Fields) -> tuple[object, object]:
    if MEAN not in fields:
        raise DataError(f"no {MEAN}; give the pairs.jsonl that stage preferences writes")
    return fields[MEAN], fields.get(IN_SAMPLE_MEAN)


if __name__ == "__main__":
    sys.exit(main())
