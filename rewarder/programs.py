"""Objectives that need no human: programs that rate a response in [0, 1], for `rewarder.programs`.

The reward model learns them like people's ratings, so that one model scores everything and a response is read once. Pure
functions of the text, called by the reward-model stage on every response of the training data.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.types import Message

FREE_WORDS = 20
MOST_WORDS = 80
NGRAM = 3


def brevity(messages: Sequence[Message], response: str) -> float:
    """1 up to FREE_WORDS words, then falling in a straight line to 0 at MOST_WORDS."""
    excess = len(response.split()) - FREE_WORDS
    return min(1.0, max(0.0, 1 - excess / (MOST_WORDS - FREE_WORDS)))


def non_repetition(messages: Sequence[Message], response: str) -> float:
    """Share of distinct ones among the runs of NGRAM words, upper and lower case alike; 1 where there is no such run."""
    words = response.lower().split()
    runs = [tuple(words[start : start + NGRAM]) for start in range(len(words) - NGRAM + 1)]
    return len(set(runs)) / len(runs) if runs else 1.0
