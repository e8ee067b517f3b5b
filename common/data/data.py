"""The files that people bring: prompts, demonstrations, ratings and preference pairs, read and checked row by row.

Owns the formats of the rows (docs/data.md); called by the driver, the preflight and the training stages.
A source is a .jsonl, .jsonl.gz or .parquet file, or a data set on the Hub (common/data/sources.py opens them).
Readers wait for the disk only (and for the network where a Hub data set is not cached). Holds no torch.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

from common.data.sources import DataError, Fields, fields_of, raw_rows, short
from common.types import Message

ROLES = ("system", "user", "assistant")
SIDES = ("chosen", "rejected")
PROMPT_KEYS = ("prompt", "context_messages")  # the second is the column of the RLHFlow prompt sets
MAX_PROBLEMS = 20
Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt before the chat template; prompt_id is the row's "id", else a hash of its messages."""

    prompt_id: str
    messages: tuple[Message, ...]
    meta: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Demonstration:
    """What SFT imitates: an answer to a conversation that ends with a user turn."""

    messages: tuple[Message, ...]
    response: str


@dataclass(frozen=True, slots=True)
class RatedResponse:
    """Scores by objective, in [0, 1]; None where this row has no rating of that objective."""

    messages: tuple[Message, ...]
    response: str
    scores: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two different answers to the same conversation, the first of them preferred: with probability `target`, and by `margin`
    (nats), which training takes off the difference of their scores; `weight` of its loss."""

    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    target: float = 1.0
    margin: float = 0.0
    weight: float = 1.0


def read_prompts(source: str | Path, limit: int | None = None) -> list[PromptRow]:
    """All rows (or the first `limit`). Raises DataError, also where one id stands for two different prompts."""
    rows = read_checked(source, _prompt_row, limit)
    first: dict[str, tuple[Message, ...]] = {}
    twice = {row.prompt_id for row in rows if first.setdefault(row.prompt_id, row.messages) != row.messages}
    if twice:
        raise DataError(f'{source}: "id" {sorted(twice)[0]!r} stands for two different prompts; make the ids unique')
    return rows


def read_demonstrations(source: str | Path, limit: int | None = None) -> list[Demonstration]:
    """All rows (or the first `limit`). Raises DataError."""
    return read_checked(source, lambda fields: Demonstration(messages_of(fields), text_of(fields, "response")), limit)


def read_ratings(source: str | Path, limit: int | None = None) -> list[RatedResponse]:
    """All rows (or the first `limit`); an empty response is allowed, since it can be rated. Raises DataError, also for a rating
    outside [0, 1]: objectives share one squared error, which a larger scale would have to itself."""
    return read_checked(source, _rated_response, limit)


def read_pairs(source: str | Path, limit: int | None = None) -> list[PreferencePair]:
    """All rows (or the first `limit`). Raises DataError, also where chosen equals rejected."""
    return read_checked(source, preference_pair, limit)


def write_jsonl(path: str | Path, rows: Iterable[Fields]) -> None:
    """Writes one JSON object a line, whole or not at all: aside, fsynced, renamed. NaN and infinities are refused."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(dict(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def to_fields(row: PromptRow | Demonstration | RatedResponse | PreferencePair) -> dict[str, object]:
    """The row as the JSON object that its reader accepts, for write_jsonl."""
    prompt = [{"role": message.role, "content": message.content} for message in row.messages]
    match row:
        case PromptRow():
            return {"id": row.prompt_id, "prompt": prompt, "meta": row.meta}
        case Demonstration():
            return {"prompt": prompt, "response": row.response}
        case RatedResponse():
            return {"prompt": prompt, "response": row.response, "scores": row.scores}
        case PreferencePair():
            return {"prompt": prompt, "chosen": row.chosen, "rejected": row.rejected}


def read_checked(source: str | Path, parse: Callable[[Fields], Row], limit: int | None) -> list[Row]:
    """Parses every row, so that one DataError can name every bad line (the first MAX_PROBLEMS of them)."""
    rows: list[Row] = []
    problems: list[str] = []
    for where, raw in itertools.islice(raw_rows(str(source)), limit):
        try:
            rows.append(parse(fields_of(raw)))
        except DataError as error:
            problems.append(f"{where}: {error}")
        if len(problems) == MAX_PROBLEMS:
            problems.append(f"{source}: reading stopped after {MAX_PROBLEMS} bad lines")
            break
    if problems:
        raise DataError("\n".join(problems))
    if not rows:
        raise DataError(f"{source}: the file is empty; wanted at least one row (formats: docs/data.md)")
    return rows


def _prompt_row(fields: Fields) -> PromptRow:
    messages = messages_of(fields)
    given = fields.get("id")
    if given is not None and (isinstance(given, bool) or not isinstance(given, str | int) or given == ""):
        raise DataError(f'"id" is {short(given)}; wanted text or a whole number, or no "id" at all')
    return PromptRow(_digest(messages) if given is None else str(given), messages, _meta(fields.get("meta")))


