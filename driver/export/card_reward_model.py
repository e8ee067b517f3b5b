"""The model card of export/reward_model. Every number comes from the run's files. Called by driver/export/stage.py."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from common.config.config import Config
from driver.export.card_parts import (
    LICENCE,
    TAGS,
    Facts,
    aggregation_settings,
    bullets,
    card,
    code,
    hub_id,
    repo_name,
    source,
    table,
    versions,
)
from driver.record.checkpoint import read_json
from driver.report.html import fixed, interval, number
from driver.report.read import read_reward_model
from driver.report.records import NAN, RewardModel

REWARD_MODEL_CODE = """
from transformers import AutoTokenizer

from common.types import Message
from rewarder.model import GatedRewardModel
from rewarder.scoring import score_responses

name = "{name}"
model, tokenizer = GatedRewardModel.load(name, "{dtype}"{objectives}), AutoTokenizer.from_pretrained(name)
prompt, responses = [Message("user", "...")], ["...", "..."]
scores, gate = score_responses(model, tokenizer, prompt, responses, {max_tokens})
print(dict(zip(model.objectives, scores[0].tolist())))   # of the first response
print((scores @ model.reward_transform_matrix) @ gate)   # one number for each response
"""


def reward_model_card(facts: Facts, directory: Path) -> str:
    """README.md of export/reward_model; `directory` holds the model's config.json and, where it has them, report.json and
    the decision.json of an adapted version."""
    config, stored = facts.config, json.loads((directory / "config.json").read_text())
    report = read_reward_model(directory / "report.json", facts.files.settings.terms)
    decision = _read_decision(directory / "decision.json")
    objectives = stored.get("objectives") or config.rewarder.objectives
    values = {
        "name": repo_name(config, 1, "export/reward_model"),
        "dtype": config.rewarder.dtype,
        "objectives": "" if stored.get("objectives") else f", objectives={objectives}",
        "max_tokens": config.rewarder.max_tokens,
    }
    given = config.rewarder.model
    # Not library_name transformers: its loaders would take the backbone alone, or put random heads on it.
    head = ModelCardData(
        base_model=hub_id(given or config.policy.model),
        datasets=[found for found in (hub_id(config.data.ratings), hub_id(config.data.preferences)) if found] or None,
        library_name="iter-rlhf",
        tags=[*TAGS, "reward-model"],
    )
    parts = [
        f"# {config.run.name}: reward model",
        f"A gated reward model in the layout of ArmoRM: a decoder, a linear head for each of {len(objectives)} objectives "
        "(read at the response's last token), and a gate that weighs them (read at the prompt's last token, so a response "
        f"cannot move it). It is version {stored.get('rm_version', 0)}; the policy of this run was trained against it"
        + (" at the end, and against earlier ones before." if decision else "."),
        "## How to load it\n\nWith the code of iter-rlhf (generic loaders would give it random heads):\n\n"
        + code(REWARD_MODEL_CODE.format(**values)),
        "## Objectives\n\nIn the order of the columns of `scores`.\n\n"
        + _objectives(config, objectives, report, stored),
        "## How good it is\n\n" + (_adapted(decision) if decision else _held_out(report)),
        "## How it was trained\n\n" + table(["setting", "value"], _reward_model_settings(config)),
        "## Limits\n\n" + bullets(_reward_model_limits(report)),
        versions(facts),
    ]
    return card(head, parts)


def _objectives(config: Config, names: Sequence[str], report: RewardModel | None, stored: Mapping[str, object]) -> str:
    groups = {name: group for group, members in config.aggregation.groups.items() for name in members}
    r2 = report.r2 if report else {}
    rows = [(column, name, groups.get(name, ""), _fixed(r2.get(name, NAN))) for column, name in enumerate(names)]
    verbosity = stored.get("verbosity")
    debias = (
        f"`reward_transform_matrix` removes the correlation with {verbosity} from the others."
        if verbosity
        else "`reward_transform_matrix` is as the model came with it; this run named no verbosity objective."
    )
    return table(["column", "objective", "group", "held-out R2 of its ratings"], rows) + "\n\n" + debias


def _fixed(value: float | str) -> str:
    return value if isinstance(value, str) else fixed(value)


def _weak(report: RewardModel) -> list[tuple[str, float]]:
    return [(name, value) for name, value in report.r2.items() if not isinstance(value, str) and value < 0.2]


def _read_decision(path: Path) -> dict[str, Any] | None:
    """Why an adapted version was accepted (driver/rounds/reward_models.py); None for version 0."""
    return read_json(path) if path.is_file() else None


def _adapted(decision: Mapping[str, Any]) -> str:
    return (
        f"It was adapted from version {decision['served_version']} to the policy's own samples in round "
        f"{decision['round']} (tier {decision['adaptation']['tier']}), and accepted on labels that it was not fitted on, "
        f"before and after: {decision['reason']}. `decision.json` has every number."
    )


def _held_out(report: RewardModel | None) -> str:
    if report is None:
        return "This run did not measure it: it was given ready-made."
    pairs = [
        ("pair accuracy", interval(report.accuracy)),
        *_baseline_row(report),
        ("pair accuracy with a uniform gate", fixed(report.uniform_accuracy)),
        ("pair accuracy by length alone", fixed(report.length_accuracy)),
        ("held-out pairs", number(report.pairs)),
        ("held-out prompts", number(report.prompts)),
    ]
    names = ("nll", "nll_at_one", "brier", "ece", "num_pairs")
    fits = [
        (fit.term, number(fit.temperature), *(number(fit.report.get(name, NAN)) for name in names))
        for fit in report.fits
    ]
    columns = ["term of the reward", "temperature", "log loss", "log loss at 1", "Brier", "ECE", "pairs"]
    words = "A temperature makes differences of a term log-odds; it was fitted on one half of the pairs, shown on the other."
    return f"{table(['measured', ''], pairs)}\n\nCalibration. {words}\n\n{table(columns, fits)}"


def _baseline_row(report: RewardModel) -> list[tuple[str, str]]:
    """Where one was trained beside it."""
    if not math.isfinite(report.baseline_accuracy.mean):
        return []
    return [("pair accuracy of a plain Bradley-Terry model of the same pairs", interval(report.baseline_accuracy))]


def _reward_model_settings(config: Config) -> list[tuple[str, object]]:
    training, data = config.learner.reward_model, config.data
    labels = f"ratings: {source(data.ratings)}; preferences: {source(data.preferences)}"
    if "collect" in config.stages:
        made = f"samples of the SFT policy, labelled by `{config.judge.labeler}`"
        labels = f"{made}; beside them, {labels}" if data.ratings or data.preferences else made
    if config.rewarder.model is not None:
        start = hub_id(config.rewarder.model) or "a reward model that the run was given as files"
        calibrated = "calibrated, not trained" if "reward_model" in config.stages else "used as it was"
        return [("start", f"{start}; {calibrated}"), ("labels", labels), *aggregation_settings(config)]
    return [
        ("start", "a copy of the policy's decoder before RLHF, new heads and gate"),
        ("labels", f"{labels}; {training.held_out_fraction:g} of the prompts held out"),
        (
            "stage 1",
            f"{training.epochs} epoch(s), batches of {training.batch_size}, learning rate {training.learning_rate:g}"
            + (f", backbone by low-rank updates (LoRA, rank {training.lora_rank})" if training.lora_rank else ""),
        ),
        ("its loss", f"{training.regression_weight:g} x squared error of ratings + Bradley-Terry of the gated score"),
        ("stage 2", f"gate alone, {training.gate_steps} steps, learning rate {training.gate_learning_rate:g}"),
        *aggregation_settings(config),
        ("seed", config.run.seed),
    ]


def _reward_model_limits(report: RewardModel | None) -> list[str]:
    found = ["Scores are raw: compare responses to one prompt, not prompts with each other."]
    weak = [f"{name} ({fixed(value)})" for name, value in _weak(report)] if report else []
    if weak:
        found.append(f"It explains little of the ratings of {', '.join(weak)} on held-out prompts (R2 below 0.2).")
    found += [f"{line[0].upper()}{line[1:]}." for line in report.warnings] if report else []
    if report is not None and not report.accuracy.mean > report.uniform_accuracy:
        found.append("On held-out pairs its gate is no better than equal weights.")
    return [
        *found,
        "It was measured on samples like its training data. A policy that is trained against it moves away from them, and its "
        "scores are then worth less.",
        "Temperatures hold for this aggregation and these labels.",
        LICENCE,
    ]
