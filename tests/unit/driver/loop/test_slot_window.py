"""driver/loop/slot_window.py: what is admitted and when, and which drops and waits end the run."""

from __future__ import annotations

import pytest

from common.config.file import BASE, load_config
from driver.cluster.calls import RoleError
from driver.loop.slot_window import SlotWindow
from driver.record.loop_state import LoopState
from tests.unit.driver.loop.fake_roles import NotingQueue, OneLearner

SETTINGS = ("aggregation.kind=final_score", "iteration.num=2", "iteration.steps=3", "learner.groups_per_step=4")


def window(queue: NotingQueue, state: LoopState, *settings: str, next_slot: int = 0) -> SlotWindow:
    made = SlotWindow(load_config(BASE, [*SETTINGS, *settings]), state, queue, OneLearner(next_slot))
    made.open()
    return made


def slots(*ends: int) -> list[int]:
    return list(range(*ends))


def test_where_the_parts_take_turns_one_step_is_admitted_at_a_time() -> None:
    queue, state = NotingQueue(), LoopState()
    of_run = window(queue, state, "iteration.max_staleness=0")
    of_run.admit()
    of_run.admit()
    assert queue.admitted == slots(4), "asking again admits nothing twice"
    state.step = 1
    of_run.admit()
    assert queue.admitted == slots(8) and of_run.admitted == 8


def test_with_staleness_the_actors_sample_ahead_up_to_the_iterations_end() -> None:
    queue, state = NotingQueue(), LoopState()
    of_run = window(queue, state, "iteration.max_staleness=1")
    of_run.admit()
    assert queue.admitted == slots(8)
    for state.step in (1, 2, 3):
        of_run.admit()
    assert queue.admitted == slots(12), "the next iteration has prompts and references of its own"
    state.iteration, state.first_slot = 1, 12
    of_run.admit()
    assert queue.admitted == slots(20)


def test_a_dropped_slot_makes_room_for_one_more() -> None:
    queue, state = NotingQueue(), LoopState()
    of_run = window(queue, state, "iteration.max_staleness=0")
    of_run.admit()
    of_run.note_drops({2: "filtered"})
    assert queue.admitted == slots(5) and state.dropped == {2: "filtered"} and of_run.ended == 1
    of_run.note_drops({2: "filtered"})
    assert queue.admitted == slots(5), "a drop that is known makes no room again"
    state.step = 2
    of_run.admit()
    assert queue.admitted == slots(13), "the iteration's end moves up by the drop"


def test_drops_of_an_earlier_iteration_do_not_lengthen_this_one() -> None:
    queue, state = NotingQueue(), LoopState(step=5, iteration=1, first_slot=13, dropped={2: "filtered"})
    window(queue, state, "iteration.max_staleness=1", next_slot=21).admit()
    assert queue.admitted == slots(21, 25)


def test_a_resumed_run_begins_at_the_lowest_slot_that_has_not_ended() -> None:
    queue = NotingQueue()
    of_run = window(queue, LoopState(step=2), "iteration.max_staleness=0", next_slot=8)
    assert (of_run.admitted, of_run.lowest_open()) == (8, 8)
    of_run.admit()
    assert queue.admitted == slots(8, 12)


def test_too_many_drops_end_the_run_with_their_reasons() -> None:
    """A step's worth of drops is always allowed; after that a fifth of what has ended is."""
    early = window(NotingQueue(), LoopState())
    early.note_drops(dict.fromkeys(range(4), "not finite"))
    with pytest.raises(RoleError, match="5 of 5 ended slots were dropped. Reasons: not finite; too long"):
        early.note_drops(dict.fromkeys(range(4), "not finite") | {4: "too long"})
    late = window(NotingQueue(), LoopState(step=5, iteration=1, first_slot=12))
    late.note_drops(dict.fromkeys(range(5), "filtered"))
    with pytest.raises(RoleError, match="6 of 26 ended slots"):
        late.note_drops(dict.fromkeys(range(6), "filtered"))


def test_a_wait_beyond_the_limit_says_where_the_work_lies() -> None:
    of_run = window(NotingQueue(), LoopState(step=1), "cluster.call_timeout_s=30")
    of_run.check_stall(30.0)
    with pytest.raises(RoleError, match=r"step 2 has had no whole batch for 31 s .*call_timeout_s 30.*'work': 3"):
        of_run.check_stall(31.0)


def test_the_summary_counts_what_was_trained_and_what_was_dropped() -> None:
    assert window(NotingQueue(), LoopState(step=3, dropped={1: "filtered"})).summary() == "12 trained, 1 dropped"
