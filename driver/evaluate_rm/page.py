"""evaluate_rm.html: the tables of stage evaluate_rm and a reliability chart for each set of pairs, on one page.

Called by driver/evaluate_rm/command.py. Loads and runs nothing; same results, same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from driver.evaluate_rm.charts import reliability_chart
from driver.evaluate_rm.measures import Calibrated
from driver.evaluate_rm.results import Results, SetResult
from driver.evaluate_rm.tables import TITLES, overlap_lines
from driver.report.charts import STACK
from driver.report.html import fixed, interval, number, row, safe, section, table
from driver.report.page import CSS, POLICY
from rewarder.rewardbench import Sectioned

CALIBRATION = (
    "A scorer's difference over its temperature is a logit; each half of the prompts gets the temperature that the other "
    "half fits. Dots on the dotted line: what is called 80 % sure is right in 80 % of the pairs. The last column is how many "
    "logits 100 more tokens add at equal rightness; 0 is no taste for length."
)


def write_page(path: Path, results: Results) -> Path:
    """Writes the page and returns its path."""
    path.write_text(document("reward model", _body(results)), encoding="utf-8")
    return path


def document(title: str, body: str) -> str:
    """A whole page in the report's look, which may load and run nothing."""
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{safe(title)}</title><style>\n{CSS.read_text(encoding='utf-8')}</style>"
    )
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}</body></html>\n'


def legend(names: Iterable[str]) -> str:
    """Names beside the colours that the charts give them, in order."""
    items = [
        f'<span><span class="swatch stroke-{STACK[at % len(STACK)]}"></span>{safe(name)}</span>'
        for at, name in enumerate(names)
    ]
    return f'<div class="legend">{"".join(items)}</div>'


def _body(results: Results) -> str:
    frozen = f"; baseline {safe(results.baseline)}" if results.baseline else "; no baseline"
    title = f'<p class="kicker">iter-rlhf: evaluate_rm</p><h1>Reward model</h1><p>{safe(results.model)}{frozen}.</p>'
    title += f"<p>Training prompts: {safe(results.overlap.training)}.</p>"
    parts = [_benchmark(name, by_scorer) for name, by_scorer in results.benchmarks.items()]
    parts += [
        _set(at, name, found, overlap_lines(results, name)) for at, (name, found) in enumerate(results.sets.items())
    ]
    return title + "".join(parts)


def _benchmark(name: str, by_scorer: Mapping[str, Sectioned]) -> str:
    first = next(iter(by_scorer.values()))
    head = ["scorer", *map(safe, first.sections), "mean", "prior sets", "mean with prior sets"]
    rows = [
        row(
            [
                safe(scorer),
                *map(fixed, (*found.sections.values(), found.overall, found.prior, found.overall_with_prior)),
            ]
        )
        for scorer, found in by_scorer.items()
    ]
    intro = f"No row of {safe(', '.join(first.missing))}: not the published number." if first.missing else ""
    return section(name, TITLES[name], intro, table(head, rows))


def _set(at: int, name: str, found: SetResult, overlap: Sequence[str]) -> str:
    left_out = "".join(f"; {count} left out: {safe(reason)}" for reason, count in found.skipped.items())
    seen = "".join(f" {line}." for line in overlap)
    intro = f"{found.rows} rows{left_out}. Accuracy with its 95 % interval; equal scores lose.{seen}"
    body = _accuracies(found)
    if found.calibration:
        body += f"<p class='note'>{CALIBRATION}</p>" + _calibration(f"reliability of {name}", found.calibration)
    return section(f"set-{at}", safe(name), intro, body)


def _accuracies(found: SetResult) -> str:
    scorers = list(next(iter(found.slices.values())))
    rows = [
        row([safe(name), str(by_scorer[scorers[0]].rows), *(interval(by_scorer[scorer].share) for scorer in scorers)])
        for name, by_scorer in found.slices.items()
    ]
    return table(["slice", "rows", *map(safe, scorers)], rows)


def _calibration(label: str, calibration: Mapping[str, Calibrated]) -> str:
    rows = [_calibration_row(scorer, found) for scorer, found in calibration.items()]
    numbers = table(["scorer", "temperature", "log loss", "Brier", "ECE", "logits per 100 tokens"], rows)
    fitted = {scorer: found.bins for scorer, found in calibration.items() if found.bins}
    if not fitted:
        return numbers
    chart = f"<figure>{legend(fitted)}{reliability_chart(fitted, label)}</figure>"
    return f'<div class="columns"><div>{numbers}</div><div style="width:330px">{chart}</div></div>'


def _calibration_row(scorer: str, found: Calibrated) -> str:
    if found.reason:
        return row([f"{safe(scorer)}: none, {safe(found.reason)}", *_dashes(5)])
    cells = [number(found.temperature), fixed(found.nll), fixed(found.brier), fixed(found.ece), interval(found.slope)]
    return row([safe(scorer), *cells])


def _dashes(count: int) -> Sequence[str]:
    return ["\N{EN DASH}"] * count
