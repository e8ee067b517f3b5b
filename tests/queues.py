"""What tests ask of a queue that no role does."""

from __future__ import annotations

from common.queue.queue import Queue
from common.types import ScoredRecord, SlotDropped

ALL = 1_000_000


def slot_of(record: ScoredRecord) -> int:
    return record.slot if isinstance(record, SlotDropped) else record.group.slot


def scored_slots_after(queue: Queue, cursor: str) -> set[int]:
    """The slots whose scored (or dropped) records stand after the cursor: what a learner that starts there will read."""
    return {slot_of(record) for _, record in queue.read_scored(cursor, ALL, 0)}
