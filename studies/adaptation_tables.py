"""Rounds of the reward model: the tables and the figure of study `adaptation`. Called by render.py.

Arms that end in _ungated serve every candidate; the others have what adaptation.py measures of rounds that may refuse it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from studies.figures import Panel, panels
from studies.rows import Row
from studies.statistics import paired_interval, t_interval
from studies.tables import curve_over_steps_table, markdown_table, matched_kl_table

Arms = Mapping[str, Sequence[Row]]
BASELINE, UNGATED = "frozen", "_ungated"
ROUNDS = (1, 2)
STEPS = (25.0, 50.0, 75.0)
DRAWN_FROM = 25.0  # the first iteration is the same in all arms
ACCURACIES = {"on-policy accuracy": "onpolicy_accuracy", "anchor accuracy": "pair_accuracy", "J": "difference_loss"}


def tables(arms: Arms) -> str:
    """What the candidates were worth, what serving them did, and gold at equal KL, as Markdown."""
    fitted = {arm: rows for arm, rows in arms.items() if arm != BASELINE and not arm.endswith(UNGATED)}
    moved = _moved(arms)
    return "\n".join(
        [
            "Candidates of the first round, where all methods have the same served model, samples and evidence; candidate "
            "minus served:\n",
            _candidates(fitted),
            "Gold by step (rounds at 25 and 50), of the arms in which a candidate served; the others are the frozen run, bit "
            "for bit:\n",
            _gold_by_step(moved),
            "On-policy accuracy of the reward model that serves, by gold on held-out prompts:\n",
            curve_over_steps_table(moved, "onpolicy_accuracy", STEPS),
            "Sequence KL and what the reward model predicts, by step:\n",
            curve_over_steps_table(moved, "kl", STEPS),
            curve_over_steps_table(moved, "proxy", STEPS),
            "Gold at equal KL:\n",
            matched_kl_table(moved, BASELINE),
        ]
    )


def draw(path: Path, arms: Arms) -> None:
    """Gold, what the reward model predicts, and its accuracy over the steps."""
    moved = _moved(arms)
    shown = {"gold": "gold", "proxy": "what the reward model predicts", "onpolicy_accuracy": "its on-policy accuracy"}
    panels(path, [Panel(_by_step(moved, curve), "step", label) for curve, label in shown.items()])


def _moved(arms: Arms) -> Arms:
    """The frozen arm, and those that left its run."""
    frozen = {row.seed: row.curve("gold") for row in arms[BASELINE]}
    left = {arm for arm, rows in arms.items() if any(row.curve("gold") != frozen[row.seed] for row in rows)}
    return {arm: rows for arm, rows in arms.items() if arm == BASELINE or arm in left}


def _candidates(arms: Arms) -> str:
    header = ["method", "accepted", *ACCURACIES, "worst fall of R2", "seconds"]
    return markdown_table(header, [[arm, *_candidate(rows)] for arm, rows in arms.items()])


def _candidate(rows: Sequence[Row]) -> list[str]:
    accepted = sum(row.end[f"round{n}/accepted"] for row in rows for n in ROUNDS)
    changes = [
        t_interval([row.end[f"round1/candidate_{name}"] - row.end[f"round1/{name}"] for row in rows]).format(
            signed=True
        )
        for name in ACCURACIES.values()
    ]
    falls, seconds = [_worst_fall(row) for row in rows], [row.end["round1/wall_s"] for row in rows]
    return [
        f"{accepted:.0f} of {len(ROUNDS) * len(rows)}",
        *changes,
        t_interval(falls).format(),
        f"{min(seconds):.0f} to {max(seconds):.0f}",
    ]


def _worst_fall(row: Row) -> float:
    prefix = "round1/r2/"
    names = [name.removeprefix(prefix) for name in row.end if name.startswith(prefix)]
    return max(row.end[f"{prefix}{name}"] - row.end[f"round1/candidate_r2/{name}"] for name in names)


def _gold_by_step(arms: Arms) -> str:
    """Each arm's gold, and its gain on the frozen reward model at the last step."""
    last = max(STEPS)
    base = {row.seed: _at(row, "gold", last) for row in arms[BASELINE]}
    lines = []
    for arm, rows in arms.items():
        levels = [t_interval([_at(row, "gold", step) for row in rows]).format() for step in STEPS]
        own = {row.seed: _at(row, "gold", last) for row in rows}
        lines.append([arm, *levels, "-" if arm == BASELINE else paired_interval(own, base).format(signed=True)])
    return markdown_table(["gold at", *(f"step {step:g}" for step in STEPS), f"gain at {last:g}"], lines)


def _by_step(arms: Arms, curve: str) -> dict[str, dict[float, list[float]]]:
    steps = [step for step in next(iter(arms.values()))[0].curve("step") if step >= DRAWN_FROM]
    return {arm: {step: [_at(row, curve, step) for row in rows] for step in steps} for arm, rows in arms.items()}


def _at(row: Row, curve: str, step: float) -> float:
    return row.curve(curve)[row.curve("step").index(step)]
