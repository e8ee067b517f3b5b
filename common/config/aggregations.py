"""The one table of the kinds of aggregation: a record says all that other files ask about a kind.

Read by the configuration's checks, the roles, the driver and the studies. To add a kind, write its record here and its
maths in rewarder/aggregate.py (`MATHS`); a test names every other place that must know it. docs/reward.md says what each
kind is for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# A term's name, and the objectives that it takes alone (none: it takes all, by the gate or by the fixed weights).
Term = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class AggregationKind:
    """What one kind of aggregation is.

    key is the setting of section `aggregation` that lists what its terms take ("" where there is nothing to list).
    terms makes the terms, in their order, from that section as plain data and from rewarder.objectives.
    one_score: the one term is a score over all that is wanted, which preferences compare.
    transformed: a term is a log-sigmoid; without it a term is a logit or a z-score, of either sign.
    centred: terms are centred on r_ref; without it the baseline cancels a constant, or thresholds stand in for r_ref.
    gated: the gate's weights reach the reward.
    summary says on a model card how the reward is made; it is a format string, filled in by driver/export/card_parts.py.
    """

    key: str
    terms: Callable[[Mapping[str, Any], Sequence[str]], list[Term]]
    summary: str
    one_score: bool = False
    transformed: bool = True
    centred: bool = True
    gated: bool = True

    @property
    def single_objectives(self) -> bool:
        """Whether each term is one objective."""
        return not self.one_score and self.key != "groups"


def _one_term(name: str) -> Callable[[Mapping[str, Any], Sequence[str]], list[Term]]:
    return lambda settings, objectives: [(name, ())]


def _groups(settings: Mapping[str, Any], objectives: Sequence[str]) -> list[Term]:
    return [(name, tuple(members)) for name, members in settings.get("groups", {}).items()]


def _chosen(settings: Mapping[str, Any], objectives: Sequence[str]) -> list[Term]:
    return [(name, (name,)) for name in settings.get("objectives") or objectives]


def _members(settings: Mapping[str, Any], objectives: Sequence[str]) -> list[Term]:
    return [("ensemble", tuple(settings.get("objectives") or objectives))]


def _thresholds(settings: Mapping[str, Any], objectives: Sequence[str]) -> list[Term]:
    return [(name, (name,)) for name in settings["thresholds"]]


def _weighted(settings: Mapping[str, Any], objectives: Sequence[str]) -> list[Term]:
    return [(name, (name,)) for name, weight in settings["weights"].items() if weight]


AGGREGATIONS = {
    "final_score": AggregationKind(
        key="", terms=_one_term("final_score"), one_score=True, summary="log-sigmoid of one gated score"
    ),
    "grouped": AggregationKind(
        key="groups", terms=_groups, summary="log-sigmoid of the AND of groups of objectives ({groups})"
    ),
    "per_objective": AggregationKind(
        key="objectives",
        terms=_chosen,
        summary="log-sigmoid of the AND of objectives ({objectives}), weighed by the gate",
    ),
    "min": AggregationKind(
        key="objectives", terms=_chosen, gated=False, summary="log-sigmoid of the worst of the objectives {objectives}"
    ),
    "absolute": AggregationKind(
        key="thresholds",
        terms=_thresholds,
        centred=False,
        summary="log-sigmoid of the AND of objectives over thresholds ({thresholds})",
    ),
    "ensemble": AggregationKind(
        key="objectives",
        terms=_members,
        one_score=True,
        gated=False,
        summary="log-sigmoid of the mean less {penalty} times the variance of the members {objectives}",
    ),
    "weighted_sum": AggregationKind(
        key="weights",
        terms=_one_term("weighted_sum"),
        one_score=True,
        transformed=False,
        centred=False,
        gated=False,
        summary="fixed weighted sum: {weights}",
    ),
    "zscore": AggregationKind(
        key="weights",
        terms=_weighted,
        transformed=False,
        centred=False,
        gated=False,
        summary="fixed weighted sum of z-scores in the group: {weights}",
    ),
}


def kind_of(name: str) -> AggregationKind:
    """The record of a kind. Raises ValueError for a name that is not in the table."""
    if name not in AGGREGATIONS:
        raise ValueError(f"aggregation.kind is {name!r}; want one of {tuple(AGGREGATIONS)}")
    return AGGREGATIONS[name]


def term_names(aggregation: Mapping[str, Any], objectives: Sequence[str]) -> list[str]:
    """The names of the reward's terms, in their order, by section `aggregation` as plain data (an older run may lack keys)
    and rewarder.objectives."""
    return [name for name, _ in kind_of(str(aggregation.get("kind"))).terms(aggregation, objectives)]
