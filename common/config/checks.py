"""What a configuration's values may be: choices, ranges, and keys that contradict one another.

Called by common/config/file.py on the merged configuration; every problem becomes one line that says what to do.
"""

from __future__ import annotations

import math
from typing import Any

from common.config.adaptation_checks import wrong_adaptation
from common.config.aggregation_checks import wrong_aggregation
from common.config.aggregations import AGGREGATIONS
from common.config.config import COMMANDS, METHODS, STAGES, TIERS, Config, ExportConfig
from common.config.judge_checks import is_environment_name, wrong_judge
from common.config.preference_checks import wrong_preferences
from common.config.reward_checks import wrong_reward_training

CHOICES: dict[str, tuple[str, ...]] = {
    "data.long_prompts": ("refuse", "skip"),
    "policy.dtype": ("float32", "bfloat16"),
    "rewarder.dtype": ("float32", "bfloat16"),
    "aggregation.kind": tuple(AGGREGATIONS),
    "aggregation.estimator": ("gaussian", "empirical"),
    "learner.kl_estimator": ("k2", "k3"),
    "learner.preferences.train": ("heads", "lora", "full"),
    "learner.reward_model.stage_1": ("regression", "ridge"),
    "iteration.policy_start": ("continue", "reset"),
    "adaptation.when": ("never", "iteration", "steps", "drift"),
    "adaptation.drift.signal": ("accuracy", "gap", "variance", "disagreement"),
    "adaptation.method": METHODS,
    "adaptation.tier": TIERS,
    "adaptation.select": ("random", "disagreement"),
    "adaptation.meta.step": ("normalised", "raw", "adam"),
    "adaptation.meta.second_order": ("none", "exact", "difference"),
}

# key: (lowest, highest) allowed, ends included
RANGES: dict[str, tuple[float, float]] = {
    "redis.capacity": (1, 10**7),
    "redis.max_attempts": (1, 100),
    "data.max_prompt_tokens": (1, 10**7),
    "actors.num": (1, 10**4),
    "actors.responses_per_prompt": (2, 10**4),
    "actors.max_response_tokens": (1, 10**7),
    "actors.temperature": (1e-3, 10),
    "actors.top_p": (1e-3, 1),
    "actors.tensor_parallel": (1, 64),
    "actors.gpu_memory_utilization": (0.05, 1),
    "rewarder.num": (1, 10**4),
    "rewarder.batch_tokens": (1, 10**9),
    "aggregation.weight_floor": (0, 1),
    "aggregation.uncertainty_penalty": (0, 10**3),
    "aggregation.probability_floor": (0, 0.2),
    "aggregation.references_per_prompt": (2, 10**4),
    "aggregation.quantile": (0.01, 0.99),
    "learner.ranks": (1, 10**4),
    "learner.zero_stage": (0, 3),
    "learner.groups_per_step": (1, 10**6),
    "learner.num_updates": (1, 64),
    "learner.kl_coef": (0, 10**3),
    "learner.preferences.members": (2, 1000),
    "learner.preferences.folds": (1, 500),
    "learner.preferences.epochs": (1, 1000),
    "learner.preferences.batch_size": (1, 10**6),
    "learner.preferences.learning_rate": (0, 10),
    "learner.preferences.lora_rank": (1, 1024),
    "learner.preferences.workers": (1, 1000),
    "learner.preferences.gpus": (0, 1),
    "learner.preferences.threads": (1, 1024),
    "iteration.num": (1, 10**4),
    "iteration.steps": (1, 10**7),
    "iteration.max_staleness": (0, 8),
    "adaptation.every_steps": (1, 10**7),
    "adaptation.drift.change": (0, 10**3),
    "adaptation.drift.pairs": (1, 10**6),
    "adaptation.fit_pairs": (1, 10**6),
    "adaptation.fit_rounds": (1, 10**6),
    "adaptation.evidence_pairs": (1, 10**6),
    "adaptation.min_pairs": (1, 10**6),
    "adaptation.level": (1e-6, 1),
    "adaptation.guard_accuracy": (0, 1),
    "adaptation.guard_r2": (0, 1),
    "adaptation.steps": (1, 10**6),
    "adaptation.batch_pairs": (1, 10**5),
    "adaptation.learning_rate": (0, 1),
    "adaptation.replay_weight": (0, 10**3),
    "adaptation.lora_rank": (1, 1024),
    "adaptation.top_layers": (1, 1000),
    "adaptation.meta.prompts": (1, 10**5),
    "adaptation.meta.size": (0, 10**3),
    "adaptation.meta.weight": (0, 10**3),
    "adaptation.ocrm.strength": (0, 1),
    "adaptation.ocrm.mixture": (0, 1),
    "adaptation.confidence": (0.5, 1),
    "adaptation.ranks": (1, 1024),
    "adaptation.zero_stage": (0, 3),
    "adaptation.gpus": (0, 1),
    "judge.num": (1, 10**4),
    "judge.gpus": (0, 1),
    "judge.threads": (1, 1024),
    "judge.endpoint.answer_tokens": (1, 10**6),
    "judge.endpoint.timeout_s": (0.1, 10**5),
    "judge.endpoint.max_response_kib": (1, 10**6),
    "judge.endpoint.retries": (0, 100),
    "judge.endpoint.concurrency": (1, 1024),
    "evaluate_rm.batch_tokens": (1, 10**9),
    "explain.rows": (1, 10**6),
    "checkpoint.every_steps": (1, 10**7),
    "checkpoint.keep": (2, 10**4),
    "learner.reward_model.held_out_fraction": (0.01, 0.9),
}


