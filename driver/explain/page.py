"""explain.html: for each prompt a table and a bar chart of what each response's score is made of.

Called by driver/explain/command.py. Loads and runs nothing; every text of a user is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from driver.evaluate_rm.charts import contribution_chart
from driver.evaluate_rm.page import document, legend
from driver.explain.text import Explained
from driver.report.html import number, row, safe, section, table

INTRO = (
    "Contribution = gate weight \N{MULTIPLICATION SIGN} debiased score; contributions sum to the score. The gate reads the "
    "prompt alone, so it is the same for every response."
)


def write_page(path: Path, model: str, found: Sequence[Explained]) -> Path:
    """Writes the page and returns its path."""
    title = f'<p class="kicker">iter-rlhf: explain</p><h1>Scores taken apart</h1><p>{safe(model)}. {INTRO}</p>'
    sections = "".join(_section(at, explained) for at, explained in enumerate(found, 1))
    path.write_text(document("scores taken apart", title + sections), encoding="utf-8")
    return path


def _section(at: int, explained: Explained) -> str:
    texts = {"Prompt": explained.prompt, **explained.responses}
    shown = "".join(f'<h3>{safe(name)}</h3><div class="full">{safe(text)}</div>' for name, text in texts.items())
    bars = {name: explained.parts.contributions[g].tolist() for g, name in enumerate(explained.responses)}
    chart = contribution_chart(explained.objectives, bars, f"contributions of prompt {at}")
    figure = f'<div style="width:560px;max-width:100%"><figure>{legend(bars)}{chart}</figure></div>'
    return section(
        f"prompt-{at}", f"Prompt {at}", "", f'{shown}<div class="columns"><div>{_table(explained)}</div>{figure}</div>'
    )


def _table(explained: Explained) -> str:
    parts, names = explained.parts, [safe(name) for name in explained.responses]
    head = ["objective", "gate weight"]
    head += [f"{name}: {what}" for name in names for what in ("raw", "debiased", "contribution")]
    rows = [_objective_row(explained, k) for k in range(len(explained.objectives))]
    totals = [cell for g in range(len(names)) for cell in ("", "", f"<b>{number(float(parts.total[g]), 4)}</b>")]
    last = [f"<b>{number(float(parts.total[0] - parts.total[1]), 4)}</b>"] if explained.is_pair else []
    return table(head + (["difference"] if last else []), [*rows, row(["<b>score</b>", "", *totals, *last])])


def _objective_row(explained: Explained, k: int) -> str:
    parts, cells = explained.parts, [safe(explained.objectives[k]), number(float(explained.parts.gate_weights[k]), 4)]
    for g in range(len(explained.responses)):
        cells += [number(float(value[g, k]), 4) for value in (parts.scores, parts.debiased, parts.contributions)]
    if explained.is_pair:
        cells.append(number(float(parts.contributions[0, k] - parts.contributions[1, k]), 4))
    return row(cells)
