"""How far a long call of a role is: what the driver asks for while it waits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Report = Callable[[str, int, int, dict[str, float]], None]


def silent(what: str, done: int, total: int, values: dict[str, float]) -> None:
    """A Report for calls that nobody watches."""


@dataclass(frozen=True)
class Progress:
    """done of total of what is in hand, with the latest values; an empty name before it has begun."""

    what: str
    done: int
    total: int
    values: dict[str, float]


NOTHING = Progress("", 0, 1, {})


class Watched:
    """A role whose long calls say how far they are."""

    _progress = NOTHING

    def progress(self) -> Progress:
        """How far the call in hand is."""
        return self._progress

    def forget_progress(self) -> None:
        """Forgets the progress of an earlier call."""
        self._progress = NOTHING

    def _report(self, what: str, done: int, total: int, values: dict[str, float]) -> None:
        self._progress = Progress(what, done, total, values)
