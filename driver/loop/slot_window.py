"""The slot window says which slots may start, and it ends a run whose slots end badly.

The loop (driver/loop/loop.py) owns the window and asks it while it waits for a batch and after each step. The window waits for
nothing. common/queue/ledger.py defines slots and steps, and the arithmetic of the window.
"""

from __future__ import annotations

from common.config.config import Config
from common.queue.ledger import window_end
from common.queue.queue import Queue
from driver.cluster.calls import RoleError
from driver.cluster.doors import Learners
from driver.record.loop_state import LoopState

MAX_DROPPED_SHARE = 0.2


class SlotWindow:
    """The slots of one run up to `admitted` have been admitted. The state is the loop's own: the loop moves its steps and
    iterations forward, and the window notes the drops in it."""

    def __init__(self, config: Config, state: LoopState, queue: Queue, learners: Learners):
        self._state, self._queue, self._learners = state, queue, learners
        self._steps, self._max_staleness = config.iteration.steps, config.iteration.max_staleness
        self._size, self._limit_s = config.learner.groups_per_step, config.cluster.call_timeout_s
        self.admitted = 0

    def open(self) -> None:
        """Begins at the lowest slot that has not ended, when the learners have their checkpoint."""
        self.admitted = self.lowest_open()

    def lowest_open(self) -> int:
        """Returns the lowest slot that has not ended."""
        return self._learners.status().next_slot

    def admit(self) -> None:
        """Admits what the window and the iteration's end allow; a dropped slot makes room for one more."""
        state, size = self._state, self._size
        assert state.step >= state.iteration * self._steps, "an iteration's steps follow those of the one before"
        dropped = sum(slot >= state.first_slot for slot in state.dropped)
        last = state.first_slot + self._steps * size + dropped
        end = min(window_end(state.step * size, state.dropped, self._max_staleness, size), last)
        if end > self.admitted:
            self._queue.admit(range(self.admitted, end))
            self.admitted = end

    def note_drops(self, dropped: dict[int, str]) -> None:
        """Admits a slot for each new drop, unless there are so many drops that the run must end."""
        if len(dropped) > len(self._state.dropped):
            self._state.dropped = dropped
            self._check_drops()
            self.admit()

    @property
    def ended(self) -> int:
        """How many slots are trained or dropped: each step trains groups_per_step."""
        return self._state.step * self._size + len(self._state.dropped)

    def check_stall(self, waited_s: float) -> None:
        """Raises RoleError where the loop has waited for a batch longer than a call to a role may take."""
        if waited_s > self._limit_s:
            raise RoleError(
                f"step {self._state.step + 1} has had no whole batch for {waited_s:.0f} s (cluster.call_timeout_s "
                f"{self._limit_s:g}); entries in the queue: {self._queue.depths()}. Work waits for actors, rollouts for "
                "rewarders."
            )

    def summary(self) -> str:
        """Tells people how many slots were trained and dropped."""
        dropped = len(self._state.dropped)
        return f"{self.ended - dropped} trained, {dropped} dropped"

    def _check_drops(self) -> None:
        """A role that drops everything would look like picky filtering: too many drops end the run."""
        dropped = self._state.dropped
        allowed = max(self._size, MAX_DROPPED_SHARE * self.ended)
        if len(dropped) > allowed:
            reasons = "; ".join(list(dict.fromkeys(dropped.values()))[:3])
            raise RoleError(f"{len(dropped)} of {self.ended} ended slots were dropped. Reasons: {reasons}")


def slots_per_actor(config: Config) -> int:
    """Slots that an actor holds at once: its share of the window, and no more than twice what fills its engine (the places
    of short responses are free before their group is whole). The share of a step is one closed batch."""
    actors, staleness = config.actors, config.iteration.max_staleness
    share = -(-window_end(0, (), staleness, config.learner.groups_per_step) // actors.num)
    return share if staleness == 0 else min(share, 2 * -(-actors.max_num_seqs // actors.responses_per_prompt))
