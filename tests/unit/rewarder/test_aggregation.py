"""The kinds of aggregation: each by hand, what they share, what they refuse. The transform itself: test_aggregate."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from common.config.aggregations import AGGREGATIONS, term_names
from common.config.file import BASE, ConfigError, load_config
from rewarder.aggregate import (
    binding_weights,
    combine,
    combined_scores,
    group_z_scores,
    log_sigmoid_floor,
    rewards,
    term_weights,
)
from rewarder.aggregation import Aggregation, aggregation_of, check_live_groups, make_aggregation

NAMES = ["a", "b", "c"]
SETTINGS = {
    "final_score": (),
    "grouped": ("aggregation.groups={q: [a, b], s: [c]}", "aggregation.weight_floor=0.1"),
    "per_objective": (),
    "min": ("aggregation.objectives=[c, a]",),
    "absolute": ("aggregation.thresholds={b: 0.5, a: 0.25}",),
    "ensemble": ("aggregation.objectives=[c, a]", "aggregation.uncertainty_penalty=0.25"),
    "weighted_sum": ("aggregation.weights={a: 1, c: -3}",),
    "zscore": ("aggregation.weights={c: 1, a: -3, b: 0}",),
}
seeds = st.integers(0, 2**31 - 1)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@cache
def made(kind: str, *overrides: str) -> Aggregation:
    base = (f"aggregation.kind={kind}", f"rewarder.objectives={NAMES}")
    return aggregation_of(load_config(BASE, [*base, *SETTINGS[kind], *overrides]).aggregation, NAMES)


def total(scores: Tensor, gate: Tensor, aggregation: Aggregation) -> Tensor:
    m = aggregation.num_terms
    terms, weights = rewards(scores, gate, torch.eye(scores.shape[1]), torch.zeros(m), torch.ones(m), aggregation)
    return (terms * weights).sum(-1)


@pytest.mark.parametrize(
    ("kind", "names", "terms"),
    [
        ("final_score", ["final_score"], ("gated score",)),
        ("grouped", ["q", "s"], ("a + b", "c")),
        ("per_objective", ["a", "b", "c"], ("a", "b", "c")),
        ("min", ["c", "a"], ("c", "a")),
        ("absolute", ["b", "a"], ("b >= 0.5", "a >= 0.25")),
        ("ensemble", ["ensemble"], ("mean - 0.25 variance of c, a",)),
        ("weighted_sum", ["weighted_sum"], ("+0.25 a -0.75 c",)),
        ("zscore", ["c", "a"], ("c", "a")),
    ],
)
def test_terms_have_names_and_say_what_they_are_calibrated_for(
    kind: str, names: list[str], terms: tuple[str, ...]
) -> None:
    config = load_config(BASE, [f"aggregation.kind={kind}", f"rewarder.objectives={NAMES}", *SETTINGS[kind]])
    aggregation = aggregation_of(config.aggregation, NAMES)
    assert term_names(vars(config.aggregation), NAMES) == names
    assert aggregation.calibrated_terms(NAMES) == terms
    assert aggregation.num_terms == len(names)


def test_what_needs_references_and_what_is_transformed() -> None:
    centred = {"final_score", "grouped", "per_objective", "min", "ensemble"}
    assert {kind for kind in AGGREGATIONS if made(kind).needs_reference} == centred
    assert {kind for kind in AGGREGATIONS if not made(kind).is_transformed} == {"weighted_sum", "zscore"}


def test_per_objective_by_hand() -> None:
    """Terms log sigmoid(z_i), exponents the gate's shares of the objectives that count: here .75 and .25 of a and c."""
    aggregation = made("per_objective", "aggregation.objectives=[a, c]", "aggregation.probability_floor=0")
    scores, gate = torch.tensor([[1.0, 9.0, -2.0]]), torch.tensor([0.6, 0.2, 0.2])
    terms, weights = rewards(
        scores, gate, torch.eye(3), torch.tensor([0.5, 0.0]), torch.tensor([0.5, 2.0]), aggregation
    )
    want = torch.tensor([[-math.log(1 + math.exp(-1.0)), -math.log(1 + math.exp(1.0))]])
    torch.testing.assert_close((terms, weights), (want, torch.tensor([0.75, 0.25])))
    torch.testing.assert_close(term_weights(torch.zeros(3), aggregation), torch.tensor([0.5, 0.5]))


