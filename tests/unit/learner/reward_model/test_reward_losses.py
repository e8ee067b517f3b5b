"""Stage 1 of the reward model: what pairs and programs add to its loss, and that without them it is what it was."""

from __future__ import annotations

import pytest
import torch

from learner.ranks.losses import bradley_terry, masked_regression
from learner.reward_model.stage_1 import stage_1_losses
from learner.reward_model.training import gated_score
from rewarder.model import RewardOutput

PAIRS = torch.tensor([[0, 1], [3, 2]])
PLAIN = torch.tensor([[1.0, 0.0, 1.0, 1.0]] * 2)  # target, margin, weight, of_preference


def output(seed: int) -> RewardOutput:
    generator = torch.Generator().manual_seed(seed)
    scores, gate, *states = (torch.randn(4, 3, generator=generator, requires_grad=True) for _ in range(4))
    return RewardOutput(scores, gate.softmax(-1), *states)


def ratings() -> torch.Tensor:
    nan = float("nan")
    return torch.tensor([[0.5, nan, 1.0], [nan, nan, 0.0], [0.25, 0.5, nan], [1.0, nan, nan]])


def losses(made: RewardOutput, column: int | None) -> torch.Tensor:
    known = ratings().isfinite().sum(0)
    return stage_1_losses(made, torch.eye(3), ratings(), PAIRS, PLAIN, known, 2, column)


def test_without_a_preference_objective_the_loss_is_that_of_version_0_1() -> None:
    made = output(0)
    score, known = gated_score(made, torch.eye(3)), ratings().isfinite()
    regression = masked_regression(made.scores, ratings().nan_to_num(), known, known.sum(0))
    preference = bradley_terry(score[PAIRS[:, 0]] - score[PAIRS[:, 1]]).sum() / 2
    before = 30.0 * regression + preference
    parts = losses(made, None)
    now = 30.0 * parts[0] + parts[1] + parts[2]
    assert torch.equal(now, before)
    gradients = [torch.autograd.grad(loss, made.scores, retain_graph=True)[0] for loss in (before, now)]
    assert torch.equal(*gradients)


def test_the_preference_head_by_hand() -> None:
    scores = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    made = RewardOutput(scores, torch.full((4, 3), 1 / 3), torch.zeros(4, 1), torch.zeros(4, 1))
    want = (torch.log1p(torch.exp(torch.tensor(-2.0))) + torch.log1p(torch.exp(torch.tensor(2.0)))) / 2
    assert losses(made, 0)[2] == pytest.approx(float(want))
    assert torch.equal(losses(made, 0)[:2], losses(made, None)[:2])
    assert float(losses(made, None)[2]) == 0
