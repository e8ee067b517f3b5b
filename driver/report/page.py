"""report.html: what a run did, on one page that needs nothing else.

    title and verdict, gold, curves, objectives, terms, gold of each objective, reward model, samples, ledger, settings

Called by stage report; reads the run's files through driver/report/read.py and fills driver/report/templates/page.html. The
look is driver/report/report.css, which is copied into the page. No date, no random ids: the same files give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from driver.report.charts import Steps
from driver.report.curves import curves
from driver.report.html import render
from driver.report.read import read_run
from driver.report.records import RunFiles
from driver.report.samples import samples
from driver.report.sections import gold, gold_objectives, objectives, terms
from driver.report.verdict import verdict


def write_report(run_dir: Path, names: Sequence[str]) -> Path:
    """Writes run_dir/report.html from the run's files and the objectives' names, and returns its path. Raises
    FileNotFoundError without metrics.jsonl; every other file may be absent, and its section then says so."""
    path = run_dir / "report.html"
    path.write_text(page(read_run(run_dir, names)), encoding="utf-8")
    return path


def page(run: RunFiles) -> str:
    """The whole document."""
    steps = Steps(run.steps, run.borders)
    return render(
        "report/templates/page.html",
        run=run,
        verdict=verdict(run),
        gold=gold(run.golds),
        cards=curves(run, steps),
        objectives=objectives(run, steps),
        terms=terms(run, steps),
        gold_objectives=gold_objectives(run),
        samples=samples(run.samples),
    )
