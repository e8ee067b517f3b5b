"""learner/ranks/losses.py, logprobs.py, advantages.py and schedule.py against numbers computed by hand, and their laws."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.policy.advantages import group_advantages
from learner.ranks.logprobs import token_entropy, token_logprobs
from learner.ranks.losses import (
    bradley_terry,
    clipped_policy_loss,
    importance_weights,
    kl_penalty,
    masked_mean,
    masked_regression,
)
from learner.ranks.schedule import cosine

numbers = st.floats(-4, 4, width=32)
KEPT = torch.tensor(True)


def test_token_logprobs_by_hand() -> None:
    logits = torch.tensor([[[0.0, math.log(3.0)], [math.log(4.0), 0.0], [9.0, 9.0]]])
    got = token_logprobs(logits, torch.tensor([[0, 1, 0]]), temperature=1.0)
    torch.testing.assert_close(got, torch.tensor([[0.0, math.log(0.75), math.log(0.8)]]))


def test_token_logprobs_divide_by_the_sampling_temperature() -> None:
    logits = torch.tensor([[[0.0, 2 * math.log(3.0)], [0.0, 0.0]]])
    got = token_logprobs(logits, torch.tensor([[0, 1]]), temperature=2.0)
    assert got[0, 1].item() == pytest.approx(math.log(0.75))


def test_entropy_by_hand() -> None:
    logits = torch.tensor([[[0.0, 0.0], [0.0, math.log(3.0)], [0.0, 0.0]]])
    want = [0.0, math.log(2.0), -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))]
    torch.testing.assert_close(token_entropy(logits, 1.0), torch.tensor([want]))


def test_advantages_are_centred_and_not_scaled() -> None:
    got = group_advantages(torch.tensor([[1.0, 3.0], [-0.1, 0.1]]))
    torch.testing.assert_close(got, torch.tensor([[-1.0, 1.0], [-0.1, 0.1]]))


def test_a_saturated_group_keeps_its_small_say() -> None:
    """T34: dividing by the group's spread would give both groups the same weight and undo the transform."""
    raw = torch.tensor([[-6.5, -5.5], [5.5, 6.5]])
    spread = group_advantages(torch.nn.functional.logsigmoid(raw)).abs().mean(-1)
    assert spread[1] < 0.05 * spread[0]


@pytest.mark.parametrize(
    ("ratio", "advantage", "want"),
    [(1.0, 2.0, -2.0), (1.5, 1.0, -1.28), (0.5, 1.0, -0.5), (1.5, -1.0, 1.5), (0.5, -1.0, 0.8)],
)
def test_clip_by_hand(ratio: float, advantage: float, want: float) -> None:
    new, old = torch.tensor([[math.log(ratio)]]), torch.zeros(1, 1)
    got = clipped_policy_loss(new, old, torch.tensor([[advantage]]), KEPT, clip_low=0.2, clip_high=0.28)
    assert got.item() == pytest.approx(want, rel=1e-6)


def test_on_policy_gradient_is_reinforce() -> None:
    logprobs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    clipped_policy_loss(logprobs, logprobs.detach(), torch.tensor([[3.0]]), KEPT, 0.2, 0.28).sum().backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-3.0, -3.0]]))


def test_importance_weights_by_hand() -> None:
    old, sampled = torch.log(torch.tensor([[0.3, 0.4, 0.5]])), torch.log(torch.tensor([[0.6, 0.4, 0.1]]))
    torch.testing.assert_close(importance_weights(old, sampled, KEPT, 2.0), torch.tensor([[0.5, 1.0, 2.0]]))
    torch.testing.assert_close(importance_weights(old, sampled, KEPT, 100.0), torch.tensor([[0.5, 1.0, 5.0]]))
    assert importance_weights(old, sampled, KEPT, None).tolist() == [[1.0, 1.0, 1.0]]


def test_importance_weights_stay_finite_and_take_no_gradient() -> None:
    old = torch.tensor([[0.0, -200.0]], requires_grad=True)
    got = importance_weights(old, torch.tensor([[-200.0, 0.0]]), KEPT, 2.0)
    assert got.tolist() == [[2.0, 0.0]]
    assert not got.requires_grad


def test_one_update_with_weights_is_the_weighted_reinforce_gradient() -> None:
    """The ratio is 1 with the gradient of log p, so a token gets -weight * advantage, and no token is clipped away."""
    logprobs = torch.log(torch.tensor([[0.3, 0.5]])).requires_grad_()
    start, sampled = logprobs.detach(), torch.log(torch.tensor([[0.6, 0.1]]))
    loss = importance_weights(start, sampled, KEPT, 2.0) * clipped_policy_loss(
        logprobs, start, torch.tensor([[3.0]]), KEPT, 0.2, 0.28
    )
    loss.sum().backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-1.5, -6.0]]))


def test_weights_without_truncation_make_the_gradient_unbiased() -> None:
    """Exactly, over a small vocabulary: E_q[(p / q) A grad log p] = grad E_p[A], whatever q the tokens came from."""
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    q = torch.log_softmax(torch.tensor([0.0, 0.5, -0.5], dtype=torch.float64), -1)
    advantages = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    p = torch.log_softmax(logits, -1)
    (want,) = torch.autograd.grad(-(p.exp() * advantages).sum(), logits, retain_graph=True)
    weights = importance_weights(p, q, KEPT, 1e9)
    surrogate = q.exp() * weights * clipped_policy_loss(p, p.detach(), advantages, KEPT, 0.2, 0.28)
    (got,) = torch.autograd.grad(surrogate.sum(), logits)
    torch.testing.assert_close(got, want)


