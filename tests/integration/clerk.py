"""A role for tests of calls, in a file of its own, which a Ray process imports in no time."""

from __future__ import annotations

import os
import time


class Clerk:
    """A role that answers, sleeps, fails and dies as it is asked to."""

    def __init__(self, name: str):
        self._name = name

    def answer(self, text: str, times: int = 1) -> str:
        return f"{self._name}: {text * times}"

    def total(self, values: list[int]) -> int:
        return sum(values)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def fail(self) -> None:
        raise ValueError("line one\nthe reason.")

    def die(self) -> None:
        os._exit(1)
