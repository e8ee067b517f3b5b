"""The tiers of adaptation that train the backbone, by a real DeepSpeed of one rank in this process."""

from __future__ import annotations

import copy
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from learner.adaptation_fit import Method
from learner.backbone_landscape import FitSets
from learner.candidates import judged_sets, propose
from learner.engine import init_process_group
from learner.tiers import fit_backbone_tier
from tests.unit.adaptation import OBJECTIVES, adapter, config, fit, make_world, preference, samples, served_and_judge

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.fixture(scope="module")
def one_rank() -> Iterator[None]:
    torch.set_num_threads(1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    init_process_group(0, 1, "127.0.0.1", port, 0)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_world(tmp_path_factory.mktemp("world"))


def test_the_lora_tier_is_held_to_the_ratings(world: dict[str, Any], tmp_path: Path) -> None:
    lora = ("adaptation.tier=lora", "adaptation.steps=5", "adaptation.batch_pairs=16")
    decision = fit(world, adapter(world, *lora), tmp_path / "held")
    assert {"r2/good", "candidate_r2/good", "r2/safe"} <= set(decision.numbers)
    assert decision.numbers["r2/good"] != decision.numbers["candidate_r2/good"]
    free = (*lora, "adaptation.replay_weight=0", "adaptation.steps=20", "adaptation.level=1")
    decision = fit(world, adapter(world, *free), tmp_path / "free")
    assert not decision.accepted and "on held-out ratings falls by" in decision.reason


@pytest.mark.parametrize(
    ("tier", "trained"),
    [
        ("lora", "layers.0.self_attn layers.1.self_attn gating regression_layer"),
        ("top", "layers.1. backbone.norm gating regression_layer"),
        ("full", "backbone gating regression_layer"),
    ],
)
def test_each_tier_lowers_its_loss_and_leaves_the_rest(tmp_path: Path, tier: str, trained: str) -> None:
    served, judge, tokenizer = served_and_judge(tmp_path)
    items = propose(samples(60), 30, 30, 0.1, seed=0).items
    sets = judged_sets(
        items, {item.key: preference(judge, tokenizer, item) for item in items}, OBJECTIVES, tokenizer, 50
    )
    model, seen, chosen = copy.deepcopy(served), [], config("adaptation.steps=12", f"adaptation.tier={tier}")
    method = Method(chosen.adaptation, 10.0, None, 400, 0)
    given = FitSets(sets, sets[:4], []), method, chosen.learner, 1.0
    fit_backbone_tier(model, *given, lambda *values: seen.append(values[3]))
    assert seen[-1]["preference"] < 0.8 * seen[0]["preference"]
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, served.state_dict()[n])}
    assert all(any(part in name for part in trained.split()) for name in changed), changed
    assert all(any(part in name for name in changed) for part in trained.split())
    twice = copy.deepcopy(served)
    given = FitSets(sets, sets[:4], []), replace(method, gradient_checkpointing=True), chosen.learner, 1.0
    fit_backbone_tier(twice, *given, lambda *_: None)
    assert not twice.backbone.training
    for name, value in twice.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], msg=name, atol=1e-5, rtol=1e-4)