@given(seeds)
def test_per_objective_is_grouped_with_a_group_each_and_no_floor(seed: int) -> None:
    scores, gate = random(seed, 5, 3), random(seed + 1, 3).softmax(-1)
    alone = Aggregation("grouped", ((0,), (1,), (2,)), 0.0, 1e-4)
    torch.testing.assert_close(total(scores, gate, made("per_objective")), total(scores, gate, alone))


@given(seeds, st.floats(0.0, 0.02))
def test_min_is_the_smallest_term_and_names_it(seed: int, eps: float) -> None:
    z, aggregation = 3 * random(seed, 6, 3), make_aggregation("min", {}, {}, 0.0, eps, NAMES)
    terms, weights = rewards(z, torch.ones(3), torch.eye(3), torch.zeros(3), torch.ones(3), aggregation)
    torch.testing.assert_close((terms * weights).sum(-1), log_sigmoid_floor(z, eps).amin(-1))
    assert torch.equal(weights.argmax(-1), z.argmin(-1)) and torch.equal(weights.sum(-1), torch.ones(6))
    torch.testing.assert_close(
        total(z, torch.ones(3), aggregation), total(z, torch.tensor([0.0, 1.0, 5.0]), aggregation)
    )


def test_min_far_out_and_equal_terms() -> None:
    assert binding_weights(torch.tensor([[-1e4, -1e5], [2.0, 2.0]])).tolist() == [[0.0, 1.0], [1.0, 0.0]]
    floored = make_aggregation("min", {}, {}, 0.0, 0.01, NAMES)
    assert total(torch.tensor([[-1e4, 1e4, 0.0]]), torch.ones(3), floored).item() == pytest.approx(
        math.log(0.01), abs=1e-5
    )


def test_absolute_by_hand() -> None:
    """P(rating >= threshold) = sigmoid((r - threshold) / s); references do not count, the gate's shares do."""
    aggregation = made("absolute", "aggregation.probability_floor=0")
    scores, gate = torch.tensor([[0.45, 0.5, 7.0]]), torch.tensor([0.3, 0.1, 0.6])
    fixed = torch.eye(3), torch.tensor([99.0, 99.0]), torch.tensor([0.1, 0.2])
    terms, weights = rewards(scores, gate, *fixed, aggregation)
    want = torch.tensor([[math.log(0.5), -math.log(1 + math.exp(-1.0))]])
    torch.testing.assert_close((terms, weights), (want, torch.tensor([0.25, 0.75])))


def ensemble(penalty: float, *chosen: str) -> Aggregation:
    return make_aggregation("ensemble", {}, {}, 0.0, 0.0, NAMES, chosen, None, penalty)


def test_ensemble_by_hand() -> None:
    """(1, 2, 6): mean 3, variance over 3 (4 + 1 + 9) / 3 = 14/3, so 3 - 14/6 = 2/3; less r_ref 1/6 over .5 it is z = 1.
    (4, 4, 4) agree: 4. One term of weight 1, whatever the gate."""
    scores = torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]])
    for gate in (torch.ones(3), torch.tensor([0.0, 5.0, 0.1]), torch.zeros(3)):
        combined = combine(scores, gate, ensemble(0.5))
        torch.testing.assert_close(combined, torch.tensor([[2 / 3], [4.0]]))
        fixed = torch.eye(3), torch.tensor([1 / 6]), torch.tensor([0.5])
        terms, weights = rewards(scores, gate, *fixed, ensemble(0.5))
        want = torch.tensor([[-math.log(1 + math.exp(-1.0))], [-math.log(1 + math.exp(-23 / 3))]])
        torch.testing.assert_close((terms, weights), (want, torch.ones(1)), atol=1e-6, rtol=1e-4)
    two = combine(scores, torch.ones(3), ensemble(0.5, "c", "a"))  # (6, 1): 3.5 - .5 * 6.25
    torch.testing.assert_close(two, torch.tensor([[0.375], [4.0]]))


