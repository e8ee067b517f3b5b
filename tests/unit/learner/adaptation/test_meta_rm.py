"""learner/adaptation/meta_rm.py and cached_landscape.py in float64: J by hand, each update against an independent autograd
computation."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, jvp
from torch.nn.functional import logsigmoid

from learner.adaptation.cached_landscape import CachedLandscape, FitFeatures
from learner.adaptation.fit import Method
from learner.adaptation.meta_rm import (
    EPSILON,
    InnerStep,
    Loss,
    accumulate_update,
    differences,
    spread,
    spread_gradient,
    spread_pairs,
)
from learner.reward_model.training import Features
from rewarder.aggregate import debias
from rewarder.model import GatedRewardModel
from tests.integration.models import tiny_policy
from tests.unit.adaptation import OBJECTIVES, config

RHO = 0.01


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# ---- J ------------------------------------------------------------------------------------------------------------------


def test_j_by_hand() -> None:
    reward = torch.tensor([0.0, 1.0, 3.0, 5.0, 5.0], dtype=torch.float64)
    comparisons = spread_pairs(torch.tensor([0, 0, 0, 1, 1]), 2)
    by_hand = (2 / 9 * (s(1) + s(3) + s(2)) + 2 / 4 * s(0)) / 2
    assert float(spread(reward, comparisons)) == pytest.approx(by_hand, rel=1e-6)
    first = 2 / 9 / 2 * (s(1) * (1 - s(1)) + s(3) * (1 - s(3)))
    assert float(spread_gradient(reward, comparisons)[0]) == pytest.approx(-first, rel=1e-6)


@given(st.integers(2, 6), st.integers(1, 4), st.integers(0, 99), st.sampled_from([1e-3, 1.0, 50.0]))
def test_j_has_its_bounds_and_moves_no_level(k: int, m: int, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    reward = (scale * torch.randn(k * m, generator=generator)).double().requires_grad_()
    prompt_of = torch.arange(m).repeat_interleave(k)
    comparisons = spread_pairs(prompt_of, m)
    value = spread(reward, comparisons)
    assert (k - 1) / (2 * k) - 1e-6 <= value.item() <= (k - 1) / k + 1e-6
    (by_autograd,) = torch.autograd.grad(value, reward)
    closed = spread_gradient(reward.detach(), comparisons)
    torch.testing.assert_close(closed, by_autograd)
    torch.testing.assert_close(closed.reshape(m, k).sum(1), torch.zeros(m, dtype=torch.float64), atol=1e-9, rtol=0)


def test_ties_give_no_gradient_and_the_least_j() -> None:
    comparisons = spread_pairs(torch.zeros(5, dtype=torch.long), 1)
    assert float(spread(torch.ones(5), comparisons)) == pytest.approx(0.4)
    assert not spread_gradient(torch.ones(5), comparisons).any()


def test_prompts_may_be_split_over_passes() -> None:
    reward, prompt_of = torch.randn(12, dtype=torch.float64), torch.arange(4).repeat_interleave(3)
    parts = sum(float(spread(reward[a : a + 6], spread_pairs(prompt_of[a : a + 6], 4))) for a in (0, 6))
    assert parts == pytest.approx(float(spread(reward, spread_pairs(prompt_of, 4))), rel=1e-9)


# ---- updates, on a small net in float64 -----------------------------------------------------------------------------------


class Toy:
    """theta [D] of a net of one hidden layer; L Bradley-Terry of fixed pairs, J of fixed prompts. Second derivatives are exact
    (forward over reverse), or central differences with frozen signs of `probe` length."""

    def __init__(self, linear: bool = False, probe: float | None = None):
        generator = torch.Generator().manual_seed(5)
        self._shape = (1, 6) if linear else (8, 6)
        self.theta = 0.4 * torch.randn(self._shape[0] * 7, generator=generator, dtype=torch.float64)
        self.rows = torch.randn(40, 6, generator=generator, dtype=torch.float64)
        self.comparisons = spread_pairs(torch.arange(4).repeat_interleave(4), 4)
        self.probe, self.update, self._linear = probe, torch.zeros_like(self.theta), linear

    def reward(self, theta: Tensor, rows: Tensor) -> Tensor:
        count = self._shape[0]
        hidden = rows @ theta[: 6 * count].reshape(self._shape).T
        return hidden[:, 0] if self._linear else torch.tanh(hidden) @ theta[6 * count :]

    def pairs(self, theta: Tensor) -> Tensor:
        first, second = self.reward(theta, self.rows[16:]).reshape(2, -1)
        return -logsigmoid(first - second).mean()

    def spread(self, theta: Tensor, signs: Tensor | None = None) -> Tensor:
        return spread(self.reward(theta, self.rows[:16]), self.comparisons, signs)

    def of(self, loss: Loss) -> Any:
        return self.pairs if loss == "pairs" else self.spread

    def _at(self, at: Tensor | None) -> Tensor:
        return self.theta if at is None else self.theta + at

    def gradient(self, loss: Loss, at: Tensor | None = None) -> tuple[float, Tensor]:
        return float(self.of(loss)(self._at(at))), grad(self.of(loss))(self._at(at))

    def accumulate(self, loss: Loss, weight: float, at: Tensor | None = None) -> float:
        value, gradient = self.gradient(loss, at)
        self.update = self.update + weight * gradient
        return value

    def accumulate_curvature(self, loss: Loss, weight: float, vector: Tensor) -> None:
        exact = jvp(grad(self.of(loss)), (self.theta,), (vector,))[1]
        self.update = self.update + weight * (exact if self.probe is None else self.difference(loss, vector))

    def difference(self, loss: Loss, vector: Tensor, frozen: bool = True) -> Tensor:
        step = self.probe / float(vector.norm()) * vector if self.probe else vector
        signs = differences(self.reward(self.theta, self.rows[:16]), self.comparisons).sign() if frozen else None
        of = self.pairs if loss == "pairs" else lambda theta: self.spread(theta, signs)
        return (
            (grad(of)(self.theta + step) - grad(of)(self.theta - step)) * float(vector.norm()) / (2 * (self.probe or 1))
        )

    def dot(self, a: Tensor, b: Tensor) -> float:
        return float(a @ b)

    def keep(self, by: Tensor) -> None:
        self.theta = self.theta + by


def updated(method: str, second_order: bool = False, weight: float = 0.7, **settings: Any) -> Toy:
    toy = Toy(**settings)
    accumulate_update(method, toy, InnerStep("normalised", RHO), weight, second_order)
    return toy


def inner(toy: Toy, loss: Loss) -> Tensor:
    """theta -> the inner step with its length held fixed, as a function of theta; by hand."""
    length = RHO / float(grad(toy.of(loss))(toy.theta).norm())
    return torch.tensor(length, dtype=torch.float64)


def test_without_meta_it_is_the_plain_gradient() -> None:
    toy = updated("none")
    torch.testing.assert_close(toy.update, grad(toy.pairs)(toy.theta))


def test_literal_is_the_gradient_of_the_labelled_loss_at_the_raised_point() -> None:
    toy = updated("literal")
    raised = toy.theta + inner(toy, "spread") * grad(toy.spread)(toy.theta)
    torch.testing.assert_close(toy.update, grad(toy.pairs)(raised), rtol=1e-10, atol=1e-12)
    assert float(toy.spread(raised)) > float(toy.spread(toy.theta)), "the inner step raises J"
    assert torch.equal(toy.theta, Toy().theta)


def test_no_restore_leaves_from_the_raised_point() -> None:
    before, toy = Toy(), updated("no_restore")
    step = inner(before, "spread") * grad(before.spread)(before.theta)
    torch.testing.assert_close(toy.theta, before.theta + step)
    torch.testing.assert_close(toy.update, grad(toy.pairs)(toy.theta))


def test_joint_is_the_gradient_of_the_difference() -> None:
    toy = updated("joint")
    torch.testing.assert_close(toy.update, grad(lambda t: toy.pairs(t) - 0.7 * toy.spread(t))(toy.theta))


def test_look_ahead_to_first_order() -> None:
    toy = updated("look_ahead")
    ahead = toy.theta - inner(toy, "pairs") * grad(toy.pairs)(toy.theta)
    expected = grad(toy.pairs)(toy.theta) - 0.7 * grad(toy.spread)(ahead)
    torch.testing.assert_close(toy.update, expected, rtol=1e-10, atol=1e-12)


def exact(toy: Toy, method: str) -> Tensor:
    """By differentiating the whole composition."""
    if method == "literal":
        length = inner(toy, "spread")
        return grad(lambda t: toy.pairs(t + length * grad(toy.spread)(t)))(toy.theta)
    length = inner(toy, "pairs")
    return grad(lambda t: toy.pairs(t) - 0.7 * toy.spread(t - length * grad(toy.pairs)(t)))(toy.theta)


@pytest.mark.parametrize("method", ["literal", "look_ahead"])
def test_the_exact_second_order_update_is_that_of_the_composition(method: str) -> None:
    toy = updated(method, second_order=True)
    torch.testing.assert_close(toy.update, exact(toy, method), rtol=1e-10, atol=1e-12)
    first_order = updated(method)
    assert float((first_order.update - toy.update).norm()) > 1e-4 * float(toy.update.norm()), "the test can fail"


@pytest.mark.parametrize("method", ["literal", "look_ahead"])
def test_finite_differences_come_within_a_thousandth(method: str) -> None:
    """Of the second-order part, with central differences of length 0.01."""
    toy, plain = updated(method, second_order=True, probe=0.01), updated(method)
    part, found = exact(toy, method) - plain.update, toy.update - plain.update
    assert float((found - part).norm()) < 1e-3 * float(part.norm())


def test_without_frozen_signs_differences_across_the_kink_are_garbage() -> None:
    toy = Toy(probe=0.3)
    vector = grad(toy.pairs)(toy.theta)
    true = jvp(grad(toy.spread), (toy.theta,), (vector,))[1]
    error = {
        frozen: float((toy.difference("spread", vector, frozen) - true).norm() / true.norm())
        for frozen in (True, False)
    }
    assert error[False] > 3 * error[True], error


def test_literal_lowers_j_where_a_plain_step_leaves_it() -> None:
    """The sign of the printed update, on a linear head, where H_L is positive semidefinite: see the module's docstring."""
    rate, after = 0.5, {}
    for method in ("none", "literal"):
        toy = updated(method, linear=True)
        after[method] = float(toy.spread(toy.theta - rate * toy.update))
    assert after["literal"] < after["none"]


