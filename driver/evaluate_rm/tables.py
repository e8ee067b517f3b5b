"""What stage evaluate_rm and stage explain print: tables of plain text. Pure.

Called by driver/evaluate_rm/command.py and driver/explain/command.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from driver.evaluate_rm.measures import Accuracy, Calibrated
from driver.evaluate_rm.results import Results, SetResult
from driver.report.records import Interval
from rewarder.rewardbench import Sectioned

ABSENT = "-"
TITLES = {"rewardbench": "RewardBench", "rewardbench2": "RewardBench 2"}


def format_results(results: Results) -> str:
    """Every set and benchmark."""
    lines = [f"reward model: {results.model}"]
    lines += [f"baseline: {results.baseline}"] if results.baseline else ["baseline: none (evaluate_rm.baseline)"]
    lines += [f"training prompts: {results.overlap.training}"]
    for name, found in results.sets.items():
        lines += ["", f"{name}: {found.rows} rows{_left_out(found)}", *_set_lines(found)]
        lines += [f"  {line}" for line in overlap_lines(results, name)]
    for name, by_scorer in results.benchmarks.items():
        lines += ["", f"{TITLES[name]} (x 100)", *_benchmark_lines(by_scorer)]
    return "\n".join(lines)


def overlap_lines(results: Results, name: str) -> list[str]:
    """How many rows of a set share words with a training prompt, where that is known."""
    if name not in results.overlap.rows:
        return []
    of = f"{results.overlap.rows[name]} of {results.sets[name].rows} rows"
    return [f"13 words in a row of the prompt are in a training prompt too: {of}"]


def text_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of the same number of cells, the first of each to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  " + "  ".join([row[0].ljust(widths[0]), *_right(row[1:], widths[1:])]).rstrip() for row in rows]


def decimal(value: float, digits: int = 3) -> str:
    """A number with a fixed count of decimals; a dash where it was not measured."""
    return f"{value:.{digits}f}" if math.isfinite(value) else ABSENT


def share(value: Interval, digits: int = 3) -> str:
    """A value with its interval, where it has one."""
    ends = f" [{decimal(value.low, digits)}, {decimal(value.high, digits)}]" if math.isfinite(value.low) else ""
    return decimal(value.mean, digits) + ends


def _right(cells: Iterable[str], widths: Iterable[int]) -> list[str]:
    return [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]


def _left_out(found: SetResult) -> str:
    """What became of the other rows of a set."""
    left_out = [f"{count} left out: {reason}" for reason, count in found.skipped.items()]
    return "".join(f"; {line}" for line in [*left_out, *(f"{count} {note}" for note, count in found.notes.items())])


def _set_lines(found: SetResult) -> list[str]:
    scorers = list(next(iter(found.slices.values())))
    rows = [["accuracy [95 %]", "rows", *scorers]]
    for name, by_scorer in found.slices.items():
        rows.append([name, str(by_scorer[scorers[0]].rows), *(share(by_scorer[scorer].share) for scorer in scorers)])
    lines = text_table(rows)
    if lost := {scorer: count for scorer, count in _tied(found.slices, scorers).items() if count}:
        lines.append("  lost to equal scores: " + ", ".join(f"{scorer} {count}" for scorer, count in lost.items()))
    return lines + (_calibration_lines(found.calibration) if found.calibration else [])


def _tied(slices: Mapping[str, Mapping[str, Accuracy]], scorers: Sequence[str]) -> dict[str, int]:
    """Rows lost to equal scores, of the whole set where it is a slice, else of all slices."""
    counted = [slices["all"]] if "all" in slices else list(slices.values())
    return {scorer: sum(by_scorer[scorer].tied for by_scorer in counted) for scorer in scorers}


def _calibration_lines(calibration: Mapping[str, Calibrated]) -> list[str]:
    rows = [["calibration", "temperature", "log loss", "Brier", "ECE", "logits per 100 tokens [95 %]"]]
    for scorer, found in calibration.items():
        if found.reason:
            rows.append([f"{scorer}: none, {found.reason}", *[ABSENT] * 5])
            continue
        numbers = [decimal(value) for value in (found.nll, found.brier, found.ece)]
        rows.append([scorer, f"{found.temperature:.4g}", *numbers, share(found.slope)])
    return text_table(rows)


def _benchmark_lines(by_scorer: Mapping[str, Sectioned]) -> list[str]:
    first = next(iter(by_scorer.values()))
    has_prior = math.isfinite(first.prior)
    head = [
        "scorer",
        *first.sections,
        "mean",
        *(["prior sets", "mean with prior sets at half weight"] if has_prior else []),
    ]
    rows = [head]
    for scorer, found in by_scorer.items():
        prior = [found.prior, found.overall_with_prior] if has_prior else []
        rows.append([scorer, *(decimal(100 * v, 1) for v in (*found.sections.values(), found.overall, *prior))])
    missing = [f"  no row of {', '.join(first.missing)}: not the published number"] if first.missing else []
    return text_table(rows) + missing