def test_the_members_of_an_ensemble_are_debiased() -> None:
    """Column 2 is verbosity, its penalty on column 0 is .5: (3, 4, 2) is (2, 4), mean 3 and variance 1."""
    matrix = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [-0.5, 0.0, 0.0]])
    found = combined_scores(torch.tensor([[3.0, 4.0, 2.0]]), torch.ones(3), matrix, ensemble(2.0, "a", "b"))
    torch.testing.assert_close(found, torch.tensor([[1.0]]))


@given(seeds, st.permutations([0, 1, 2]), st.floats(0, 5), st.floats(-50, 50))
def test_laws_of_an_ensemble(seed: int, order: list[int], penalty: float, shift: float) -> None:
    """The order of the members says nothing, what all of them add moves r by as much, and penalty 0 is their mean."""
    scores, gate = 3 * random(seed, 6, 3).double(), torch.ones(3).double()
    r = combine(scores, gate, ensemble(penalty))
    torch.testing.assert_close(combine(scores[:, order], gate, ensemble(penalty)), r)
    torch.testing.assert_close(combine(scores + shift, gate, ensemble(penalty)), r + shift)
    torch.testing.assert_close(combine(scores, gate, ensemble(0.0)), scores.mean(-1, keepdim=True))
    assert bool((r <= scores.mean(-1, keepdim=True) + 1e-9).all())


@given(seeds, st.floats(1.0, 10), st.floats(0, 5))
def test_more_disagreement_at_the_same_mean_never_raises_the_score(seed: int, factor: float, penalty: float) -> None:
    scores, gate = random(seed, 6, 3).double(), torch.ones(3).double()
    mean = scores.mean(-1, keepdim=True)
    spread = mean + factor * (scores - mean)
    apart, together = (combine(values, gate, ensemble(penalty)) for values in (spread, scores))
    assert bool((apart <= together + 1e-9).all())
    lost = penalty * (factor**2 - 1) * scores.var(-1, correction=0, keepdim=True)
    torch.testing.assert_close(apart, together - lost)


def test_praise_of_one_member_alone_lowers_the_score_beyond_the_bound() -> None:
    """Raising one of three raises r until it is 1 / (2 penalty) = 1 logit above the mean: at 1.5, where the others are 0."""
    values = [
        combine(torch.tensor([[x, 0.0, 0.0]]), torch.ones(3), ensemble(0.5)).item() for x in (0.0, 1.4, 1.5, 1.6, 4.0)
    ]
    assert values[0] < values[1] < values[2] > values[3] > values[4] and values[4] < 0


def test_members_without_one_origin_are_taken_to_disagree() -> None:
    """(1, 0) and (0, 1) are worth the same; with 4 more from the first member, the response that it likes is worth 2 less."""
    scores = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    two = make_aggregation("ensemble", {}, {}, 0.0, 0.0, ["a", "b"], (), None, 0.5)
    torch.testing.assert_close(combine(scores, torch.ones(2), two), torch.full((2, 1), 0.375))
    moved = combine(scores + torch.tensor([4.0, 0.0]), torch.ones(2), two)
    torch.testing.assert_close(moved, torch.tensor([[2.5 - 0.5 * 6.25], [2.5 - 0.5 * 2.25]]))


def test_an_ensemble_whose_variance_overflows_is_refused() -> None:
    far = torch.tensor([[1e30, -1e30, 0.0]])
    for penalty in (0.0, 0.5):
        with pytest.raises(ValueError, match="ensemble scores has 1 of 1 values that are not finite"):
            combine(far, torch.ones(3), ensemble(penalty))


def test_zscore_by_hand() -> None:
    """Per objective over the group, ddof 1: (1, 2, 3) is (-1, 0, 1); one that does not vary says nothing."""
    scores = torch.tensor([[1.0, 0.0, 5.0], [2.0, 0.0, 5.0], [3.0, 0.0, 5.0]])
    aggregation = make_aggregation("zscore", {}, {"a": 3.0, "c": -1.0}, 0.0, 0.0, NAMES)
    terms, weights = rewards(scores, torch.ones(3), torch.eye(3), torch.zeros(2), torch.ones(2), aggregation)
    torch.testing.assert_close(terms, torch.tensor([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]), atol=1e-3, rtol=0)
    torch.testing.assert_close(weights, torch.tensor([0.75, -0.25]))
    with pytest.raises(ValueError, match="B >= 2 responses"):
        group_z_scores(torch.ones(1, 2))


