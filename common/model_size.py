"""What models weigh: their parameters by config.json, before anything is loaded, and the bytes of training them.

Called by the preflight (placement.py, round_cost.py) and by driver/stages.py. A model whose config.json is not here, or whose
architecture is another one, has no size.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama-like model: widths of its states, of all heads' queries and of all heads' keys, and of its MLP."""

    hidden: int
    layers: int
    query: int
    key_value: int
    inner: int
    vocab: int
    tied: bool

    @property
    def parameters(self) -> int:
        """All of them (biases of Qwen-like models left out, under 0.1 %)."""
        return self.vocab * self.hidden * (1 if self.tied else 2) + self.layers * self.layer_parameters + self.hidden

    @property
    def layer_parameters(self) -> int:
        """The number of parameters of one layer."""
        return 2 * self.hidden * (self.query + self.key_value) + 3 * self.hidden * self.inner + 2 * self.hidden

    def low_rank_parameters(self, rank: int) -> int:
        """Updates of this rank on all attention projections: rank * (in + out) each (learner/reward_model/lora.py)."""
        return self.layers * rank * (4 * self.hidden + 2 * self.query + 2 * self.key_value)


def shape_of(directory: Path | None) -> Shape | None:
    """None where there is no directory or the architecture is another one (mixture of experts, multimodal)."""
    if directory is None:
        return None
    found = json.loads((directory / "config.json").read_bytes())
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    if not all(isinstance(found.get(name), int) for name in names) or any("expert" in name for name in found):
        return None
    hidden, layers, heads, inner, vocab = (int(found[name]) for name in names)
    head = found.get("head_dim") or hidden // heads
    kv_heads = found.get("num_key_value_heads") or heads
    return Shape(hidden, layers, heads * head, kv_heads * head, inner, vocab, bool(found.get("tie_word_embeddings")))


def num_parameters(directory: Path | None) -> int | None:
    """Parameters of a Llama-like model by its config.json; None where they are not known."""
    shape = shape_of(directory)
    return None if shape is None else shape.parameters


def learner_bytes(parameters: int, ranks: int, zero_stage: int, has_reference: bool) -> float:
    """Per rank: float32 weights and gradients and two Adam moments, 16 bytes a parameter, of which ZeRO 1, 2 and 3
    shard the moments, the gradients too and the weights too; a frozen float32 reference is sharded like the weights."""
    weights = 4 * (2 if has_reference else 1) / (ranks if zero_stage == 3 else 1)
    gradients = 4 / (ranks if zero_stage >= 2 else 1)
    moments = 8 / (ranks if zero_stage >= 1 else 1)
    return parameters * (weights + gradients + moments)
