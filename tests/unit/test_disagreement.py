"""learner/disagreement.py and the adapter's look: an ensemble on disk, and groups in a stream."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from common.config_file import BASE, load_config
from learner.disagreement import of_ensemble
from learner.drift import disagreement
from learner.preference_models import with_heads
from learner.rm_adapter import RmAdapter
from rewarder.model import GatedRewardModel
from rewarder.scoring import collate, render
from tests.integration.models import tiny_policy
from tests.unit.adaptation import Stream, samples

CONFIG = ("aggregation.kind=final_score", "rewarder.dtype=float32", "judge.function=a:b")
DRIFT = ("adaptation.when=drift", "adaptation.drift.signal=disagreement")


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three members on one backbone: two heads that are the same, and one that is another."""
    root = tmp_path_factory.mktemp("ensemble")
    tiny_policy(root / "policy", 0)
    tokenizer = AutoTokenizer.from_pretrained(root / "policy")
    width = json.loads((root / "policy" / "config.json").read_text())["hidden_size"]
    heads = torch.randn(2, width, generator=torch.Generator().manual_seed(0))
    names = ["member_0", "member_1", "member_2"]
    model = with_heads(str(root / "policy"), heads[[0, 0, 1]], names, "float32", None)
    model.save(root / "ensemble", tokenizer)
    with_heads(str(root / "policy"), heads[:1], names[:1], "float32", None).save(root / "single", tokenizer)
    return root


def settings(*overrides: str) -> Any:
    return load_config(BASE, [*CONFIG, *overrides])


def test_it_is_that_of_the_members_scores(ensemble: Path) -> None:
    groups, made = samples(5), settings().rewarder
    found = of_ensemble(groups, str(ensemble / "ensemble"), made, torch.device("cpu"))
    model = GatedRewardModel.load(ensemble / "ensemble", "float32")
    tokenizer = AutoTokenizer.from_pretrained(ensemble / "ensemble")
    scores = []
    for one in groups:
        prompt = one.group.prompt.messages
        rendered = [render(tokenizer, prompt, rollout.response) for rollout in one.group.rollouts]
        with torch.no_grad():
            scores.append(model(*collate(rendered)).scores.numpy())
    assert found is not None and found == pytest.approx(disagreement(scores)[0], rel=1e-4) and found > 0
    same = [np.repeat(score[:, :1], 3, axis=1) for score in scores]
    assert disagreement(same)[0] == pytest.approx(0, abs=1e-6)
    assert of_ensemble([], str(ensemble / "ensemble"), made, torch.device("cpu")) is None


def test_one_member_has_nobody_to_disagree_with(ensemble: Path) -> None:
    with pytest.raises(ValueError, match="has the one objective member_0, which has nobody to disagree with"):
        of_ensemble(samples(1), str(ensemble / "single"), settings().rewarder, torch.device("cpu"))


def test_the_adapter_looks_at_the_newest_groups_and_still_has_them_for_the_round(ensemble: Path) -> None:
    config = settings(*DRIFT, f"adaptation.ensemble={ensemble}/ensemble", "adaptation.drift.pairs=6")
    groups, made, plain = samples(40), RmAdapter(0, config), RmAdapter(0, config)
    for adapter in (made, plain):
        address: Any = Stream(list(groups))
        adapter.connect(address)
    newest = of_ensemble(groups[-6:], str(ensemble / "ensemble"), config.rewarder, torch.device("cpu"))
    assert made.disagreement(10) == newest and made.disagreement(10) == newest
    assert made.propose(0, 10) == plain.propose(0, 10) and made.disagreement(40) is None
