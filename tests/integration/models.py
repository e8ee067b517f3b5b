"""Tiny models for integration tests: made here, loaded by the real loading code."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<bos>", "<user>", "<assistant>", "<end>"]
WORDS = [f"w{i}" for i in range(59)]
TEMPLATE = (
    "<bos>{% for m in messages %}<{{ m['role'] }}>{{ ' ' + m['content'] + ' ' }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tiny_policy(directory: Path, seed: int, tied: bool = True) -> LlamaForCausalLM:
    """A Llama of 2 layers with sharp predictions (so that a wrong weight shows), saved with its tokenizer."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=4,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(directory)
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(SPECIAL + WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<end>", chat_template=TEMPLATE
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<user>", "<assistant>"]})
    tokenizer.save_pretrained(directory)
    return model.eval()
