"""Templates that open the assistant's turn otherwise than by add_generation_prompt, each with the usual form beside it, and a
tokenizer of bytes."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.unit.templates import CHATML, GEMMA, LLAMA3

LLAMA3_OPENS, GEMMA_OPENS = "<start>assistant<stop>{{ '\n\n' }}", "<start>model{{ '\n' }}"
CHATML_OPENS = "<start>assistant{{ '\n' }}"
OPENS = {"llama3": (LLAMA3, LLAMA3_OPENS), "gemma": (GEMMA, GEMMA_OPENS), "chatml": (CHATML, CHATML_OPENS)}


def always(family: str) -> str:
    """The template opens the turn behind every rendering."""
    template, opens = OPENS[family]
    return without_flag(template, opens) + opens


def after_users(family: str) -> str:
    """The template opens the turn wherever the last turn is the user's, asked or not."""
    template, opens = OPENS[family]
    return without_flag(template, opens) + "{% if messages[-1]['role'] == 'user' %}" + opens + "{% endif %}"


def never(family: str) -> str:
    """The template leaves the opening to the model."""
    return without_flag(*OPENS[family])


def without_flag(template: str, opens: str) -> str:
    flagged = "{% if add_generation_prompt %}" + opens + "{% endif %}"
    assert template.endswith(flagged)
    return template.removesuffix(flagged)


# As Phi 3 does: an end of text wherever nothing is opened.
END_OF_TEXT = CHATML.replace("{% endif %}", "{% else %}<pad>{% endif %}")
# As Mistral does: the user's turn ends with what opens the answer.
INSTRUCTED = (
    "<bos>{% for m in messages %}{% if m['role'] == 'user' %}<start> {{ m['content'] }} <stop>"
    "{% else %} {{ m['content'] }}<eot>{% endif %}{% endfor %}"
)
# As DeepSeek does: markers of turns that nobody declared special, and no end of the user's turn.
MARKED = (
    "<bos>{% for m in messages %}{% if m['role'] == 'user' %}<|User|>{{ m['content'] }}"
    "{% else %}<|Assistant|>{{ m['content'] }}<eot>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|>{% endif %}"
)


def bytes_of(
    template: str, text: str = "the user asks and the assistant answers <|User|> in words "
) -> PreTrainedTokenizerFast:
    """Byte pairs, with markers of turns that are added tokens but not special ones."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    inner.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # pyright: ignore[reportCallIssue]
    inner.train_from_iterator([text] * 8, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>", eos_token="<eot>", pad_token="<pad>")
    made.add_special_tokens({"additional_special_tokens": ["<start>", "<stop>"]})  # pyright: ignore[reportArgumentType]
    made.add_tokens(["<|User|>", "<|Assistant|>", "<think>", "</think>"])
    made.chat_template = template
    return made
