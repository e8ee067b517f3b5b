"""Lengths of the configuration against the positions that each model has, before any model is loaded.

Called by the preflight. Reads config.json; waits for the disk only. A model that gives no number of positions has no limit
here, and one whose attention sees a sliding window only gets a note, since it takes longer texts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.config.config import Config
from common.config.stages import roles_needed
from driver.preflight.findings import Findings

POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
STRETCHING = ("linear", "dynamic", "default")  # others leave max_position_embeddings as it is
LEARNED = ("gpt2", "gpt_neo", "opt", "gpt_bigcode", "biogpt", "openai-gpt")
SCORING = {"preferences", "reward_model", "iterate", "evaluate_rm", "explain"}


def check_policy_lengths(config: Config, stages: Sequence[str], directory: Path | None, findings: Findings) -> None:
    """Prompts and responses fit the policy's positions, where a stage samples."""
    prompt, response = config.data.max_prompt_tokens, config.actors.max_response_tokens
    if directory is None or "actors" not in roles_needed(stages):
        return
    values = _text_config(directory)
    most = _positions(values)
    if most is not None and prompt + response > most:
        findings.problem(
            f"policy.model: {directory} has {most} positions, and data.max_prompt_tokens {prompt} + actors.max_response_tokens "
            f"{response} are {prompt + response}; lower one of the two, or use a model with more positions"
        )
    _note_window("policy.model", values, prompt + response, findings)


def check_scoring_lengths(
    key: str, config: Config, stages: Sequence[str], directory: Path | None, findings: Findings
) -> None:
    """rewarder.max_tokens fits the positions of a model that scores: the reward model, a judge or a baseline."""
    limit, sampled = config.rewarder.max_tokens, config.data.max_prompt_tokens + config.actors.max_response_tokens
    if directory is None or not SCORING & set(stages):
        return
    values = _text_config(directory)
    most = _positions(values)
    if most is not None and "iterate" in stages and min(limit, sampled) > most:
        findings.problem(
            f"{key}: {directory} has {most} positions, and prompts and responses may have {min(limit, sampled)} tokens "
            "(data.max_prompt_tokens + actors.max_response_tokens, at most rewarder.max_tokens); lower one of them, or "
            "use a model with more positions"
        )
    elif most is not None and limit > most and _is_learned(values):
        findings.problem(
            f"{key}: {directory} has {most} positions and rewarder.max_tokens is {limit}; set "
            f"rewarder.max_tokens: {most} or less"
        )
    else:
        _note_positions(key, most, limit, findings)
    _note_window(key, values, limit, findings)


def check_judges_lengths(config: Config, stages: Sequence[str], findings: Findings) -> None:
    """Checks the lengths of a judge's model and of a baseline, where their directories are here."""
    judge, baseline = config.judge, config.evaluate_rm.baseline
    if "iterate" in stages and judge.compares == "model" and judge.model:
        check_scoring_lengths("judge.model", config, stages, _here(judge.model), findings)
    if "evaluate_rm" in stages and baseline:
        check_scoring_lengths("evaluate_rm.baseline", config, stages, _here(baseline), findings)


def _here(name: str) -> Path | None:
    """The directory of a model; None where it is not here, or has no usable config.json, of which check_model speaks."""
    directory = Path(name).expanduser()
    return directory if directory.is_dir() and _text_config(directory) else None


def _note_window(key: str, values: dict[str, Any], longest: int, findings: Findings) -> None:
    window = values.get("sliding_window")
    if isinstance(window, int) and values.get("use_sliding_window", True) and longest > window:
        findings.note(
            f"{key}: its attention sees a window of {window} tokens and texts may have {longest}; what is further back "
            "reaches a response through other layers only"
        )


def _note_positions(key: str, most: int | None, limit: int, findings: Findings) -> None:
    if most is not None and limit > most:
        findings.note(
            f"{key}: it has {most} positions and rewarder.max_tokens is {limit}: a longer text would be scored at "
            f"positions that the model was not made for; set rewarder.max_tokens: {most} to have such texts left out"
        )


def _text_config(directory: Path) -> dict[str, Any]:
    """config.json, or the part of it that describes the language model of a multimodal one; empty where it is not usable."""
    try:
        values = json.loads((directory / "config.json").read_bytes())
    except (OSError, ValueError):  # check_model has named it
        return {}
    if not isinstance(values, dict):
        return {}
    inner = values.get("text_config")
    return inner if isinstance(inner, dict) else values


def _positions(values: dict[str, Any]) -> int | None:
    """The positions that the model was made for, by vLLM's own rule: a plain scaling of the rotary embedding stretches
    them, and model_max_length may name a larger number."""
    most = next((values[name] for name in POSITIONS if isinstance(values.get(name), int)), None)
    if most is None:
        return None
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    kind, factor = rope.get("rope_type", rope.get("type", "default")), rope.get("factor") or 1
    stretched = int(most * factor) if kind in STRETCHING else most
    return max(stretched, values.get("model_max_length") or 0)


def _is_learned(values: dict[str, Any]) -> bool:
    """Positions are rows of a table, so that there is none beyond the last."""
    return values.get("model_type") in LEARNED
