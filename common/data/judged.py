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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from common.data.data import preference_pair
from common.data.fields import SIDES, Answer, answer_of, is_number, messages_of, text_of, turns_of
from common.data.rows import LeftOut, Rows, read_checked
from common.data.sources import DataError, Fields, short
from common.types import Message

EQUAL = LeftOut("no preference between the answers")
SAME_TEXT = LeftOut("a right and a wrong answer of the same text")
Sides = tuple[tuple[Answer, ...], tuple[Answer, ...]]  # right, wrong


@dataclass(frozen=True, slots=True)
class Judged:
    """Answers of which the right ones should score above the wrong ones; a pair has one of each. slice is None for a row that
    names none; row_id is "" without an "id"."""

    right: tuple[Answer, ...]
    wrong: tuple[Answer, ...]
    slice: str | None = None
    row_id: str = ""

    def __post_init__(self) -> None:
        assert self.right and self.wrong, "a judged row needs a right and a wrong answer"

    @property
    def answers(self) -> tuple[Answer, ...]:
        """The right ones first."""
        return (*self.right, *self.wrong)


def read_judged(source: str | Path, slice_key: str | None, limit: int | None = None) -> Rows[Judged]:
    """All rows (or the first `limit`); `slice_key` is the column that names a row's slice. Raises DataError, also where no
    row holds a preference."""
    rows = read_checked(source, functools.partial(_judged, slice_key=slice_key), limit)
    if not rows:
        raise DataError(f"{source}: no row holds a preference ({rows.counts()}); nothing to judge")
    return rows


def read_answers(source: str | Path, limit: int | None = None) -> Rows[tuple[tuple[Message, ...], dict[str, str]]]:
    """(messages, name -> response) of each row: {"prompt", "response"}, {"prompt", "responses": [..]} or a pair. Raises
    DataError."""
    return read_checked(source, _named_answers, limit)


def _judged(fields: Fields, slice_key: str | None) -> Judged | LeftOut:
    """The row, or why it holds no preference."""
    sides = _parser(fields)(fields)
    if isinstance(sides, LeftOut):
        return sides
    right, wrong = sides
    if set(right) & set(wrong):
        return SAME_TEXT
    given = fields.get("id")
    return Judged(right, wrong, _slice(fields, slice_key), "" if given is None else str(given))


def _parser(fields: Fields) -> Callable[[Fields], Sides | LeftOut]:
    """Reads the one format of which a column has a value in this row."""
    found = {name: parse for name, (columns, parse) in FORMATS.items() if any(_is_given(fields, c) for c in columns)}
    if len(found) == 1:
        return next(iter(found.values()))
    if not found:
        raise DataError(f"no column of a known format; got the keys {sorted(fields)} (formats: docs/evaluate_rm.md)")
    raise DataError(f"columns of {len(found)} formats have values, {' and '.join(found)}; keep those of one")


def _is_given(fields: Fields, column: str) -> bool:
    """Whether a column says anything; a record of nulls, which parquet makes where another row has values, says nothing."""
    value = fields.get(column)
    return value is not None and not (isinstance(value, Mapping) and all(part is None for part in value.values()))


def _slice(fields: Fields, key: str | None) -> str | None:
    value = None if key is None else fields.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(f'"{key}", which names the slice, is {short(value)}; wanted text, a whole number or null')
    return str(value)


def _paired(fields: Fields) -> Sides | LeftOut:
    """data.preferences, RewardBench: one answer a side, or a list of texts a side (best of n)."""
    if any(_is_texts(fields.get(side)) for side in SIDES):
        messages = messages_of(fields)
        return _answers(messages, fields, "chosen"), _answers(messages, fields, "rejected")
    if fields.get("chosen") is not None and fields.get("chosen") == fields.get("rejected"):
        return SAME_TEXT
    pair = preference_pair(fields)
    return (Answer(pair.messages, pair.chosen),), (Answer(pair.messages, pair.rejected),)


def _is_texts(value: object) -> bool:
    """A list of texts (an empty one too): best-of-n. A conversation is a list of turns."""
    return _is_turns(value) and all(isinstance(item, str) for item in cast(Sequence[object], value))


