"""explain.html: for each prompt a table and a bar chart of what each response's score is made of.

Called by driver/explain/command.py. Loads and runs nothing; driver/explain/page.html escapes every text of a user.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from common.files import write_whole
from driver.evaluate_rm.charts import contribution_chart
from driver.explain.text import Explained
from driver.report.charts import coloured
from driver.report.html import render


@dataclass(frozen=True, slots=True)
class Shown:
    """One prompt: its texts by name; the table's head, a row of numbers for each objective and the responses' totals; the
    difference of two totals, None unless there are two; the chart with its legend."""

    texts: Mapping[str, str]
    columns: Sequence[str]
    rows: Sequence[tuple[str, list[float]]]
    totals: Sequence[float]
    difference: float | None
    legend: Sequence[tuple[str, str]]
    chart: Markup


def write_page(path: Path, model: str, found: Sequence[Explained]) -> Path:
    """Writes the page and returns its path."""
    prompts = [_shown(at, explained) for at, explained in enumerate(found, 1)]
    write_whole(path, render("explain/page.html", model=model, prompts=prompts))
    return path


def _shown(at: int, explained: Explained) -> Shown:
    parts, names = explained.parts, list(explained.responses)
    columns = [f"{name}: {what}" for name in names for what in ("raw", "debiased", "contribution")]
    bars = {name: parts.contributions[g].tolist() for g, name in enumerate(names)}
    return Shown(
        {"Prompt": explained.prompt, **explained.responses},
        ["objective", "gate weight", *columns, *(["difference"] if explained.is_pair else [])],
        [(name, _numbers(explained, k)) for k, name in enumerate(explained.objectives)],
        parts.total.tolist(),
        float(parts.total[0] - parts.total[1]) if explained.is_pair else None,
        coloured(names),
        contribution_chart(explained.objectives, bars, f"contributions of prompt {at}"),
    )


def _numbers(explained: Explained, k: int) -> list[float]:
    """One objective's row: its gate weight, three parts of each response's score, and for two responses their difference."""
    parts, numbers = explained.parts, [float(explained.parts.gate_weights[k])]
    for g in range(len(explained.responses)):
        numbers += [float(value[g, k]) for value in (parts.scores, parts.debiased, parts.contributions)]
    if explained.is_pair:
        numbers.append(float(parts.contributions[0, k] - parts.contributions[1, k]))
    return numbers
