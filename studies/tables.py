"""The studies' tables: rows in, Markdown out, and into the docs between two marks. Pure text.

Called by each study's report, which writes the docs' numbers; nobody types them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from studies.rows import Row
from studies.statistics import KL_LEVELS, Interval, largest_kl, matched_kl, paired_interval, t_interval

START, END = "<!-- rows: {} -->", "<!-- end of rows -->"
METRIC = "gold"
Matched: TypeAlias = Mapping[float, Mapping[int, float]]  # KL level (nats) -> seed -> metric


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown: the first column to the left, the others to the right. Ends with a line break."""
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a table of {len(header)} columns has a row of {len(row)} cells: {list(row)}")
    rule = ["---", *["---:"] * (len(header) - 1)]
    lines = [_line(header), "|" + "|".join(rule) + "|", *map(_line, rows)]
    return "\n".join(lines) + "\n"


def replace_block(text: str, name: str, content: str) -> str:
    """The text with `content` between the lines `<!-- rows: NAME -->` and `<!-- end of rows -->`, which stay.

    Raises ValueError where the text has no such block, or two, or one without an end, or where the content has such lines.
    """
    lines, start = text.splitlines(keepends=True), START.format(name)
    starts = [index for index, line in enumerate(lines) if line.strip() == start]
    if len(starts) != 1:
        raise ValueError(f"the text must have the line {start!r} once; got {len(starts)}; add or delete one")
    marks = [index for index, line in enumerate(lines) if index > starts[0] and _is_mark(line)]
    if not marks or lines[marks[0]].strip() != END:
        raise ValueError(f"the block {start!r} has no end; add the line {END!r} where it ends")
    if any(map(_is_mark, content.splitlines())):
        raise ValueError(f"the content for {start!r} has lines that mark blocks itself; take them out")
    body = content.strip("\n")
    return "".join([*lines[: starts[0] + 1], f"{body}\n" if body else "", *lines[marks[0] :]])


def matched_kl_table(
    rows_by_arm: Mapping[str, Sequence[Row]], baseline: str, levels: Sequence[float] = KL_LEVELS
) -> str:
    """Two tables, a line an arm: gold at each KL level (nats) with 95 % t intervals, then its paired gain on the baseline.

    Says how many seeds got there where not all did. Raises ValueError where the baseline or an arm has no rows.
    """
    if baseline not in rows_by_arm:
        raise ValueError(f"the baseline {baseline!r} is none of the arms: {', '.join(rows_by_arm) or 'there are none'}")
    empty = [arm for arm, rows in rows_by_arm.items() if not rows]
    if empty:
        raise ValueError(f"every arm of the table needs at least one row; got none of {empty}; run them or omit them")
    arms = {arm: matched_kl(rows, levels, METRIC) for arm, rows in rows_by_arm.items()}
    seeds = {arm: {row.seed for row in rows} for arm, rows in rows_by_arm.items()}
    found = _levels_table(arms, rows_by_arm, levels)
    return found if len(arms) == 1 else found + "\n" + _gains_table(arms, seeds, baseline)


def curves_at_kl_table(rows_by_arm: Mapping[str, Sequence[Row]], level: float, curves: Mapping[str, str]) -> str:
    """An arm a line, a curve a column (title -> curve's name): its value where each run first reaches this KL (nats)."""
    lines = [
        [arm, *(_level(matched_kl(rows, [level], curve)[level], len(rows)) for curve in curves.values())]
        for arm, rows in rows_by_arm.items()
    ]
    return markdown_table([f"at {_at(level)}", *curves], lines)


def curve_over_steps_table(rows_by_arm: Mapping[str, Sequence[Row]], curve: str, steps: Sequence[float]) -> str:
    """An arm a line, a step a column."""
    lines = [
        [arm, *(_cell(t_interval([_at_step(row, curve, step) for row in rows]), len(rows)) for step in steps)]
        for arm, rows in rows_by_arm.items()
    ]
    return markdown_table([f"{curve} at", *(f"step {step:g}" for step in steps)], lines)


# ---- parts


def _at_step(row: Row, curve: str, step: float) -> float:
    return row.curve(curve)[row.curve("step").index(step)]


def _levels_table(
    arms: Mapping[str, Matched], rows_by_arm: Mapping[str, Sequence[Row]], levels: Sequence[float]
) -> str:
    lines = [
        [arm, *(_level(values, len(rows)) for values in arms[arm].values()), _largest_kl(rows), _final(rows)]
        for arm, rows in rows_by_arm.items()
    ]
    return markdown_table([f"{METRIC} at", *map(_at, levels), "largest KL", "at the end"], lines)


def _gains_table(arms: Mapping[str, Matched], seeds: Mapping[str, set[int]], baseline: str) -> str:
    base = arms[baseline]
    lines = [
        [arm, *(_gain(values, base[level], len(seeds[arm] & seeds[baseline])) for level, values in matched.items())]
        for arm, matched in arms.items()
        if arm != baseline
    ]
    return markdown_table([f"{METRIC} minus that of {baseline} at", *map(_at, base)], lines)


def _at(level: float) -> str:
    return f"KL {level:g}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _is_mark(line: str) -> bool:
    return line.strip() == END or line.strip().startswith(START.partition("{")[0])


def _level(values: Mapping[int, float], num_seeds: int) -> str:
    return _cell(t_interval(list(values.values())), num_seeds) if values else "never reached"


def _gain(values: Mapping[int, float], baseline: Mapping[int, float], num_seeds: int) -> str:
    if len(values.keys() & baseline.keys()) < 2:
        return "-"
    return _cell(paired_interval(values, baseline), num_seeds, signed=True)


def _cell(interval: Interval, num_seeds: int, signed: bool = False) -> str:
    """The interval, and how many of the seeds it is of where that is not all."""
    text = interval.format(signed=signed)
    if interval.n == num_seeds:
        return text
    return f"{text.removesuffix(' (n = 1)')} ({interval.n} of {num_seeds} seeds)"


def _largest_kl(rows: Sequence[Row]) -> str:
    """Each seed's largest KL, from the smallest of them to the largest."""
    reached = [kl for kl in (largest_kl(row, METRIC) for row in rows) if math.isfinite(kl)]
    if not reached:
        return "-"
    low, high = f"{min(reached):z.1f}", f"{max(reached):z.1f}"
    return low if low == high else f"{low} to {high}"


def _final(rows: Sequence[Row]) -> str:
    """The last gold that each seed measured."""
    known = [[value for value in row.curve(METRIC) if math.isfinite(value)] for row in rows]
    last = [values[-1] for values in known if values]
    return _cell(t_interval(last), len(rows)) if last else "-"
