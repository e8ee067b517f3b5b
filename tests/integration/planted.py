"""A small world with a planted preference, for tests of stage reward_model: what it trains on, and how good a model is at it.

Every chosen response has the word w1 and every rejected one w2, somewhere among others; rated responses are in no pair,
and good if they have w1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from common.config.config import Config
from common.config.file import BASE, load_config
from common.data.data import PreferencePair, RatedResponse, to_fields, write_jsonl
from common.data.label_sources import LabelFiles
from common.types import Message
from learner.reward_model.data import PromptSet, read_sides
from learner.reward_model.stage import RewardStage
from rewarder.model import GatedRewardModel
from rewarder.scoring import pad_conversations
from tests.integration.models import WORDS, tiny_policy

OBJECTIVES = ["good", "long"]
SETTINGS = (
    *(f"rewarder.objectives={OBJECTIVES}", "rewarder.dtype=float32", "aggregation.kind=final_score"),
    "learner.reward_model.regression_weight=2",
    *("learner.autocast=false", "learner.micro_batch_tokens=512", "learner.reward_model.held_out_fraction=0.3"),
    *("learner.reward_model.epochs=3", "learner.reward_model.batch_size=16", "learner.reward_model.learning_rate=1e-3"),
    *("learner.reward_model.gate_hidden=8", "learner.reward_model.gate_layers=1", "learner.reward_model.gate_steps=20"),
)


def planted_world(root: Path, prompts: int = 160) -> None:
    """policy/, pairs.jsonl and ratings.jsonl, one pair and one rated response a prompt."""
    tiny_policy(root / "policy", 0)
    generator = np.random.default_rng(0)
    ratings, pairs = [], []
    for i in range(prompts):
        messages = (Message("user", f"{WORDS[i % 50]} {WORDS[i // 50]}"),)
        chosen, rejected, other = (_said(generator, word) for word in ("w1", "w2", f"w{1 + i % 2}"))
        pairs.append(PreferencePair(messages, chosen, rejected))
        ratings.append(RatedResponse(messages, other, {"good": 1.0 - i % 2, "long": len(other) / 40}))
    write_jsonl(root / "ratings.jsonl", [to_fields(row) for row in ratings])
    write_jsonl(root / "pairs.jsonl", [to_fields(row) for row in pairs])


def _said(generator: np.random.Generator, word: str) -> str:
    words = list(generator.choice(WORDS[4:], generator.integers(1, 6)))
    words.insert(int(generator.integers(len(words) + 1)), word)
    return " ".join(words)


def configured(*overrides: str) -> Config:
    return load_config(BASE, [*SETTINGS, *overrides])


def run_stage(root: Path, out: Path, config: Config, baseline: bool, rank: int = 0) -> dict[str, float]:
    """The whole stage into out/version_0 and, where it is asked for, out/baseline; the report. Needs a process group."""
    stage = RewardStage(config, rank, torch.device("cpu"), lambda *_: None)
    targets = str(out / "version_0"), str(out / "baseline") if baseline else None
    return stage.run(str(root / "policy"), label_files(root), *targets)


def label_files(root: Path) -> LabelFiles:
    return LabelFiles(str(root / "ratings.jsonl"), str(root / "pairs.jsonl"))


def sides(root: Path) -> tuple[list[PromptSet], list[PromptSet]]:
    """What the stage trains on, and what it holds out."""
    tokenizer, config = AutoTokenizer.from_pretrained(root / "policy"), configured()
    return read_sides(label_files(root), OBJECTIVES, tokenizer, config.rewarder, config.learner.reward_model)


def accuracy(model: GatedRewardModel, sets: list[PromptSet]) -> float:
    """Share of the pairs whose chosen response scores higher by the first head, one conversation at a time."""
    with torch.no_grad():
        scores = [
            [float(model(*pad_conversations([said])).scores[0, 0]) for said in prompt.conversations] for prompt in sets
        ]
    right = [at[p.chosen] > at[p.rejected] for at, prompt in zip(scores, sets, strict=True) for p in prompt.pairs]
    return sum(right) / len(right)
