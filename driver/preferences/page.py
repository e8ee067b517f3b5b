"""preferences/page.html: how strong the pairs are, how sure the members, and which labels look most wrong.

Called by driver/preferences/stage.py. Loads and runs nothing; driver/preferences/page.html escapes every text of the data;
same results, same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.data.data import PreferencePair
from common.files import write_whole
from driver.preferences.charts import bucket_chart, histogram_chart
from driver.preferences.results import IN_SAMPLE, OUT_OF_FOLD, Strength
from driver.report.charts import coloured
from driver.report.html import render
from learner.preferences.strength import weakest

SHOWN = 20
KINDS = {
    OUT_OF_FOLD: "by members that did not train on the pair's prompt",
    IN_SAMPLE: "by members that trained on the pair",
}


@dataclass(frozen=True, slots=True)
class Weak:
    """A pair whose label looks wrong: its row of pairs.jsonl from 1, its strength and standard deviation over the members
    that judged it, how many those were, and the same two numbers of the members that trained on it."""

    pair: PreferencePair
    row: int
    mean: float
    std: float
    members: int
    in_sample_mean: float
    in_sample_std: float


def write_page(path: Path, found: Strength) -> Path:
    """Writes the page and returns its path."""
    page = render(
        "preferences/page.html",
        found=found,
        out_of_fold=OUT_OF_FOLD,
        in_sample=IN_SAMPLE,
        kinds=KINDS,
        names=coloured(found.compared),
        histogram=histogram_chart(found.histogram(), "strength"),
        spread=bucket_chart(found.buckets, "mean and standard deviation by part"),
        weakest=[_weak(found, int(at)) for at in weakest(found.strength.mean, SHOWN)],
    )
    write_whole(path, page)
    return path


def _weak(found: Strength, at: int) -> Weak:
    of_pairs, in_sample = found.strength, found.in_sample
    return Weak(
        found.pairs[at],
        at + 1,
        float(of_pairs.mean[at]),
        float(of_pairs.std[at]),
        int(of_pairs.members[at]),
        float(in_sample.mean[at]),
        float(in_sample.std[at]),
    )
