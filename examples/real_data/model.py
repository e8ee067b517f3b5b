"""The policy before training: a byte-level BPE tokenizer made from the texts at hand, and a small Llama with random weights.

Called by prepare. Both are ordinary Hugging Face objects, saved in their usual layout.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, BOS, END = "<|pad|>", "<|bos|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
SPECIAL = (PAD, BOS, END, *ROLES)
VOCABULARY_SIZE = 2048
MAX_POSITIONS = 320
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer(texts: Iterable[str], vocabulary_size: int = VOCABULARY_SIZE) -> PreTrainedTokenizerFast:
    """Byte-level BPE learned from `texts`: every text of any script goes in and comes out unchanged, with no unknown token."""
    words = Tokenizer(BPE())
    words.pre_tokenizer = ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    words.decoder = ByteLevelDecoder()  # pyright: ignore[reportAttributeAccessIssue]
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    words.train_from_iterator(
        texts,
        BpeTrainer(  # pyright: ignore[reportCallIssue]
            vocab_size=vocabulary_size,
            special_tokens=special,
            initial_alphabet=ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=END,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def build_policy(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A Llama with float32 parameters drawn with the seed; the caller's random state is left as it was."""
    ids = [tokenizer.convert_tokens_to_ids(token) for token in (PAD, BOS, END)]
    pad, bos, end = (cast(int, index) for index in ids)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        pad_token_id=pad,
        bos_token_id=bos,
        eos_token_id=end,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
