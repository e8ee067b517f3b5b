"""Rows that say which answers are right: preference pairs, best-of-n rows, and the columns of published benchmarks.

Owns the formats that stage evaluate_rm reads (docs/evaluate_rm.md), as one record; called by the driver and the preflight.
Rows that hold no preference (equal ratings, a tie, the same text on both sides) are counted with their reason, not judged.
Waits for the disk only, as common/data/data.py does. Holds no torch.

Columns as their dataset cards give them: allenai/reward-bench, allenai/reward-bench-2, HuggingFaceH4/hhh_alignment and
lmsys/mt_bench_human_judgments. Of llm-blender/Unified-Feedback no card with columns was found: they are those that public
training code reads.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from common.data.data import DataError, message_of, messages_of, preference_pair, read_checked, text_of
from common.data.sources import Fields, short
from common.types import Message

WHOLE = "all"  # the slice of rows that name none
EQUAL, SAME_TEXT = "no preference between the answers", "a right and a wrong answer of the same text"


@dataclass(frozen=True, slots=True)
class Answer:
    """A conversation that ends with a user turn, and one response to it."""

    messages: tuple[Message, ...]
    response: str


@dataclass(frozen=True, slots=True)
class Judged:
    """Answers of which the right ones should score above the wrong ones; a pair has one of each. row_id is "" without
    an "id"."""

    right: tuple[Answer, ...]
    wrong: tuple[Answer, ...]
    slice: str = WHOLE
    row_id: str = ""

    def __post_init__(self) -> None:
        assert self.right and self.wrong, "a judged row needs a right and a wrong answer"

    @property
    def answers(self) -> tuple[Answer, ...]:
        """The right ones first."""
        return (*self.right, *self.wrong)


@dataclass(frozen=True, slots=True)
class JudgedFile:
    """The rows of a source, and how many were left out, by reason."""

    rows: tuple[Judged, ...]
    skipped: Mapping[str, int]


def read_judged(source: str | Path, slice_key: str | None, limit: int | None = None) -> JudgedFile:
    """All rows (or the first `limit`); `slice_key` is the column that names a row's slice. Raises DataError, also where no
    row holds a preference."""
    parsed = read_checked(source, functools.partial(_judged, slice_key=slice_key), limit)
    rows = tuple(row for row in parsed if isinstance(row, Judged))
    skipped = Counter(row for row in parsed if isinstance(row, str))
    if not rows:
        raise DataError(
            f"{source}: none of {len(parsed)} rows holds a preference ({_reasons(skipped)}); nothing to judge"
        )
    return JudgedFile(rows, dict(skipped))


def read_answers(source: str | Path, limit: int | None = None) -> list[tuple[tuple[Message, ...], dict[str, str]]]:
    """(messages, name -> response) of each row: {"prompt", "response"}, {"prompt", "responses": [..]} or a pair. Raises
    DataError."""
    return read_checked(source, _named_answers, limit)


def _reasons(skipped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in skipped.items())


def _judged(fields: Fields, slice_key: str | None) -> Judged | str:
    """The row, or why it holds no preference."""
    sides = _sides(fields)
    if isinstance(sides, str):
        return sides
    right, wrong = sides
    if set(right) & set(wrong):
        return SAME_TEXT
    given = fields.get("id")
    return Judged(right, wrong, _slice(fields, slice_key), "" if given is None else str(given))


def _sides(fields: Fields) -> tuple[tuple[Answer, ...], tuple[Answer, ...]] | str:
    """(right, wrong) answers by whichever columns are there."""
    if "targets" in fields:
        return _choices(fields)
    if "conv_A" in fields:
        return _rated(fields)
    if "conversation_a" in fields:
        return _voted(fields)
    if _is_texts(fields.get("chosen")) or _is_texts(fields.get("rejected")):
        messages = messages_of(fields)
        return _answers(messages, fields, "chosen"), _answers(messages, fields, "rejected")
    if fields.get("chosen") is not None and fields.get("chosen") == fields.get("rejected"):
        return SAME_TEXT
    pair = preference_pair(fields)
    return (Answer(pair.messages, pair.chosen),), (Answer(pair.messages, pair.rejected),)


def _slice(fields: Fields, key: str | None) -> str:
    value = None if key is None else fields.get(key)
    if value is None:
        return WHOLE
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(f'"{key}", which names the slice, is {short(value)}; wanted text, a whole number or null')
    return str(value)


def _is_texts(value: object) -> bool:
    """A list of texts (an empty one too): best-of-n. A conversation is a list of turns."""
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    return is_list and all(isinstance(item, str) for item in cast(Sequence[object], value))


def _answers(messages: tuple[Message, ...], fields: Fields, key: str) -> tuple[Answer, ...]:
    """The texts under "chosen" or "rejected" of a best-of-n row."""
    texts = fields.get(key)
    if not _is_texts(texts) or not texts:
        raise DataError(f'"{key}" is {short(texts)}; wanted a list of at least one text, as the other side has')
    return tuple(Answer(messages, text_of({key: text}, key, may_be_empty=True)) for text in cast(Sequence[str], texts))


def _choices(fields: Fields) -> tuple[tuple[Answer, ...], tuple[Answer, ...]] | str:
    """HHH-alignment: {"input": text, "targets": {"choices": [..], "labels": [1, 0]}}; label 1 is right."""
    targets = fields["targets"]
    choices = targets.get("choices") if isinstance(targets, Mapping) else None
    labels = targets.get("labels") if isinstance(targets, Mapping) else None
    if not _is_texts(choices) or not isinstance(labels, Sequence) or len(labels) != len(cast(Sequence[str], choices)):
        raise DataError(f'"targets" is {short(targets)}; wanted {{"choices": [text, ..], "labels": [1 or 0 for each]}}')
    if any(label not in (0, 1) for label in labels):
        raise DataError(f'"labels" is {short(labels)}; wanted 1 for a right choice and 0 for a wrong one')
    messages = (Message("user", text_of(fields, "input")),)
    pairs = [(Answer(messages, text), label) for text, label in zip(cast(Sequence[str], choices), labels, strict=True)]
    sides = tuple(tuple(answer for answer, label in pairs if label == side) for side in (1, 0))
    return (sides[0], sides[1]) if sides[0] and sides[1] else EQUAL


def _rated(fields: Fields) -> tuple[tuple[Answer, ...], tuple[Answer, ...]] | str:
    """Unified-Feedback: two conversations with a rating each; the higher one is right."""
    ratings = [fields.get(f"conv_{side}_rating") for side in "AB"]
    if any(isinstance(rating, bool) or not isinstance(rating, int | float) for rating in ratings):
        raise DataError(f'"conv_A_rating" and "conv_B_rating" are {short(ratings)}; wanted two numbers')
    first, second = cast(Sequence[float], ratings)
    if first == second:
        return EQUAL
    a, b = (_last_answer(f"conv_{side}", fields.get(f"conv_{side}")) for side in "AB")
    return ((a,), (b,)) if first > second else ((b,), (a,))


def _voted(fields: Fields) -> tuple[tuple[Answer, ...], tuple[Answer, ...]] | str:
    """MT-bench judgments: two conversations, the winner, and the turn that was judged (1 or 2; absent: the last one). Each
    side keeps its own earlier turns."""
    winner, turn = fields.get("winner"), fields.get("turn")
    if not isinstance(winner, str) or not (winner in ("model_a", "model_b") or winner.startswith("tie")):
        raise DataError(f'"winner" is {short(winner)}; wanted model_a, model_b or a tie')
    if turn is not None and (isinstance(turn, bool) or not isinstance(turn, int) or turn < 1):
        raise DataError(f'"turn" is {short(turn)}; wanted 1, 2, .. or no "turn" at all')
    if winner.startswith("tie"):
        return EQUAL
    a, b = (_last_answer(f"conversation_{s}", fields.get(f"conversation_{s}"), cast(int | None, turn)) for s in "ab")
    return ((a,), (b,)) if winner == "model_a" else ((b,), (a,))


def _last_answer(key: str, turns: object, turn: int | None = None) -> Answer:
    """The answer that a conversation ends with (at its n-th exchange of user and assistant, where `turn` is given)."""
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise DataError(f'"{key}" is {short(turns)}; wanted a non-empty list of {{"role", "content"}}')
    said = [message_of(key, item) for item in turns]
    ends = [index for index, message in enumerate(said) if message.role == "assistant"]
    if turn is not None and len(ends) < turn:
        raise DataError(f'"{key}" has {len(ends)} turns of the assistant; wanted turn {turn}')
    end = ends[turn - 1] if turn else len(said) - 1
    if said[end].role != "assistant" or end == 0 or said[end - 1].role != "user":
        raise DataError(f'"{key}" must end with a user turn and the assistant\'s answer; got {said[end].role} last')
    return Answer(tuple(said[:end]), said[end].content)


def _named_answers(fields: Fields) -> tuple[tuple[Message, ...], dict[str, str]]:
    if "chosen" in fields:
        pair = preference_pair(fields)
        return pair.messages, {"chosen": pair.chosen, "rejected": pair.rejected}
    if "responses" not in fields:
        return messages_of(fields), {"response": text_of(fields, "response", may_be_empty=True)}
    answers = _answers(messages_of(fields), fields, "responses")
    return messages_of(fields), {f"response {n}": answer.response for n, answer in enumerate(answers, 1)}
