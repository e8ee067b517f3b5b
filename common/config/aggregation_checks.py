"""What section `aggregation` may say, and the settings around it that would undo or invert the transform.

Called by common/config/checks.py; every problem is one line that says why and what to do. docs/reward.md has the reasons at
length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict

from common.config.aggregations import AGGREGATIONS, term_names
from common.config.config import AggregationConfig, Config

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
    return WRONG_TERMS[AGGREGATIONS[settings.kind].key](settings, names)


def _wrong_groups(settings: AggregationConfig, objectives: Sequence[str]) -> list[str]:
    groups, weight_floor = settings.groups, settings.weight_floor
    if not groups:
        return [f"aggregation.kind is {settings.kind} but aggregation.groups is empty; name at least one group"]
    grouped = [name for members in groups.values() for name in members]
    found = _unknown("groups", grouped, objectives)
    found += [f"aggregation.groups names {n!r} twice" for n in sorted({n for n in grouped if grouped.count(n) > 1})]
    if weight_floor * len(groups) > 1:
        found.append(
            f"aggregation.weight_floor {weight_floor} times {len(groups)} groups is above 1; "
            f"lower it to at most {1 / len(groups):.3g}"
        )
    return found


def _wrong_objectives(settings: AggregationConfig, objectives: Sequence[str]) -> list[str]:
    chosen = settings.objectives
    twice = sorted({n for n in chosen if chosen.count(n) > 1})
    wrong = _unknown("objectives", chosen, objectives) + [f"aggregation.objectives names {n!r} twice" for n in twice]
    return wrong + (_wrong_members(settings, objectives) if AGGREGATIONS[settings.kind].one_score else [])


def _wrong_members(settings: AggregationConfig, objectives: Sequence[str]) -> list[str]:
    chosen = settings.objectives
    if len(members := list(chosen or objectives)) > 1:
        return []
    where = "aggregation.objectives" if chosen else "rewarder.objectives (aggregation.objectives is empty: all of them)"
    return [
        f"aggregation.kind is {settings.kind} but {where} is {members}: fewer than two members cannot disagree; name at least "
        "2, or use aggregation.kind final_score"
    ]


def _wrong_thresholds(settings: AggregationConfig, objectives: Sequence[str]) -> list[str]:
    thresholds = settings.thresholds
    if not thresholds:
        return [
            f"aggregation.kind is {settings.kind} but aggregation.thresholds is empty; give at least one objective the rating "
            "that counts as good"
        ]
    return _unknown("thresholds", thresholds, objectives)


def _wrong_weights(settings: AggregationConfig, objectives: Sequence[str]) -> list[str]:
    kind, weights = settings.kind, settings.weights
    if not any(weights.values()):
        return [
            f"aggregation.kind is {kind} but aggregation.weights is {weights}; "
            "give at least one objective a weight other than 0"
        ]
    return _unknown("weights", weights, objectives)


# The check of each setting that lists what a kind's terms take (`AggregationKind.key`)
WRONG_TERMS: dict[str, Callable[[AggregationConfig, Sequence[str]], list[str]]] = {
    "": lambda settings, objectives: [],
    "groups": _wrong_groups,
    "objectives": _wrong_objectives,
    "thresholds": _wrong_thresholds,
    "weights": _wrong_weights,
}


def _unknown(key: str, given: Collection[str], objectives: Sequence[str]) -> list[str]:
    return [f"aggregation.{key} names {n!r}, which is not in rewarder.objectives" for n in given if n not in objectives]


def _wrong_verbosity(settings: AggregationConfig, names: Sequence[str], verbosity: str | None) -> list[str]:
    """The objective that debiasing makes 0 for every response must be no term and in no group."""
    kind = AGGREGATIONS[settings.kind]
    if verbosity not in [name for _, members in kind.terms(asdict(settings), names) for name in members]:
        return []
    key = kind.key
    given = "" if asdict(settings)[key] else " (empty: all objectives)"
    return [
        f"aggregation.{key}{given} has {verbosity!r}, the learner.reward_model.verbosity, which debiasing makes 0 for every "
        f"response: a constant, whatever the policy does; name the others in aggregation.{key}"
    ]


def _wrong_canned(settings: AggregationConfig, names: Sequence[str]) -> list[str]:
    if not AGGREGATIONS[settings.kind].centred:
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
    """A penalty stays within what the floor lets any one response lose."""
    if not AGGREGATIONS[settings.kind].transformed or settings.probability_floor <= 0:
        return []
    floor = math.log(settings.probability_floor)
    if penalty >= floor:
        return []
    return [
        f"rewarder.truncation_penalty is {penalty}, below log(aggregation.probability_floor) = {floor:.2f}: a response that "
        "was cut off would cost more than the worst answer there is, and its group would learn nothing else; raise it to at "
        f"least {floor:.2f}"
    ]
