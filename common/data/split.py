"""Which conversations are held out: one rule, so that no stage trains on what another one measures on.

Called by the reward-model stage (learner/reward_model/data.py) and by whoever prepares data for a run. Holds no state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from common.types import Message

PLACES = 2**32
DIGITS = 8  # hexadecimal, of one split


def prompt_key(messages: Sequence[Message]) -> str:
    """A hash of the whole conversation: the same in every process and every run."""
    text = "\x1e".join(f"{message.role}\x1f{message.content}" for message in messages)
    return hashlib.sha256(text.encode()).hexdigest()


def opening_key(messages: Sequence[Message]) -> str:
    """A hash of the opening (up to the first user turn): one for a conversation and its continuation."""
    ends = [index for index, message in enumerate(messages) if message.role == "user"]
    return prompt_key(messages[: ends[0] + 1] if ends else messages)


def is_held_out(messages: Sequence[Message], fraction: float) -> bool:
    """Whether a conversation falls on the held-out side, by a hash of its opening: two that open alike fall on the same side,
    and what a small fraction holds out a larger one does too."""
    return int(opening_key(messages)[:DIGITS], 16) < int(fraction * PLACES)


def is_validation(messages: Sequence[Message], fraction: float) -> bool:
    """A second split like is_held_out and independent of it, by other digits of the hash: which training conversations choose a
    setting that the rest of them are fitted with."""
    return _second(messages) < int(fraction * PLACES)


def validation_part(messages: Sequence[Message], parts: int) -> int:
    """Which of so many parts of the training conversations this one is in, for cross-validation, by the same digits."""
    return _second(messages) * parts // PLACES


def _second(messages: Sequence[Message]) -> int:
    return int(opening_key(messages)[DIGITS : 2 * DIGITS], 16)
