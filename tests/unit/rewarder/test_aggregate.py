"""The reward pipeline's maths, and the map of the transform's test numbers (T1 to T35 of its notes) to tests of tests/unit.

Where no file is named, the test is in this one.

 T1 values                          test_values_by_hand
 T2 strictly increasing             test_shape_of_the_transform
 T3 concave                         test_shape_of_the_transform
 T4 u <= 0, u(0) = -log 2           test_shape_of_the_transform
 T5 slope                           test_slope
 T6 left asymptote                  test_asymptotes
 T7 saturation                      test_asymptotes
 T8 finite far out, NaN raises      test_finite_far_out, test_not_finite_is_refused; each kind: test_aggregation:
                                    test_every_kind_refuses_what_is_not_finite
 T9 shift                           test_shift_and_scale; members of an ensemble: test_aggregation: test_laws_of_an_ensemble
T10 scale                           test_shift_and_scale; test_calibrate: test_scale_moves_the_temperature
T11 limits of r_ref                 test_limits_of_the_reference
T12 rank invariance of option A     test_rank_invariance
T13 exp(sum) is the product         test_sum_is_log_of_product
T14 AND                             test_and_prefers_balance
T15 veto                            test_veto; min: test_aggregation: test_min_far_out_and_equal_terms
T16 bounds                          test_bounds
T17 permutation                     test_permutation; test_aggregation: test_laws_of_an_ensemble
T18 share moves to the bottleneck   test_share_moves_to_the_bottleneck; on the step line: test_transform_metrics:
                                    test_what_binds_is_where_the_reward_would_rise_most
T19 one-hot gate                    test_one_hot_and_uniform_gate
T20 uniform gate                    test_one_hot_and_uniform_gate, up to the factor k: kappa is fixed to 1, which is gamma's job
                                    (T24), so there is no kappa = k to set
T21 scale of the gate               test_gate_scale_is_irrelevant
T22 negative weight, constant term  test_bad_aggregations, test_negative_gate_is_refused, test_constant_objective_is_refused,
                                    test_aggregation: test_an_objective_that_debiasing_removes_is_no_term, test_calibrate:
                                    test_bad_pairs_are_refused. A negative weight is refused of the gate; the fixed weights of
                                    weighted_sum and zscore may be negative: these have no transform that could be unbounded.
T23 masked objective drops out      test_objective_in_no_group_drops_out, test_aggregation: test_per_objective_by_hand. There is
                                    no padding of objectives: every response has all K scores.
T24 kappa and gamma                 test_weight_scale_is_gamma
T25 planted temperature             test_calibrate: test_planted_temperature
T26 antisymmetry                    test_calibrate: test_antisymmetry
T27 separable data                  test_calibrate: test_separable_pairs_stay_finite
T28 closed-form band                test_calibrate: test_closed_form_band, test_a_fit_outside_the_band_is_said
T29 estimators against the table    test_references: test_estimator_error_matches_the_table (empirical and Gaussian; the pooled
                                    standard deviation and K = 32, 64 do not apply: neither is built nor advised)
T30 frozen                          test_references: test_reference_is_a_pure_function; that the anchor alone is sampled is the
                                    driver's order of calls, which tests/e2e runs
T31 no references, K too small      test_reward_model: test_rewarder_scores_a_group; test_references:
                                    test_too_few_or_bad_samples_are_refused
T32 key of the cache                test_references: test_key_changes_with_every_fact; the run's own key and a killed run:
                                    test_reference_cache: test_another_model_template_sampling_or_aggregation_misses,
                                    test_a_killed_run_finds_its_references_again_whole_or_not_at_all
T33 toy of over-optimisation        test_toy_of_overoptimisation (KL 1, the numbers that T33 names)
T34 no group standard deviation     test_saturated_groups_stay_small; test_losses: test_a_saturated_group_keeps_its_small_say;
                                    what z-scores do instead: test_aggregation:
                                    test_zscore_forgets_scales_and_the_transform_does_not
T35 truncated twin                  test_truncated_twin_is_below; settings that would turn it round: test_aggregation:
                                    test_settings_that_undo_or_invert_the_transform_are_refused_with_the_reason

Calibration gates beyond these (refit slope, ECE of at most .03 on policy-like pairs) are reported and not asserted: they are
properties of a model's labels, not of this code.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import logsigmoid

from common.types import Reward
from learner.policy.advantages import group_advantages
from rewarder.aggregate import (
    center_and_scale,
    combine,
    combined_scores,
    debias,
    log_sigmoid_floor,
    rewards,
    scale,
    term_weights,
)
from rewarder.aggregation import Aggregation, check_live_groups, make_aggregation
from rewarder.references import reference_value

FINAL = Aggregation("final_score", (), 0.0, 0.0)
PAIR = Aggregation("grouped", ((0,), (1,)), 0.0, 0.0)
SUM = Aggregation("weighted_sum", (), 0.0, 0.01, (0.75, -0.25))
GRID = torch.cat([torch.tensor([-1e4]), torch.linspace(-30, 30, 601), torch.tensor([1e4])]).double()
finite = st.floats(-20, 20, width=32)
weight = st.floats(0.0, 5.0, width=32)
seeds = st.integers(0, 2**31 - 1)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def total(z: Tensor, gate: Tensor, aggregation: Aggregation) -> Tensor:
    """Reward [B] of scores that are already centred and in logits."""
    m = aggregation.num_terms
    terms, weights = rewards(z, gate, torch.eye(z.shape[1]), torch.zeros(m), torch.ones(m), aggregation)
    return terms @ weights


def test_values_by_hand() -> None:
    z = torch.tensor([-4.0, -2.0, 0.0, 2.0, 4.0])
    want = torch.tensor([-4.018150, -2.126928, -0.693147, -0.126928, -0.018150])
    torch.testing.assert_close(log_sigmoid_floor(z, 0.0), want, atol=1e-6, rtol=0)
    by_hand = math.log(0.01 + 0.98 / (1 + math.exp(1.5)))
    assert log_sigmoid_floor(torch.tensor([-1.5]), 0.01).item() == pytest.approx(by_hand, abs=1e-6)


@given(st.sampled_from([0.0, 0.01, 0.02]))
def test_shape_of_the_transform(eps: float) -> None:
    z = GRID.where(GRID.abs() > 0.01, 0.0)
    u = log_sigmoid_floor(z, eps)
    assert bool((u.diff() >= 0).all()) and bool((u <= 0).all())
    assert u[301].item() == pytest.approx(-math.log(2), abs=1e-9)
    assert bool((u >= (math.log(eps) if eps else -1e5)).all())
    if eps == 0:
        inner = log_sigmoid_floor(torch.linspace(-30, 15, 451), 0.0)
        assert bool((inner.diff() > 0).all())
        midpoint = log_sigmoid_floor((z[1:] + z[:-1]) / 2, 0.0)
        assert bool((midpoint >= (u[1:] + u[:-1]) / 2 - 1e-9).all())


def test_slope() -> None:
    r, s, h = torch.linspace(-20, 20, 201, dtype=torch.float64), 0.3, 1e-5
    slope = (log_sigmoid_floor((r + h) / s, 0.0) - log_sigmoid_floor((r - h) / s, 0.0)) / (2 * h)
    torch.testing.assert_close(slope, torch.sigmoid(-r / s) / s, atol=1e-6, rtol=1e-6)


def test_asymptotes() -> None:
    left = torch.linspace(-30, -15, 50, dtype=torch.float64)
    assert float((log_sigmoid_floor(left, 0.0) - left).abs().max()) < 1e-6
    assert -3e-9 < log_sigmoid_floor(torch.tensor([20.0]), 0.0).item() < 0
    assert -log_sigmoid_floor(torch.tensor([5.0]), 0.0).item() < 0.0068


@pytest.mark.parametrize("eps", [0.0, 0.01])
def test_finite_far_out(eps: float) -> None:
    assert bool(torch.isfinite(log_sigmoid_floor(torch.tensor([-1e4, 1e4]), eps)).all())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", ["scores", "gate", "matrix", "reference", "temperature"])
def test_not_finite_is_refused(place: str, bad: float) -> None:
    good = {"scores": torch.ones(2, 2), "gate": torch.ones(2), "matrix": torch.eye(2)}
    good |= {"reference": torch.zeros(2), "temperature": torch.ones(2)}
    good[place].view(-1)[0] = bad
    with pytest.raises(ValueError, match="not finite"):
        rewards(**good, aggregation=PAIR)
    with pytest.raises(ValueError, match="not finite"):
        log_sigmoid_floor(torch.tensor([bad]), 0.01)


@given(seeds, st.floats(-5, 5), st.floats(0.1, 10))
def test_shift_and_scale(seed: int, shift: float, scale: float) -> None:
    r, refs, s = random(seed, 6, 2).double(), random(seed + 1, 16, 2).double(), torch.ones(2, dtype=torch.float64)
    u = log_sigmoid_floor(center_and_scale(r, reference_value(refs, 0.85, "gaussian"), s), 0.0)
    moved_refs = reference_value(scale * (refs + shift), 0.85, "gaussian")
    moved = log_sigmoid_floor(center_and_scale(scale * (r + shift), moved_refs, scale * s), 0.0)
    torch.testing.assert_close(moved, u, atol=1e-5, rtol=1e-5)
    if abs(shift) > 0.1:  # a reference that does not move with the prompt must change the reward
        fixed = log_sigmoid_floor(center_and_scale(r + shift, reference_value(refs, 0.85, "gaussian"), s), 0.0)
        assert float((fixed - u).abs().max()) > 1e-4


def test_limits_of_the_reference() -> None:
    r, one = random(0, 8, 1).double(), torch.ones(1, dtype=torch.float64)
    raw = log_sigmoid_floor(center_and_scale(r, 50 * one, one), 0.0)
    torch.testing.assert_close(raw - raw[0], r - r[0], atol=1e-9, rtol=0)
    flat = log_sigmoid_floor(center_and_scale(r, -50 * one, one), 0.0)
    assert float(flat.abs().max()) < 1e-20


@given(seeds)
def test_rank_invariance(seed: int) -> None:
    scores, gate = random(seed, 9, 3).double(), torch.rand(3, generator=torch.Generator().manual_seed(seed)).double()
    reward = total(scores, gate, FINAL)
    assert torch.equal(reward.argsort(), combine(scores, gate, FINAL)[:, 0].argsort())


@given(finite, finite)
def test_sum_is_log_of_product(a: float, b: float) -> None:
    terms, _ = rewards(torch.tensor([[a, b]]), torch.ones(2), torch.eye(2), torch.zeros(2), torch.ones(2), PAIR)
    product = torch.sigmoid(torch.tensor([a, b]).double()).prod().item()
    assert math.exp(terms.double().sum().item()) == pytest.approx(product, rel=1e-4)


def test_and_prefers_balance() -> None:
    z = torch.tensor([[0.5, 0.5], [4.0, -2.0]])
    balanced, lopsided = (2 * total(z, torch.ones(2), PAIR)).tolist()
    assert (balanced, lopsided) == (pytest.approx(-0.948, abs=1e-3), pytest.approx(-2.145, abs=1e-3))
    raw = combine(z, torch.ones(2), FINAL)[:, 0]
    assert raw[1] > raw[0]


@given(finite)
def test_veto(other: float) -> None:
    z = torch.tensor([[-1e4, other]])
    assert total(z, torch.ones(2), PAIR).item() < -4000
    floored = Aggregation("grouped", ((0,), (1,)), 0.0, 0.01)
    assert total(z, torch.ones(2), floored).item() <= 0.5 * math.log(0.01) + 1e-6


@given(st.lists(finite, min_size=2, max_size=5))
def test_bounds(values: list[float]) -> None:
    z = torch.tensor([values])
    groups = tuple((k,) for k in range(len(values)))
    u = len(values) * total(z, torch.ones(len(values)), Aggregation("grouped", groups, 0.0, 0.0)).item()
    worst = logsigmoid(torch.tensor(min(values))).item()
    assert len(values) * worst - 1e-4 <= u <= worst + 1e-4
    assert worst <= min(0.0, min(values)) + 1e-6


@given(st.permutations([0, 1, 2, 3]), seeds)
def test_permutation(order: list[int], seed: int) -> None:
    z, aggregation = random(seed, 3, 4), Aggregation("grouped", ((0,), (1,), (2,), (3,)), 0.0, 0.01)
    torch.testing.assert_close(total(z[:, order], torch.ones(4), aggregation), total(z, torch.ones(4), aggregation))


def test_share_moves_to_the_bottleneck() -> None:
    z = torch.tensor([[-3.0, 3.0]], requires_grad=True)
    total(z, torch.ones(2), PAIR).sum().backward()
    assert z.grad is not None
    assert (z.grad[0, 0] / z.grad.sum()).item() == pytest.approx(0.9526, abs=1e-4)


def test_one_hot_and_uniform_gate() -> None:
    z = random(3, 5, 2)
    torch.testing.assert_close(total(z, torch.tensor([1.0, 0.0]), PAIR), logsigmoid(z[:, 0]))
    torch.testing.assert_close(2 * total(z, torch.tensor([0.5, 0.5]), PAIR), logsigmoid(z).sum(1))


@given(st.floats(1e-6, 1e6), seeds)
def test_gate_scale_is_irrelevant(scale: float, seed: int) -> None:
    z, gate = random(seed, 4, 4), random(seed, 4).softmax(-1)
    aggregation = Aggregation("grouped", ((0, 2), (1, 3)), 0.2, 0.01)
    torch.testing.assert_close(total(z, scale * gate, aggregation), total(z, gate, aggregation))


@pytest.mark.parametrize(
    ("kind", "groups", "floor", "eps", "message"),
    [
        ("mean", ((0,),), 0.0, 0.0, "aggregation.kind"),
        ("grouped", (), 0.0, 0.0, "at least one group"),
        ("grouped", ((0,), ()), 0.0, 0.0, "none of them empty"),
        ("grouped", ((0,), (0,)), 0.0, 0.0, "twice"),
        ("grouped", ((0,), (1,)), 0.6, 0.0, "weight_floor"),
        ("grouped", ((0,), (1,)), -0.1, 0.0, "weight_floor"),
        ("final_score", (), 0.0, 0.5, "probability_floor"),
    ],
)
def test_bad_aggregations(
    kind: str, groups: tuple[tuple[int, ...], ...], floor: float, eps: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Aggregation(kind, groups, floor, eps)


def test_negative_gate_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        total(torch.ones(1, 2), torch.tensor([1.0, -0.1]), PAIR)


def test_bad_temperature_and_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="want all > 0"):
        center_and_scale(torch.ones(1, 1), torch.ones(1), torch.zeros(1))
    with pytest.raises(ValueError, match="same number"):
        center_and_scale(torch.ones(1, 2), torch.ones(1), torch.ones(2))


def test_constant_objective_is_refused() -> None:
    matrix = torch.eye(2)
    matrix[1] -= torch.tensor([0.3, 1.0])
    with pytest.raises(ValueError, match="verbosity"):
        check_live_groups(matrix, PAIR, ["help", "verbosity"])
    check_live_groups(torch.eye(2), PAIR, ["help", "verbosity"])


def test_objective_in_no_group_drops_out() -> None:
    aggregation = make_aggregation("grouped", {"q": ["a", "b"], "s": ["d"]}, {}, 0.0, 0.0, ["a", "b", "c", "d"])
    assert aggregation.group_indices == ((0, 1), (3,))
    gate = torch.tensor([0.1, 0.3, 0.5, 0.1])
    debiased = torch.tensor([[1.0, 2.0, 99.0, 3.0]])
    torch.testing.assert_close(combine(debiased, gate, aggregation), torch.tensor([[1.75, 3.0]]))
    torch.testing.assert_close(term_weights(gate, aggregation), torch.tensor([0.8, 0.2]))
    with pytest.raises(ValueError, match="'z'"):
        make_aggregation("grouped", {"q": ["z"]}, {}, 0.0, 0.0, ["a"])


def test_floor_and_empty_gate() -> None:
    aggregation = Aggregation("grouped", ((0,), (1, 2)), 0.2, 0.0)
    torch.testing.assert_close(term_weights(torch.tensor([1.0, 0.0, 0.0]), aggregation), torch.tensor([0.8, 0.2]))
    torch.testing.assert_close(term_weights(torch.zeros(3), aggregation), torch.tensor([0.5, 0.5]))
    combined = combine(torch.tensor([[5.0, 1.0, 3.0]]), torch.tensor([1.0, 0.0, 0.0]), aggregation)
    torch.testing.assert_close(combined, torch.tensor([[5.0, 2.0]]))


@given(st.lists(weight, min_size=4, max_size=4), st.floats(0, 0.5))
def test_weights_sum_to_one_above_the_floor(gate: list[float], floor: float) -> None:
    weights = term_weights(torch.tensor(gate), Aggregation("grouped", ((0, 3), (1,)), floor, 0.0))
    assert weights.sum().item() == pytest.approx(1, abs=1e-5)
    assert bool((weights >= floor - 1e-6).all())


def test_debias_is_row_times_matrix() -> None:
    matrix = torch.tensor([[1.0, 0.0], [-0.5, 0.0]])  # verbosity is column 1, its penalty on column 0 is .5
    torch.testing.assert_close(debias(torch.tensor([[3.0, 2.0]]), matrix), torch.tensor([[2.0, 0.0]]))
    with pytest.raises(ValueError, match="3 objectives"):
        debias(torch.ones(1, 3), matrix)


def test_final_score_equals_coefficient_form() -> None:
    r, gate, matrix = random(1, 5, 4), random(2, 5, 4).softmax(-1), random(3, 4, 4)
    torch.testing.assert_close(combined_scores(r, gate, matrix, FINAL)[:, 0], (r * (gate @ matrix.T)).sum(1))


def weighted(weights: dict[str, float]) -> Aggregation:
    return make_aggregation("weighted_sum", {}, weights, 0.2, 0.01, ["a", "b", "c"])


def test_weights_are_scaled_and_keep_their_sign() -> None:
    assert weighted({"c": -1.0, "a": 3.0}).weights == (0.75, 0.0, -0.25)
    assert weighted({"b": 1e-3}).weights == (0.0, 1.0, 0.0)
    assert (weighted({"a": 1.0}).num_terms, weighted({"a": 1.0}).needs_reference) == (1, False)
    assert FINAL.needs_reference and PAIR.needs_reference
    others = [make_aggregation(kind, {"q": ["a"]}, {"a": 1.0}, 0.0, 0.0, ["a"]) for kind in ("final_score", "grouped")]
    assert [aggregation.weights for aggregation in others] == [(), ()]


def test_weighted_sum_by_hand() -> None:
    """Column 1 is verbosity, its penalty on column 0 is .5: debiased scores are (2, 2) and (1, 1), then .75 a - .25 b."""
    scores, matrix = torch.tensor([[3.0, 2.0], [1.5, 1.0]]), torch.tensor([[1.0, 0.0], [-0.5, 1.0]])
    gate, reference = torch.tensor([0.9, 0.1]), torch.tensor([7.0])
    torch.testing.assert_close(combined_scores(scores, gate, matrix, SUM), torch.tensor([[1.0], [0.5]]))
    terms, weights = rewards(scores, gate, matrix, reference, torch.tensor([0.25]), SUM)
    torch.testing.assert_close((terms, weights), (torch.tensor([[4.0], [2.0]]), torch.ones(1)))
    torch.testing.assert_close(scale(torch.tensor([[1.0], [0.5]]), torch.tensor([0.25])), terms)


@given(seeds, st.floats(0.01, 10))
def test_weighted_sum_is_affine(seed: int, temperature: float) -> None:
    """Reward differences are score differences over the temperature, however far from the reference."""
    scores, s = 50 * random(seed, 6, 2).double(), torch.tensor([temperature], dtype=torch.float64)
    terms, _ = rewards(scores, torch.ones(2), torch.eye(2), torch.zeros(1), s, SUM)
    combined = 0.75 * scores[:, :1] - 0.25 * scores[:, 1:]
    torch.testing.assert_close(terms - terms[0], (combined - combined[0]) / temperature)


@given(st.lists(weight, min_size=2, max_size=2), finite)
def test_weighted_sum_ignores_gate_and_reference(gate: list[float], reference: float) -> None:
    scores, fixed = random(5, 4, 2), (torch.ones(1), SUM)
    plain, _ = rewards(scores, torch.ones(2), torch.eye(2), torch.zeros(1), *fixed)
    terms, weights = rewards(scores, torch.tensor(gate), torch.eye(2), torch.tensor([reference]), *fixed)
    assert torch.equal(terms, plain) and torch.equal(weights, torch.ones(1))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", ["scores", "gate", "matrix", "temperature"])
def test_not_finite_is_refused_by_weighted_sum(place: str, bad: float) -> None:
    good = {"scores": torch.ones(2, 2), "gate": torch.ones(2), "matrix": torch.eye(2), "temperature": torch.ones(1)}
    good[place].view(-1)[0] = bad
    with pytest.raises(ValueError, match="not finite"):
        rewards(**good, reference=torch.zeros(1), aggregation=SUM)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "at least one of them not 0"),
        ({"a": 0.0, "b": -0.0}, "at least one of them not 0"),
        ({"a": math.nan}, "want finite weights"),
        ({"a": 1.0, "b": -math.inf}, "want finite weights"),
        ({"a": 1.0, "z": 1.0}, r"names \['z'\], not objectives of the reward model; it has \['a', 'b', 'c'\]"),
    ],
)
def test_bad_weights(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weighted(weights)


def test_weights_of_another_model_are_refused() -> None:
    for weights in ((), (1.0, 1.0), (math.nan,)):
        with pytest.raises(ValueError, match="let make_aggregation scale them"):
            Aggregation("weighted_sum", (), 0.0, 0.0, weights)
    with pytest.raises(ValueError, match="3 objectives, but aggregation.weights has 2"):
        combine(torch.ones(1, 3), torch.ones(3), SUM)
    with pytest.raises(ValueError, match="want all > 0"):
        scale(torch.ones(1, 1), torch.zeros(1))


def test_batched_gate_equals_one_by_one() -> None:
    scores, gates = random(1, 3, 4), random(2, 3, 4).softmax(-1)
    aggregation = Aggregation("grouped", ((0, 1), (2, 3)), 0.1, 0.01)
    fixed = (torch.eye(4), torch.zeros(2), torch.ones(2), aggregation)
    terms, weights = rewards(scores, gates, *fixed)
    for i in range(3):
        terms_i, weights_i = rewards(scores[i : i + 1], gates[i], *fixed)
        torch.testing.assert_close((terms[i], weights[i]), (terms_i[0], weights_i))


def test_weight_scale_is_gamma() -> None:
    anchor, z = random(1, 6).double().softmax(-1), random(2, 6, 2).double()
    u, gamma, kappa = total(z, torch.ones(2, dtype=torch.float64), PAIR), 0.3, 7.0
    one, other = (torch.softmax(anchor.log() + x, 0) for x in (kappa * u / gamma, u / (gamma / kappa)))
    assert float((one - other).abs().max()) < 1e-12


def tilt(utility: Tensor, kl: float) -> Tensor:
    """The optimal policy [prompts, candidates] of a utility at this mean KL from uniform, by bisection on log gamma."""
    low, high, uniform = -5.0, 5.0, math.log(utility.shape[1])
    policy = torch.empty(0)
    for _ in range(15):
        gamma = (low + high) / 2
        log_policy = torch.log_softmax(utility / math.exp(gamma), 1)
        policy = log_policy.exp()
        too_far = ((log_policy + uniform) * policy).sum(1).mean().item() > kl
        low, high = (gamma, high) if too_far else (low, gamma)
    return policy


def test_toy_of_overoptimisation() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = 1.5 * torch.exp(0.6 * torch.randn(400, 1, generator=generator, dtype=torch.float64))
    base = spread * torch.randn(400, 2000, generator=generator, dtype=torch.float64)
    poisoned = torch.rand(400, 2000, generator=generator) < 0.005
    proxy, true = base + 6 * poisoned, base - 4 * poisoned
    good = true > torch.quantile(true, 0.85, dim=1, keepdim=True)
    z = proxy - torch.quantile(proxy, 0.85, dim=1, keepdim=True)
    for utility, want_good, want_bad in ((proxy, 0.40, 0.15), (log_sigmoid_floor(z, 0.0), 0.62, 0.045)):
        policy = tilt(utility, kl=1.0)
        assert (policy * good).sum(1).mean().item() == pytest.approx(want_good, abs=0.03)
        assert (policy * poisoned).sum(1).mean().item() == pytest.approx(want_bad, abs=0.03)


def test_saturated_groups_stay_small() -> None:
    """Through the learner's own baseline: a group at z around 6 has advantages below .05 of those at -6."""
    spread = random(0, 1, 2000)
    high, low = (group_advantages(log_sigmoid_floor(spread + centre, 0.0)).std().item() for centre in (6.0, -6.0))
    assert high < 0.05 * low


@given(finite, st.floats(-5, -0.01))
def test_truncated_twin_is_below(z: float, penalty: float) -> None:
    terms, weights = rewards(torch.tensor([[z, z]]), torch.ones(2), torch.eye(2), torch.zeros(2), torch.ones(2), PAIR)
    row = np.ones(2, np.float32)
    whole, cut = (Reward(row, row, terms[0].numpy(), weights.numpy(), p) for p in (0.0, penalty))
    assert cut.value < whole.value <= 0


def test_the_map_names_every_number_and_only_tests_that_exist() -> None:
    unit = Path(__file__).parents[1]
    assert re.findall(r"^ ?T(\d+) ", __doc__ or "", re.M) == [str(number) for number in range(1, 36)]
    named = set(re.findall(r"\btest_\w+", __doc__ or ""))
    files = {path.stem for path in unit.rglob("test_*.py")}
    tests = {
        name for path in unit.rglob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert named - files <= tests, named - files - tests
