"""Conversations as token ids under one tokenizer: for sampling, for SFT, and for a reward model with its two positions.

Every role that renders comes through here, so that a template is understood once (common/chat/turns.py), text from data never
becomes a control token (common/chat/control.py), and a refusal has one type, RenderError. Waits for nothing. Holds no torch.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from common.chat.control import Control
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
        return self._tokenizer.name_or_path

    def turn_end(self) -> int | None:
        """The token that closes the assistant's turn; None where the template closes it by no token of its own."""
        closing = self.turns.closing.strip()
        found = self._control.pattern.search(closing)
        ids = self._control.encode(found.group() if found else closing, {}) if closing else []
        return ids[0] if len(ids) == 1 else None

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the turns with the assistant's turn opened, for sampling."""
        with self._lock:
            hidden, marks = self._control.hide(messages)
            return self._control.encode(self._opened(hidden), marks)

    def conversation(self, messages: Sequence[Message], response: str) -> Conversation:
        """The turns and a response, closed. The position is that of the last token of the turns alone, which closes the
        user's turn. Raises RenderError where the turns render differently once the response follows."""
        _check_asks(messages)
        with self._lock:
            hidden, marks = self._control.hide([*messages, Message("assistant", response)])
            closed, prompt_ids = self._closed(hidden[:-1], marks)
            ids = self._control.encode(self._whole(hidden, closed), marks)
        if ids[: len(prompt_ids)] != prompt_ids or len(ids) == len(prompt_ids):
            raise RenderError(
                f"the chat template of {self.name} gives a prompt of {len(prompt_ids)} tokens, not a proper prefix of its "
                f"conversation ({len(ids)} tokens); use a template that leaves earlier turns as they are"
            )
        return Conversation(ids, len(prompt_ids) - 1)

    def demonstration(self, messages: Sequence[Message], response: str) -> Demonstration:
        """The turns and a response as SFT learns it: the response with what closes its turn, behind the prompt that is
        sampled from. Raises RenderError where the template opens a turn for sampling in other tokens than before a response."""
        _check_asks(messages)
        with self._lock:
            hidden, marks = self._control.hide([*messages, Message("assistant", response)])
            prompt_ids = self._control.encode(self._opened(hidden[:-1]), marks)
            ids = self._control.encode(self._whole(hidden, self._closed(hidden[:-1], marks)[0]), marks)
        if ids[: len(prompt_ids)] != prompt_ids:
            raise RenderError(
                f"the chat template of {self.name} opens an answer in other tokens than it renders one; SFT would learn a "
                "prompt that sampling never shows. Use a template whose generation prompt is a prefix."
            )
        return Demonstration(ids, len(prompt_ids))

    def _opened(self, messages: Sequence[Message]) -> str:
        turns = self.turns
        text = text_of(self._tokenizer, messages, opened=turns.opens_if_asked)
        text = text if turns.opens_if_asked else self._cut(text, turns.prompt_extra, "prompt") + turns.generation
        if not text.endswith(turns.user_end + turns.generation):
            raise RenderError(self._unlike("prompt", text, turns.user_end + turns.generation))
        return text

    def _closed(self, messages: list[Message], marks: dict[str, str]) -> tuple[str, list[int]]:
        """Text and ids of the turns up to what closes the user's turn."""
        key = tuple(messages), tuple(marks.items())
        if self._last is None or self._last[0] != key:
            text = self._cut(text_of(self._tokenizer, messages, opened=False), self.turns.prompt_extra, "prompt")
            if not text.endswith(self.turns.user_end):
                raise RenderError(self._unlike("prompt", text, self.turns.user_end))
            self._last = key, (text, self._control.encode(text, marks))
        return self._last[1]

    def _whole(self, messages: Sequence[Message], closed: str) -> str:
        """The text of prompt and response, which goes on as the closed prompt ended."""
        turns = self.turns
        text = self._cut(text_of(self._tokenizer, messages, opened=False), turns.conversation_extra, "conversation")
        if not text.startswith(closed + turns.header):
            raise RenderError(
                f"the chat template of {self.name} ends a prompt with {closed[-40:]!r}, which is not a proper prefix of its "
                f"conversation {text[:80]!r}; use a template that leaves earlier turns as they are"
            )
        if not text.endswith(turns.closing):
            raise RenderError(self._unlike("conversation", text, turns.closing))
        return text

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
