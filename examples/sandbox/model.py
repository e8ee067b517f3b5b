"""The sandbox's policy before training: a tiny Llama with random weights, and a word-level tokenizer.

Called by prepare. Both are ordinary Hugging Face objects, saved in their usual layout.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from examples.sandbox.world import ASSISTANT, BOS, END, PAD, SPECIAL, USER, VOCABULARY

MAX_POSITIONS = 128
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ('user', 'assistant') %}"
    "{{ raise_exception('the sandbox knows the roles user and assistant, got ' + message['role']) }}{% endif %}"
    "{{ '<' + message['role'] + '> ' + message['content'] + ' ' + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word. There is no unknown token: a word outside the vocabulary is an error, not a silent id."""
    ids = {word: index for index, word in enumerate(VOCABULARY)}
    words = Tokenizer(WordLevel(ids))
    words.pre_tokenizer = WhitespaceSplit()
    words.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
    )


def build_policy(seed: int) -> LlamaForCausalLM:
    """0.66 million float32 parameters drawn with the seed; the caller's random state is left as it was."""
    ids = {word: index for index, word in enumerate(VOCABULARY)}
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        pad_token_id=ids[PAD],
        bos_token_id=ids[BOS],
        eos_token_id=ids[END],
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
