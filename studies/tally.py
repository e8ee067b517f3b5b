"""A runner's tasks, and how long they take: a guess first, and what was measured as soon as a task of its kind has ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from studies.study import Unit

# Seconds on one core that the shared artifacts of the sandbox take; a unit's own guess is its world's.
ARTIFACT_S = {"sft": 80.0, "reward_model": 120.0, "shifted": 80.0, "frozen_run": 120.0}


@dataclass(frozen=True)
class Task:
    """One line for a worker: make an artifact of the unit, or measure it. `needs` are names of tasks that come before."""

    kind: str
    unit: Unit
    name: str
    needs: tuple[str, ...]

    def guess_s(self) -> float:
        """Its length in seconds, before one was measured."""
        if self.kind in ARTIFACT_S:
            return ARTIFACT_S[self.kind]
        return self.unit.study.world.guess_s(self.unit.config)


@dataclass
class Tally:
    """Names of ended tasks; by kind, the seconds that they took and the seconds that were guessed."""

    done: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, tuple[float, float]] = field(default_factory=dict)

    def measured(self, task: Task, seconds: float) -> None:
        """Notes how long a task took."""
        took, guessed = self.seconds.get(task.kind, (0.0, 0.0))
        self.seconds[task.kind] = took + seconds, guessed + task.guess_s()

    def expected_s(self, task: Task) -> float:
        """The guess of a task, corrected by what the others of its kind took."""
        took, guessed = self.seconds.get(task.kind, (1.0, 1.0))
        return task.guess_s() * took / guessed

    def left_s(self, tasks: Sequence[Task]) -> float:
        """How long these take one after the other."""
        return sum(map(self.expected_s, tasks))
