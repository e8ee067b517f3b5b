"""How much of an evaluation set a reward model has seen: rows whose prompt shares 13 words in a row with a training prompt.

Called by driver/evaluate_rm/training.py, which knows the training prompts. Pure. 13-grams are the common rule of
decontamination (Brown et al. 2005.14165, appendix C); a prompt of fewer words must be the same as a whole. Words are runs
of letters and digits in lower case, of the user's turns alone: a system prompt or an answer may well be shared. An
instruction that a data set puts before every prompt counts as well: the number says where to look, and nothing is left out
by it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from common.types import Message

WORDS = 13
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Overlap:
    """rows: set -> rows that share a 13-gram with a training prompt; empty where there is nothing to compare with. training
    says what was compared with, or why nothing was."""

    training: str
    rows: Mapping[str, int]


def overlapping(evaluated: Sequence[Sequence[Message]], training: Iterable[Sequence[Message]]) -> list[bool]:
    """Which of the evaluated prompts share a gram with any training prompt. Memory grows with `evaluated` alone."""
    grams = [grams_of(messages) for messages in evaluated]
    wanted = set().union(*grams)
    found: set[tuple[str, ...]] = set()
    for messages in training:
        found |= wanted & grams_of(messages)
    return [not found.isdisjoint(mine) for mine in grams]


def grams_of(messages: Sequence[Message]) -> set[tuple[str, ...]]:
    """Every 13 words in a row of the user's turns, joined; all words where there are fewer; nothing where there are none."""
    text = " ".join(message.content for message in messages if message.role == "user")
    words = _WORD.findall(text.casefold())
    if len(words) < WORDS:
        return {tuple(words)} if words else set()
    return {tuple(words[start : start + WORDS]) for start in range(len(words) - WORDS + 1)}
