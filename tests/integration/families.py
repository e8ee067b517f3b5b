"""Tiny random models of the families whose files and loaded modules name their tensors differently, or might."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tests.integration.models import save_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 128,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 4,
    "pad_token_id": 0,
}
EXPERT_SIZES: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)),
    "llama_tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, tie_word_embeddings=True)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES)),
    "qwen3_moe": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **EXPERT_SIZES)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)),
}
STORED_HEAD = "llama_tied_with_a_stored_head"
FAMILIES = [*MODELS, STORED_HEAD]
EXPERTS = ("qwen3_moe", "mixtral")


def tiny_family(family: str, directory: Path) -> None:
    """Saves a tiny random model of the family with its tokenizer."""
    torch.manual_seed(0)
    save_tokenizer(directory)
    MODELS["llama_tied" if family == STORED_HEAD else family]().save_pretrained(directory)
    if family == STORED_HEAD:
        store_head(directory, lambda embedding: embedding.clone())


def store_head(directory: Path, head_of: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Adds to the files of a tied model a lm_head made of its embedding."""
    tensors = load_file(directory / "model.safetensors")
    tensors["lm_head.weight"] = head_of(tensors["model.embed_tokens.weight"])
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
