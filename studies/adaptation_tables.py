"""Rounds of the reward model: the tables and figures of studies `adaptation` and `policy_start`. Called by render.py.

Arms that end in _ungated serve every candidate; the others have what adaptation.py measures of rounds that may refuse it. Arms
that end in _reset start each iteration from the anchor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from studies.figures import Panel, panels
from studies.rows import Row
from studies.statistics import paired_interval, t_interval
from studies.tables import curve_over_steps_table, markdown_table, matched_kl_table

Arms = Mapping[str, Sequence[Row]]
BASELINE, GATED, UNGATED, RESET = "frozen", "labelled_256", "_ungated", "_reset"
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
            "Candidates, minus what served. All arms of a seed have the same served model, samples and evidence in the first "
            "round, and in the second unless a candidate was accepted in the first:\n",
            *(_candidates(fitted, number) for number in ROUNDS),
            "R2 on the original held-out ratings, candidate minus served:\n",
            *(_fits(fitted, number) for number in ROUNDS),
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
    moved = {arm: rows for arm, rows in _moved(arms).items() if arm in (BASELINE, GATED) or arm.endswith(UNGATED)}
    shown = {"gold": "gold", "proxy": "what the reward model predicts", "onpolicy_accuracy": "its on-policy accuracy"}
    panels(path, [Panel(_by_step(moved, curve), "step", label) for curve, label in shown.items()])


def starts(arms: Arms) -> str:
    """What starting again is worth, as Markdown."""
    shown = _different(arms)
    return "\n".join(
        [
            "Gold by step, of the arms whose runs differ:\n",
            _gold_by_step(shown),
            "Starting again less going on, at the last step:\n",
            _of_starting_again(arms),
            "On-policy accuracy of the reward model that serves, by gold on held-out prompts:\n",
            curve_over_steps_table(shown, "onpolicy_accuracy", STEPS),
            "Gold at equal KL:\n",
            matched_kl_table(shown, BASELINE),
        ]
    )


def draw_starts(path: Path, arms: Arms) -> None:
    """Gold and KL over the steps, without a gate or without rounds."""
    shown = {arm: rows for arm, rows in arms.items() if UNGATED in arm or arm.startswith(BASELINE)}
    drawn = {"gold": "gold", "kl": "KL to the anchor, nats a response"}
    panels(path, [Panel(_by_step(shown, curve), "step", label) for curve, label in drawn.items()])


def _different(arms: Arms) -> Arms:
    """The first of the arms whose gold is the same at every step of every seed."""
    found: dict[str, Sequence[Row]] = {}
    for arm, rows in arms.items():
        curves = [row.curve("gold") for row in rows]
        if all(curves != [row.curve("gold") for row in known] for known in found.values()):
            found[arm] = rows
    return found


def _of_starting_again(arms: Arms) -> str:
    lines = []
    for arm in (arm for arm in arms if arm.endswith(RESET)):
        pairs = [
            [{row.seed: _at(row, curve, max(STEPS)) for row in arms[name]} for name in (arm, arm.removesuffix(RESET))]
            for curve in ("gold", "kl")
        ]
        gains = [paired_interval(reset, going).format(signed=True) for reset, going in pairs]
        ends = [t_interval(list(reset.values())).format() for reset, _ in pairs]
        lines.append([arm, ends[0], gains[0], ends[1], gains[1]])
    return markdown_table(["arm", "gold", "less going on", "KL", "less going on"], lines)


def _moved(arms: Arms) -> Arms:
    """The frozen arm, and those that left its run."""
    frozen = {row.seed: row.curve("gold") for row in arms[BASELINE]}
    left = {arm for arm, rows in arms.items() if any(row.curve("gold") != frozen[row.seed] for row in rows)}
    return {arm: rows for arm, rows in arms.items() if arm == BASELINE or arm in left}


def _candidates(arms: Arms, number: int) -> str:
    header = [f"round {number}", "accepted", *ACCURACIES, "seconds"]
    return markdown_table(header, [[arm, *_candidate(rows, f"round{number}/")] for arm, rows in arms.items()])


def _candidate(rows: Sequence[Row], prefix: str) -> list[str]:
    accepted = sum(row.end[f"{prefix}accepted"] for row in rows)
    changes = [_change(rows, prefix, name) for name in ACCURACIES.values()]
    seconds = [row.end[f"{prefix}wall_s"] for row in rows]
    return [
        f"{accepted:.0f} of {len(rows)}",
        *changes,
        f"{min(seconds):.0f} to {max(seconds):.0f}",
    ]


def _fits(arms: Arms, number: int) -> str:
    """By objective."""
    served = f"round{number}/r2/"
    names = [name.removeprefix(served) for name in next(iter(arms.values()))[0].end if name.startswith(served)]
    lines = [[arm, *(_change(rows, f"round{number}/", f"r2/{name}") for name in names)] for arm, rows in arms.items()]
    return markdown_table([f"round {number}", *names], lines)


def _change(rows: Sequence[Row], prefix: str, name: str) -> str:
    """What the candidate has more than what served."""
    return t_interval([row.end[f"{prefix}candidate_{name}"] - row.end[prefix + name] for row in rows]).format(
        signed=True
    )


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
