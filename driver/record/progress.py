"""What a person sees while a run works: one line per event, with counts, values and the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import NoReturn, TextIO

EVERY_S = 5.0


def say(text: str, to: TextIO | None = None) -> None:
    """Prints a line at once, on stdout where no other place is given."""
    print(text, flush=True, file=to)


class Progress:
    """Prints how far something is, at most once in EVERY_S seconds and when it is done."""

    def __init__(self, what: str, total: int, unit: str, to: TextIO | None = None):
        self._what, self._total, self._unit, self._to = what, total, unit, to
        self._done, self._started, self._printed = 0, time.monotonic(), time.monotonic()

    def advance(self, count: int, values: Mapping[str, float] | None = None) -> None:
        """Counts `count` more units as done, and shows the values beside them."""
        self.reach(self._done + count, values)

    def reach(self, done: int, values: Mapping[str, float] | None = None) -> None:
        """Says that `done` of the total are done."""
        repeated, self._done = self._done >= self._total, done
        if repeated:
            return
        now = time.monotonic()
        if done < self._total and now - self._printed < EVERY_S:
            return
        self._printed = now
        elapsed = now - self._started
        left = (
            f"{elapsed:.0f} s" if done >= self._total else f"{elapsed / max(done, 1) * (self._total - done):.0f} s left"
        )
        shown = "".join(f"  {name} {value:.4g}" for name, value in (values or {}).items())
        say(f"  {self._what}: {done}/{self._total} {self._unit}, {left}{shown}", self._to)


class StepClock:
    """How long the parts of a step took, one after the other from its start, in seconds."""

    def __init__(self) -> None:
        self._started = self._last = time.monotonic()
        self.parts: dict[str, float] = {}

    def ends(self, part: str) -> None:
        """Ends a part, which began where the part before it ended."""
        now = time.monotonic()
        self.parts[part], self._last = now - self._last, now

    @property
    def total(self) -> float:
        """Up to the end of the last part."""
        return self._last - self._started


def fail(problems: str, code: int = 2) -> NoReturn:
    """Prints errors to stderr and ends the process."""
    print(problems, file=sys.stderr, flush=True)
    raise SystemExit(code)