def wrong_values(config: Config) -> list[str]:
    """One line for each value outside its choices or range, and for keys that contradict one another."""
    found = []
    for key, choices in CHOICES.items():
        if (value := _get(config, key)) not in choices:
            found.append(f"{key} is {value!r}; it must be one of {', '.join(choices)}")
    for key, (low, high) in RANGES.items():
        if not low <= (value := _get(config, key)) <= high:
            found.append(f"{key} is {value}; it must be between {low:g} and {high:g}")
    for stage in config.stages:
        if stage in COMMANDS:
            found.append(f"stages has {stage!r}, which is a command; take it out, and run it by --stages {stage}")
        elif stage not in STAGES:
            found.append(f"stages has {stage!r}; the stages are {', '.join(STAGES)}")
    return found + _contradictions(config)


def _contradictions(config: Config) -> list[str]:
    found, names = _wrong_push(config.export), config.rewarder.objectives
    found += wrong_aggregation(config)
    found += _wrong_label_sources(config.rewarder.programs, config.rewarder.preference, names)
    found += wrong_preferences(config)
    found += wrong_reward_training(config)
    if config.actors.top_p < 1:
        found.append("actors.top_p is below 1, but the learner's log-probs are over all tokens; set actors.top_p: 1")
    if config.learner.num_updates > config.learner.groups_per_step:
        found.append("learner.num_updates is above learner.groups_per_step; every update needs at least one group")
    if config.learner.ranks > 0 and config.learner.groups_per_step % config.learner.ranks:
        found.append(
            f"learner.groups_per_step {config.learner.groups_per_step} is not a multiple of learner.ranks "
            f"{config.learner.ranks}; every rank trains on whole groups"
        )
    cap = config.learner.importance_cap
    if cap is not None and not 1 <= cap < math.inf:
        found.append(f"learner.importance_cap is {cap}; it must be a number from 1 up (2 is usual), or null for none")
    window = (config.iteration.max_staleness + 1) * config.learner.groups_per_step
    if window > config.redis.capacity:
        found.append(
            f"redis.capacity {config.redis.capacity} is below the window of {window} groups; raise it to {window}"
        )
    return [*found, *wrong_judge(config), *wrong_adaptation(config)]


def _wrong_push(export: ExportConfig) -> list[str]:
    found = []
    if export.push_to_hub is not None and export.push_to_hub.count("/") != 1:
        found.append(f"export.push_to_hub is {export.push_to_hub!r}; it must be null or owner/name")
    if not is_environment_name(export.token_env):
        found.append(  # the value is not shown, since it may be a token
            "export.token_env must be the name of an environment variable, such as HF_TOKEN, and what it is set to is "
            "none; put the token into the environment, never into a configuration"
        )
    return found


def _wrong_label_sources(programs: dict[str, str], preference: str | None, objectives: list[str]) -> list[str]:
    found = [
        f"rewarder.programs names {n!r}, which is not in rewarder.objectives" for n in programs if n not in objectives
    ]
    if preference is not None and preference not in objectives:
        found.append(f"rewarder.preference is {preference!r}, which is not in rewarder.objectives")
    if preference in programs:
        found.append(f"rewarder.preference {preference!r} also has a program; an objective has one source of labels")
    return found


def _get(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value
