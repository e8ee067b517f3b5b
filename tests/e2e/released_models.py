"""A synthetic reward model in the layout of the released ArmoRM, with random heads, and pairs as it prefers them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from common.config.config import AggregationConfig
from common.data.data import Demonstration, PreferencePair, read_demonstrations, to_fields, write_jsonl
from rewarder.aggregate import combined_scores
from rewarder.aggregation import aggregation_of
from rewarder.model import GatedRewardModel
from rewarder.scoring import score_responses

OURS = (
    "gating_temperature",
    "gating_hidden_dim",
    "gating_n_hidden",
    "objectives",
    "rm_version",
    "verbosity",
    "calibration",
)
MAX_TOKENS = 128


def make_reward_model(policy: Path, objectives: list[str], directory: Path) -> None:
    """Random heads on the policy's backbone; config.json has what the released one has and nothing of ours."""
    model = GatedRewardModel.from_policy(policy, objectives, 1024, 3, 10.0, 1.0, seed=0)
    torch.nn.init.normal_(model.regression_layer.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    model.save(directory, AutoTokenizer.from_pretrained(policy))
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({key: v for key, v in config.items() if key not in OURS}))


def make_preferences(reward_model: Path, demonstrations: Path, settings: AggregationConfig, file: Path) -> None:
    """Pairs of answers to one prompt; the reward model's own terms choose, so that it can be calibrated on them."""
    model, tokenizer = GatedRewardModel.load(reward_model, "bfloat16"), AutoTokenizer.from_pretrained(reward_model)
    rows = read_demonstrations(demonstrations, 3000)
    terms = torch.stack([_terms(model, tokenizer, settings, *pair) for pair in zip(rows[::2], rows[1::2], strict=True)])
    gaps = (terms[:, 0] - terms[:, 1]) / terms.std((0, 1))
    pairs = [
        PreferencePair(a.messages, *((a.response, b.response) if gap > 0 else (b.response, a.response)))
        for a, b, gap in zip(rows[::2], rows[1::2], gaps.sum(-1).tolist(), strict=True)
        if a.response != b.response
    ]
    write_jsonl(file, [to_fields(pair) for pair in pairs])


def _terms(
    model: GatedRewardModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: AggregationConfig,
    first: Demonstration,
    second: Demonstration,
) -> torch.Tensor:
    """[2, M]: the terms of both answers to the first one's prompt."""
    with torch.no_grad():
        scores, gate = score_responses(model, tokenizer, first.messages, [first.response, second.response], MAX_TOKENS)
    matrix = model.reward_transform_matrix.detach()
    return combined_scores(scores, gate, matrix, aggregation_of(settings, model.objectives))
