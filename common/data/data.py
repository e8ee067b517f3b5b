"""The files that people bring: prompts, demonstrations, ratings and preference pairs, read and checked row by row.

Owns the formats of the rows (docs/data.md); called by the driver, the preflight and the training stages.
A source is a .jsonl, .jsonl.gz or .parquet file, or a data set on the Hub (common/data/sources.py opens them).
Readers wait for the disk only (and for the network where a Hub data set is not cached). Holds no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from common.data.fields import SIDES, answer_of, is_number, messages_of, response_of
from common.data.rows import Rows, read_checked
from common.data.sources import DataError, Fields, short
from common.files import written_aside
from common.types import Message

MERGED = "merged with the row of the same prompt and response"
AVERAGED = "ratings are the mean of several raters of one objective"
REPEATED = "pairs are there more than once, and count as often"
CONTRADICTED = "pairs are there the other way round too, and both count"


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
    (nats), which training takes off the difference of their scores; `weight` of its loss. One that is of_preference is a label
    of the objective rewarder.preference, where that is set; another trains the gated score alone."""

    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    target: float = 1.0
    margin: float = 0.0
    weight: float = 1.0
    of_preference: bool = True


def read_prompts(source: str | Path, limit: int | None = None) -> Rows[PromptRow]:
    """All rows (or the first `limit`). Raises DataError, also where one id stands for two different prompts."""
    rows = read_checked(source, _prompt_row, limit)
    first: dict[str, tuple[Message, ...]] = {}
    twice = {row.prompt_id for row in rows if first.setdefault(row.prompt_id, row.messages) != row.messages}
    if twice:
        raise DataError(f'{source}: "id" {sorted(twice)[0]!r} stands for two different prompts; make the ids unique')
    return rows


def read_demonstrations(source: str | Path, limit: int | None = None) -> Rows[Demonstration]:
    """All rows (or the first `limit`). Raises DataError."""
    return read_checked(source, _demonstration, limit)


def read_ratings(source: str | Path, limit: int | None = None) -> Rows[RatedResponse]:
    """All rows (or the first `limit`), those of one prompt and response as one; an empty response is allowed, since it can be
    rated. Raises DataError, also for a rating outside [0, 1]: objectives share one squared error, which a larger scale would
    have to itself."""
    return merged(read_checked(source, _rated_response, limit))


def read_pairs(source: str | Path, limit: int | None = None) -> Rows[PreferencePair]:
    """All rows (or the first `limit`). Raises DataError, also where chosen equals rejected."""
    rows = read_checked(source, preference_pair, limit)
    seen = Counter((row.messages, row.chosen, row.rejected) for row in rows)
    rows.notes[REPEATED] += sum(count - 1 for count in seen.values())
    rows.notes[CONTRADICTED] += sum((messages, rejected, chosen) in seen for messages, chosen, rejected in seen)
    rows.notes = +rows.notes
    return rows


def merged(rows: Rows[RatedResponse]) -> Rows[RatedResponse]:
    """The ratings of one prompt and response, which may stand in several rows, in the place of the first of them; where several
    raters rate one objective, the mean."""
    together: dict[tuple[tuple[Message, ...], str], list[int]] = {}
    for index, row in enumerate(rows):
        together.setdefault((row.messages, row.response), []).append(index)
    found = Rows[RatedResponse](rows.source, left_out=rows.left_out, notes=rows.notes)
    for indices in together.values():
        same = [rows[index] for index in indices]
        found.append(same[0] if len(same) == 1 else replace(same[0], scores=_mean_scores(same, found.notes)))
        found.numbers.append(rows.numbers[indices[0]])
    if len(found) < len(rows):
        found.left_out[MERGED] += len(rows) - len(found)
    return found


def _mean_scores(rows: Iterable[RatedResponse], notes: Counter[str]) -> dict[str, float | None]:
    """Objective -> the mean of its ratings, None where there is none; counts those of several raters."""
    given: dict[str, list[float]] = {}
    for row in rows:
        for name, score in row.scores.items():
            given.setdefault(name, []).extend([] if score is None else [score])
    if several := sum(len(scores) > 1 for scores in given.values()):
        notes[AVERAGED] += several
    return {name: fmean(scores) if scores else None for name, scores in given.items()}


def write_jsonl(path: str | Path, rows: Iterable[Fields]) -> None:
    """Writes one JSON object a line, whole or not at all: aside, fsynced, renamed. NaN and infinities are refused."""
    with written_aside(Path(path)) as aside, aside.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(dict(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


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


def _prompt_row(fields: Fields) -> PromptRow:
    messages = messages_of(fields)
    given = fields.get("id")
    if given is not None and (isinstance(given, bool) or not isinstance(given, str | int) or given == ""):
        raise DataError(f'"id" is {short(given)}; wanted text or a whole number, or no "id" at all')
    return PromptRow(_digest(messages) if given is None else str(given), messages, _meta(fields.get("meta")))


def _demonstration(fields: Fields) -> Demonstration:
    answer = response_of(fields, may_be_empty=False)
    return Demonstration(answer.messages, answer.response)


def _rated_response(fields: Fields) -> RatedResponse:
    answer = response_of(fields, may_be_empty=True)
    return RatedResponse(answer.messages, answer.response, _scores(fields.get("scores")))


def preference_pair(fields: Fields) -> PreferencePair:
    """The pair of a row: texts, or turns that go on from "prompt" or repeat it."""
    chosen, rejected = (answer_of(fields, side) for side in SIDES)
    if chosen.messages != rejected.messages:
        raise DataError('"chosen" and "rejected" must be the same conversation up to a last turn of the assistant')
    if chosen.response == rejected.response:
        raise DataError(f'"chosen" and "rejected" are the same text, {short(chosen.response)}; remove the row')
    return PreferencePair(chosen.messages, chosen.response, rejected.response)


def _scores(value: object) -> dict[str, float | None]:
    if not isinstance(value, Mapping) or not value:
        raise DataError(
            f'"scores" is {short(value)}; wanted {{objective: number or null, ..}} with at least one objective'
        )
    return {str(name): None if score is None else _number(str(name), score) for name, score in value.items()}


def _number(name: str, value: object) -> float:
    if not is_number(value) or not 0 <= value <= 1:
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
