"""What the tests of evaluate_rm share: tiny models to judge, and rows to judge them on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from rewarder.model import GatedRewardModel
from tests.integration.models import OBJECTIVES, WORDS, tiny_policy


def make_models(directory: Path) -> Path:
    """gated/: a reward model; classifier/: one label on another decoder, with the same tokenizer."""
    tiny_policy(directory / "policy", 0)
    tokenizer = AutoTokenizer.from_pretrained(directory / "policy")
    model = GatedRewardModel.from_policy(directory / "policy", OBJECTIVES, 8, 1, 1.0, 2.0, 0)
    model.regression_layer.weight.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    last = model.gating.layers[-1]
    assert isinstance(last, torch.nn.Linear)
    last.weight.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(2))
    model.reward_transform_matrix.data[2] -= torch.tensor([0.9, 0.5, 1.0])
    model.save(directory / "gated", tokenizer)
    torch.manual_seed(2)
    config = LlamaConfig.from_pretrained(directory / "policy")
    config.num_labels = 1
    LlamaForSequenceClassification(config).save_pretrained(directory / "classifier")
    tokenizer.save_pretrained(directory / "classifier")
    return directory


def sentence(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(WORDS, rng.integers(2, 7)))


def pairs(count: int, seed: int = 0, **columns: Sequence[str]) -> list[dict[str, object]]:
    rng = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    for at in range(count):
        chosen, rejected = sentence(rng), sentence(rng) + " w1"
        extra = {name: values[at % len(values)] for name, values in columns.items()}
        rows.append({"prompt": sentence(rng), "chosen": chosen, "rejected": rejected, **extra})
    return rows


def jsonl(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
