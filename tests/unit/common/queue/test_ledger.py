"""The accounting law, the window law and the cursor rule, under any order of arrival and any cut."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.queue.ledger import BatchAssembler, Ledger, LedgerError, window_end
from common.types import Prompt, Reward, Rollout, RolloutGroup, ScoredGroup, ScoredRecord, SlotDropped
from tests.queues import slot_of


def scored(slot: int, version: int = 0) -> ScoredGroup:
    one = np.ones(1, np.float32)
    ids = np.ones(1, np.int32)
    group = RolloutGroup(slot, Prompt("p", (), ids, {}), (Rollout("r", ids, one, "stop", ((0, version),)),))
    return ScoredGroup(group, (Reward(one, one, one, one, 0.0),), 0, "anchor")


@st.composite
def streams(draw: st.DrawFn) -> list[ScoredRecord]:
    """Each slot once, some dropped, in any order, with redeliveries."""
    num = draw(st.integers(1, 24))
    dropped = draw(st.sets(st.integers(0, num - 1)))
    order = draw(st.permutations(range(num)))
    repeats = draw(st.lists(st.integers(0, num - 1), max_size=5))
    return [SlotDropped(slot, "why") if slot in dropped else scored(slot) for slot in [*order, *repeats]]


def expected(stream: list[ScoredRecord], size: int) -> list[list[int]]:
    alive = sorted({record.group.slot for record in stream if isinstance(record, ScoredGroup)})
    return [alive[at : at + size] for at in range(0, len(alive) - size + 1, size)]


def drain(assembler: BatchAssembler, first_step: int) -> list[list[int]]:
    batches = []
    while assembler.ready():
        groups = assembler.take(first_step + len(batches))
        batches.append([group.group.slot for group in groups])
    return batches


def test_window_end_by_hand() -> None:
    assert window_end(0, (), 0, 8) == 8
    assert window_end(8, (1, 2, 5, 9, 10), 1, 8) == 29
    assert window_end(8, (0, 25, 24, 40), 1, 8) == 27  # 40 is beyond: it makes no room yet


@given(streams(), st.integers(1, 5))
def test_any_arrival_order_gives_the_same_batches(stream: list[ScoredRecord], size: int) -> None:
    assembler = BatchAssembler(Ledger(), size)
    batches: list[list[int]] = []
    for at, record in enumerate(stream):
        assembler.offer(f"{at + 1}-0", record)
        batches += drain(assembler, len(batches))
    assert batches == expected(stream, size)
    ledger = assembler.ledger
    unread = stream[
        int(ledger.cursor.partition("-")[0]) :
    ]  # what is not yet trained stands after the cursor: in flight
    in_flight = {slot_of(record) for record in unread if not ledger.has_ended(slot_of(record))}
    assert ledger.audit(len({slot_of(record) for record in stream}), in_flight) == []


@given(streams(), st.integers(1, 5), st.data())
@settings(max_examples=200)
def test_a_restore_at_any_point_gives_the_same_batches(
    stream: list[ScoredRecord], size: int, data: st.DataObject
) -> None:
    """Cut anywhere, between any two calls; go on from the JSON with what stands after the saved cursor."""
    calls = data.draw(st.integers(0, len(stream)))
    take_before_cut = data.draw(st.booleans())
    assembler, done = BatchAssembler(Ledger(), size), []
    for at in range(calls):
        assembler.offer(f"{at + 1}-0", stream[at])
        if at + 1 < calls or take_before_cut:
            done += drain(assembler, len(done))
    restored = BatchAssembler(Ledger.from_dict(json.loads(json.dumps(assembler.ledger.to_dict()))), size)
    start = int(restored.read_cursor.split("-")[0])
    for at in range(start, len(stream)):
        restored.offer(f"{at + 1}-0", stream[at])
        done += drain(restored, len(done))
    assert done == expected(stream, size)


@given(st.integers(0, 3), st.integers(1, 4), st.data())
def test_the_window_bounds_staleness(max_staleness: int, size: int, data: st.DataObject) -> None:
    """Slots start at the version of the moment the window lets them; each is trained at most max_staleness later."""
    assembler = BatchAssembler(Ledger(), size)
    started: dict[int, int] = {}
    flying: list[int] = []
    version = 0
    for cursor in range(60):
        end = window_end(len(assembler.ledger.trained), assembler.ledger.dropped, max_staleness, size)
        fresh = [slot for slot in range(end) if slot not in started]
        started |= dict.fromkeys(fresh, version)
        flying += fresh
        assert flying, "the window must never starve the learner"
        slot = flying.pop(data.draw(st.integers(0, len(flying) - 1)))
        is_dropped = data.draw(st.booleans())
        assembler.offer(f"{cursor + 1}-0", SlotDropped(slot, "why") if is_dropped else scored(slot))
        while assembler.ready():
            for group in assembler.take(version):
                assert version - started[group.group.slot] <= max_staleness
            version += 1


class Run:
    """Driver, actors and learner as the window sees them: a slot's oldest token is of the version at its first token, any
    later version may come in while it grows, and the scored stream outlives a kill."""

    def __init__(self, max_staleness: int, size: int):
        self.bound, self.size, self.stream = max_staleness, size, list[ScoredRecord]()
        self.saved: tuple[int, dict[str, Any]] = (0, Ledger().to_dict())
        self.resume()

    def resume(self) -> None:
        """From the last checkpoint; what was not scored yet is forgotten and admitted again."""
        self.version, ledger = self.saved
        self.assembler = BatchAssembler(Ledger.from_dict(json.loads(json.dumps(ledger))), self.size)
        self.flying: dict[int, int | None] = {}
        self.count()
        self.admit()

    def count(self) -> None:
        """What the driver knows of the ledger when it admits."""
        ledger = self.assembler.ledger
        self.counted = len(ledger.trained), set(ledger.dropped)

    def admit(self) -> None:
        known = {r.slot if isinstance(r, SlotDropped) else r.group.slot for r in self.stream} | self.flying.keys()
        end = window_end(*self.counted, self.bound, self.size)
        self.flying |= dict.fromkeys([n for n in range(self.assembler.ledger.next_slot, end) if n not in known])

    def sample(self, slot: int) -> None:
        if self.flying[slot] is None:
            self.flying[slot] = self.version

    def finish(self, slot: int, is_dropped: bool) -> None:
        self.sample(slot)
        oldest = self.flying.pop(slot)
        assert oldest is not None
        self.stream.append(SlotDropped(slot, "why") if is_dropped else scored(slot, oldest))

    def learn(self) -> None:
        """Collects; admits for what was dropped; trains, publishes and admits if a batch is ready."""
        for at in range(int(self.assembler.read_cursor.split("-")[0]), len(self.stream)):
            self.assembler.offer(f"{at + 1}-0", self.stream[at])
        if self.assembler.ready():
            for group in self.assembler.take(self.version + 1):
                staleness = self.version - group.group.rollouts[0].oldest_version
                assert 0 <= staleness <= self.bound, f"slot {group.group.slot} is {staleness} steps old"
            self.version += 1
        self.count()
        self.admit()


EVENTS = ["sample", "finish", "finish", "drop", "learn", "learn", "save", "kill"]


def happen(run: Run, event: str, data: st.DataObject) -> None:
    """One event of a run; what needs a slot in flight does nothing without one."""
    flying = sorted(run.flying)
    if event == "sample" and flying:
        run.sample(data.draw(st.sampled_from(flying)))
    elif event in ("finish", "drop") and flying:
        run.finish(data.draw(st.sampled_from(flying)), event == "drop")
    elif event == "learn":
        run.learn()
    elif event == "save":
        run.saved = (run.version, run.assembler.ledger.to_dict())
    elif event == "kill":
        run.resume()


@given(st.integers(0, 8), st.integers(1, 4), st.data())
@settings(max_examples=600)
def test_weights_updated_in_flight_and_kills_do_not_break_the_bound(
    max_staleness: int, size: int, data: st.DataObject
) -> None:
    run = Run(max_staleness, size)
    for _ in range(data.draw(st.integers(0, 80))):
        happen(run, data.draw(st.sampled_from(EVENTS)), data)
    for _ in range(200):  # the window never starves the learner: whatever happened, the run goes on
        before = run.version
        for slot in sorted(run.flying):
            run.finish(slot, is_dropped=False)
        run.learn()
        if run.version > before:
            return
    raise AssertionError("no further step was possible")


def test_the_cursor_stands_before_the_earliest_untrained_record() -> None:
    assembler = BatchAssembler(Ledger(), 2)
    for at, slot in enumerate([0, 3, 1, 2]):
        assembler.offer(f"{at + 1}-0", scored(slot))
    assert assembler.ledger.cursor == "0-0"
    assembler.take(0)  # slots 0 and 1; slot 3, read second, still waits
    assert assembler.ledger.cursor == assembler.safe_cursor() == "1-0"
    assembler.take(1)
    assert assembler.ledger.cursor == assembler.read_cursor == "4-0"


def test_redelivery_is_recognised() -> None:
    assembler = BatchAssembler(Ledger(), 1)
    assert assembler.offer("1-0", scored(0))
    assert not assembler.offer("2-0", scored(0))
    assembler.take(0)
    assert not assembler.offer("3-0", scored(0))
    assert not assembler.offer("4-0", SlotDropped(0, "late"))
    assert assembler.ledger.trained == {0: 0}
    assert assembler.ledger.dropped == {}


def test_taking_too_early_is_an_error() -> None:
    assembler = BatchAssembler(Ledger(), 2)
    assembler.offer("1-0", scored(1))
    assert not assembler.ready()
    with pytest.raises(LedgerError, match="step 4 has 0 groups of 2"):
        assembler.take(4)


def test_a_slot_ends_once() -> None:
    ledger = Ledger()
    ledger.train(0, 5)
    with pytest.raises(LedgerError, match="slot 0 was trained at step 5"):
        ledger.drop(0, "why")
    ledger.drop(1, "poison")
    with pytest.raises(LedgerError, match=r"slot 1 was dropped \(poison\)"):
        ledger.train(1, 6)
    assert (ledger.ended, ledger.next_slot) == (2, 2)


def test_the_audit_names_every_violation() -> None:
    ledger = Ledger()
    for slot, step in ((0, 0), (1, 2), (2, 1)):
        ledger.train(slot, step)
    ledger.drop(4, "why")
    assert ledger.audit(6, {3, 5})[0].endswith("[2]")
    problems = "; ".join(ledger.audit(5, {0, 7}))
    for part in ("still in flight: [0]", "lost (in no state): [3]", "only 5 were admitted: [7]"):
        assert part in problems


def test_the_saved_form_is_compact() -> None:
    ledger = Ledger()
    for slot in range(10_000):
        ledger.train(slot, slot // 100)
    assert len(json.dumps(ledger.to_dict())) < 3_000
    assert Ledger.from_dict(ledger.to_dict()).trained == ledger.trained


def test_what_a_step_took_can_be_written_off_and_nothing_else() -> None:
    ledger = Ledger()
    for slot in range(4):
        ledger.train(slot, 1)
    ledger.write_off([0, 2], 1, "not a number")
    assert ledger.trained == {1: 1, 3: 1} and ledger.dropped == {0: "not a number", 2: "not a number"}
    assert ledger.audit(4, ()) == [] and ledger.next_slot == 4
    assert Ledger.from_dict(ledger.to_dict()).dropped == ledger.dropped
    for slot, step in ((0, 1), (1, 2), (9, 1)):
        with pytest.raises(LedgerError, match="was not trained at step"):
            ledger.write_off([slot], step, "why")