@given(seeds, st.floats(0.05, 20))
def test_zscore_forgets_scales_and_the_transform_does_not(seed: int, scale: float) -> None:
    """What a group is told by z-scores does not shrink when the objective is good already: T34 of the notes, per objective."""
    z = 0.5 * random(seed, 64, 1)
    zscore = make_aggregation("zscore", {}, {"a": 1.0}, 0.0, 0.0, ["a"])
    one = total(z, torch.ones(1), zscore)
    torch.testing.assert_close(total(scale * z + 6, torch.ones(1), zscore), one, atol=0.02, rtol=0)
    lsc = make_aggregation("per_objective", {}, {}, 0.0, 0.0, ["a"])
    assert float(total(z + 6, torch.ones(1), lsc).std()) < 0.05 * float(total(z - 6, torch.ones(1), lsc).std())


@given(seeds)
def test_transformed_rewards_are_at_most_0_and_every_kind_rises_with_each_objective(seed: int) -> None:
    scores, gate = random(seed, 4, 3), random(seed + 1, 3).softmax(-1)
    better = scores.clone()
    better[0] += 1.0
    for kind in ("final_score", "grouped", "per_objective", "min", "absolute", "ensemble"):
        aggregation = made(kind)
        before, after = total(scores, gate, aggregation), total(better, gate, aggregation)
        assert float(after.max()) <= 0 and float(after[0]) > float(before[0]), kind


