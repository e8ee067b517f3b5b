"""Labels for training: what a careful rater says of the policy's samples, and the programs that rate every response.

`label` is what configs/smollm.yaml names (`judge.labeler`). It says of each response which families it meets, asked for or not,
so that every head learns from every response; and it compares two responses to a prompt by what the prompt asks for, from which
the gate learns what that is. The reward model learns from these; it never sees the
checks themselves. Holds no torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from common.judge import JudgeItem, Labels
from common.types import Message
from examples.smollm.constraints import FAMILIES, Constraint, from_text, met, words

ALL = tuple(Constraint(name, family.values[0]) for name, family in FAMILIES.items())
LEAST_DIFFERENCE = 0.05  # in worth; two answers that are closer are no pair
LANGUAGE_WEIGHT, BREVITY_WEIGHT = 0.2, 0.1
WINDOW_WORDS = 12
ENDS = (".", "!", "?", '"', "\u201d", "}", ":", ")")
FREE_WORDS, MOST_WORDS = 12, 48
VOWELS = frozenset("aeiouy")


def label(items: list[JudgeItem], seed: int) -> Labels:
    """Ratings of each sample of a prompt (1 where it meets a family's constraint, else 0), and a pair for each two samples of
    different worth. Nothing is random: `seed` is not used."""
    ratings: list[dict[str, float | None]] = [
        {family: float(holds) for family, holds in met(ALL, item.response).items()} for item in items
    ]
    values = [worth(item) for item in items]
    pairs = [
        (i, j) if values[i] > values[j] else (j, i)
        for i, j in itertools.combinations(range(len(items)), 2)
        if abs(values[i] - values[j]) > LEAST_DIFFERENCE
    ]
    return Labels(ratings, pairs)


def constraints(item: JudgeItem) -> tuple[Constraint, ...]:
    """What the prompt of an item asks for. Raises ValueError for a prompt that was not made by examples/smollm."""
    if "constraints" not in item.meta:
        raise ValueError('the prompt has no "constraints" in its meta; want prompts that examples.smollm wrote')
    return from_text(item.meta["constraints"])


def worth(item: JudgeItem) -> float:
    """The share of the constraints that a response meets, and a little for its language and its brevity."""
    kept = met(constraints(item), item.response)
    style = LANGUAGE_WEIGHT * language(item.messages, item.response) + BREVITY_WEIGHT * brevity(
        item.messages, item.response
    )
    return sum(kept.values()) / len(kept) + style


def language(messages: Sequence[Message], response: str) -> float:
    """How well formed a text is, in [0, 1]: the mean of the share of words that are no repetition of one of the WINDOW_WORDS
    before them, the share of words that can be spoken, and whether the text comes to an end."""
    found = words(response)
    if not found:
        return 0.0
    fresh = sum(
        word not in found[max(0, place - WINDOW_WORDS) : place] or len(word) < 4 for place, word in enumerate(found)
    )
    spoken = sum(word.isnumeric() or bool(VOWELS & set(word)) for word in found)
    return (fresh / len(found) + spoken / len(found) + response.rstrip().endswith(ENDS)) / 3


def brevity(messages: Sequence[Message], response: str) -> float:
    """1 up to FREE_WORDS words, then falling in a straight line to 0 at MOST_WORDS."""
    excess = len(words(response)) - FREE_WORDS
    return min(1.0, max(0.0, 1 - excess / (MOST_WORDS - FREE_WORDS)))
