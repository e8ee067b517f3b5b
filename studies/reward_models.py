"""What the gate and the heads are worth: the tables and the figure of study `reward_models`. Called by render.py.

Arms are ways to train a reward model on the same labels; their rows have the accuracy of each rule (reward_quality.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from examples.sandbox.gold import OBJECTIVES
from studies.figures import dots
from studies.rows import Row
from studies.statistics import Interval, paired_interval, t_interval
from studies.tables import markdown_table

Arms = Mapping[str, Sequence[Row]]
RULES = ("single", "uniform", "fixed", "shuffled", "bradley_terry", "gated", "oracle")


def tables(arms: Arms) -> str:
    """Accuracy by rule and way of training, what the gate adds, and R2 by objective, as Markdown."""
    gated = {arm: rows for arm, rows in arms.items() if "accuracy/gated" in rows[0].end}
    found = [(rule, *(_accuracy(rows, rule) for rows in arms.values())) for rule in RULES]
    gains = [[arm, *_gain(rows)] for arm, rows in gated.items()]
    fits = [[name, *(_of(rows, f"r2/{name}").format(2) for rows in gated.values())] for name in OBJECTIVES]
    return "\n".join(
        [
            markdown_table(["pair accuracy", *arms], found),
            "What the gate adds to the best fixed weights, its part of what the gold's own weights would add, and what it "
            "adds to a plain Bradley-Terry model:\n",
            markdown_table(
                [
                    "arm",
                    "gated minus fixed",
                    "oracle minus fixed",
                    "of the gap",
                    "shuffled minus fixed",
                    "gated minus bradley_terry",
                ],
                gains,
            ),
            "Held-out R2 of each objective's score against its gold program:\n",
            markdown_table(["objective", *gated], fits),
        ]
    )


def draw(path: Path, arms: Arms) -> None:
    """Accuracy by rule: a dot a seed, means with intervals, a colour a way of training."""
    values = {
        arm: {rule: [row.end[f"accuracy/{rule}"] for row in rows] for rule in RULES if _has(rows, rule)}
        for arm, rows in arms.items()
    }
    dots(path, values, RULES, "pair accuracy on held-out prompts, by gold")


def _has(rows: Sequence[Row], rule: str) -> bool:
    return f"accuracy/{rule}" in rows[0].end


def _accuracy(rows: Sequence[Row], rule: str) -> str:
    return _of(rows, f"accuracy/{rule}").format() if _has(rows, rule) else "-"


def _of(rows: Sequence[Row], name: str) -> Interval:
    return t_interval([row.end[name] for row in rows])


def _gain(rows: Sequence[Row]) -> list[str]:
    """The share is that of the means: a ratio of seeds has no mean where a seed's gap is small."""
    fixed = _by_seed(rows, "fixed")
    gated, oracle, shuffled = (paired_interval(_by_seed(rows, r), fixed) for r in ("gated", "oracle", "shuffled"))
    shown = [interval.format(signed=True) for interval in (gated, oracle)]
    plain = paired_interval(_by_seed(rows, "gated"), _by_seed(rows, "bradley_terry"))
    return [*shown, f"{gated.mean / oracle.mean:.0%}", shuffled.format(signed=True), plain.format(signed=True)]


def _by_seed(rows: Sequence[Row], rule: str) -> dict[int, float]:
    return {row.seed: row.end[f"accuracy/{rule}"] for row in rows}