@pytest.mark.parametrize("kind", AGGREGATIONS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_every_kind_refuses_what_is_not_finite(kind: str, bad: float) -> None:
    scores = torch.ones(3, 3)
    scores[0, 0] = bad
    with pytest.raises(ValueError, match="not finite"):
        total(scores, torch.ones(3), made(kind))
    with pytest.raises(ValueError, match="not finite"):
        combine(torch.ones(3, 3), torch.tensor([1.0, bad, 1.0]), made(kind))


def test_an_objective_that_debiasing_removes_is_no_term() -> None:
    matrix = torch.eye(3)
    matrix[2] -= torch.tensor([0.3, 0.1, 1.0])
    for kind in ("grouped", "per_objective", "min", "ensemble", "zscore"):
        with pytest.raises(ValueError, match=rf"aggregation.{kind} has \['c'\], which debiasing makes 0"):
            check_live_groups(matrix, made(kind), NAMES)
    check_live_groups(matrix, made("absolute"), NAMES)
    for kind in ("per_objective", "ensemble"):
        check_live_groups(matrix, made(kind, "aggregation.objectives=[a, b]"), NAMES)


@pytest.mark.parametrize(
    ("kind", "overrides", "words"),
    [
        ("per_objective", ("aggregation.objectives=[a, z]",), "aggregation.objectives names 'z', which is not in"),
        ("min", ("aggregation.objectives=[a, a]",), "aggregation.objectives names 'a' twice"),
        ("absolute", (), "aggregation.thresholds is empty; give at least one objective the rating"),
        ("absolute", ("aggregation.thresholds={z: 1}",), "aggregation.thresholds names 'z'"),
        ("absolute", ("aggregation.thresholds={a: .inf}",), "aggregation.thresholds has inf for 'a'"),
        ("zscore", ("aggregation.weights={a: 0}",), "aggregation.kind is zscore but aggregation.weights is {'a': 0.0}"),
        (
            "per_objective",
            ("learner.reward_model.verbosity=c",),
            "aggregation.objectives (empty: all objectives) has 'c'",
        ),
        ("absolute", ("aggregation.thresholds={c: 1}", "learner.reward_model.verbosity=c"), "thresholds has 'c', the"),
        (
            "grouped",
            ("aggregation.groups={q: [a, c]}", "learner.reward_model.verbosity=c"),
            "aggregation.groups has 'c', the learner.reward_model.verbosity, which debiasing makes 0",
        ),
        (
            "min",
            ("aggregation.canned={z: no}",),
            "aggregation.canned names 'z', which is no term of the reward; its terms",
        ),
        ("weighted_sum", ("aggregation.weights={a: 1}", "aggregation.canned={a: no}"), "is centred on no reference"),
        ("ensemble", ("aggregation.objectives=[a, z]",), "aggregation.objectives names 'z', which is not in"),
        ("ensemble", ("aggregation.objectives=[a, a]",), "aggregation.objectives names 'a' twice"),
        (
            "ensemble",
            ("aggregation.objectives=[a]",),
            "aggregation.kind is ensemble but aggregation.objectives is ['a']: fewer than two members cannot disagree",
        ),
        (
            "ensemble",
            ("rewarder.objectives=[a]",),
            "rewarder.objectives (aggregation.objectives is empty: all of them)",
        ),
        (
            "ensemble",
            ("learner.reward_model.verbosity=c",),
            "aggregation.objectives (empty: all objectives) has 'c', the learner.reward_model.verbosity, which debiasing",
        ),
        ("ensemble", ("aggregation.objectives=[a, c]", "learner.reward_model.verbosity=c"), "objectives has 'c', the"),
        (
            "ensemble",
            ("aggregation.canned={a: no}",),
            "names 'a', which is no term of the reward; its terms are ensemble",
        ),
        (
            "ensemble",
            ("aggregation.uncertainty_penalty=-0.5",),
            "uncertainty_penalty is -0.5; it must be between 0 and",
        ),
        ("ensemble", ("aggregation.uncertainty_penalty=.inf",), "uncertainty_penalty is inf; it must be between 0 and"),
        ("ensemble", ("aggregation.uncertainty_penalty=.nan",), "uncertainty_penalty is nan; it must be between 0 and"),
    ],
)
def test_settings_that_cannot_work(kind: str, overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(BASE, [f"aggregation.kind={kind}", f"rewarder.objectives={NAMES}", *overrides])
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("learner.scale_rewards=group", "dividing by a group's standard deviation gives a group that is good already"),
        ("learner.norm_adv_by_std_in_grpo=true", "cancels the log-sigmoid"),
        ("learner.reward_clip=5", "clipping or rescaling them cuts off the bad responses"),
        ("rewarder.stop_properly_penalty_coef=0.5", "rewards are at most 0, so a factor below 1"),
        ("rewarder.truncation_penalty=0.5", "a positive one would pay for being cut off"),
        ("rewarder.truncation_penalty=.nan", "it must be between -1000 and 0: it is added to rewards"),
        ("rewarder.truncation_penalty=-10", "below log(aggregation.probability_floor) = -9.21"),
        ("aggregation.probability_floor=0.5", "it must be between 0 and 0.2"),
    ],
)
def test_settings_that_undo_or_invert_the_transform_are_refused_with_the_reason(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(BASE, ["aggregation.kind=final_score", override])
    assert words in str(error.value)


def test_a_penalty_may_be_larger_where_nothing_is_floored() -> None:
    for kind in ("weighted_sum", "zscore"):
        given = [f"aggregation.kind={kind}", "aggregation.weights={a: 1}", f"rewarder.objectives={NAMES}"]
        assert load_config(BASE, [*given, "rewarder.truncation_penalty=-9"]).rewarder.truncation_penalty == -9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("absolute", ((0,),), 0.0, 0.0), "want a finite number for each"),
        (("zscore", ((0,), (1,)), 0.0, 0.0, (1.0,)), "has 1 numbers for 2 objectives"),
        (("per_objective", (), 0.0, 0.0), "want at least one objective"),
        (("min", ((0,), (0,)), 0.0, 0.0), "twice"),
        (("min", ((0,),), 0.0, 0.6), "pays for what is worse"),
        (("ensemble", ((0,),), 0.0, 0.0), "want one ensemble of at least 2 members"),
        (("ensemble", ((0, 1), (2, 3)), 0.0, 0.0), "want one ensemble of at least 2 members"),
        (("ensemble", ((0, 0),), 0.0, 0.0), "twice"),
        (("ensemble", (), 0.0, 0.0), "want at least one objective"),
        (("ensemble", ((0, 1),), 0.0, 0.0, (), (), -0.1), "would pay for disagreement"),
        (("ensemble", ((0, 1),), 0.0, 0.0, (), (), math.nan), "want a finite number >= 0"),
        (("ensemble", ((0, 1),), 0.0, 0.0, (), (), math.inf), "want a finite number >= 0"),
    ],
)
def test_bad_aggregations(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Aggregation(*arguments)
