"""learner/reward_model/contrastive.py against numbers by hand, and its laws; learner/reward_model/views.py: the same
dropout twice, and a step's negatives however it is cut."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from common.config.config import RewardTrainingConfig
from learner.reward_model.contrastive import contrastive_loss, items, simcse, sinkhorn, swav
from learner.reward_model.stage_1 import Stage1
from learner.reward_model.views import Contrast
from rewarder.model import GatedRewardModel
from rewarder.scoring import pad_conversations
from tests.integration.planted import OBJECTIVES, configured, planted_world, sides

CONTRASTIVE = "learner.reward_model.contrastive."
PAIRS = torch.tensor([[0, 1], [2, 1]])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_simcse_by_hand() -> None:
    """Cosines of (1, 0) with (1, 0), (0, 1) are 1 and 0; of (1, 1) they are 1 / sqrt(2) each; T = 0.5."""
    first, second = torch.tensor([[3.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    want = [-math.log(math.exp(2) / (math.exp(2) + 1)), math.log(2)]
    torch.testing.assert_close(simcse(first, second, 0.5), torch.tensor(want))


def test_simcse_gradient_by_hand() -> None:
    """d/ds of -log softmax is (softmax - one-hot) . t / T, less its part along s, on the unit sphere."""
    first, second = random(3, 4).requires_grad_(), random(3, 4, seed=1)
    (gradient,) = torch.autograd.grad(simcse(first, second, 0.1).sum(), first)
    norms = first.detach().norm(dim=-1, keepdim=True)
    s, t = first.detach() / norms, second / second.norm(dim=-1, keepdim=True)
    pull = ((s @ t.T / 0.1).softmax(-1) - torch.eye(3)) @ t / 0.1
    torch.testing.assert_close(gradient, (pull - (pull * s).sum(-1, keepdim=True) * s) / norms)


def test_sinkhorn_uses_every_prototype_about_equally_and_each_item_once() -> None:
    assigned = sinkhorn(torch.rand(64, 8, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(assigned.sum(1), torch.ones(64))
    assert (assigned.sum(0) - 8).abs().max() < 2
    same = sinkhorn(torch.ones(6, 3))
    torch.testing.assert_close(same, torch.full((6, 3), 1 / 3))
    clear = sinkhorn(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))  # exp(20) to 1
    torch.testing.assert_close(clear, torch.eye(2), atol=1e-6, rtol=0)


def test_swav_by_hand() -> None:
    """Two items on two prototypes: assignments are one-hot, so the loss is -2 log softmax of the own prototype."""
    views, want = torch.eye(2), -2 * math.log(math.exp(10) / (math.exp(10) + 1))
    torch.testing.assert_close(
        swav(views, 5 * views, 2 * torch.eye(2), 0.1), torch.full((2,), want), atol=1e-6, rtol=1e-3
    )
    swapped = swav(views, views.flip(0), torch.eye(2), 0.1)
    assert float(swapped.min()) > 19, "views that are assigned apart cost 2 / T"


def test_assignments_are_no_way_for_the_gradient() -> None:
    first, second, prototypes = (random(4, 3, seed=s).requires_grad_() for s in range(3))
    (gradient,) = torch.autograd.grad(swav(first, second, prototypes, 0.1).sum(), first)
    scores = torch.nn.functional.normalize(first, dim=-1) @ torch.nn.functional.normalize(prototypes, dim=-1).T
    other = torch.nn.functional.normalize(second, dim=-1) @ torch.nn.functional.normalize(prototypes, dim=-1).T
    predicted = -(sinkhorn(other) * (scores / 0.1).log_softmax(-1)).sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(predicted, first)[0])


def test_items_of_pairs_and_of_differences() -> None:
    features = torch.tensor([[1.0], [2.0], [4.0], [8.0]])
    assert items(features, PAIRS, "simcse").flatten().tolist() == [
        1,
        2,
        4,
    ]  # each response once; the last is in no pair
    assert items(features, PAIRS, "swav_diff").flatten().tolist() == [-1, 2, 1, -2]


@given(st.integers(0, 1000), st.sampled_from(["simcse", "simcse_diff", "swav", "swav_diff"]), st.floats(0.1, 10))
@settings(max_examples=30)
def test_laws(seed: int, kind: str, scale: float) -> None:
    """Lengths of states do not count; nor does the order of the pairs; both views are alike."""
    first, second, prototypes = random(4, 6, seed=seed), random(4, 6, seed=seed + 1), random(5, 6, seed=seed + 2)

    def loss(a: Tensor, b: Tensor, pairs: Tensor = PAIRS) -> Tensor:
        return contrastive_loss(a, b, pairs, kind, 0.1, prototypes)

    torch.testing.assert_close(loss(first, second), loss(scale * first, second / scale))
    torch.testing.assert_close(loss(first, second), loss(first, second, PAIRS.flip(0)))
    if kind.startswith("swav"):
        torch.testing.assert_close(loss(first, second), loss(second, first))
    assert float(loss(first, second, PAIRS[:0])) == 0


# ---- two views of a model's responses ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    planted_world(root, prompts=60)
    return root


@pytest.fixture
def model(world: Path) -> GatedRewardModel:
    return GatedRewardModel.from_policy(world / "policy", OBJECTIVES, 8, 1, 1.0, 2.0, 0)


def training(*overrides: str) -> RewardTrainingConfig:
    return configured(*overrides).learner.reward_model


def test_a_view_is_the_same_whenever_it_is_passed(world: Path, model: GatedRewardModel) -> None:
    contrast = Contrast(training(f"{CONTRASTIVE}kind=simcse"), model, seed=0, rank=0)
    rows = pad_conversations([sides(world)[0][0].conversations[0]])

    def state(*view: int) -> Tensor:
        with contrast.view(*view):
            return model(*rows).response_state

    plain, before = model(*rows).response_state, torch.get_rng_state()
    assert torch.equal(state(3, 1, 0), state(3, 1, 0)) and torch.equal(before, torch.get_rng_state())
    others = [state(3, 1, 1), state(3, 2, 0), state(4, 1, 0), plain]
    assert all(not torch.equal(state(3, 1, 0), other) for other in others)
    assert torch.equal(plain, model(*rows).response_state), "nothing stays behind"


class Gradients:
    """The learner's engine as far as gradients go, for one rank."""

    def __init__(self, model: GatedRewardModel) -> None:
        self.module = model

    def precision(self) -> nullcontext[None]:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()


