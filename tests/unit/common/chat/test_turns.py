"""Where the assistant's turn opens and closes, under templates that do not heed add_generation_prompt."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from common.chat.chat import chat_of
from common.chat.template import RenderError
from common.types import Message
from tests.unit.common.chat.families import END_OF_TEXT, INSTRUCTED, MARKED, OPENS, after_users, always, bytes_of, never
from tests.unit.templates import CHATML, GEMMA, LLAMA3, PROMPT, THINKING, tokenizer_of, tokens

FAMILIES = list(OPENS)


@pytest.mark.parametrize("variant", [always, after_users, never])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_variant_has_the_tokens_of_the_usual_form(family: str, variant: Callable[[str], str]) -> None:
    """Ids and positions for sampling, for SFT and for the reward model, and the token that ends a turn."""
    usual, other = (chat_of(tokenizer_of(template)) for template in (OPENS[family][0], variant(family)))
    assert other.prompt(PROMPT) == usual.prompt(PROMPT)
    for response in ("w7 w8", "", "w1 " * 9):
        assert other.conversation(PROMPT, response) == usual.conversation(PROMPT, response)
        assert other.demonstration(PROMPT, response) == usual.demonstration(PROMPT, response)
    assert other.turn_end() == usual.turn_end()


@pytest.mark.parametrize("template", [LLAMA3, GEMMA, CHATML, THINKING, INSTRUCTED])
def test_the_usual_templates_have_the_ids_that_transformers_gives(template: str) -> None:
    """The prompt for sampling, the prompt's end by its own rendering, and the whole; nothing is cut or added."""
    tokenizer = tokenizer_of(template)
    turns = [{"role": message.role, "content": message.content} for message in PROMPT]
    whole = [*turns, {"role": "assistant", "content": "w7 w8"}]

    def ids(messages: list[dict[str, str]], opened: bool) -> list[int]:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=opened, return_dict=False)  # pyright: ignore

    chat = chat_of(tokenizer)
    assert chat.prompt(PROMPT) == ids(turns, True)
    assert chat.conversation(PROMPT, "w7 w8") == (ids(whole, False), len(ids(turns, False)) - 1)
    assert chat.demonstration(PROMPT, "w7 w8") == (ids(whole, False), len(ids(turns, True)))


def test_an_end_of_text_behind_a_prompt_is_no_part_of_it() -> None:
    """The whole conversation keeps its end of text; the prompt for a gate ends with the user's turn."""
    tokenizer = tokenizer_of(END_OF_TEXT)
    ids, end = chat_of(tokenizer).conversation(PROMPT, "w7")
    text = tokens(tokenizer, ids)
    assert text[: end + 1][-3:] == ["w5", "<eot>", "\n"]
    assert text[end + 1 :] == ["<start>", "assistant", "\n", "w7", "<eot>", "\n", "<pad>"]
    opened = tokens(tokenizer, chat_of(tokenizer).prompt(PROMPT))
    assert opened == [*text[: end + 1], "<start>", "assistant", "\n"]


def test_a_marker_alone_may_open_the_turn_always() -> None:
    """Where nothing closes a user's turn, an opening at the end of everything is still told from the turn before it."""
    usual = chat_of(bytes_of(MARKED))
    opens = "{% if add_generation_prompt %}<|Assistant|>{% endif %}"
    other = chat_of(bytes_of(MARKED.replace(opens, "<|Assistant|>")))
    assert other.conversation(PROMPT, "w7") == usual.conversation(PROMPT, "w7")
    assert other.prompt(PROMPT) == usual.prompt(PROMPT)
    assert other.demonstration(PROMPT, "w7") == usual.demonstration(PROMPT, "w7")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        # The same words follow every turn: which of them open the next one, nobody can tell.
        ("{% for m in messages %}{{ m['content'] }} assistant {% endfor %}", "the end of the prompt cannot be told"),
        ("{% for m in messages %}{{ m['content'] }}{{ m['content'] }}<eot>{% endfor %}", "writes the response 2 times"),
        ("{% for m in messages %}{{ m['role'] }}<eot>{% endfor %}", "writes the response 0 times"),
        ("{% for m in messages %}{{ messages | length }}{{ m['content'] }}<eot>{% endfor %}", "cannot be told"),
        ("{{ raise_exception('not for chats') }}", "refuses turn 1 of 2, role user: not for chats"),
    ],
)
def test_what_cannot_be_aligned_is_refused(template: str, message: str) -> None:
    with pytest.raises(RenderError, match=message):
        chat_of(tokenizer_of(template))


def test_a_row_that_renders_unlike_the_others_is_refused() -> None:
    """The gate's position is checked for each row: this template closes long conversations in another way."""
    template = LLAMA3.replace("<eot>", "{{ '<eot>' if messages | length < 3 else '<stop>' }}")
    chat = chat_of(tokenizer_of(template))
    assert chat.conversation([Message("user", "w1")], "w2")
    with pytest.raises(RenderError, match="ends this prompt with .* where it ends others with '<eot>'"):
        chat.conversation(PROMPT, "w2")
    with pytest.raises(RenderError, match="ends this prompt with"):
        chat.prompt(PROMPT)


@pytest.mark.parametrize(
    ("template", "end"), [(LLAMA3, "<eot>"), (CHATML, "<eot>"), (always("chatml"), "<eot>"), (INSTRUCTED, "<eot>")]
)
def test_the_token_that_closes_a_turn(template: str, end: str) -> None:
    tokenizer = tokenizer_of(template)
    assert chat_of(tokenizer).turn_end() == tokenizer.convert_tokens_to_ids(end)


def test_the_end_may_be_a_word_that_nobody_declared_or_be_missing() -> None:
    """A word of the vocabulary closes a turn like a special token; words of several tokens, or none, close nothing."""
    undeclared = tokenizer_of(LLAMA3.replace("<eot>", "</think>"))
    assert chat_of(undeclared).turn_end() == undeclared.convert_tokens_to_ids("</think>")
    for end in ("", " w1 w2 "):
        open_ended = "{% for m in messages %}<start>{{ m['role'] }}<stop> {{ m['content'] }}" + end + "{% endfor %}"
        assert chat_of(tokenizer_of(open_ended)).turn_end() is None
