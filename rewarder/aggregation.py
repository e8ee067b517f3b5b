"""Which terms a reward is made of: the configured aggregation over a reward model's objectives, checked.

Owns every refusal of a kind's settings; common/config/aggregations.py is the table of the kinds, and rewarder/aggregate.py
does their maths. Made by the rewarder when it loads a model, and by the learner when it calibrates one. docs/reward.md says
what each kind is for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from common.config.aggregations import AggregationKind, kind_of
from common.config.config import AggregationConfig


@dataclass(frozen=True)
class Aggregation:
    """How K debiased scores become M terms. group_indices holds the columns of each term's objectives (none where the one
    term has them all; of an ensemble, its members); weight_floor is the smallest weight of a term, as a share of 1 (grouped
    only); probability_floor is eps of the transform; weights are fixed, their absolute values summing to 1, one per objective
    (weighted_sum) or per term (zscore); thresholds [M] are what counts as good (absolute), in score units; uncertainty_penalty
    is lambda of an ensemble, in 1 / score units (1 / logits where its members are Bradley-Terry heads)."""

    kind: str
    group_indices: tuple[tuple[int, ...], ...]
    weight_floor: float
    probability_floor: float
    weights: tuple[float, ...] = ()
    thresholds: tuple[float, ...] = ()
    uncertainty_penalty: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.probability_floor < 0.5:
            raise ValueError(
                f"aggregation.probability_floor is {self.probability_floor}; want 0 <= eps < 0.5 (from 0.5 on the transform "
                "pays for what is worse)"
            )
        key = self.traits.key
        if key == "objectives" or not self.is_one_score:
            self._check_terms()
        if key == "groups":
            self._check_floor()
        if key == "objectives" and self.is_one_score:
            self._check_ensemble()
        if key == "weights":
            self._check_weights()
        if key == "thresholds":
            self._check_thresholds()

    def _check_terms(self) -> None:
        key, members = self.traits.key, [k for group in self.group_indices for k in group]
        if not self.group_indices or not all(self.group_indices):
            one = "group, none of them empty" if key == "groups" else "objective"
            raise ValueError(f"aggregation.{key} is {self.group_indices}; want at least one {one}")
        if len(set(members)) != len(members):
            raise ValueError(f"aggregation.{key} {self.group_indices} use an objective twice; put it in one place")

    def _check_floor(self) -> None:
        if self.weight_floor < 0 or self.weight_floor * len(self.group_indices) > 1:
            raise ValueError(
                f"aggregation.weight_floor is {self.weight_floor} for {len(self.group_indices)} groups; "
                f"want between 0 and {1 / len(self.group_indices):.3g}"
            )

    def _check_ensemble(self) -> None:
        if len(self.group_indices) != 1 or len(self.group_indices[0]) < 2:
            raise ValueError(
                f"aggregation.objectives is {self.group_indices}; want one ensemble of at least 2 members, which can disagree"
            )
        if not 0 <= self.uncertainty_penalty < math.inf:
            raise ValueError(
                f"aggregation.uncertainty_penalty is {self.uncertainty_penalty}; want a finite number >= 0 (below 0 it would "
                "pay for disagreement)"
            )

    def _check_weights(self) -> None:
        total = sum(abs(weight) for weight in self.weights)
        if not math.isclose(total, 1, rel_tol=1e-6):  # a NaN is not close to 1 either
            raise ValueError(
                f"aggregation.weights is {self.weights}, of absolute sum {total:.6g}; want 1; let make_aggregation scale them"
            )
        if not self.is_one_score and len(self.weights) != self.num_terms:
            raise ValueError(f"aggregation.weights has {len(self.weights)} numbers for {self.num_terms} objectives")

    def _check_thresholds(self) -> None:
        if len(self.thresholds) != self.num_terms or not all(math.isfinite(value) for value in self.thresholds):
            raise ValueError(
                f"aggregation.thresholds is {self.thresholds} for {self.num_terms} objectives; want a finite number for each"
            )

    @property
    def traits(self) -> AggregationKind:
        """The kind's record in the table. Raises ValueError for a kind that is not in it."""
        return kind_of(self.kind)

    @property
    def num_terms(self) -> int:
        """M: the groups, or the objectives that are terms of their own, else 1."""
        return len(self.group_indices) or 1

    @property
    def is_one_score(self) -> bool:
        """Whether the one term, of weight 1, is a score over all that is wanted, which preferences compare."""
        return self.traits.one_score

    @property
    def needs_reference(self) -> bool:
        """Whether terms are centred on r_ref."""
        return self.traits.centred

    @property
    def is_transformed(self) -> bool:
        """Whether a term is a log-probability; else it is a logit or a z-score."""
        return self.traits.transformed

    def calibrated_terms(self, objectives: Sequence[str]) -> tuple[str, ...]:
        """What each temperature is of, for the record of the calibration: two aggregations share one only if these and the
        kind agree. Floors and the weights of zscore do not count: they come after the temperature."""
        names = [" + ".join(objectives[k] for k in group) for group in self.group_indices]
        if self.thresholds:
            return tuple(f"{name} >= {tau:.6g}" for name, tau in zip(names, self.thresholds, strict=True))
        return (self._one_score(objectives),) if self.is_one_score else tuple(names)

    def _one_score(self, objectives: Sequence[str]) -> str:
        if self.weights:
            return " ".join(f"{w:+.6g} {n}" for w, n in zip(self.weights, objectives, strict=True) if w)
        if not self.group_indices:
            return "gated score"
        members = ", ".join(objectives[k] for k in self.group_indices[0])
        return f"mean - {self.uncertainty_penalty:.6g} variance of {members}"


