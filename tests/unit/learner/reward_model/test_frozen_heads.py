"""Stage reward_model with stage_1: ridge and rewarder.preference, in this process on a tiny policy: people's pairs beside what
stage collect made, and what is read where a model has eos as its pad token."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from common.config.config import Config
from common.config.file import BASE, load_config
from common.data.data import PreferencePair, RatedResponse, to_fields, write_jsonl
from common.data.label_sources import LabelFiles
from common.types import Message
from driver.report.measures import chance_lines
from learner.reward_model import data as reward_data
from learner.reward_model.heads import fit_preference_head
from learner.reward_model.training import STATES, Features, extract_features
from learner.worker import LearnerWorker
from rewarder.model import GatedRewardModel
from rewarder.scoring import pad_conversations, render
from tests.finished_run import problems_of
from tests.integration.models import WORDS, tiny_policy

OBJECTIVES = ["rated", "liked"]
CPU = torch.device("cpu")
SETTINGS = (
    *(f"rewarder.objectives={OBJECTIVES}", "rewarder.preference=liked", "rewarder.dtype=float32"),
    *("aggregation.kind=grouped", "aggregation.groups={r: [rated], l: [liked]}"),
    *("learner.reward_model.stage_1=ridge", "learner.reward_model.gate_steps=5"),
    *("learner.reward_model.gate_hidden=8", "learner.reward_model.gate_layers=1"),
    *("learner.reward_model.held_out_fraction=0.3", "learner.micro_batch_tokens=256"),
)

pytestmark = pytest.mark.usefixtures("single_rank")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy; people's pairs by one direction of its hidden states; ratings by another, and collected pairs by that one."""
    root = tmp_path_factory.mktemp("world")
    tiny_policy(root / "policy", 0)
    tokenizer, rng = AutoTokenizer.from_pretrained(root / "policy"), np.random.default_rng(0)
    model = GatedRewardModel.from_policy(root / "policy", OBJECTIVES, 8, 1, 10.0, 2.0, 0)
    prompts = [(Message("user", f"{WORDS[i % 59]} {WORDS[i // 59]}"),) for i in range(240)]
    said = [[" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(2)] for _ in prompts]
    with torch.no_grad():
        rendered = [render(tokenizer, m, text) for m, texts in zip(prompts, said, strict=True) for text in texts]
        states = model(*pad_conversations(rendered)).response_state.numpy()
    states = (states - states.mean(0)) / states.std(0)
    directions = np.linalg.qr(rng.normal(size=(states.shape[1], 2)))[0]
    rated, liked = np.moveaxis((states @ directions).reshape(240, 2, 2), 2, 0)
    low, high = rated.min(), rated.max()
    ratings, pairs, compared = [], [], []
    for i, (messages, texts) in enumerate(zip(prompts, said, strict=True)):
        if i % 2:  # people's
            pairs.append(preferred(messages, texts, liked[i]))
            continue
        for text, value in zip(texts, rated[i], strict=True):
            ratings.append(RatedResponse(messages, text, {"rated": float((value - low) / (high - low))}))
        compared.append(preferred(messages, texts, rated[i]))
    rows = {"pairs": pairs, "ratings": ratings[:60], "collected_ratings": ratings[60:], "collected_pairs": compared}
    for name, found in rows.items():
        write_jsonl(root / f"{name}.jsonl", [to_fields(row) for row in found])
    return root


def preferred(messages: tuple[Message, ...], texts: list[str], values: np.ndarray) -> PreferencePair:
    chosen, rejected = texts if values[0] > values[1] else texts[::-1]
    return PreferencePair(messages, chosen, rejected)


def configured(*overrides: str) -> Config:
    return load_config(BASE, [*SETTINGS, *overrides])


def files_of(root: Path) -> LabelFiles:
    names = "ratings", "pairs", "collected_ratings", "collected_pairs"
    ratings, pairs, *collected = (str(root / f"{name}.jsonl") for name in names)
    return LabelFiles(ratings, pairs, None, *collected)


def worker_of(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> LearnerWorker:
    monkeypatch.setattr("learner.worker.init_process_group", lambda *_: CPU)  # the module's fixture has made it
    worker = LearnerWorker(0, configured(*overrides))
    worker.connect("", 0)
    return worker


def training(root: Path, files: LabelFiles) -> tuple[list[reward_data.PromptSet], Features]:
    config, tokenizer = configured(), AutoTokenizer.from_pretrained(root / "policy")
    sets = reward_data.read_sides(files, OBJECTIVES, tokenizer, config.rewarder, config.learner.reward_model)[0]
    model = GatedRewardModel.from_policy(root / "policy", OBJECTIVES, 8, 1, 10.0, 2.0, 0)
    return sets, extract_features(model, sets, 256, 0, CPU)


def test_both_kinds_of_labels_train_what_they_are_labels_of(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = worker_of(monkeypatch).reward_model(str(world / "policy"), files_of(world), str(tmp_path / "rm"))
    assert report["rm/pair_accuracy_preference_head"] > 0.8 and report["rm/r2/rated"] > 0.9
    assert report["rm/pair_accuracy_preference_head_low"] > 0.5
    assert 0 < report["rm/held_out_preference_pairs"] < report["rm/held_out_pairs"]
    assert set(report) >= {"rm/ridge_alpha/rated", "rm/logistic_alpha/liked", "rm/pair_accuracy_cross_validated"}
    assert "rm/ridge_alpha/liked" not in report
    record = json.loads((tmp_path / "rm" / "report.json").read_text())
    assert [line.split(": ")[1].split(",")[0] for line in record["rows"]] == [
        "60 rows",
        "120 rows",
        "180 rows",
        "120 rows",
    ]
    head = GatedRewardModel.load(tmp_path / "rm", "float32").regression_layer.weight[1]
    people = replace(files_of(world), collected_pairs=None)
    sets, features = training(world, people)
    torch.testing.assert_close(head.detach(), fit_preference_head(features, sets).weight, atol=1e-4, rtol=1e-3)
    sets, features = training(world, files_of(world))
    assert len(features.pairs) > features.of_preference.sum() > 0, "the gate has both kinds"


def test_collected_pairs_alone_are_labels_of_the_preference(world: Path) -> None:
    """As it was: without people's pairs, what stage collect made trains the head."""
    sets, features = training(world, LabelFiles(str(world / "ratings.jsonl"), str(world / "collected_pairs.jsonl")))
    assert bool(features.of_preference.all()) and len(sets) > 50


def test_ratings_of_one_response_in_both_files_are_one_row(world: Path, tmp_path: Path) -> None:
    row = json.loads((world / "ratings.jsonl").read_text().splitlines()[0])
    other = row | {"scores": {"liked": 0.25}}
    write_jsonl(tmp_path / "more.jsonl", [other])
    files = replace(files_of(world), collected_ratings=str(tmp_path / "more.jsonl"))
    tokenizer = AutoTokenizer.from_pretrained(world / "policy")
    labels = reward_data.read_labels(files, tokenizer, 50)
    first = labels.all_ratings()[0]
    assert first.scores == {"rated": row["scores"]["rated"], "liked": 0.25}
    assert len(labels.all_ratings()) == len(labels.ratings) == 60


def test_progress_counts_conversations_of_each_side(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, told = worker_of(monkeypatch, "learner.reward_model.baseline=true"), []
    monkeypatch.setattr(worker, "_report", lambda *args: told.append(args))
    passes = []
    forward = GatedRewardModel.forward
    monkeypatch.setattr(GatedRewardModel, "forward", lambda m, *b: passes.append(len(b[0])) or forward(m, *b))
    worker.reward_model(str(world / "policy"), files_of(world), str(tmp_path / "rm"), str(tmp_path / "plain"))
    counts = [(done, total) for what, done, total, _ in told if what == STATES]
    ends = [total for done, total in counts if done == total]
    assert sum(ends) == sum(passes) == 480, "one pass a conversation, the baseline's too"
    assert len(counts) > 4 and all(0 < done <= total for done, total in counts)


def test_the_state_is_that_of_the_last_real_token_where_pad_is_eos(world: Path, tmp_path: Path) -> None:
    """ChatML models have eos = pad = <|im_end|>: nothing may take a turn's end for padding, or padding for a turn's end."""
    tokenizer = AutoTokenizer.from_pretrained(world / "policy")
    tokenizer.pad_token = tokenizer.eos_token
    model = GatedRewardModel.from_policy(world / "policy", OBJECTIVES, 8, 1, 10.0, 2.0, 0)
    model.backbone.config.pad_token_id = model.backbone.config.eos_token_id = tokenizer.eos_token_id
    messages = (Message("user", "w1 w2"),)
    found = [render(tokenizer, messages, text) for text in ("w3", "w4 w5 w6 w7 w8", "w9 w10")]
    assert all(item.response_end == len(item.ids) - 1 for item in found)
    assert any(tokenizer.eos_token_id in item.ids for item in found), "the template's turns end with eos"
    with torch.no_grad():
        together = model(*pad_conversations(found))
        for row, item in enumerate(found):
            hidden = model.backbone(input_ids=torch.tensor([item.ids])).last_hidden_state[0]
            torch.testing.assert_close(together.response_state[row], hidden[-1], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(together.prompt_state[row], hidden[item.prompt_end], atol=1e-5, rtol=1e-5)
    assert bool(pad_conversations(found).attention_mask.sum(1).eq(torch.tensor([len(f.ids) for f in found])).all())


def test_labels_that_say_nothing_are_warned_of_and_report_json_is_json(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs by a coin: their head is chance, which report.json says; what was not rated has no R2, which is null there."""
    rng, rows = (
        np.random.default_rng(0),
        [json.loads(line) for line in (world / "pairs.jsonl").read_text().splitlines()],
    )
    for row in rows:
        if rng.random() < 0.5:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    write_jsonl(tmp_path / "coin.jsonl", rows)
    files = replace(files_of(world), pairs=str(tmp_path / "coin.jsonl"))
    pairs_only = "aggregation.kind=final_score", "aggregation.groups={}"
    report = worker_of(monkeypatch, *pairs_only).reward_model(str(world / "policy"), files, str(tmp_path / "rm"))
    assert report["rm/pair_accuracy_preference_head_low"] < 0.5
    assert problems_of(tmp_path) == []
    record = json.loads((tmp_path / "rm" / "report.json").read_text())
    assert math.isnan(report["rm/r2/liked"]) and record["report"]["rm/r2/liked"] is None
    assert any("the head of rewarder.preference orders" in line for line in record["chance_warnings"])
    assert chance_lines(record["report"])[1].startswith("  !!! WARNING: ")
