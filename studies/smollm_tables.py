"""The tables of study smollm: by arm, over seeds, what training changed on held-out prompts. Rows in, Markdown out.

Called by render.py. A seed is one value: the difference of its two evaluations of the same prompts; intervals are over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from studies.rows import Row
from studies.statistics import paired_interval, t_interval
from studies.tables import markdown_table

Arms = Mapping[str, Sequence[Row]]
# title -> (short name of the measure, digits)
MEASURES = {
    "all met, own topics": ("all/topics", 3),
    "all met, MT-bench": ("all/mt_bench", 3),
    "all met, HH": ("all/hh", 3),
    "language, by program": ("program/language", 3),
    "log-prob under the frozen model, nats a token": ("frozen_logprob", 3),
    "response tokens": ("tokens", 1),
    "second reward model, HH": ("second/hh", 3),
    "KL, nats a response": ("kl", 2),
}


def tables(arms: Arms) -> str:
    """One table a question: how much each arm changed, how the arms differ from the first, and what they cost. Raises
    ValueError where rows were made with and without people's pairs."""
    refuse_mixed(arms)
    known = {title: found for title, found in MEASURES.items() if _has(arms, found[0])}
    first = next(iter(arms))
    return "\n".join(
        [
            *(_changed(arms, title, *found) for title, found in known.items()),
            f"The change of each arm minus that of {first}, by seed:\n",
            markdown_table(
                ["arm", *known],
                [[arm, *(_gain(arms, arm, first, *found) for found in known.values())] for arm in arms if arm != first],
            ),
            "What a unit takes:\n",
            _costs(arms),
        ]
    )


def refuse_mixed(arms: Arms) -> None:
    """Raises ValueError where rows of two configurations or versions stand beside each other."""
    worlds = sorted({row.world for rows in arms.values() for row in rows})
    if len(worlds) > 1:
        raise ValueError(
            f"the rows of study smollm are of {', '.join(worlds)}; with and without people's pairs, and two versions of the "
            "task, are not one table: delete the rows of one of them and run the study again"
        )


def _has(arms: Arms, name: str) -> bool:
    """Whether every row has measured it."""
    name = f"{name}/difference"
    return all(name in row.end and math.isfinite(row.end[name]) for rows in arms.values() for row in rows)


def _changed(arms: Arms, title: str, name: str, digits: int) -> str:
    lines = [
        [arm, *(_over(rows, f"{name}/{number}", digits) for number in ("before", "after"))]
        for arm, rows in arms.items()
    ]
    for line, rows in zip(lines, arms.values(), strict=True):
        line.append(_over(rows, f"{name}/difference", digits, signed=True))
    return markdown_table([title, "before", "after", "difference"], lines)


def _over(rows: Sequence[Row], name: str, digits: int, signed: bool = False) -> str:
    return t_interval([row.end[name] for row in rows]).format(digits, signed=signed)


def _gain(arms: Arms, arm: str, first: str, name: str, digits: int) -> str:
    ours, base = ({row.seed: row.end[f"{name}/difference"] for row in arms[side]} for side in (arm, first))
    if len(ours.keys() & base.keys()) < 2:
        return "-"
    return paired_interval(ours, base).format(digits, signed=True)


def _costs(arms: Arms) -> str:
    lines = [
        [
            arm,
            _range([row.end["steps"] for row in rows], 0),
            _range([row.end["pairs"] for row in rows], 0),
            _range([row.end["wall_s"] / 60 for row in rows], 0),
            _range([row.end["cpu_s"] / 60 for row in rows], 0),
        ]
        for arm, rows in arms.items()
    ]
    return markdown_table(["arm", "steps", "people's pairs", "minutes", "CPU minutes"], lines)


def _range(values: Sequence[float], digits: int) -> str:
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low} to {high}"