def test_kl_estimators_by_hand() -> None:
    new, ref = torch.tensor([[-1.0]]), torch.tensor([[-1.5]])
    assert kl_penalty(new, ref, KEPT, "k2").item() == pytest.approx(0.125)
    assert kl_penalty(new, ref, KEPT, "k3").item() == pytest.approx(math.exp(-0.5) - 1 + 0.5)


def test_k2_has_the_gradient_of_the_reverse_kl() -> None:
    """Exactly, over a small vocabulary: E_p[grad k2] = grad KL(p || q)."""
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    q = torch.log_softmax(torch.tensor([0.0, 0.5, -0.5], dtype=torch.float64), -1)
    p = torch.log_softmax(logits, -1)
    (want,) = torch.autograd.grad((p.exp() * (p - q)).sum(), logits, retain_graph=True)
    (got,) = torch.autograd.grad((p.exp().detach() * kl_penalty(p, q, KEPT, "k2")).sum(), logits)
    torch.testing.assert_close(got, want)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=20))
def test_k3_is_never_negative_and_zero_only_at_equality(pairs: list[tuple[float, float]]) -> None:
    new, ref = (torch.tensor([values], dtype=torch.float64) for values in zip(*pairs, strict=True))
    assert bool((kl_penalty(new, ref, KEPT, "k3") >= -1e-12).all())
    assert kl_penalty(new, new, KEPT, "k3").abs().max() == 0


@given(st.integers(1, 7), st.integers(8, 24))
def test_masked_mean_does_not_depend_on_how_a_batch_is_cut(cuts: int, size: int) -> None:
    values = torch.arange(size, dtype=torch.float64).reshape(size, 1)
    mask = values % 3 != 0
    whole = masked_mean(values, mask, int(mask.sum()))
    parts = [masked_mean(v, m, int(mask.sum())) for v, m in zip(values.chunk(cuts), mask.chunk(cuts), strict=True)]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


def test_masked_values_may_be_anything() -> None:
    values = torch.tensor([[1.0, float("nan")]], requires_grad=True)
    loss = masked_mean(values, torch.tensor([[True, False]]), 1)
    loss.backward()
    assert loss.item() == 1.0
    torch.testing.assert_close(values.grad, torch.tensor([[1.0, 0.0]]))


def test_masked_regression_by_hand() -> None:
    scores = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    ratings = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    known = torch.tensor([[True, False], [True, True]])
    assert masked_regression(scores, ratings, known, known.sum(0)).item() == pytest.approx((0.5 + 4.0) / 2)


def test_bradley_terry_by_hand() -> None:
    got = bradley_terry(torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(got, torch.tensor([math.log(1 + math.exp(-1)), math.log(2.0)]))


def test_smoothed_labels_and_margins_by_hand() -> None:
    """D = 1: sigmoid(1) = .7311, sigmoid(1 - 3) = .1192."""
    difference = torch.ones(3, dtype=torch.float64, requires_grad=True)
    target, margin = torch.tensor([0.8, 1.0, 0.8]).double(), torch.tensor([0.0, 3.0, 3.0]).double()
    loss = bradley_terry(difference, target, margin)
    by_hand = [
        -0.8 * math.log(0.731058578630) - 0.2 * math.log(0.268941421370),
        -math.log(0.119202922022),
        -0.8 * math.log(0.119202922022) - 0.2 * math.log(0.880797077978),
    ]
    torch.testing.assert_close(loss, torch.tensor(by_hand).double())
    (gradient,) = torch.autograd.grad(loss.sum(), difference)  # sigmoid(D - m) - t
    wanted = torch.tensor([0.731058578630 - 0.8, 0.119202922022 - 1, 0.119202922022 - 0.8]).double()
    torch.testing.assert_close(gradient, wanted)


@given(st.floats(0.01, 0.5), st.floats(-3, 3))
def test_a_smoothed_loss_has_the_entropy_of_its_labels_as_floor(a: float, margin: float) -> None:
    """At D = m + log((1 - a) / a), where its gradient is 0, and nowhere below."""
    difference = torch.linspace(-20, 20, 4001).double() + margin
    loss = bradley_terry(difference, 1 - a, margin)
    floor = -a * math.log(a) - (1 - a) * math.log(1 - a)
    lowest = bradley_terry(torch.tensor(margin + math.log((1 - a) / a)).double(), 1 - a, margin)
    assert float(lowest) == pytest.approx(floor) and float(loss.min()) >= floor - 1e-12


@given(st.floats(-6, 6), st.floats(-3, 3), st.floats(0, 1))
def test_a_turned_pair_is_the_pair_with_its_label_turned(difference: float, margin: float, target: float) -> None:
    """Chosen and rejected change places, the strength its sign, the target its side: the same loss."""
    first = bradley_terry(torch.tensor(difference).double(), target, margin)
    torch.testing.assert_close(first, bradley_terry(torch.tensor(-difference).double(), 1 - target, -margin))


def test_a_margin_is_inside_the_log_sigmoid() -> None:
    """It moves the gradient: outside it would be a constant. One that is not won by costs, one that excuses pays."""
    difference = torch.zeros(3, requires_grad=True)
    loss = bradley_terry(difference, 1.0, torch.tensor([-1.0, 0.0, 1.0]))
    (gradient,) = torch.autograd.grad(loss.sum(), difference)
    assert gradient.tolist() == sorted(gradient.tolist(), reverse=True) and loss.tolist() == sorted(loss.tolist())


def test_cosine_warms_up_and_ends_at_zero() -> None:
    factors = [cosine(step, 100, 0.1) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9] == 1.0
    assert factors[-1] < 0.001
    assert all(a >= b for a, b in pairwise(factors[9:]))
