"""learner/adaptation/disagreement.py and the adapter's look: an ensemble on disk, and groups in a stream."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from common.config.file import BASE, load_config
from learner.adaptation.disagreement import of_ensemble, of_pairs
from learner.adaptation.drift import disagreement
from learner.adaptation.worker import RmAdapter
from learner.preferences.models import with_heads
from rewarder.model import GatedRewardModel
from rewarder.scoring import pad_conversations, render
from tests.integration.models import tiny_policy
from tests.unit.adaptation import Stream, samples

CONFIG = ("aggregation.kind=final_score", "rewarder.dtype=float32", "judge.function=a:b")
CPU = torch.device("cpu")
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
            scores.append(model(*pad_conversations(rendered)).scores.numpy())
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


def test_the_pairs_to_fit_on_may_be_those_that_the_members_agree_on_least(ensemble: Path) -> None:
    named = f"adaptation.ensemble={ensemble}/ensemble"
    few = settings(named, "adaptation.select=disagreement", "adaptation.fit_pairs=5", "adaptation.evidence_pairs=9")
    groups, every = samples(60), settings(named, "adaptation.fit_pairs=500", "adaptation.evidence_pairs=9")
    chosen, all_pairs = (RmAdapter(0, config).propose_from(0, groups) for config in (few, every))
    doubts = of_pairs(all_pairs.fit, str(ensemble / "ensemble"), few.rewarder, CPU).tolist()
    by_key = {pair.key: doubt for pair, doubt in zip(all_pairs.fit, doubts, strict=True)}
    assert len(chosen.fit) == 5 and [by_key[pair.key] for pair in chosen.fit] == sorted(doubts)[::-1][:5]
    assert chosen.evidence == all_pairs.evidence, (
        "evidence is a random sample of the policy's pairs, whatever is fitted on"
    )


def test_doubt_of_a_pair_by_hand(ensemble: Path) -> None:
    pairs = RmAdapter(0, settings("adaptation.fit_pairs=3")).propose_from(0, samples(20)).fit
    pair = pairs[0]
    model = GatedRewardModel.load(ensemble / "ensemble", "float32")
    tokenizer = AutoTokenizer.from_pretrained(ensemble / "ensemble")
    with torch.no_grad():
        scores = model(
            *pad_conversations([render(tokenizer, pair.messages, text) for text in (pair.first, pair.second)])
        ).scores
    found = of_pairs(pairs, str(ensemble / "ensemble"), settings().rewarder, CPU)
    assert found[0] == pytest.approx(float((scores[0] - scores[1]).numpy().std()), rel=1e-4)
