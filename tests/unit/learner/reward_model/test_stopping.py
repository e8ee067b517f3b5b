"""Stage 1 that ends by its held-out loss: when the rate falls, when training ends, and whose weights stay."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from common.config.config import RewardTrainingConfig
from common.data.split import is_held_out, is_validation
from learner.reward_model.backbone_fit import parted
from learner.reward_model.data import PromptSet
from learner.reward_model.stage_1 import Stage1
from learner.reward_model.stopping import DECAY, Best, Plateau
from rewarder.model import GatedRewardModel
from tests.integration.planted import OBJECTIVES, configured, planted_world, sides

PATIENCE = "learner.reward_model.patience="


def test_the_rate_falls_once_and_then_the_fit_is_over() -> None:
    plateau = Plateau(patience=2)
    said = [plateau.look(loss) for loss in (3.0, 2.0, 2.0)]
    assert said == [True, True, False], "an equal loss is no better one"
    assert (plateau.scale, plateau.is_over) == (1.0, False), "one look without a fall"
    plateau.look(2.5)
    assert (plateau.scale, plateau.is_over) == (DECAY, False)
    assert plateau.look(1.0) and not plateau.look(float("nan")) and not plateau.is_over
    plateau.look(1.5)
    assert plateau.is_over and plateau.best == 1.0


def test_the_rate_warms_up_within_the_first_epoch() -> None:
    plateau = Plateau(patience=1)
    assert [plateau.rate(step, 40) for step in (0, 1, 3, 4, 99)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    assert plateau.rate(0, 3) == 1.0
    plateau.look(1.0)
    plateau.look(1.0)
    assert plateau.rate(99, 40) == DECAY


def test_the_best_weights_come_back_and_frozen_ones_are_left_alone() -> None:
    model = nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    best, kept = Best(model), model.weight.detach().clone()
    best.put_back()
    assert torch.equal(model.weight, kept), "nothing was kept yet"
    best.keep()
    with torch.no_grad():
        model.weight.add_(1)
        model.bias.add_(1)
    moved = model.bias.detach().clone()
    best.put_back()
    assert torch.equal(model.weight, kept) and torch.equal(model.bias, moved)


class Trainer:
    """The learner's engine for one rank: AdamW on all weights."""

    def __init__(self, model: GatedRewardModel, rate: float) -> None:
        self.module, self._rate, self.scales = model, rate, list[float]()
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)

    def precision(self) -> nullcontext[None]:
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self, scale: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * scale
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.scales.append(scale)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    planted_world(root)
    return root


def training(*overrides: str) -> RewardTrainingConfig:
    return configured(*overrides).learner.reward_model


def trained(world: Path, settings: RewardTrainingConfig) -> tuple[GatedRewardModel, Stage1, Trainer, list[float]]:
    """A model after stage 1, and the held-out losses that were looked at, in their order."""
    model = GatedRewardModel.from_policy(world / "policy", OBJECTIVES, 8, 1, 1.0, 2.0, 0)
    engine, looked = Trainer(model, 3e-3), list[float]()
    stage = Stage1(engine, model, settings, None, 10_000, 0, 0)  # pyright: ignore[reportArgumentType]
    plain = stage.loss

    def loss(sets: list[PromptSet]) -> float:
        looked.append(plain(sets))
        return looked[-1]

    stage.loss = loss  # pyright: ignore[reportAttributeAccessIssue]
    stage.train(*parted(sides(world)[0], settings), lambda *_: None)
    stage.loss = plain  # pyright: ignore[reportAttributeAccessIssue]
    return model, stage, engine, looked


@pytest.mark.usefixtures("single_rank")
def test_training_ends_by_the_held_out_loss_with_the_weights_of_its_lowest(world: Path) -> None:
    settings = training(f"{PATIENCE}1", "learner.reward_model.epochs=60")
    model, stage, engine, looked = trained(world, settings)
    assert 3 <= len(looked) < 60, "it neither gives up at once nor goes on to the end"
    assert looked[-1] > min(looked), "the last epoch was not the best one"
    validation = parted(sides(world)[0], settings)[1]
    assert stage.loss(validation) == min(looked)
    assert set(engine.scales[-5:]) == {DECAY} and 1.0 in engine.scales
    again = trained(world, settings)[0]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.usefixtures("single_rank")
def test_epochs_bound_the_fit_and_without_patience_all_of_them_are_trained(world: Path) -> None:
    assert len(trained(world, training(f"{PATIENCE}1", "learner.reward_model.epochs=2"))[3]) == 2
    _, _, engine, looked = trained(world, training("learner.reward_model.epochs=2"))
    assert looked == [] and engine.scales[-1] < 0.1, "a cosine over all steps"


def test_what_is_looked_at_is_neither_fitted_on_nor_held_out(world: Path) -> None:
    settings = training(f"{PATIENCE}1", "learner.reward_model.validation_fraction=0.2")
    original, unseen = sides(world)
    fitted, validation = parted(original, settings)
    assert len(fitted) + len(validation) == len(original) and 10 < len(validation) < len(fitted)
    assert all(is_validation(prompt.messages, 0.2) and not is_held_out(prompt.messages, 0.3) for prompt in validation)
    reported = {prompt.messages for prompt in unseen}
    assert not reported & {prompt.messages for prompt in original}
    assert parted(original, training()) == (original, [])


def test_a_side_without_a_label_is_refused(world: Path) -> None:
    few = [prompt for prompt in sides(world)[0] if not is_validation(prompt.messages, 0.1)][:3]
    with pytest.raises(
        ValueError, match=r"patience is 2, but of 3 training prompts none with a label is left out.*null"
    ):
        parted(few, training(f"{PATIENCE}2"))
    # programs and ratings count for nothing where the loss has no regression
    rated = [PromptSet(p.messages, p.conversations, p.ratings, ()) for p in sides(world)[0]]
    with pytest.raises(ValueError, match="none with a label is fitted on"):
        parted(rated, training(f"{PATIENCE}2", "learner.reward_model.regression_weight=0"))