def _is_turns(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _answers(messages: tuple[Message, ...], fields: Fields, key: str) -> tuple[Answer, ...]:
    """The texts under "chosen" or "rejected" of a best-of-n row."""
    texts = fields.get(key)
    if not _is_texts(texts) or not texts:
        raise DataError(f'"{key}" is {short(texts)}; wanted a list of at least one text, as the other side has')
    return tuple(Answer(messages, text_of({key: text}, key, may_be_empty=True)) for text in cast(Sequence[str], texts))


def _choices(fields: Fields) -> Sides | LeftOut:
    """HHH-alignment: {"input": text, "targets": {"choices": [..], "labels": [1, 0]}}; label 1 is right."""
    targets = fields.get("targets")
    choices = targets.get("choices") if isinstance(targets, Mapping) else None
    labels = targets.get("labels") if isinstance(targets, Mapping) else None
    if not _is_texts(choices) or not isinstance(labels, Sequence) or len(labels) != len(cast(Sequence[str], choices)):
        raise DataError(f'"targets" is {short(targets)}; wanted {{"choices": [text, ..], "labels": [1 or 0 for each]}}')
    if any(label not in (0, 1) for label in labels):
        raise DataError(f'"labels" is {short(labels)}; wanted 1 for a right choice and 0 for a wrong one')
    asked = fields.get("input")
    messages = messages_of({"prompt": asked if _is_turns(asked) else text_of(fields, "input")})
    pairs = [(Answer(messages, text), label) for text, label in zip(cast(Sequence[str], choices), labels, strict=True)]
    sides = tuple(tuple(answer for answer, label in pairs if label == side) for side in (1, 0))
    return (sides[0], sides[1]) if sides[0] and sides[1] else EQUAL


def _rated(fields: Fields) -> Sides | LeftOut:
    """Unified-Feedback: two conversations with a rating each; the higher one is right."""
    ratings = [fields.get(f"conv_{side}_rating") for side in "AB"]
    if not all(is_number(rating) for rating in ratings):
        raise DataError(f'"conv_A_rating" and "conv_B_rating" are {short(ratings)}; wanted two numbers that are finite')
    first, second = cast(Sequence[float], ratings)
    if first == second:
        return EQUAL
    a, b = (_last_answer(f"conv_{side}", fields.get(f"conv_{side}")) for side in "AB")
    return ((a,), (b,)) if first > second else ((b,), (a,))


def _voted(fields: Fields) -> Sides | LeftOut:
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
    said = turns_of(key, turns)
    ends = [index for index, message in enumerate(said) if message.role == "assistant"]
    if turn is not None and len(ends) < turn:
        raise DataError(f'"{key}" has {len(ends)} turns of the assistant; wanted turn {turn}')
    end = ends[turn - 1] if turn else len(said) - 1
    if said[end].role != "assistant" or end == 0 or said[end - 1].role != "user":
        raise DataError(f'"{key}" must end with a user turn and the assistant\'s answer; got {said[end].role} last')
    return Answer(tuple(said[:end]), said[end].content)


def _named_answers(fields: Fields) -> tuple[tuple[Message, ...], dict[str, str]]:
    given = [kind for kind in ("chosen", "responses", "response") if kind in fields]
    if len(given) > 1:
        raise DataError(f'a row has {" and ".join(map(repr, given))}; wanted one of "response", "responses", or a pair')
    if given == ["chosen"]:
        pair = preference_pair(fields)
        return pair.messages, {"chosen": pair.chosen, "rejected": pair.rejected}
    if given == ["responses"]:
        answers = _answers(messages_of(fields), fields, "responses")
        return answers[0].messages, {f"response {n}": answer.response for n, answer in enumerate(answers, 1)}
    answer = answer_of(fields, "response")
    return answer.messages, {"response": answer.response}


# name: (the columns that only it has, its parser)
FORMATS: dict[str, tuple[tuple[str, ...], Callable[[Fields], Sides | LeftOut]]] = {
    "pairs": (SIDES, _paired),
    "HHH-alignment": (("targets",), _choices),
    "Unified-Feedback": (("conv_A", "conv_B"), _rated),
    "MT-bench": (("conversation_a", "conversation_b"), _voted),
}
