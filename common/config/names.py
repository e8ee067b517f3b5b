"""The names in a layer of the configuration, plain data as YAML gives it: which of them exist, and which one was meant.

Called by common/config/file.py.
"""

from __future__ import annotations

import difflib
import functools
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from common.config.aggregation_checks import undoing
from common.config.config import Config
from common.config.fields import keys

Layer = dict[str, Any]


def leaves(layer: Layer, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted name and the value of everything in the layer that is not a known section."""
    for key, value in layer.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name in sections():
            yield from leaves(value, f"{name}.")
        else:
            yield name, value


def unknown(layer: Layer) -> dict[str, str]:
    """One line for each key or section of the layer that does not exist, by its name; it names the nearest one that does."""
    found = {name: value for name, value in leaves(layer) if name not in keys(Config) and name not in sections()}
    return {name: _unknown(name, value) for name, value in found.items()}


def not_sections(layer: Layer) -> list[str]:
    """One line for each section that has a single value."""
    return [
        f"{name} is a section, got a single value; set its keys instead, such as {_first_key(name)}"
        for name, _ in leaves(layer)
        if name in sections()
    ]


def key_of(name: str) -> str | None:
    """The key that `name` is, or is a part of (an item of a list, an entry of a mapping)."""
    return next((key for key in keys(Config) if name == key or name.startswith((f"{key}.", f"{key}["))), None)


def drop(layer: Layer, name: str) -> None:
    """Takes a key or section out of a layer, where it is in it."""
    *path, last = name.split(".")
    for part in path:
        inner = layer.get(part)
        if not isinstance(inner, dict):
            return
        layer = inner
    layer.pop(last, None)


@functools.cache
def sections() -> frozenset[str]:
    """The dotted names of all sections."""
    return frozenset(key[:at] for key in keys(Config) for at, letter in enumerate(key) if letter == ".")


def _first_key(section: str) -> str:
    return next(key for key in keys(Config) if key.startswith(f"{section}."))


def _unknown(name: str, value: Any) -> str:
    if reason := undoing(name):
        return f"there is no key {name}: {reason} (docs/reward.md)"
    kind = "section" if isinstance(value, dict) else "key"
    near = _nearest_section(name) if kind == "section" else _nearest_key(name)
    return f"unknown {kind} {name}; the nearest valid {kind} is {near} (all keys: configs/base.yaml)"


def _nearest_section(name: str) -> str:
    """The section most like `name`, among those inside the same section where there are any."""
    known = sections()
    beside = [section for section in known if section.rpartition(".")[0] == name.rpartition(".")[0]]
    return _closest(name, sorted(beside or known))


def _nearest_key(name: str) -> str:
    """The key most like `name`: of its own section, else one of the same name elsewhere, else any."""
    section, _, last = name.rpartition(".")
    beside = {key.rpartition(".")[2]: key for key in keys(Config) if key.rpartition(".")[0] == section}
    close = difflib.get_close_matches(last, beside, n=1, cutoff=0.6)
    elsewhere = [key for key in keys(Config) if key.rpartition(".")[2] == last]
    return beside[close[0]] if close else (elsewhere or [_closest(name, keys(Config))])[0]


def _closest(name: str, known: Iterable[str]) -> str:
    return difflib.get_close_matches(name, typing.cast(Any, known), n=1, cutoff=0.0)[0]
