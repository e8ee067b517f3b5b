"""What a field of the configuration says about its values: bounds with a unit, choices, and whether it names a path or a model.

common/config/config.py declares its fields with these helpers, as `field(metadata=number(1, 10))`. The checks, the reader of
files and the tests read them back by `keys`, so that a new key is one edit.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

RULE, IS_PATH = "rule", "is_path"
Metadata = dict[str, object]  # of a dataclass field


@dataclass(frozen=True, slots=True)
class Bounds:
    """The numbers that a key takes: from `low` to `high`, without the end itself where it is open. `length` is that of a list;
    `reason` says why a number outside makes no sense."""

    low: float
    high: float
    unit: str
    above: bool
    below: bool
    length: int | None
    reason: str

    def problem(self, value: Any) -> str | None:
        """What is wrong with a number, or with one among a list or the values of a mapping; None where nothing is."""
        entries = _entries(value)
        if self.length not in (None, len(entries)):
            return f"is {value}; it must have {self.length} numbers, each {self.wanted()}"
        wrong = next((where for where, number in entries if not self._holds(number)), None)
        return None if wrong is None else f"{wrong} {self.wanted()}{self.reason and ': '}{self.reason}"

    def wanted(self) -> str:
        """The bounds in words, with their unit."""
        low, high = _shown(self.low), _shown(self.high)
        words = f"between {low} and {high}"
        if self.above or self.below:
            words = f"{'above' if self.above else 'at least'} {low} and {'below' if self.below else 'at most'} {high}"
        return f"{words}{self.unit and ' '}{self.unit}"

    def _holds(self, number: float) -> bool:
        above = number > self.low if self.above else number >= self.low
        return math.isfinite(number) and above and (number < self.high if self.below else number <= self.high)


@dataclass(frozen=True, slots=True)
class Choice:
    """The words that a key takes."""

    words: tuple[str, ...]

    def problem(self, value: str) -> str | None:
        """What is wrong with a word; None where it is one of them."""
        return None if value in self.words else f"is {value!r}; it must be {self.wanted()}"

    def wanted(self) -> str:
        """The choice in words."""
        return f"one of {', '.join(self.words)}"


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the configuration: its dotted name, its type, and what its field says about its values."""

    name: str
    hint: Any
    rule: Bounds | Choice | None
    is_path: bool

    @property
    def nullable(self) -> bool:
        """Whether null is one of its values."""
        return types.NoneType in typing.get_args(self.hint)

    @property
    def is_number(self) -> bool:
        """Whether it holds a number, a list of numbers or a mapping to numbers."""
        inner = {self.hint, *typing.get_args(self.hint)}
        return bool(inner & {int, float})

    def problem(self, value: Any) -> str | None:
        """One line about a value that the key cannot have; None where it can."""
        found = None if self.rule is None or value is None else self.rule.problem(value)
        return found and f"{self.name} {found}{', or null' if self.nullable else ''}"


def number(
    low: float,
    high: float,
    unit: str = "",
    *,
    above: bool = False,
    below: bool = False,
    length: int | None = None,
    reason: str = "",
) -> Metadata:
    """A number, or a list of them or a mapping to them. `above` and `below` leave the low and the high end out."""
    return {RULE: Bounds(low, high, unit, above, below, length, reason)}


def choice(words: Sequence[str]) -> Metadata:
    """One of these words."""
    return {RULE: Choice(tuple(words))}


def path() -> Metadata:
    """A path, or the name of a data set or model that may be one: `~` stands for the home directory. A list of them, or a
    mapping to them, too."""
    return {IS_PATH: True}


@functools.cache
def keys(section: type) -> dict[str, Key]:
    """Every key of a section and of the sections inside it, by dotted name."""
    return {key.name: key for key in _keys(section, "")}


def _keys(section: Any, prefix: str) -> typing.Iterator[Key]:
    hints = typing.get_type_hints(section)
    for one in dataclasses.fields(section):
        name, hint = f"{prefix}{one.name}", hints[one.name]
        if dataclasses.is_dataclass(hint):
            yield from _keys(hint, f"{name}.")
        else:
            yield Key(name, hint, one.metadata.get(RULE), one.metadata.get(IS_PATH, False))


def _entries(value: Any) -> list[tuple[str, float]]:
    """Each number in a value, with the words that say where it stands."""
    if isinstance(value, Mapping):
        return [(f"has {number} for {name!r}; each number must be", number) for name, number in value.items()]
    if isinstance(value, list):
        return [(f"is {value}; each number must be", number) for number in value]
    return [(f"is {value}; it must be", value)]


def _shown(value: float) -> str:
    """A bound as a person writes it: whole numbers without an exponent."""
    return str(int(value)) if value == int(value) else f"{value:g}"
