"""What the queue hands out: work, groups to score, dead letters; and the names that it gives its own calls.

Made by common/queue/queue.py, read by the roles and the driver. Plain records; they wait for nothing.
"""

from __future__ import annotations

import threading
import uuid
from dataclasses import dataclass

from common.types import RolloutGroup


@dataclass(frozen=True, slots=True)
class WorkItem:
    """A slot to roll out; attempt counts the deliveries of this slot at this stage, from 1."""

    entry_id: str
    slot: int
    attempt: int


@dataclass(frozen=True, slots=True)
class RolloutItem:
    """A group to score."""

    entry_id: str
    slot: int
    attempt: int
    group: RolloutGroup


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A slot that ended without being trained, its reason, the stage it died in, and the bytes it died with."""

    entry_id: str
    slot: int
    reason: str
    stage: str
    data: bytes


@dataclass(frozen=True, slots=True)
class SettledLetter:
    """A dead letter whose slot no checkpoint can bring back, without its bytes."""

    entry_id: str
    slot: int
    reason: str
    stage: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a stage's stream that this process was given."""

    entry_id: str
    slot: int
    attempt: int


class Caller(threading.local):
    """A thread's name for its calls, and how many it has made: the server knows a call that comes twice by both."""

    def __init__(self) -> None:
        self.name, self.calls = uuid.uuid4().hex, 0

    def next(self) -> tuple[str, int]:
        """The name, and the number of the next call."""
        self.calls += 1
        return self.name, self.calls
