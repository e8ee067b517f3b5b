"""The monitors of the transform on a step line, by hand and against the maths that made the rewards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.config.config import AggregationConfig
from common.config.file import BASE, load_config
from common.types import Prompt, Reward, Rollout, RolloutGroup, ScoredGroup
from learner.policy.transform_metrics import probability, slope, transform_metrics
from rewarder.aggregate import log_sigmoid_floor, rewards
from rewarder.aggregation import aggregation_of

NAMES = ["a", "b"]


def settings_of(kind: str, eps: float = 0.01) -> AggregationConfig:
    named = {"grouped": "aggregation.groups={a: [a], b: [b]}", "zscore": "aggregation.weights={a: 1, b: 1}"}
    overrides = [f"aggregation.kind={kind}", f"rewarder.objectives={NAMES}", f"aggregation.probability_floor={eps}"]
    return load_config(BASE, [*overrides, *([named[kind]] if kind in named else [])]).aggregation


def group_of(
    z: Sequence[Sequence[float]], aggregation: AggregationConfig, gate: list[float], penalty: float = 0.0
) -> ScoredGroup:
    """A group whose responses have these centred and scaled scores, rewarded as the rewarder does."""
    made, scores = aggregation_of(aggregation, NAMES), torch.tensor(z)
    zeros, ones = torch.zeros(made.num_terms), torch.ones(made.num_terms)
    terms, weights = rewards(scores, torch.tensor(gate), torch.eye(2), zeros, ones, made)
    one = np.ones(1, np.float32)
    rollout = Rollout("x", np.ones(1, np.int32), -one, "stop", ((0, 0),))
    weights = weights.expand_as(terms)
    parts = [
        Reward(scores[g].numpy(), np.array(gate, np.float32), terms[g].numpy(), weights[g].numpy(), penalty)
        for g in range(len(z))
    ]
    group = RolloutGroup(0, Prompt("p", (), np.ones(1, np.int32), {}), (rollout,) * len(z))
    return ScoredGroup(group, tuple(parts), 0, "r")


@pytest.mark.parametrize("eps", [0.0, 0.01])
def test_by_hand(eps: float) -> None:
    """z: (4, -4), (0, 1), (5, 3.1): 3 of 6 terms above 3, one below -3; b binds in the first and third, a in the second."""
    aggregation = settings_of("per_objective", eps)
    found = transform_metrics([group_of([[4, -4], [0, 1], [5, 3.1]], aggregation, [0.5, 0.5])], NAMES, aggregation)
    assert found["reward/saturated_frac"] == 0.5
    assert found["reward/linear_frac"] == pytest.approx(
        0 if eps else 1 / 6
    )  # a floor of .01 has taken a third of the slope
    assert found["reward/binding/a"] == pytest.approx(1 / 3) and found["reward/binding/b"] == pytest.approx(2 / 3)
    p = [[eps + (1 - 2 * eps) / (1 + math.exp(-z)) for z in row] for row in ([4, -4], [0, 1], [5, 3.1])]
    assert found["reward/all_good"] == pytest.approx(sum(a * b for a, b in p) / 3, rel=1e-5)


def test_what_binds_is_where_the_reward_would_rise_most() -> None:
    """A term without weight binds nothing, however low; for min the smallest binds; penalties do not count."""
    z = [[-3.0, 0.5]]
    for gate, binding in (([0.5, 0.5], "a"), ([0.0, 1.0], "b"), ([0.2, 0.8], "b")):
        aggregation = settings_of("per_objective")
        found = transform_metrics([group_of(z, aggregation, gate, penalty=-1.0)], NAMES, aggregation)
        assert found[f"reward/binding/{binding}"] == 1.0
    aggregation = settings_of("min")
    assert transform_metrics([group_of(z, aggregation, [0.0, 1.0])], NAMES, aggregation)["reward/binding/a"] == 1.0


def test_what_binds_is_decided_by_slopes_with_the_floor() -> None:
    """At eps .01 a term at z = -8 has slope .03, one at 0 has .49: raising the second pays more, however bad the first is."""
    for eps, binding in ((0.01, "b"), (1e-4, "a"), (0.0, "a")):
        aggregation = settings_of("per_objective", eps)
        found = transform_metrics([group_of([[-8.0, 0.0]], aggregation, [0.5, 0.5])], NAMES, aggregation)
        assert found[f"reward/binding/{binding}"] == 1.0
        assert found["reward/floored_frac"] == (0.5 if eps == 0.01 else 0.0)
        assert found["reward/linear_frac"] == (0.5 if eps == 0.0 else 0.0)


@given(st.floats(-12, 12), st.sampled_from([0.0, 1e-4, 0.01, 0.1]))
def test_the_slope_is_that_of_the_transform(z: float, eps: float) -> None:
    at = torch.tensor([z], dtype=torch.float64, requires_grad=True)
    u = log_sigmoid_floor(at, eps)
    u.sum().backward()
    assert at.grad is not None
    assert slope(u.detach().numpy(), eps)[0] == pytest.approx(at.grad.item(), abs=1e-6)


def test_an_ensemble_is_one_term() -> None:
    """Penalty .5: (4, 4) is z = 4, saturated; (8, 2) is 5 - 4.5; (-1, -7) is -4 - 4.5, flattened."""
    found = transform_metrics(
        [group_of([[4, 4], [8, 2], [-1, -7]], settings_of("ensemble"), [0.0, 1.0])],
        ["ensemble"],
        settings_of("ensemble"),
    )
    assert found["reward/saturated_frac"] == found["reward/floored_frac"] == pytest.approx(1 / 3)
    assert found["reward/binding/ensemble"] == 1.0


def test_what_has_no_transform_is_not_measured() -> None:
    aggregation = settings_of("zscore")
    assert transform_metrics([group_of([[1, 0], [0, 1]], aggregation, [0.5, 0.5])], NAMES, aggregation) == {}


def test_responses_of_all_groups_count_alike() -> None:
    aggregation = settings_of("grouped")
    one, two = (group_of(z, aggregation, [0.5, 0.5]) for z in ([[5, 5]], [[0, 0], [0, 0], [0, 0]]))
    assert transform_metrics([one, two], NAMES, aggregation)["reward/saturated_frac"] == 0.25
    assert transform_metrics([one, replace(one, rm_version=1)], NAMES, aggregation)["reward/saturated_frac"] == 1.0


@given(st.floats(-12, 12), st.sampled_from([0.0, 0.01, 0.02]))
def test_a_probability_is_read_back_from_its_term(z: float, eps: float) -> None:
    u = log_sigmoid_floor(torch.tensor([z]), eps).numpy().astype(np.float64)
    assert probability(u, eps)[0] == pytest.approx(1 / (1 + math.exp(-z)), abs=1e-6)
    assert 0 <= probability(np.array([math.log(eps) if eps else -1e4, 1e-7]), eps).min() <= 1
