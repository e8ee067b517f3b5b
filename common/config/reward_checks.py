"""What the keys of the reward model's training may not be together. Called by common/config/checks.py; one line a problem."""

from __future__ import annotations

from collections.abc import Sequence

from common.config.config import Config, DenoisingConfig, RewardTrainingConfig
from common.metrics import RESERVED, RESERVED_KINDS


def wrong_reward_training(config: Config) -> list[str]:
    """One line for each contradiction among learner.reward_model, rewarder and the labels."""
    names, training = config.rewarder.objectives, config.learner.reward_model
    found = _taken_names(names)
    if training.verbosity is not None and training.verbosity not in names:
        found.append(f"learner.reward_model.verbosity is {training.verbosity!r}, which is not in rewarder.objectives")
    if training.lora_rank is not None and training.stage_1 == "ridge":
        found.append(
            f"learner.reward_model.lora_rank is {training.lora_rank}, but stage_1: ridge leaves the backbone as it is; use "
            "stage_1: regression, or lora_rank: null"
        )
    found += _wrong_patience(training)
    found += _wrong_denoising(training.denoising) + _wrong_contrastive(training)
    if not training.denoising.is_neutral:
        found += _no_pairs_to_denoise(config)
    return found + (_wrong_baseline(config) if training.baseline else [])


def _wrong_patience(training: RewardTrainingConfig) -> list[str]:
    """Why nothing could stop early."""
    patience, where = training.patience, "learner.reward_model.patience"
    if patience is None:
        return []
    if training.stage_1 == "ridge":
        return [
            f"{where} is {patience}, but stage_1: ridge fits heads in closed form, which never stops early; use stage_1: "
            "regression, or patience: null"
        ]
    if training.epochs > patience:
        return []
    return [
        f"{where} is {patience} and epochs, the most there may be, is {training.epochs}, so nothing could stop early: raise "
        f"epochs above {patience}, or set patience: null"
    ]


def _taken_names(objectives: Sequence[str]) -> list[str]:
    """An objective's mean score is reward/<objective> in a step line, where some names are those of other numbers."""
    return [
        f"rewarder.objectives has {name!r}, and reward/{name} is another number of a step line; give the objective another name"
        for name in objectives
        if name in RESERVED or name.startswith(RESERVED_KINDS)
    ]


def _wrong_baseline(config: Config) -> list[str]:
    """Why no Bradley-Terry model could be trained beside the gated one: nothing is trained, no pairs, no updates."""
    found, training = [], config.learner.reward_model
    if config.rewarder.model is not None:
        found.append(
            f"learner.reward_model.baseline is true but rewarder.model is {config.rewarder.model!r}: a model that is given is "
            "not trained, so nothing stands beside it on the same pairs; set learner.reward_model.baseline: false (evaluate_rm "
            "takes any model as evaluate_rm.baseline), or rewarder.model: null"
        )
    if not config.data.preferences and "collect" not in config.stages:
        found.append(
            "learner.reward_model.baseline is true but there are no pairs, and it learns from nothing else; set "
            "data.preferences, add stage collect, or set learner.reward_model.baseline: false"
        )
    if training.stage_1 == "ridge" and training.gate_steps < 1:
        found.append(
            "learner.reward_model.baseline is true with stage_1: ridge, where its head gets as many updates as the gate, and "
            f"gate_steps is {training.gate_steps}; raise it, or set learner.reward_model.baseline: false"
        )
    return found


def _wrong_denoising(denoising: DenoisingConfig) -> list[str]:
    """Quantiles between which no pair can lie."""
    low, high = denoising.keep
    if low < high:
        return []
    return [
        f"learner.reward_model.denoising.keep is {denoising.keep}; want two quantiles, the first below the second; "
        "[0, 1] keeps all"
    ]


def _no_pairs_to_denoise(config: Config) -> list[str]:
    found, where = [], "learner.reward_model.denoising"
    if config.rewarder.model is not None:
        found.append(
            f"{where} is set but rewarder.model is {config.rewarder.model!r}: a model that is given is not trained; unset one"
        )
    if not config.data.preferences and "collect" not in config.stages:
        found.append(f"{where} is set but there are no pairs; set data.preferences, or add stage collect")
    if config.learner.reward_model.denoising.needs_strength and not _has_strengths(config):
        found.append(
            f"{where} asks how strong each pair is, but stage preferences is not in stages and data.strengths is null; add the "
            "stage, or name the preferences/pairs.jsonl of a run that had it (smoothing with smooth: all needs none)"
        )
    return found


def _has_strengths(config: Config) -> bool:
    return config.data.strengths is not None or "preferences" in config.stages


def _wrong_contrastive(training: RewardTrainingConfig) -> list[str]:
    kind, where = training.contrastive.kind, "learner.reward_model.contrastive"
    if kind == "none" or training.stage_1 != "ridge":
        return []
    return [
        f"{where}.kind is {kind}, but stage_1: ridge trains no backbone, whose hidden states it would move; use stage_1: "
        "regression, or kind: none"
    ]
