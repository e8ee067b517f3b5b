"""The ledger: what became of every slot, and which slots make the next batch.

Owns the accounting law (every slot ends once: trained at a step, or dropped with a reason) and the cursor rule; used by
the learner, which keeps the ledger in its checkpoint, and by the driver's audit. Pure Python, waits for nothing.

Batches are the surviving slots in slot order, so they depend on what the slots became and never on when they arrived.
The cursor rule: a checkpoint's cursor stands before every record of a slot that has not ended. It is the cursor read
just before the earliest record that is buffered and untrained, else the last one read. After a restore, records past it
are read again, and those of ended slots are recognised and skipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from common.types import ScoredGroup, ScoredRecord, SlotDropped

START = "0-0"


class LedgerError(ValueError):
    """A ledger that contradicts itself, or a change that would end a slot twice."""


def window_end(trained: int, dropped: Iterable[int], max_staleness: int, groups_per_step: int) -> int:
    """Slots n < window_end may start when `trained` slots were trained and published and the slots `dropped` were dropped:
    those with fewer than trained + (max_staleness + 1) * groups_per_step surviving slots before them. A drop makes room
    above itself only: after a resume the scored stream may hold drops of slots far ahead."""
    end = trained + (max_staleness + 1) * groups_per_step
    for slot in sorted(dropped):
        if slot >= end:
            break
        end += 1
    return end


class Ledger:
    """trained: slot -> step; dropped: slot -> reason; cursor: where a reader resumes; next_slot: lowest not ended."""

    def __init__(self) -> None:
        self.cursor = START
        self.trained: dict[int, int] = {}
        self.dropped: dict[int, str] = {}
        self.next_slot = 0

    @property
    def ended(self) -> int:
        """How many slots are trained or dropped."""
        return len(self.trained) + len(self.dropped)

    def has_ended(self, slot: int) -> bool:
        """Whether a slot was trained or dropped."""
        return slot < self.next_slot or slot in self.dropped or slot in self.trained

    def train(self, slot: int, step: int) -> None:
        """Ends the slot as trained at `step`. Raises LedgerError if it had ended."""
        self._refuse_second_end(slot)
        self.trained[slot] = step
        self._advance()

    def drop(self, slot: int, reason: str) -> None:
        """Ends the slot as dropped. Raises LedgerError if it had ended."""
        self._refuse_second_end(slot)
        self.dropped[slot] = reason
        self._advance()

    def write_off(self, slots: Iterable[int], step: int, reason: str) -> None:
        """Makes slots that were trained at `step` dropped ones: the step did not come about. Raises LedgerError for others."""
        for slot in slots:
            if self.trained.get(slot) != step:
                raise LedgerError(
                    f"slot {slot} was not trained at step {step}; only what a step took can be written off"
                )
            del self.trained[slot]
            self.dropped[slot] = reason

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe and compact: trained as [step, first, last] ranges, dropped as [slot, reason] pairs."""
        return {
            "cursor": self.cursor,
            "trained": [list(run) for run in _runs(self.trained)],
            "dropped": [[slot, self.dropped[slot]] for slot in sorted(self.dropped)],
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Ledger:
        """The ledger that to_dict gave. Raises LedgerError where a slot ends twice."""
        ledger = cls()
        ledger.cursor = str(saved["cursor"])
        for step, first, last in saved["trained"]:
            for slot in range(first, last + 1):
                ledger.train(slot, step)
        for slot, reason in saved["dropped"]:
            ledger.drop(slot, reason)
        return ledger

    def audit(self, admitted: int, in_flight: Iterable[int]) -> list[str]:
        """Every way in which the slots 0..admitted-1 are not each in exactly one state; [] when the law holds."""
        flying, every = set(in_flight), range(admitted)
        ended = self.trained.keys() | self.dropped.keys()
        known = flying | ended
        problems = (
            _problem("both trained and dropped", self.trained.keys() & self.dropped.keys()),
            _problem("ended and still in flight", flying & ended),
            _problem("lost (in no state)", (slot for slot in every if slot not in known)),
            _problem(f"known, but only {admitted} were admitted", (slot for slot in known if slot not in every)),
            _problem("trained after a higher slot was", _out_of_order(self.trained)),
        )
        return [problem for problem in problems if problem]

    def _refuse_second_end(self, slot: int) -> None:
        if slot in self.trained:
            raise LedgerError(f"slot {slot} was trained at step {self.trained[slot]}; a slot ends once")
        if slot in self.dropped:
            raise LedgerError(f"slot {slot} was dropped ({self.dropped[slot]}); a slot ends once")

    def _advance(self) -> None:
        while self.next_slot in self.trained or self.next_slot in self.dropped:
            self.next_slot += 1


class BatchAssembler:
    """Turns the scored stream into batches. Start reading at `read_cursor`, offer every record, take when ready.

    The ledger's cursor obeys the cursor rule after every call, so the ledger may be saved at any moment between two.
    """

    def __init__(self, ledger: Ledger, groups_per_step: int) -> None:
        if groups_per_step < 1:
            raise ValueError(f"groups_per_step is {groups_per_step}, wanted at least 1")
        self.ledger = ledger
        self.read_cursor = ledger.cursor
        self._groups_per_step = groups_per_step
        self._buffered: dict[int, tuple[str, ScoredGroup]] = {}  # slot -> (cursor before it, group), as they arrived

    def offer(self, cursor: str, record: ScoredRecord) -> bool:
        """Takes in the record at `cursor`; False if its slot had ended or is buffered already (a redelivery)."""
        before, self.read_cursor = self.read_cursor, cursor
        slot = record.slot if isinstance(record, SlotDropped) else record.group.slot
        is_new = not self.ledger.has_ended(slot) and slot not in self._buffered
        if is_new and isinstance(record, SlotDropped):
            self.ledger.drop(slot, record.reason)
        elif is_new and isinstance(record, ScoredGroup):
            self._buffered[slot] = (before, record)
        self.ledger.cursor = self.safe_cursor()
        return is_new

    def ready(self) -> bool:
        """Whether the next groups_per_step surviving slots, in slot order, are all here."""
        return len(self._next_slots()) == self._groups_per_step

    def take(self, step: int) -> list[ScoredGroup]:
        """The next batch in slot order, marked as trained at `step`. Raises LedgerError if it is not ready."""
        slots = self._next_slots()
        if len(slots) < self._groups_per_step:
            raise LedgerError(f"step {step} has {len(slots)} groups of {self._groups_per_step}; wait until ready()")
        groups = [self._buffered.pop(slot)[1] for slot in slots]
        for slot in slots:
            self.ledger.train(slot, step)
        self.ledger.cursor = self.safe_cursor()
        return groups

    def safe_cursor(self) -> str:
        """The cursor a checkpoint may store (the cursor rule above)."""
        for before, _ in self._buffered.values():
            return before
        return self.read_cursor

    def _next_slots(self) -> list[int]:
        slots, slot = [], self.ledger.next_slot
        while len(slots) < self._groups_per_step and (slot in self._buffered or slot in self.ledger.dropped):
            if slot in self._buffered:
                slots.append(slot)
            slot += 1
        return slots


def _runs(trained: dict[int, int]) -> Iterator[tuple[int, int, int]]:
    """(step, first, last) for each stretch of consecutive slots trained at one step."""
    run: tuple[int, int, int] | None = None
    for slot in sorted(trained):
        if run is not None and trained[slot] == run[0] and slot == run[2] + 1:
            run = (run[0], run[1], slot)
            continue
        if run is not None:
            yield run
        run = (trained[slot], slot, slot)
    if run is not None:
        yield run


def _out_of_order(trained: dict[int, int]) -> Iterator[int]:
    highest = -1
    for slot in sorted(trained):
        if trained[slot] < highest:
            yield slot
        highest = max(highest, trained[slot])


def _problem(what: str, slots: Iterable[int]) -> str:
    found = sorted(slots)
    return f"{len(found)} slots are {what}: {found[:10]}{'...' if len(found) > 10 else ''}" if found else ""
