"""Objectives that need no human: programs that rate a response in [0, 1], for `rewarder.programs`.

The reward model learns them like people's ratings, so that one model scores everything and a response is read once. Pure
functions of the text, called by the reward-model stage on every response of the training data. A program is only of use
where that data has both good and bad: distinct runs of three words, say, are nearly constant in what people were shown.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.types import Message

FREE_WORDS = 20
MOST_WORDS = 80
WINDOW_WORDS = 8


def brevity(messages: Sequence[Message], response: str) -> float:
    """1 up to FREE_WORDS words, then falling in a straight line to 0 at MOST_WORDS."""
    excess = len(response.split()) - FREE_WORDS
    return min(1.0, max(0.0, 1 - excess / (MOST_WORDS - FREE_WORDS)))


def non_repetition(messages: Sequence[Message], response: str) -> float:
    """Share of the words that are not among the WINDOW_WORDS words before them, upper and lower case alike; 1 without a
    word."""
    words = response.lower().split()
    fresh = [word not in words[max(0, place - WINDOW_WORDS) : place] for place, word in enumerate(words)]
    return sum(fresh) / len(fresh) if fresh else 1.0
