"""The answers of a row in each form, right ones and wrong ones, and why a model that has to tell them apart cannot.

Called by whoever leaves out rows that a model cannot use (rewarder/fitting.py, driver/preflight/rows.py), so that all of them
leave out the same rows and count them alike. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common.data.data import PreferencePair, RatedResponse
from common.data.fields import Answer
from common.data.judged import Judged
from common.data.rows import LeftOut
from common.types import Message

TOO_LONG = LeftOut("longer than rewarder.max_tokens")
SAME_TOKENS = LeftOut("a right and a wrong answer of the same tokens")
Ids = Sequence[int]  # token ids of a prompt and its answer
Sides = tuple[Sequence[Answer], Sequence[Answer]]  # right and wrong answers


def pair_sides(pair: PreferencePair) -> Sides:
    """The chosen and the rejected response."""
    return [Answer(pair.messages, pair.chosen)], [Answer(pair.messages, pair.rejected)]


def rating_sides(row: RatedResponse) -> Sides:
    """The rated response; there is nothing to tell it from."""
    return [Answer(row.messages, row.response)], []


def judged_sides(row: Judged) -> Sides:
    """Every answer of a judged row."""
    return row.right, row.wrong


def named_sides(row: tuple[tuple[Message, ...], Mapping[str, str]]) -> Sides:
    """The answers that are explained; none of them is right or wrong."""
    messages, responses = row
    return [Answer(messages, response) for response in responses.values()], []


def why_unusable(right: Sequence[Ids], wrong: Sequence[Ids], max_tokens: int) -> LeftOut | None:
    """Why a row with these right and wrong answers is left out; None where it is used."""
    if any(len(ids) > max_tokens for ids in (*right, *wrong)):
        return TOO_LONG
    if any(one == other for one in right for other in wrong):
        return SAME_TOKENS
    return None
