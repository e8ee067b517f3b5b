"""Reads a run's directory into the report's records: every file but metrics.jsonl may be absent.

Called by driver/report/page.py; writes nothing. Numbers that are null or not finite become NaN.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from common.chance import chance_warnings
from common.config.aggregations import AGGREGATIONS, term_names
from common.config.config import sync_tolerance
from common.metrics import read_rows
from common.queue.ledger import Ledger
from driver.record import checkpoint
from driver.report.records import (
    NAN,
    Fit,
    Gold,
    Interval,
    LedgerCounts,
    RewardModel,
    RunFiles,
    Sample,
    Settings,
    number,
)

NORMAL_95 = 1.96
EVALUATED = re.compile(r"step_(0|[1-9]\d*)\.jsonl")
PASSWORD = re.compile(r"://[^/@\s]*@")


def read_run(run_dir: Path, objectives: Sequence[str]) -> RunFiles:
    """Reads everything; raises FileNotFoundError without metrics.jsonl."""
    config = _text(run_dir / "config.yaml")
    settings = _settings(yaml.safe_load(config) if config else {}, run_dir)
    return RunFiles(
        objectives=tuple(objectives),
        settings=settings,
        rows=read_rows(run_dir / "metrics.jsonl"),
        golds=_golds(run_dir),
        evaluated=(run_dir / "evaluation.json").is_file(),
        reward_model=read_reward_model(run_dir / "rm" / "version_0" / "report.json", settings.terms),
        samples=[_sample(row) for row in _rows(run_dir / "samples.jsonl")],
        ledger=_ledger(run_dir / "checkpoints"),
        dead=_dead(run_dir / "dead_letters.jsonl"),
        config=PASSWORD.sub("://***@", config) if config else None,
        environment=_text(run_dir / "environment.json"),
    )


def _numbers(values: Mapping[str, object]) -> dict[str, float]:
    return {name: number(value) for name, value in values.items()}


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _rows(path: Path) -> list[dict[str, Any]]:
    return read_rows(path) if path.is_file() else []


def _settings(config: Mapping[str, Mapping[str, Any]], run_dir: Path) -> Settings:
    iteration, aggregation = config.get("iteration", {}), config.get("aggregation", {})
    kind = str(aggregation.get("kind", "final_score"))
    return Settings(
        name=str(config.get("run", {}).get("name", run_dir.resolve().name)),
        steps=int(iteration.get("steps", 0)),
        sync_tolerance=_sync_tolerance(config),
        max_staleness=number(iteration.get("max_staleness")),
        terms=term_names({**aggregation, "kind": kind}, config.get("rewarder", {}).get("objectives", [])),
        good=math.log(0.5) if AGGREGATIONS[kind].transformed else math.nan,
    )


def _sync_tolerance(config: Mapping[str, Mapping[str, Any]]) -> float:
    """The bound that the run was held to, in nats; NaN where config.yaml does not say."""
    given, dtype = config.get("actors", {}).get("sync_tolerance"), config.get("policy", {}).get("dtype")
    return number(given) if given is not None or dtype is None else sync_tolerance(None, dtype)


def _golds(run_dir: Path) -> list[Gold]:
    """The rows of evaluation.json; without it, those of the evaluations that the loop has written so far."""
    evaluations = run_dir / "evaluations"
    if table := _text(run_dir / "evaluation.json"):
        return [_with_intervals(_gold(row), evaluations) for row in json.loads(table)]
    steps = checkpoint.numbered(evaluations, EVALUATED)
    return [_judged(step, read_rows(evaluations / f"step_{step}.jsonl")) for step in steps]


def _gold(row: Mapping[str, Any]) -> Gold:
    objectives = {name: Interval(number(value)) for name, value in row["objectives"].items()}
    gold = Interval(number(row["gold"]), number(row["low"]), number(row["high"]))
    return Gold(str(row["policy"]), row["step"], gold, int(row["prompts"]), objectives)


def _with_intervals(gold: Gold, evaluations: Path) -> Gold:
    """Returns the row, its objectives with intervals where the judged responses are there."""
    rows = _rows(evaluations / f"step_{gold.step}.jsonl")
    return replace(gold, objectives=_judged(0, rows).objectives) if rows else gold


def _judged(step: int, rows: Sequence[Mapping[str, Any]]) -> Gold:
    names = list(
        dict.fromkeys(name for row in rows for name in row["scores"])
    )  # not every prompt asks for each objective
    means = {name: _mean([number(row["scores"].get(name)) for row in rows]) for name in names}
    return Gold(f"step {step}", step, means.pop("gold", Interval(NAN)), len(rows), means)


def _mean(values: Sequence[float]) -> Interval:
    """Mean with its normal 95 % interval."""
    known = np.asarray([value for value in values if math.isfinite(value)])
    if len(known) < 2:
        return Interval(float(known[0]) if len(known) else NAN)
    mean, half = float(known.mean()), NORMAL_95 * float(known.std(ddof=1)) / math.sqrt(len(known))
    return Interval(mean, mean - half, mean + half)


def read_reward_model(path: Path, terms: Sequence[str]) -> RewardModel | None:
    """The report of stage reward_model; None where there is none."""
    if not path.is_file():
        return None
    record = checkpoint.read_json(path)
    report, calibration = _numbers(record["report"]), record["calibration"]
    names = [*terms, *(f"term {m}" for m in range(len(terms), len(calibration["temperatures"])))]
    fits = zip(names, calibration["temperatures"], calibration["reports"], strict=False)
    return RewardModel(
        _accuracy(report, "rm/pair_accuracy"),
        _accuracy(report, "rm/pair_accuracy_baseline"),
        _accuracy(report, "rm/pair_accuracy_preference_head"),
        report.get("rm/pair_accuracy_uniform_gate", NAN),
        report.get("rm/pair_accuracy_length", NAN),
        report.get("rm/held_out_pairs", NAN),
        number(record.get("held_out_prompts")),
        _r2(report),
        [Fit(name, number(temperature), _numbers(row)) for name, temperature, row in fits],
        chance_warnings(report),
    )


def _r2(report: Mapping[str, float]) -> dict[str, float | str]:
    """R2 by objective; "constant" where its held-out ratings are all alike."""
    values = {name.removeprefix("rm/r2/"): value for name, value in report.items() if name.startswith("rm/r2/")}
    return {name: "constant" if f"rm/constant/{name}" in report else value for name, value in values.items()}


def _accuracy(report: Mapping[str, float], name: str) -> Interval:
    return Interval(*(report.get(f"{name}{end}", NAN) for end in ("", "_low", "_high")))


def _sample(row: Mapping[str, Any]) -> Sample:
    return Sample(
        step=int(row["step"]),
        slot=int(row["slot"]),
        prompt=str(row["prompt"]),
        response=str(row["response"]),
        finish_reason=str(row["finish_reason"]),
        versions=(number(row["policy_version"]), number(row["rm_version"])),
        scores=_numbers(row["scores"]),
        gate=_numbers(row["gate"]),
        terms=_numbers(row["terms"]),
        weights=_numbers(row["weights"]),
        penalty=number(row["penalty"]),
        reward=number(row["reward"]),
    )


def _ledger(checkpoints: Path) -> LedgerCounts | None:
    steps = checkpoint.steps(checkpoints)
    if not steps or not (path := checkpoints / f"step_{steps[-1]}" / "learner.json").is_file():
        return None
    ledger = Ledger.from_dict(checkpoint.read_json(path)["ledger"])
    return LedgerCounts(steps[-1], len(ledger.trained), Counter(ledger.dropped.values()))


def _dead(path: Path) -> list[tuple[str, int]] | None:
    """Reasons of dead letters with how often each occurs, the most frequent first."""
    return Counter(str(row["reason"]) for row in _rows(path)).most_common() if path.is_file() else None
