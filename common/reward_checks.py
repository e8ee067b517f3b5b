"""What the keys of the reward model's training may not be together. Called by common/config_checks.py; one line a problem."""

from __future__ import annotations

from common.config import Config

MOST_RANK = 1024


def wrong_reward_training(config: Config) -> list[str]:
    """One line for each contradiction among learner.reward_model, rewarder and the labels."""
    names, training, found = config.rewarder.objectives, config.learner.reward_model, []
    if training.verbosity is not None and training.verbosity not in names:
        found.append(f"learner.reward_model.verbosity is {training.verbosity!r}, which is not in rewarder.objectives")
    if training.stage_1 == "ridge" and config.rewarder.preference is not None:
        found.append(
            f"learner.reward_model.stage_1 is ridge, which fits ratings, but rewarder.preference has the pairs train the head "
            f"of {config.rewarder.preference!r}; use stage_1: regression, or rewarder.preference: null"
        )
    if training.lora_rank is not None:
        found += _wrong_lora(training.lora_rank, training.stage_1)
    return found + (_wrong_baseline(config) if training.baseline else [])


def _wrong_lora(rank: int, stage_1: str) -> list[str]:
    found = []
    if not 1 <= rank <= MOST_RANK:
        found.append(
            f"learner.reward_model.lora_rank is {rank}; it must be between 1 and {MOST_RANK}, or null to train all "
            "weights"
        )
    if stage_1 == "ridge":
        found.append(
            f"learner.reward_model.lora_rank is {rank}, but stage_1: ridge leaves the backbone as it is; use "
            "stage_1: regression, or lora_rank: null"
        )
    return found


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
