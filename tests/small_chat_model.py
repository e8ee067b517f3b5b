"""A chat model that tests can make in a second: a byte-level BPE tokenizer of the texts at hand, and a small Llama with random
weights; and made-up preference pairs for it. Both parts are ordinary Hugging Face objects, saved in their usual layout.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import cast

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from common.data.data import PreferencePair
from common.types import Message

PAD, BOS, END = "<|pad|>", "<|bos|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
SPECIAL = (PAD, BOS, END, *ROLES)
VOCABULARY_SIZE = 2048
MAX_POSITIONS = 320
TEXT = "the quick brown fox jumps over a lazy dog while seven red ships sail to far away"
WORDS = TEXT.split()
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


def talk(number: int, turns: int = 1) -> tuple[Message, ...]:
    """A conversation of so many user turns; those of one number open alike."""
    asked = Message("user", f"question {number} about a {WORDS[number % 17]}")
    more = [Message(role, f"{role} {n}") for n in range(1, turns) for role in ("assistant", "user")]
    return (asked, *more)


def made_up_pairs(number: int = 80) -> list[PreferencePair]:
    """So many conversations of one user turn, and their continuations to a second one."""
    return [
        PreferencePair(talk(n, turns), f"yes {WORDS[n % 17]}", f"no {WORDS[n % 5]} at all")
        for n in range(number)
        for turns in (1, 2)
    ]


def wordy_pairs(number: int = 80) -> list[PreferencePair]:
    """As made_up_pairs, with more to learn: short answers without repetition are chosen, long ones that repeat are not."""
    return [
        PreferencePair(pair.messages, _said("yes", n % 7, n % 3 // 2), _said("no", 25 + 5 * (n % 5), 2 + n % 4))
        for n, pair in enumerate(made_up_pairs(number))
    ]


def _said(first: str, words: int, repeated: int) -> str:
    return " ".join([first, *(WORDS[n % 17] for n in range(words)), *["so"] * repeated])


def save_model(directory: Path, pairs: Iterable[PreferencePair], seed: int = 0) -> None:
    """Tokenizer and random policy of the pairs' texts."""
    texts = [text for pair in pairs for text in (*(turn.content for turn in pair.messages), pair.chosen, pair.rejected)]
    tokenizer = build_tokenizer(texts)
    build_policy(tokenizer, seed).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
