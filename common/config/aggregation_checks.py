"""What section `aggregation` may say, and the settings around it that would undo or invert the transform.

Called by common/config/checks.py; every problem is one line that says why and what to do. docs/reward.md has the reasons at
length.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict

from common.config.config import UNCENTRED, UNTRANSFORMED, AggregationConfig, Config, term_names

# Keys of other trainers that cancel the transform or turn it round, by the name that a user would type. There are none here.
_STD = (
    "dividing by a group's standard deviation gives a group that is good already the same say as a bad one, which cancels the "
    "log-sigmoid; the advantage is reward minus the group's mean"
)
_CLIP = (
    "rewards are log-probabilities, at most 0: clipping or rescaling them cuts off the bad responses that the transform keeps "
    "at full slope; aggregation.probability_floor bounds what one response can cost"
)
_FACTOR = (
    "rewards are at most 0, so a factor below 1, or 0 for a failure, pays for it; rewarder.truncation_penalty is added, and "
    "is never a reward"
)
UNDOING = {
    "scale_rewards": _STD,
    "norm_adv_by_std": _STD,
    "norm_adv_by_std_in_grpo": _STD,
    "normalize_advantages": _STD,
    "advantage_normalization": _STD,
    "whiten_advantages": _STD,
    "whiten_rewards": _STD,
    "normalize_reward": _STD,
    "reward_norm": _STD,
    "std_level": _STD,
    "reward_clip": _CLIP,
    "reward_clip_range": _CLIP,
    "clip_reward": _CLIP,
    "reward_scaling": _CLIP,
    "reward_scale": _CLIP,
    "reward_bias": _CLIP,
    "mask_truncated": _FACTOR,
    "mask_no_eos_with_zero": _FACTOR,
    "stop_properly_penalty_coef": _FACTOR,
    "length_penalty": _FACTOR,
}


def undoing(key: str) -> str | None:
    """Why there is no such key, where it is one that would undo or invert the transform."""
    return UNDOING.get(key.rpartition(".")[2])


def wrong_aggregation(config: Config) -> list[str]:
    """One line for each setting of the aggregation that cannot work, or that takes its point away."""
    settings, names = config.aggregation, config.rewarder.objectives
    found = _wrong_terms(settings, names)
    found += _wrong_verbosity(settings, names, config.learner.reward_model.verbosity)
    found += _wrong_canned(settings, names) if settings.canned else []
    return found + _wrong_penalty(settings, config.rewarder.truncation_penalty)


def _wrong_terms(settings: AggregationConfig, names: Sequence[str]) -> list[str]:
    if settings.kind == "grouped":
        return _wrong_groups(settings.groups, settings.weight_floor, names)
    if settings.kind in ("per_objective", "min"):
        return _wrong_objectives(settings.objectives, names)
    if settings.kind == "ensemble":
        return _wrong_objectives(settings.objectives, names) + _wrong_members(settings.objectives, names)
    if settings.kind == "absolute":
        return _wrong_thresholds(settings.thresholds, names)
    return _wrong_weights(settings.kind, settings.weights, names) if settings.kind in UNTRANSFORMED else []


def _wrong_groups(groups: Mapping[str, list[str]], weight_floor: float, objectives: Sequence[str]) -> list[str]:
    if not groups:
        return ["aggregation.kind is grouped but aggregation.groups is empty; name at least one group"]
    grouped = [name for members in groups.values() for name in members]
    found = _unknown("groups", grouped, objectives)
    found += [f"aggregation.groups names {n!r} twice" for n in sorted({n for n in grouped if grouped.count(n) > 1})]
    if weight_floor * len(groups) > 1:
        found.append(
            f"aggregation.weight_floor {weight_floor} times {len(groups)} groups is above 1; "
            f"lower it to at most {1 / len(groups):.3g}"
        )
    return found


def _wrong_objectives(chosen: Sequence[str], objectives: Sequence[str]) -> list[str]:
    twice = sorted({n for n in chosen if chosen.count(n) > 1})
    return _unknown("objectives", chosen, objectives) + [f"aggregation.objectives names {n!r} twice" for n in twice]


def _wrong_members(chosen: Sequence[str], objectives: Sequence[str]) -> list[str]:
    if len(members := list(chosen or objectives)) > 1:
        return []
    where = "aggregation.objectives" if chosen else "rewarder.objectives (aggregation.objectives is empty: all of them)"
    return [
        f"aggregation.kind is ensemble but {where} is {members}: fewer than two members cannot disagree; name at least 2, or "
        "use aggregation.kind final_score"
    ]


def _wrong_thresholds(thresholds: Mapping[str, float], objectives: Sequence[str]) -> list[str]:
    if not thresholds:
        return [
            "aggregation.kind is absolute but aggregation.thresholds is empty; give at least one objective the rating that "
            "counts as good"
        ]
    return _unknown("thresholds", thresholds, objectives) + _not_finite("thresholds", thresholds)


def _wrong_weights(kind: str, weights: Mapping[str, float], objectives: Sequence[str]) -> list[str]:
    if not any(weights.values()):
        return [
            f"aggregation.kind is {kind} but aggregation.weights is {weights}; "
            "give at least one objective a weight other than 0"
        ]
    return _unknown("weights", weights, objectives) + _not_finite("weights", weights)


def _unknown(key: str, given: Collection[str], objectives: Sequence[str]) -> list[str]:
    return [f"aggregation.{key} names {n!r}, which is not in rewarder.objectives" for n in given if n not in objectives]


def _not_finite(key: str, values: Mapping[str, float]) -> list[str]:
    return [
        f"aggregation.{key} has {value} for {name!r}; it must be a finite number"
        for name, value in values.items()
        if not math.isfinite(value)
    ]


def _wrong_verbosity(settings: AggregationConfig, names: Sequence[str], verbosity: str | None) -> list[str]:
    """The objective that debiasing makes 0 for every response must be no term and in no group."""
    if settings.kind in ("final_score", "weighted_sum"):
        return []
    members = [name for group in settings.groups.values() for name in group]
    if settings.kind != "grouped":
        members = settings.objectives or names if settings.kind == "ensemble" else term_names(asdict(settings), names)
    if verbosity not in members:
        return []
    key = {"grouped": "groups", "absolute": "thresholds", "zscore": "weights"}.get(settings.kind, "objectives")
    given = "" if asdict(settings)[key] else " (empty: all objectives)"
    return [
        f"aggregation.{key}{given} has {verbosity!r}, the learner.reward_model.verbosity, which debiasing makes 0 for every "
        f"response: a constant, whatever the policy does; name the others in aggregation.{key}"
    ]


def _wrong_canned(settings: AggregationConfig, names: Sequence[str]) -> list[str]:
    if settings.kind in UNCENTRED:
        return [
            f"aggregation.canned is given, but aggregation.kind {settings.kind} is centred on no reference; take it out"
        ]
    terms = term_names(asdict(settings), names)
    return [
        f"aggregation.canned names {name!r}, which is no term of the reward; its terms are {', '.join(terms)}"
        for name in settings.canned
        if name not in terms
    ]


def _wrong_penalty(settings: AggregationConfig, penalty: float) -> list[str]:
    """A penalty is a reward's, at most 0, and within what the floor lets any one response lose."""
    if not penalty <= 0:
        return [
            f"rewarder.truncation_penalty is {penalty}; it must be at most 0: it is added to rewards that are at most 0, so a "
            "positive one would pay for being cut off"
        ]
    if settings.kind in UNTRANSFORMED or settings.probability_floor <= 0:
        return [] if penalty >= -1000 else [f"rewarder.truncation_penalty is {penalty}; it must be at least -1000"]
    floor = math.log(settings.probability_floor)
    if penalty >= floor:
        return []
    return [
        f"rewarder.truncation_penalty is {penalty}, below log(aggregation.probability_floor) = {floor:.2f}: a response that "
        "was cut off would cost more than the worst answer there is, and its group would learn nothing else; raise it to at "
        f"least {floor:.2f}"
    ]
