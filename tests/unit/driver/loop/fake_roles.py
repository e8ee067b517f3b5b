"""Fake parts of a loop: a queue that notes what it is told, and a learner that answers as told."""

from __future__ import annotations

from collections.abc import Sequence

from common.queue.queue import Queue, SettledLetter
from driver.cluster.doors import Learners
from learner.worker import BatchStatus
from tests.unit.driver.fake_groups import group_of


class NotingQueue(Queue):
    """A queue without a server: `admitted` are its slots in order, `trimmed` the cursors, `forgotten` letters it let go."""

    def __init__(self) -> None:
        self.admitted, self.trimmed, self.in_flight = list[int](), list[str](), set[int]()
        self.letters, self.forgotten = list[SettledLetter](), list[SettledLetter]()

    def admit(self, slots: Sequence[int]) -> int:
        self.admitted += slots
        return len(slots)

    def trim_scored(self, cursor: str) -> int:
        self.trimmed.append(cursor)
        return 0

    def settled_letters(self) -> list[SettledLetter]:
        return self.letters

    def forget_letters(self, letters: Sequence[SettledLetter]) -> None:
        self.forgotten += letters

    def slots_in_flight(self) -> set[int]:
        return self.in_flight

    def depths(self) -> dict[str, int]:
        return {"work": 3, "rollouts": 0, "scored": 1, "dead": 0}


class OneLearner(Learners):
    """One learner, whose lowest slot that has not ended is `next_slot`."""

    def __init__(self, next_slot: int = 0):
        super().__init__(group_of(1))
        self.next_slot = next_slot

    def status(self) -> BatchStatus:
        return BatchStatus(False, self.next_slot, {})
