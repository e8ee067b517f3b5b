"""One unit of study smollm: a whole run of launch.py on the real model of docs/smollm.md, and what it changed.

The run lies under runs/studies/smollm; a unit that was stopped goes on with it. Options: equal (aggregation.weights are 1 for
every objective, which the run's configuration names). Called by the worker; waits for the run, for hours.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.metrics import read_rows
from studies.lab import Lab, Report
from studies.launches import launch
from studies.rows import read_rows as read_study_rows
from studies.study import Unit

RUNS = Path("runs") / "studies" / "smollm"
CURVES = ("reward/mean", "policy/kl_ref", "rollout/response_tokens")
NUMBERS = ("before", "after", "low", "high")
# Short names of the measures of examples/smollm/table.py: of those that come by kind, and of those that stand alone.
KINDS = {"all constraints met": "all", "met": "met", "program": "program", "second reward model": "second"}
SOURCES = {"own topics, held out": "topics", "MT-bench questions": "mt_bench", "HH prompts": "hh"}
ALONE = {
    "response tokens": "tokens",
    "cut off at the limit": "cut",
    "log-prob under the frozen model, nats a token": "frozen_logprob",
    "KL, nats a response": "kl",
}


def measure(unit: Unit, lab: Lab, report: Report) -> tuple[dict[str, float], dict[str, list[float]]]:
    """What the run changed on held-out prompts, what it cost, and its step lines. Raises ValueError where the study has rows
    of the other configuration."""
    refuse_mixed(unit)
    run = RUNS / f"{unit.arm.name}-seed{unit.seed}"
    steps = unit.config.iteration.num * unit.config.iteration.steps
    cost = launch(arguments(unit), run, unit.name, lambda: report("steps", _steps_of(run), steps))
    report("table", 0, 1)
    _write_table(run)
    pairs = unit.config.data.preferences
    end = {
        **changes(json.loads((run / "changes.json").read_text())),
        "steps": float(steps),
        "pairs": float(len(read_rows(Path(pairs)))) if pairs else 0.0,
        "wall_s": cost.wall_s,
        "cpu_s": cost.cpu_s,
    }
    return end, curves(read_rows(run / "metrics.jsonl"))


def arguments(unit: Unit) -> list[str]:
    """What launch.py is called with."""
    run = [f"run.seed={unit.seed}", f"run.name={unit.arm.name}-seed{unit.seed}", f"run.dir={RUNS}"]
    weights = [f"{name}: 1" for name in unit.config.rewarder.objectives]
    equal = [f"aggregation.weights={{{', '.join(weights)}}}"] if "equal" in unit.arm.options else []
    return ["--config", str(unit.base), *unit.arm.overrides, *equal, *run]


def refuse_mixed(unit: Unit) -> None:
    """Raises ValueError where valid rows of the study are of another configuration than this unit would run."""
    version = unit.study.world.version()
    found = {row.world for row in read_study_rows(unit.study.directory) if row.world.endswith(version)} - {unit.world}
    if found:
        raise ValueError(
            f"{unit.name} would run in world {unit.world}, but {unit.study.directory} has rows of {', '.join(sorted(found))}; "
            "with and without people's pairs are two studies: let examples.smollm find the same for every seed, or delete "
            "those rows"
        )


def changes(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a run's changes.json: NAME/before, NAME/after, NAME/difference, and its 95 % interval over prompts,
    NAME/low and NAME/high."""
    found: dict[str, float] = {}
    for item in record["changes"]:
        name = short_name(item["name"])
        found |= {f"{name}/{number}": _number(item[number]) for number in NUMBERS}
        found[f"{name}/difference"] = found[f"{name}/after"] - found[f"{name}/before"]
    return found


def short_name(name: str) -> str:
    """A measure's name in rows: all/topics, met/FAMILY, program/language, second/hh, tokens, cut, frozen_logprob, kl; one that
    is not known yet, its words."""
    kind, _, rest = name.partition(": ")
    if kind in KINDS and rest:
        return f"{KINDS[kind]}/{SOURCES.get(rest, rest)}"
    return ALONE.get(name) or re.sub(r"\W+", "_", name.lower()).strip("_")


def curves(lines: list[dict[str, Any]]) -> dict[str, list[float]]:
    """The step lines, from the first step that trained."""
    trained = [line for line in lines if line["step"] > 0]
    found = {name: [_number(line[name]) for line in trained] for name in CURVES}
    return {"step": [float(line["step"]) for line in trained], **found}


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _steps_of(run: Path) -> int:
    """How many steps a run has behind it. Its last line may be half written."""
    metrics = run / "metrics.jsonl"
    return max(metrics.read_text().count("\n") - 1, 0) if metrics.is_file() else 0


def _write_table(run: Path) -> None:
    from examples.smollm.table import write_table  # transformers only where it is needed: seconds to import

    write_table(run)