@pytest.mark.usefixtures("single_rank")
@pytest.mark.parametrize("kind", ["simcse", "swav", "simcse_diff", "swav_diff"])
def test_a_step_is_the_same_however_it_is_cut(world: Path, model: GatedRewardModel, kind: str) -> None:
    """Without dropout, which a cut draws anew: the gradient of the whole batch's loss, taken at once by autograd."""
    sets = sides(world)[0][:6]
    asked = (
        f"{CONTRASTIVE}kind={kind}",
        f"{CONTRASTIVE}dropout=0",
        f"{CONTRASTIVE}weight=0.3",
        f"{CONTRASTIVE}prototypes=5",
    )
    config = training(*asked, "learner.reward_model.regression_weight=0")
    found = []
    for budget in (10_000, 40):
        model.zero_grad()
        stage = Stage1(Gradients(model), model, config, None, budget, 0, 0)  # pyright: ignore[reportArgumentType]
        losses = stage._accumulate(sets, 0)
        found.append((losses, [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    (whole, at_once), (cut, in_parts) = found
    assert whole == pytest.approx(cut, rel=1e-5)
    for first, second in zip(at_once, in_parts, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-6)
    model.zero_grad()
    contrast = stage._contrast
    assert contrast is not None
    rows = [conversation for prompt in sets for conversation in prompt.conversations]
    states = model(*pad_conversations(rows)).response_state
    pairs = torch.tensor([[3 * i + p.chosen, 3 * i + p.rejected] for i, s in enumerate(sets) for p in s.pairs])
    loss = contrastive_loss(states, states, pairs, kind, config.contrastive.temperature, contrast._prototypes)
    assert loss.item() == pytest.approx(whole["contrastive"], rel=1e-5)


def test_a_backbone_without_the_usual_modules_is_refused(model: GatedRewardModel) -> None:
    model.backbone = nn.Linear(2, 2)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="Linear has no modules named self_attn or mlp.*contrastive.kind: none"):
        Contrast(training(f"{CONTRASTIVE}kind=simcse"), model, 0, 0)
