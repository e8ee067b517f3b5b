"""Conversations as token ids under one tokenizer: for sampling, for SFT, and for a reward model with its two positions.

Every role that renders comes through here, so that a template is understood once (common/chat/turns.py), text from data never
becomes a control token (common/chat/control.py), and a refusal has one type, RenderError. Waits for nothing. Holds no torch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

from common.chat.control import Control, Written
from common.chat.template import RenderError, Tokenizer, check_template_exists, text_of
from common.chat.turns import Turns, find_turns, markup_of
from common.types import Message


class Conversation(NamedTuple):
    """Token ids [T] of prompt and response, and the index of the last token of the closed prompt."""

    ids: list[int]
    prompt_end: int


class Demonstration(NamedTuple):
    """Token ids [T] of prompt and response, and the index of the first token that the policy would sample."""

    ids: list[int]
    response_start: int


class Encoded(NamedTuple):
    """A text and its token ids."""

    text: str
    ids: list[int]


Asked = tuple[Sequence[Message], str]  # turns, the last by the user, and a response
Aligned = TypeVar("Aligned", Conversation, Demonstration)
Given = TypeVar("Given")
Made = TypeVar("Made")


def chat_of(tokenizer: Tokenizer) -> Chat:
    """The tokenizer's Chat, made once. Raises RenderError where its template is missing or cannot be understood."""
    check_template_exists(tokenizer)
    return _made(tokenizer, str(tokenizer.chat_template), len(tokenizer))


@lru_cache(maxsize=16)
def _made(tokenizer: Tokenizer, template: str, size: int) -> Chat:
    """The key has what a caller may change of a tokenizer."""
    return Chat(tokenizer)


