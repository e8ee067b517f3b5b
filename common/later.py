"""A value that a call after __init__ brings: declared with its type where the object is made, and missed with the call's
name. For a Ray actor, whose models and connections come by later calls of the driver."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class Later(Generic[T]):
    """Holds a value once `set` was called; `call` names the method that calls it."""

    def __init__(self, call: str):
        self._call = call
        self._values: list[T] = []

    def set(self, value: T) -> None:
        """Takes the value, in place of an earlier one."""
        self._values = [value]

    @property
    def value(self) -> T:
        """The value. Asking before the call that brings it is a fault of ours."""
        assert self._values, f"{self._call} has not been called, and what it brings is asked for"
        return self._values[0]
