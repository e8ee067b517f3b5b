"""A synthetic run on disk, of which every number is made up."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import yaml

from common.metrics import StepLog, step_names
from tests.unit.pages import EVIL

OBJECTIVES = ("helpful", "harmless")
TERMS = ("quality", "safety")
ITERATIONS, STEPS = 2, 6


def step_values(step: int) -> dict[str, Any]:
    return {
        "reward/mean": -1.0 + 0.05 * step,
        "reward/mean_se": 0.02,
        "reward/gated_score": 2.0 + 0.1 * step,
        "reward/group_std": 0.3,
        "reward/all_good": 0.2,
        "reward/saturated_frac": 0.1,
        **{f"reward/binding/{name}": 0.5 for name in TERMS},
        **{f"reward/{name}": 0.5 + 0.01 * step * k for k, name in enumerate(OBJECTIVES)},
        **{f"gate/{name}": 0.25 + 0.5 * k for k, name in enumerate(OBJECTIVES)},
        **{f"reward/term/{name}": -0.7 + 0.01 * step for name in TERMS},
        "policy/kl_sequence": 0.5 * step,
        "policy/entropy": 2.0 - 0.05 * step,
        "policy/grad_norm": 0.1,
        "rollout/response_tokens": 20.0 + step,
        "rollout/truncated_frac": 0.02,
        "rollout/tokens_per_s": 4321.0,
        "sync/max_logprob_diff": 0.0 if step == 1 else 2e-6,
        "staleness/mean": 1.0,
        "queue/dead": 0,
        "time/wait_s": 1.0,
        "time/train_s": 0.5,
        "time/step_s": 1.5,
    }


def sample(step: int, response: str) -> dict[str, Any]:
    return {
        "step": step,
        "slot": 4 * step,
        "prompt": f"synthetic prompt {step}",
        "response": response,
        "finish_reason": "stop",
        "policy_version": step - 1,
        "rm_version": 0,
        "scores": {"helpful": 0.5, "harmless": -0.25},
        "gate": {"helpful": 1.5, "harmless": 0.5},
        "terms": dict.fromkeys(TERMS, -0.7),
        "weights": dict.fromkeys(TERMS, 0.5),
        "penalty": 0.0,
        "reward": -0.7,
        "logprob": -3.0,
    }


def gold_row(policy: str, step: int | None, gold: float) -> dict[str, Any]:
    objectives = {} if step is None else {"helpful": gold, "harmless": gold}
    return {"policy": policy, "step": step, "gold": gold, "low": gold - 0.02, "high": gold + 0.02, "prompts": 8} | {
        "objectives": objectives
    }


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_metrics(run: Path, steps: int) -> None:
    log = StepLog(run / "metrics.jsonl", step_names(OBJECTIVES))
    log.write(0, {"gold/mean": 0.6, "sync/max_logprob_diff": 1e-6, "rm/version": 0})
    for step in range(1, steps + 1):
        log.write(step, step_values(step))


def write_settings(run: Path) -> None:
    config = {
        "run": {"name": "synthetic"},
        "redis": {"url": "redis://user:secret@host:6379/0"},
        "actors": {"sync_tolerance": 1e-4},
        "aggregation": {"kind": "grouped", "groups": {"quality": ["helpful"], "safety": ["harmless"]}},
        "iteration": {"num": ITERATIONS, "steps": STEPS, "max_staleness": 1},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    write_json(run / "environment.json", {"python": "3.11", "versions": {"torch": "0.0-synthetic"}})


def write_gold(run: Path, golds: tuple[float, float, float]) -> None:
    names = ("SFT policy", "iteration 1", "iteration 2")
    rows = [gold_row(name, at * STEPS, gold) for at, (name, gold) in enumerate(zip(names, golds, strict=True))]
    write_json(run / "evaluation.json", [*rows, gold_row("ideal answer", None, 0.99)])
    log = StepLog(run / "evaluations" / "step_0.jsonl")
    for at in range(8):
        log.write(at, {"prompt": "p", "response": EVIL, "scores": {"gold": 0.6, "helpful": at / 8, "harmless": 0.5}})


def write_reward_model(run: Path) -> None:
    report = {"rm/pair_accuracy": 0.711, "rm/pair_accuracy_uniform_gate": 0.622, "rm/held_out_pairs": 120.0}
    report |= {"rm/pair_accuracy_low": 0.624, "rm/pair_accuracy_high": 0.785, "rm/pair_accuracy_length": 0.555}
    r2 = {"rm/r2/helpful": 0.533, "rm/r2/harmless": math.nan, "rm/constant/harmless": 1.0}
    fit = {"nll": 0.5, "nll_at_one": 0.6, "brier": 0.2, "brier_at_one": 0.25, "ece": 0.0512, "num_pairs": 60}
    calibration = {"temperatures": [1.25, 0.375], "reports": [fit, fit]}
    record = {"report": report | r2, "calibration": calibration, "held_out_prompts": 77}
    write_json(run / "rm" / "version_0" / "report.json", record)


def write_ledger(run: Path) -> None:
    ledger = {"cursor": "9-0", "trained": [[1, 0, 45]], "dropped": [[46, "not finite"], [47, "<b>poison</b>"]]}
    write_json(run / "checkpoints" / "step_12" / "learner.json", {"updates": 12, "ledger": ledger})
    (run / "dead_letters.jsonl").write_text(json.dumps({"slot": 47, "stage": "scored", "reason": "<i>late</i>"}) + "\n")
