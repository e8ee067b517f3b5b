"""Tokenizers of words with the chat templates of several families, and one prompt of two turns."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from common.types import Message

WORDS = [f"w{i}" for i in range(30)]
SPECIAL = ["<pad>", "<bos>", "<start>", "<stop>", "<eot>"]
PIECES = ["user", "assistant", "model", "<think>", "</think>", "\n", "\n\n", "\n\n\n", "\n\n\n\n\n"]
PROMPT = [Message("user", "w1"), Message("assistant", "w2 w3"), Message("user", "w4 w5")]

LLAMA3 = (
    "<bos>{% for m in messages %}<start>{{ m['role'] }}<stop>{{ '\n\n' }}{{ m['content'] | trim }}<eot>{% endfor %}"
    "{% if add_generation_prompt %}<start>assistant<stop>{{ '\n\n' }}{% endif %}"
)
UNTRIMMED = LLAMA3.replace(" | trim", "")
GEMMA = (
    "<bos>{% for m in messages %}<start>{{ 'model' if m['role'] == 'assistant' else m['role'] }}{{ '\n' }}"
    "{{ m['content'] | trim }}<eot>{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<start>model{{ '\n' }}{% endif %}"
)
CHATML = (
    GEMMA.replace("<bos>", "").replace("'model' if m['role'] == 'assistant' else ", "").replace("model", "assistant")
)
THINKING = CHATML.replace(
    "{{ m['content']",
    "{% if loop.last and m['role'] == 'assistant' %}<think>{{ '\n\n' }}</think>{% endif %}{{ m['content']",
)


def tokenizer_of(template: str, pad: str = "<pad>") -> PreTrainedTokenizerFast:
    """Words and runs of newlines as tokens: a run is one piece, as in the Llama 3 tokenizer."""
    vocabulary = {piece: i for i, piece in enumerate(SPECIAL + PIECES + WORDS)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [pre_tokenizers.Split(Regex(" "), "removed"), pre_tokenizers.Split(Regex("\n+|</?think>"), "isolated")]
    )
    made = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>", eos_token="<eot>", pad_token=pad)
    made.add_special_tokens({"additional_special_tokens": ["<start>", "<stop>", "<pad>"]})  # pyright: ignore[reportArgumentType]
    made.chat_template = template
    return made


def tokens(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[str]:
    return [str(piece) for piece in tokenizer.convert_ids_to_tokens(ids)]
