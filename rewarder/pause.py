"""Pauses of a thread that works on one thing after the other: between two of them, and at once when the one in hand is done.

Owned by rewarder/worker.py, whose driver asks for a pause to switch reward models. A lock alone would not do: the thread may
take it again before the one that waits for it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Pause:
    """Begins and ends by one thread's word, kept by another."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._asked, self._working = False, False

    def begin(self) -> None:
        """Returns when the work in hand, if any, is done; none begins until `end`."""
        with self._changed:
            self._asked = True
            self._changed.wait_for(lambda: not self._working)

    def end(self) -> None:
        """Lets scoring go on."""
        with self._changed:
            self._asked = False
            self._changed.notify_all()

    def wait(self) -> None:
        """Returns when there is no pause."""
        with self._changed:
            self._changed.wait_for(lambda: not self._asked)

    @contextmanager
    def work(self) -> Iterator[None]:
        """One piece of work; waits first until there is no pause."""
        with self._changed:
            self._changed.wait_for(lambda: not self._asked)
            self._working = True
        try:
            yield
        finally:  # also where the work failed: who waits for it must not wait for ever
            with self._changed:
                self._working = False
                self._changed.notify_all()