@pytest.mark.parametrize("kind", ["raw", "normalised", "adam"])
def test_inner_steps_have_their_length(kind: str) -> None:
    toy, step = Toy(), InnerStep(kind, 0.2)
    for scale in (1.0, 100.0):
        gradient = scale * grad(toy.spread)(toy.theta)
        moved = step.scale(gradient, toy) * gradient
        length = 0.2 * float(gradient.norm()) if kind == "raw" else 0.2
        assert float(moved.norm()) == pytest.approx(length, rel=1e-6)
        assert float(moved @ gradient) > 0
    assert float((InnerStep(kind, 0.2).scale(torch.zeros(3), toy) * torch.zeros(3)).norm()) == 0, EPSILON


# ---- the cached landscape ---------------------------------------------------------------------------------------------------


@pytest.fixture
def cached(tmp_path: Path) -> dict[str, Any]:
    """A gated model in float64 with features at random, 6 meta prompts of 4, 10 fresh and 12 original pairs."""
    tiny_policy(tmp_path, 0)
    model = GatedRewardModel.from_policy(tmp_path, OBJECTIVES, 8, 1, 1.0, 2.0, 0).double().eval()
    return {
        "model": model,
        "fresh": features(model, 20, 10, 0),
        "original": features(model, 24, 12, 1),
        "meta": features(model, 24, 0, 2),
    }