def _rated_response(fields: Fields) -> RatedResponse:
    return RatedResponse(
        messages_of(fields), text_of(fields, "response", may_be_empty=True), _scores(fields.get("scores"))
    )


def preference_pair(fields: Fields) -> PreferencePair:
    """A pair from the fields of a row. Raises DataError where the two responses are the same text."""
    fields = _with_prompt(fields)
    read = functools.partial(text_of, fields, may_be_empty=True)
    pair = PreferencePair(messages_of(fields), read("chosen"), read("rejected"))
    if pair.chosen == pair.rejected:
        raise DataError(f'"chosen" and "rejected" are the same text, {short(pair.chosen)}; remove the row')
    return pair


def _with_prompt(fields: Fields) -> Fields:
    """The row with its prompt taken out of "chosen" and "rejected", where those are whole conversations (a common form)."""
    turns = [fields.get(side) for side in SIDES]
    if any(not isinstance(side, Sequence) or isinstance(side, str) or not side for side in turns):
        return fields
    chosen, rejected = ([message_of(side, turn) for turn in cast(Sequence[object], fields[side])] for side in SIDES)
    if chosen[:-1] != rejected[:-1] or {chosen[-1].role, rejected[-1].role} != {"assistant"}:
        raise DataError('"chosen" and "rejected" must be the same conversation up to a last turn of the assistant')
    prompt = [{"role": turn.role, "content": turn.content} for turn in chosen[:-1]]
    return {"prompt": prompt, "chosen": chosen[-1].content, "rejected": rejected[-1].content}


def messages_of(fields: Fields) -> tuple[Message, ...]:
    """The conversation under "prompt" (text: one user turn), which must end with a user turn."""
    key = next((name for name in PROMPT_KEYS if fields.get(name) is not None), None)
    if key is None:
        raise DataError(f'no "prompt"; got the keys {sorted(fields)}; wanted text or a list of {{"role", "content"}}')
    value = fields[key]
    if isinstance(value, str):
        return (Message("user", text_of(fields, key)),)
    if not isinstance(value, Sequence) or not value:
        raise DataError(f'"{key}" is {short(value)}; wanted text or a non-empty list of {{"role", "content"}}')
    messages = tuple(message_of(key, turn) for turn in value)
    if messages[-1].role != "user":
        raise DataError(
            f'"{key}" ends with a turn of the {messages[-1].role}; wanted a user turn, which the policy answers'
        )
    return messages


def message_of(key: str, turn: object) -> Message:
    """A message from one turn of a row. Raises DataError for a turn that is none."""
    if not isinstance(turn, Mapping) or not {"role", "content"} <= set(turn):
        raise DataError(f'"{key}" has the turn {short(turn)}; wanted {{"role": .., "content": ..}}')
    if turn["role"] not in ROLES:
        raise DataError(f'"{key}" has the role {short(turn["role"])}; wanted one of {", ".join(ROLES)}')
    return Message(cast(str, turn["role"]), text_of(turn, "content", may_be_empty=turn["role"] != "user"))


def text_of(fields: Fields, key: str, may_be_empty: bool = False) -> str:
    """The text of a field. Raises DataError where it is missing, no text, or empty without leave."""
    value = fields.get(key)
    if not isinstance(value, str):
        got = f"is {short(value)}" if key in fields else f"is missing; got the keys {sorted(fields)}"
        raise DataError(f'"{key}" {got}; wanted text')
    if not value.strip() and not may_be_empty:
        raise DataError(f'"{key}" is empty; wanted text')
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f'"{key}" has a lone surrogate, which is not valid Unicode text: {short(value)}')
    return value


def _scores(value: object) -> dict[str, float | None]:
    if not isinstance(value, Mapping) or not value:
        raise DataError(
            f'"scores" is {short(value)}; wanted {{objective: number or null, ..}} with at least one objective'
        )
    return {str(name): None if score is None else _number(str(name), score) for name, score in value.items()}


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:  # NaN is outside too
        raise DataError(
            f'the score of "{name}" is {short(value)}; wanted a number in [0, 1], or null where there is no rating '
            "(how to map another scale: docs/data.md)"
        )
    return float(value)


def _meta(value: object) -> dict[str, str]:
    """Text is kept, other values become JSON text, nulls (which parquet adds) are left out."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise DataError(f'"meta" is {short(value)}; wanted {{name: text, ..}}')
    kept = {str(name): item for name, item in value.items() if item is not None}
    return {name: item if isinstance(item, str) else json.dumps(item, default=str) for name, item in kept.items()}


def _digest(messages: tuple[Message, ...]) -> str:
    content = json.dumps([[message.role, message.content] for message in messages])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