def aggregation_of(config: AggregationConfig, objectives: Sequence[str]) -> Aggregation:
    """The configured aggregation over a reward model's objectives."""
    return make_aggregation(
        config.kind,
        config.groups,
        config.weights,
        config.weight_floor,
        config.probability_floor,
        objectives,
        config.objectives,
        config.thresholds,
        config.uncertainty_penalty,
    )


def make_aggregation(
    kind: str,
    groups: Mapping[str, Sequence[str]],
    weights: Mapping[str, float],
    weight_floor: float,
    probability_floor: float,
    objectives: Sequence[str],
    chosen: Sequence[str] = (),
    thresholds: Mapping[str, float] | None = None,
    uncertainty_penalty: float = 0.0,
) -> Aggregation:
    """The aggregation named by the configuration, over the `objectives` of the reward model. Terms keep the order of
    `groups` (grouped), `chosen` (per_objective, min; empty: all objectives), `thresholds` (absolute) or `weights` (zscore);
    of an ensemble `chosen` are the members. `weights` (objective -> weight, 0 where not named) are scaled to an absolute sum
    of 1. What a kind does not use is ignored.

    Raises ValueError for an objective that the reward model does not have, or that is named twice, for weights that are all 0
    or not finite, for an ensemble of fewer than 2 and for a penalty that is negative or not finite."""
    traits = kind_of(kind)
    listed = {"groups": groups, "objectives": chosen, "thresholds": thresholds or {}, "weights": weights}
    _check_known(traits.key, listed, objectives)
    scaled = _scaled_weights(weights) if traits.key == "weights" else {}
    terms = traits.terms({**listed, "weights": scaled}, objectives)
    columns = {name: k for k, name in enumerate(objectives)}
    return Aggregation(
        kind,
        tuple(tuple(columns[name] for name in members) for _, members in terms if members),
        weight_floor,
        probability_floor,
        tuple(scaled.get(name, 0.0) for name in objectives) if traits.one_score and scaled else _nonzero(scaled),
        tuple((thresholds or {}).values()) if traits.key == "thresholds" else (),
        uncertainty_penalty if traits.key == "objectives" and traits.one_score else 0.0,
    )


def _nonzero(weights: Mapping[str, float]) -> tuple[float, ...]:
    return tuple(weight for weight in weights.values() if weight)


def _check_known(key: str, listed: Mapping[str, Any], objectives: Sequence[str]) -> None:
    """Refuses names under `key` of section `aggregation` that the reward model has no objective for."""
    members = listed["groups"].values() if key == "groups" else [listed.get(key, ())]
    if unknown := sorted({name for names in members for name in names} - set(objectives)):
        raise ValueError(
            f"aggregation.{key} names {unknown}, not objectives of the reward model; it has {list(objectives)}"
        )


def _scaled_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """The weights over the sum of their absolute values."""
    total = sum(abs(weight) for weight in weights.values())
    if not 0 < total < math.inf:
        raise ValueError(f"aggregation.weights is {dict(weights)}; want finite weights, at least one of them not 0")
    return {name: weight / total for name, weight in weights.items()}


def check_live_groups(matrix: Tensor, aggregation: Aggregation, objectives: Sequence[str]) -> None:
    """Refuse a term with an objective that debiasing sets to 0 for every response (the verbosity axis): in a group it would
    only dilute it, in an ensemble look like a member that disagrees, and alone it is a constant without a scale. matrix
    [K, K]."""
    constant = [k for group in aggregation.group_indices for k in group if not bool(matrix[:, k].any())]
    if constant:
        names = [objectives[k] for k in constant]
        raise ValueError(
            f"aggregation.{aggregation.kind} has {names}, which debiasing makes 0 for every response; take them out of "
            "aggregation.groups, objectives, thresholds or weights"
        )