def features(model: GatedRewardModel, rows: int, pairs: int, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    prompt, response = torch.randn(2, rows, model.sizes.hidden, generator=generator, dtype=torch.float64)
    indices = torch.arange(2 * pairs).reshape(-1, 2)
    labels = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64).repeat(pairs, 1)
    ratings = torch.rand(rows, 2, generator=generator, dtype=torch.float64)
    ratings[::3, 0] = torch.nan
    return Features(prompt, response, indices, labels, ratings, torch.arange(rows) // 4)


def landscape(cached: dict[str, Any], tier: str) -> CachedLandscape:
    settings = config(f"adaptation.tier={tier}", "adaptation.replay_weight=0.5").adaptation
    sets = FitFeatures(cached["fresh"], cached["original"], cached["meta"])
    made = CachedLandscape(cached["model"], sets, Method(settings, 3.0, None, 100, 0), 2.0)
    made.draw()
    return made


def regression(scores: Tensor, ratings: Tensor) -> Tensor:
    """The mean over objectives of the mean squared error of what is rated."""
    columns = zip((scores - ratings.nan_to_num()).square().T, ratings.isfinite().T, strict=True)
    return torch.stack([column[mask].mean() for column, mask in columns]).mean()


def by_hand(cached: dict[str, Any], tier: str, loss: Loss) -> tuple[Any, Tensor]:
    """(loss as a function of the flat parameters, these), written out."""
    model = copy.deepcopy(cached["model"]).requires_grad_(False)
    matrix: Tensor = model.reward_transform_matrix
    trained, rated = (("gating.", "regression"), 3.0) if tier == "heads" else (("gating.",), 0.0)
    names = [name for name, _ in model.named_parameters() if name.startswith(trained)]
    flat = torch.cat([model.get_parameter(name).flatten() for name in names])

    def value(theta: Tensor) -> Tensor:
        found, start = {}, 0
        for name in names:
            old = model.get_parameter(name)
            found[name], start = theta[start : start + old.numel()].reshape(old.shape), start + old.numel()
        return spread_of(score(cached["meta"], found)) if loss == "spread" else pairs_of(found)

    def score(f: Features, found: dict[str, Tensor]) -> Tensor:
        hidden = torch.relu(f.prompt @ found["gating.layers.0.weight"].T + found["gating.layers.0.bias"])
        logits = hidden @ found["gating.layers.1.weight"].T + found["gating.layers.1.bias"]
        gate = found["gating.logit_scale"] * torch.softmax(logits / model.gating.temperature, -1)
        return (debias(scores(f, found), matrix) * gate).sum(-1) / 2.0

    def scores(f: Features, found: dict[str, Tensor]) -> Tensor:
        weight = found["regression_layer.weight"] if tier == "heads" else model.regression_layer.weight
        return f.response @ weight.T

    def labelled(f: Features, found: dict[str, Tensor]) -> Tensor:
        reward = score(f, found)
        gated = -logsigmoid(reward[f.pairs[:, 0]] - reward[f.pairs[:, 1]]).mean()
        return gated + rated * regression(scores(f, found), f.ratings)

    def pairs_of(found: dict[str, Tensor]) -> Tensor:
        return labelled(cached["fresh"], found) + 0.5 * labelled(cached["original"], found)

    def spread_of(reward: Tensor) -> Tensor:
        gaps = (reward.reshape(6, 4, 1) - reward.reshape(6, 1, 4)).abs().sigmoid()
        return (gaps.triu(1).sum((1, 2)) * 2 / 16).mean()

    return value, flat


@pytest.mark.parametrize("tier", ["gate", "heads"])
@pytest.mark.parametrize("loss", ["pairs", "spread"])
def test_the_cached_losses_and_both_derivatives_are_those_written_out(
    cached: dict[str, Any], tier: str, loss: Loss
) -> None:
    made, (value, flat) = landscape(cached, tier), by_hand(cached, tier, loss)
    at = 0.05 * torch.randn(len(flat), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found, gradient = made.gradient(loss, at)
    assert found == pytest.approx(float(value(flat + at)), rel=1e-6)
    torch.testing.assert_close(gradient, grad(value)(flat + at), rtol=1e-5, atol=1e-8)
    made.accumulate_curvature(loss, 2.0, at)
    taken = torch.cat([p.grad.flatten() for p in made._parameters.values() if p.grad is not None])
    torch.testing.assert_close(taken, 2.0 * jvp(grad(value), (flat,), (at,))[1], rtol=1e-4, atol=1e-7)