class Chat:
    """One tokenizer and what its template does."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        turn_markup, everywhere = markup_of(tokenizer)
        self._control = Control(tokenizer, turn_markup, everywhere)
        self.turns: Turns = find_turns(tokenizer, self._control.pattern)
        self._lock = threading.Lock()  # an option of the tokenizer is set for a call
        self._last: tuple[object, tuple[str, list[int]]] | None = (
            None  # a prompt is rendered once for all its responses
        )

    @property
    def name(self) -> str:
        """Where the tokenizer comes from, for errors."""
        return self._tokenizer.name_or_path

    def turn_end(self) -> int | None:
        """The token that closes the assistant's turn; None where the template closes it by no token of its own."""
        closing = self.turns.closing.strip()
        found = self._control.pattern.search(closing)
        ids = self._control.encode(Written(found.group() if found else closing)) if closing else []
        return ids[0] if len(ids) == 1 else None

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the turns with the assistant's turn opened, for sampling. Raises RenderError."""
        return _raised(self.prompts([messages])[0])

    def conversation(self, messages: Sequence[Message], response: str) -> Conversation:
        """The turns and a response, closed. The position is that of the last token of the turns alone, which closes the
        user's turn. Raises RenderError, also where the turns render differently once the response follows."""
        return _raised(self.conversations([(messages, response)])[0])

    def demonstration(self, messages: Sequence[Message], response: str) -> Demonstration:
        """The turns and a response as SFT learns it: the response with what closes its turn, behind the prompt that is
        sampled from. Raises RenderError, also where the template opens a turn for sampling in other tokens than before a
        response."""
        return _raised(self.demonstrations([(messages, response)])[0])

    def prompts(self, rows: Sequence[Sequence[Message]]) -> list[list[int] | RenderError]:
        """`prompt` of each, or why it cannot be; the tokenizer takes them in one batch."""
        written = [_or_why(self._write_prompt, messages) for messages in rows]
        ids = self._encode(text for text in written if isinstance(text, Written))
        return [text if isinstance(text, RenderError) else ids[text] for text in written]

    def conversations(self, rows: Sequence[Asked]) -> list[Conversation | RenderError]:
        """`conversation` of each, or why it cannot be; the tokenizer takes them in one batch."""
        return self._answered(rows, self._write_closed, self._as_conversation)

    def demonstrations(self, rows: Sequence[Asked]) -> list[Demonstration | RenderError]:
        """`demonstration` of each, or why it cannot be; the tokenizer takes them in one batch."""
        return self._answered(rows, self._write_prompt, self._as_demonstration)

    def _answered(
        self,
        rows: Sequence[Asked],
        write_prompt: Callable[[Sequence[Message]], Written],
        align: Callable[[Encoded, Encoded], Aligned],
    ) -> list[Aligned | RenderError]:
        """A prompt is written and encoded once for all its responses."""
        prompts = {messages: _or_why(write_prompt, messages) for messages in dict.fromkeys(tuple(m) for m, _ in rows)}
        whole = [_or_why(self._write_whole, row) for row in rows]
        ids = self._encode(text for text in (*prompts.values(), *whole) if isinstance(text, Written))

        def aligned(parts: tuple[Written | RenderError, Written | RenderError]) -> Aligned:
            prompt, text = (_raised(part) for part in parts)
            return align(Encoded(prompt.text, _raised(ids[prompt])), Encoded(text.text, _raised(ids[text])))

        pairs = zip((prompts[tuple(messages)] for messages, _ in rows), whole, strict=True)
        return [_or_why(aligned, pair) for pair in pairs]

    def _encode(self, texts: Iterable[Written]) -> dict[Written, list[int] | RenderError]:
        with self._lock:
            return self._control.encode_all(texts)

    def _as_conversation(self, prompt: Encoded, whole: Encoded) -> Conversation:
        goes_on = whole.text.startswith(prompt.text + self.turns.header)
        if goes_on and _begins(whole.ids, prompt.ids) and len(whole.ids) > len(prompt.ids):
            return Conversation(whole.ids, len(prompt.ids) - 1)
        raise RenderError(
            f"the chat template of {self.name} gives a prompt of {len(prompt.ids)} tokens that ends with "
            f"{prompt.text[-40:]!r}, not a proper prefix of its "
            f"conversation ({len(whole.ids)} tokens); use a template that leaves earlier turns as they are"
        )

    def _as_demonstration(self, prompt: Encoded, whole: Encoded) -> Demonstration:
        if _begins(whole.ids, prompt.ids):
            return Demonstration(whole.ids, len(prompt.ids))
        raise RenderError(
            f"the chat template of {self.name} opens an answer in other tokens than it renders one; SFT would learn a prompt "
            "that sampling never shows. Use a template whose generation prompt is a prefix."
        )

    def _write_prompt(self, messages: Sequence[Message]) -> Written:
        """The turns with the assistant's turn opened."""
        turns, (hidden, marks) = self.turns, self._control.hide(messages)
        text = text_of(self._tokenizer, hidden, opened=turns.opens_if_asked)
        text = text if turns.opens_if_asked else self._cut(text, turns.prompt_extra, "prompt") + turns.generation
        self._cut(text, turns.user_end + turns.generation, "prompt")
        return Written(text, marks)

    def _write_closed(self, messages: Sequence[Message]) -> Written:
        """The turns up to what closes the user's turn."""
        _check_asks(messages)
        hidden, marks = self._control.hide(messages)
        text = self._cut(text_of(self._tokenizer, hidden, opened=False), self.turns.prompt_extra, "prompt")
        self._cut(text, self.turns.user_end, "prompt")
        return Written(text, marks)

    def _write_whole(self, row: Asked) -> Written:
        """Prompt and response."""
        messages, response = row
        _check_asks(messages)
        hidden, marks = self._control.hide([*messages, Message("assistant", response)])
        text = self._cut(text_of(self._tokenizer, hidden, opened=False), self.turns.conversation_extra, "conversation")
        self._cut(text, self.turns.closing, "conversation")
        return Written(text, marks)

    def _cut(self, text: str, extra: str, what: str) -> str:
        if not text.endswith(extra):
            raise RenderError(self._unlike(what, text, extra))
        return text.removesuffix(extra)

    def _unlike(self, what: str, text: str, end: str) -> str:
        return (
            f"the chat template of {self.name} ends this {what} with {text[-40:]!r} where it ends others with {end!r}, so that "
            "the positions cannot be told; use a template that closes every turn alike, or take the row out"
        )


def _check_asks(messages: Sequence[Message]) -> None:
    if not messages or messages[-1].role != "user":
        raise RenderError(f"a prompt must end with a user message, got roles {[message.role for message in messages]}")


def _begins(ids: list[int], beginning: list[int]) -> bool:
    return ids[: len(beginning)] == beginning


def _or_why(make: Callable[[Given], Made], given: Given) -> Made | RenderError:
    """What `make` makes, or why it cannot: one bad row must not hide the others."""
    try:
        return make(given)
    except RenderError as error:
        return error


def _raised(found: Made | RenderError) -> Made:
    if isinstance(found, RenderError):
        raise found
    return found
