"""evaluate_rm.html: the tables of stage evaluate_rm and a reliability chart for each set of pairs, on one page.

Called by driver/evaluate_rm/command.py. Loads and runs nothing; same results, same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from common.files import write_whole
from driver.evaluate_rm.charts import reliability_chart
from driver.evaluate_rm.results import Results, SetResult
from driver.evaluate_rm.tables import TITLES, overlap_lines
from driver.report.charts import coloured
from driver.report.html import render


@dataclass(frozen=True, slots=True)
class Chart:
    """A reliability chart and the entries of its legend."""

    svg: Markup
    legend: Sequence[tuple[str, str]]


def write_page(path: Path, results: Results) -> Path:
    """Writes the page and returns its path."""
    charts = {name: _chart(name, found) for name, found in results.sets.items()}
    overlap = {name: overlap_lines(results, name) for name in results.sets}
    page = render("evaluate_rm/page.html", results=results, titles=TITLES, charts=charts, overlap=overlap)
    write_whole(path, page)
    return path


def _chart(name: str, found: SetResult) -> Chart | None:
    """The chart of a set of pairs; None where no scorer could be calibrated."""
    fitted = {scorer: calibrated.bins for scorer, calibrated in found.calibration.items() if calibrated.bins}
    return Chart(reliability_chart(fitted, f"reliability of {name}"), coloured(fitted)) if fitted else None
