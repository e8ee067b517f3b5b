"""What the tests of the preflight share: a good configuration, and models whose weights nobody can load."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from driver.preflight.preflight import Report
from rewarder.layout import HeadSizes

TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
SHAPE = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
}
TINY = {**SHAPE, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
GOOD = (
    *("policy.model=policy", "rewarder.model=rm", "data.prompts=prompts.jsonl"),
    *("aggregation.kind=final_score", "stages=[iterate,export,report]"),
)
ITERATE = ["iterate", "export", "report"]
Check = Callable[..., Report]


def make_model(directory: Path, template: str | None = TEMPLATE, shape: Mapping[str, object] = TINY) -> Path:
    """A model directory whose weights are unreadable: whoever loads them fails."""
    known = ["user", "[UNK]", "assistant", *string.ascii_lowercase, *(f"w{n}" for n in range(60))]
    words = Tokenizer(WordLevel({word: at for at, word in enumerate(known)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps(shape))
    (directory / "model.safetensors").write_text("not weights")
    return directory


def make_reward_model(directory: Path, objectives: Sequence[str] = ("a", "b")) -> Path:
    """A reward model's directory of heads alone: whoever loads the backbone fails."""
    sizes = HeadSizes(8, len(objectives), 4, 1, 10.0)
    heads = {"num_objectives": len(objectives), "gating_hidden_dim": 4, "gating_n_hidden": 1}
    make_model(directory, shape={**TINY, **heads, "objectives": list(objectives)})
    save_file({name: torch.zeros(shape) for name, shape in sizes.shapes().items()}, directory / "model.safetensors")
    return directory


def only(report: Report) -> str:
    assert len(report.problems) == 1, report.problems
    return report.problems[0]
