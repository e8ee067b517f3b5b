"""Masked places may hold anything: no loss, gradient or statistic of the learner sees them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from common.config.file import BASE, load_config
from learner.policy.statistics import TokenValues, token_sums
from learner.ranks.logprobs import token_entropy, token_logprobs
from learner.ranks.losses import (
    clip_acts,
    clipped_policy_loss,
    importance_weights,
    kl_penalty,
    masked_mean,
    masked_regression,
)
from rewarder.aggregate import inside_group

LEARNER = load_config(BASE, ["aggregation.kind=final_score"]).learner
ANYTHING = (1e4, -1e4, 88.8, math.inf, -math.inf, math.nan, 0.0)
SHAPE = (3, 5)
MASK = torch.tensor(
    [[False, True, True, False, True], [False, False, True, True, False], [True, False, False, True, False]]
)
junk = st.lists(st.sampled_from(ANYTHING), min_size=15, max_size=15)
seeds = st.integers(0, 2**31 - 1)


def logprobs(seed: int) -> Tensor:
    return -2 * torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spoilt(values: Tensor, junk: list[float], keep: Tensor = MASK) -> Tensor:
    """The values, with junk at the places that are not kept."""
    return torch.where(keep, values, torch.tensor(junk, dtype=values.dtype).reshape(SHAPE))


def zeroed(values: Tensor, keep: Tensor = MASK) -> Tensor:
    return torch.where(keep, values, 0.0)


def value_and_gradient(loss_of: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    leaf = at.clone().requires_grad_()
    loss = loss_of(leaf)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


def token_loss(name: str, policy: Tensor, base: Tensor, advantages: Tensor) -> Tensor:
    clip = LEARNER.clip_low, LEARNER.clip_high
    made = {
        "clipped": lambda: clipped_policy_loss(policy, base, advantages, MASK, *clip),
        "k2": lambda: kl_penalty(policy, base, MASK, "k2"),
        "k3": lambda: kl_penalty(policy, base, MASK, "k3"),
        "weighted": lambda: (
            importance_weights(policy, base, MASK, 2.0) * clipped_policy_loss(policy, base, advantages, MASK, *clip)
        ),
        "sft": lambda: -policy,
    }
    return masked_mean(made[name](), MASK, int(MASK.sum()))


@pytest.mark.parametrize("name", ["clipped", "k2", "k3", "weighted", "sft"])
@given(seeds, junk, junk, junk)
def test_no_token_loss_sees_masked_places(
    name: str, seed: int, first: list[float], second: list[float], third: list[float]
) -> None:
    policy, base, advantages = logprobs(seed), logprobs(seed + 1), logprobs(seed + 2) + 1
    want = value_and_gradient(lambda p: token_loss(name, p, zeroed(base), zeroed(advantages)), zeroed(policy))
    given_junk = spoilt(base, second), spoilt(advantages, third)
    got = value_and_gradient(lambda p: token_loss(name, p, *given_junk), spoilt(policy, first))
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert bool((got[1][~MASK] == 0).all())


@given(seeds, st.lists(junk, min_size=6, max_size=6))
def test_no_statistic_sees_masked_places(seed: int, places: list[list[float]]) -> None:
    names = [
        "policy_logprobs",
        "old_logprobs",
        "rollout_logprobs",
        "ref_logprobs",
        "importance_weights",
        "entropy",
    ]
    values = {name: logprobs(seed + i) for i, name in enumerate(names)}
    advantages = torch.tensor([[1.0], [-1.0], [0.0]])
    clean = TokenValues(**{n: zeroed(v) for n, v in values.items()}, advantages=advantages, response_mask=MASK)
    dirty = replace(clean, **{n: spoilt(v, place) for (n, v), place in zip(values.items(), places, strict=True)})
    config = replace(LEARNER, importance_cap=2.0)
    assert token_sums(dirty, torch.zeros(()), config) == token_sums(clean, torch.zeros(()), config)


@given(seeds, st.lists(st.sampled_from((1e4, -1e4)), min_size=60, max_size=60))
def test_logits_far_out_at_masked_places_reach_no_loss_and_no_entropy(seed: int, places: list[float]) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, ids = torch.randn(3, 5, 4, generator=generator), torch.randint(0, 4, SHAPE, generator=generator)
    drawn_from = torch.nn.functional.pad(
        MASK[:, 1:], (0, 1)
    )  # column t's log-prob is made of the logits of column t - 1
    mask = torch.nn.functional.pad(MASK[:, 1:], (1, 0))
    far = torch.where(drawn_from[..., None], logits, torch.tensor(places).reshape(3, 5, 4))

    def loss_of(at: Tensor) -> Tensor:
        return masked_mean(-token_logprobs(at, ids, 1.0), mask, 7)

    torch.testing.assert_close(
        value_and_gradient(loss_of, far), value_and_gradient(loss_of, logits * drawn_from[..., None])
    )
    torch.testing.assert_close(token_entropy(far, 1.0)[mask], token_entropy(logits, 1.0)[mask])


@given(seeds, junk, junk)
def test_the_rating_loss_does_not_see_what_is_not_rated(seed: int, first: list[float], second: list[float]) -> None:
    scores, ratings, counts = logprobs(seed), logprobs(seed + 1), MASK.sum(0)
    want = value_and_gradient(lambda s: masked_regression(s, zeroed(ratings), MASK, counts), zeroed(scores))
    got = value_and_gradient(
        lambda s: masked_regression(s, spoilt(ratings, first), MASK, counts), spoilt(scores, second)
    )
    torch.testing.assert_close(got, want, rtol=0, atol=0)


@given(seeds, junk)
def test_the_gate_inside_a_group_does_not_see_who_is_not_among_it(seed: int, places: list[float]) -> None:
    gate = logprobs(seed).exp()
    torch.testing.assert_close(
        inside_group(spoilt(gate, places), MASK), inside_group(zeroed(gate), MASK), rtol=0, atol=0
    )


def test_only_tokens_without_a_gradient_count_as_clipped() -> None:
    """Ratios 1.5 and .5 for a good, a bad and an indifferent response: the clip acts above for the good one, and below for
    the bad one. It is the places where the loss has no gradient though the advantage is not 0."""
    policy = torch.log(torch.tensor([[1.5, 0.5, 1.1]] * 3)).requires_grad_()
    advantages, mask = torch.tensor([[1.0], [-1.0], [0.0]]), torch.ones(3, 3, dtype=torch.bool)
    rest = torch.zeros(3, 3), advantages, mask, 0.2, 0.28
    acts = clip_acts(policy, *rest)
    assert acts.tolist() == [[True, False, False], [False, True, False], [False, False, False]]
    (gradient,) = torch.autograd.grad(clipped_policy_loss(policy, *rest).sum(), policy)
    assert torch.equal(acts, (gradient == 0) & (advantages != 0))


@given(seeds)
def test_the_share_of_clipped_tokens_is_that_of_tokens_whose_gradient_is_cut(seed: int) -> None:
    policy, old = 3 * logprobs(seed), 3 * logprobs(seed + 1)
    advantages = torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)
    rest = old, advantages, MASK, LEARNER.clip_low, LEARNER.clip_high
    _, gradient = value_and_gradient(lambda p: clipped_policy_loss(p, *rest)[MASK].sum(), policy)
    assert torch.equal(clip_acts(policy, *rest), (gradient == 0) & MASK)
