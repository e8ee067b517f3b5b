"""What the columns of a row hold: text, numbers, turns, and the answer to a conversation in each form that data sets use.

Called by the readers of common/data. Every function raises DataError, with what it got and what it wanted. Pure.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard, cast

from common.data.sources import DataError, Fields, short
from common.types import Message

ROLES = ("system", "user", "assistant")
PROMPT_KEYS = ("prompt", "context_messages")  # the second is the column of the RLHFlow prompt sets
SIDES = ("chosen", "rejected")
RESPONSE_KEYS = ("response", "completion", "messages")  # the first that has a value


@dataclass(frozen=True, slots=True)
class Answer:
    """A conversation that ends with a user turn, and one response to it."""

    messages: tuple[Message, ...]
    response: str


def text_of(fields: Fields, key: str, may_be_empty: bool = False) -> str:
    """The text of a column."""
    value = fields.get(key)
    if not isinstance(value, str):
        got = f"is {short(value)}" if key in fields else f"is missing; got the keys {sorted(fields)}"
        raise DataError(f'"{key}" {got}; wanted text')
    if not value.strip() and not may_be_empty:
        raise DataError(f'"{key}" is empty; wanted text')
    return value


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a label is a finite number that a float can hold; NaN, infinities and true are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -sys.float_info.max <= value <= sys.float_info.max


def turns_of(key: str, value: object) -> tuple[Message, ...]:
    """A conversation that is a list of turns, not empty."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        raise DataError(f'"{key}" is {short(value)}; wanted text or a non-empty list of {{"role", "content"}}')
    return tuple(message_of(key, turn) for turn in value)


def message_of(key: str, turn: object) -> Message:
    """One turn of the conversation under `key`."""
    if not isinstance(turn, Mapping) or not {"role", "content"} <= set(turn):
        raise DataError(f'"{key}" has the turn {short(turn)}; wanted {{"role": .., "content": ..}}')
    if turn["role"] not in ROLES:
        raise DataError(f'"{key}" has the role {short(turn["role"])}; wanted one of {", ".join(ROLES)}')
    return Message(cast(str, turn["role"]), text_of(turn, "content", may_be_empty=turn["role"] != "user"))


def messages_of(fields: Fields) -> tuple[Message, ...]:
    """The conversation under "prompt" (text: one user turn), which must end with a user turn."""
    key, messages = _prompt(fields)
    if not messages:
        raise DataError(f'no "prompt"; got the keys {sorted(fields)}; wanted text or a list of {{"role", "content"}}')
    return _ending_with_user(key, messages)


def response_of(fields: Fields, may_be_empty: bool) -> Answer:
    """The answer of a demonstration or of a rated row, in whichever column it is."""
    return answer_of(fields, next((key for key in RESPONSE_KEYS if key in fields), RESPONSE_KEYS[0]), may_be_empty)


def answer_of(fields: Fields, key: str, may_be_empty: bool = True) -> Answer:
    """The conversation of a row and its answer under `key`, which is text, or turns that end with the assistant's. Turns go on
    from "prompt", or repeat it, with its system turn or without; without a "prompt" they are the whole conversation."""
    value = fields.get(key)
    if value is None or isinstance(value, str):
        return Answer(messages_of(fields), text_of(fields, key, may_be_empty))
    *earlier, last = turns_of(key, value)
    if last.role != "assistant":
        raise DataError(f'"{key}" ends with a turn of the {last.role}; wanted the assistant\'s answer as the last turn')
    if not last.content.strip() and not may_be_empty:
        raise DataError(f'"{key}" ends with an empty answer; wanted text')
    return Answer(_ending_with_user(key, _joined(key, _prompt(fields)[1], tuple(earlier))), last.content)


def _prompt(fields: Fields) -> tuple[str, tuple[Message, ...]]:
    """The column that holds the prompt, and its turns; none where no such column has a value."""
    key = next((name for name in PROMPT_KEYS if name in fields), None)
    if key is None:
        return "prompt", ()
    if isinstance(fields[key], str):
        return key, (Message("user", text_of(fields, key)),)
    return key, turns_of(key, fields[key])


def _ending_with_user(key: str, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    if not messages:
        raise DataError(f'"{key}" has an answer and no prompt; wanted a user turn before it, or a "prompt"')
    if messages[-1].role != "user":
        raise DataError(
            f'"{key}" ends with a turn of the {messages[-1].role}; wanted a user turn, which the policy answers'
        )
    return messages


def _joined(key: str, prompt: tuple[Message, ...], earlier: tuple[Message, ...]) -> tuple[Message, ...]:
    """The conversation that "prompt" and the turns before an answer are together; nothing of either is lost."""
    if not prompt or not earlier:
        return prompt or earlier
    (system, asked), (own_system, own) = _system_apart(prompt), _system_apart(earlier)
    if system and own_system and system != own_system:
        raise DataError(f'"prompt" and "{key}" begin with different system turns; keep one of them')
    if _same(own[: len(asked)], asked) or _same(own[-len(asked) :], asked):
        return (*(own_system or system), *own)
    if earlier[0].role != prompt[-1].role and "system" not in (earlier[0].role, prompt[-1].role):
        return (*prompt, *earlier)
    raise DataError(
        f'"{key}" neither repeats "prompt" nor goes on from it; wanted the same turns there, or the assistant\'s turn alone: '
        'remove "prompt" where the sides are whole conversations'
    )


def _system_apart(messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """The system turns at the beginning, and the rest."""
    count = next((at for at, message in enumerate(messages) if message.role != "system"), len(messages))
    return messages[:count], messages[count:]


def _same(some: Sequence[Message], others: Sequence[Message]) -> bool:
    """Whether turns are equal but for the space around them."""
    bare = [[(message.role, message.content.strip()) for message in messages] for messages in (some, others)]
    return bare[0] == bare[1]
