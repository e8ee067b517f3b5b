"""Configuration files: base.yaml, a file with its bases, and key=value overrides, merged, checked and typed.

A file may name a `base:` beside it; later wins: base.yaml, the file's bases, the file, the command line. Every problem is
reported at once, a mistyped key with the nearest valid one. Called by launch.py, and by the preflight of a resumed run.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.config import names
from common.config.checks import contradictions, wrong_values
from common.config.config import Config
from common.config.fields import keys
from common.config.names import Layer
from common.config.texts import hint_at, read_value, read_yaml
from common.files import write_whole

BASE = Path(__file__).resolve().parents[2] / "configs" / "base.yaml"
_EQUALS = re.compile(r"(?<!\\)=")
_LITERAL = re.compile(r"(\\*)(\$\{)")


class ConfigError(ValueError):
    """Everything that is wrong with a configuration, one problem a line."""


@dataclass(frozen=True, slots=True)
class SavedConfig:
    """The resolved configuration of an earlier run: keys that did not exist when it was made (`added`) have their defaults,
    and those that exist no more (`gone`) are left out."""

    config: Config
    added: tuple[str, ...]
    gone: tuple[str, ...]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads base.yaml, the file with its bases, and `key=value` overrides. Raises ConfigError with every problem."""
    layers = [*_with_bases(Path(path), ()), *_parse_overrides(overrides)]
    if problems := [line for layer in layers for line in (*names.not_sections(layer), *names.unknown(layer).values())]:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    config, wrong = _merged(layers)
    wrong |= wrong_values(config)
    if wrong:  # keys that contradict one another are looked for among the others, with defaults in place of these
        config, _ = _merged([_without(layer, wrong) for layer in layers])
    others = [line for line in contradictions(config) if not any(name in line for name in wrong)]
    if problems := [*wrong.values(), *others]:
        raise ConfigError("\n".join(problems))
    return config


def save_config(config: Config, path: Path) -> None:
    """Writes the resolved configuration as YAML, every key present."""
    write_whole(path, OmegaConf.to_yaml(OmegaConf.create(_literal(to_dict(config)))))


def read_saved(path: Path) -> SavedConfig:
    """The resolved configuration that a run left. Raises ConfigError where it cannot be read."""
    layer = _read_layer(path)
    if not layer:
        raise ConfigError(f"{path}: it is empty; restore it, or choose another run.name")
    if problems := names.not_sections(layer):
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))
    gone = tuple(names.unknown(layer))
    layer = _without(layer, gone)
    config, wrong = _merged([layer])
    if wrong:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in wrong.values()))
    there = {name for name, _ in names.leaves(layer)}
    return SavedConfig(config, tuple(name for name in keys(Config) if name not in there), gone)


def to_dict(config: Any) -> dict[str, Any]:
    """The section (any of the dataclasses of common/config/config.py) as plain data: for hashes and environment records."""
    return dataclasses.asdict(config)


def shown(value: Any) -> str:
    """A value as a configuration file has it."""
    return "null" if value is None else str(value)


def differing_keys(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the keys whose values differ between two resolved configurations, as plain data."""
    found: list[str] = []
    for key in sorted({*ours, *theirs}):
        a, b = ours.get(key), theirs.get(key)
        name = f"{prefix}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            found += differing_keys(a, b, f"{name}.")
        elif a != b:
            found.append(name)
    return found


def _merged(layers: Sequence[Layer]) -> tuple[Config, dict[str, str]]:
    """base.yaml with these layers over it, and one line for each key whose value has another type than it; such a key has
    its value of base.yaml."""
    wrong = dict[str, str]()
    while True:
        try:
            merged = OmegaConf.merge(_base(), *(_without(layer, wrong) for layer in layers))
            return _at_home(typing.cast(Config, OmegaConf.to_object(merged))), wrong
        except OmegaConfBaseException as error:
            found = _wrong_types(layers) if not wrong else {}
            if name := names.key_of(error.full_key or ""):  # of an interpolation, which is resolved last
                found.setdefault(name, _wrong_type(name, error))
            if not found.keys() - wrong.keys():
                raise ConfigError(f"{error.full_key or 'configuration'}: {_first_line(error)}") from error
            wrong |= found


def _wrong_types(layers: Sequence[Layer]) -> dict[str, str]:
    """One line for each key whose value has another type than it."""
    found = dict[str, str]()
    for name, value in (leaf for layer in layers for leaf in names.leaves(layer)):
        key = names.key_of(name) or name
        section, _, last = key.rpartition(".")
        try:
            OmegaConf.merge(OmegaConf.structured(hint_at(Config, section)), {last: value})
        except OmegaConfBaseException as error:
            found[key] = _wrong_type(key, error)
    return found


def _wrong_type(name: str, error: Exception) -> str:
    rule = keys(Config)[name].rule
    return f"{name}: {_first_line(error)}{f'; it must be {rule.wanted()}' if rule else ''}"


def _at_home(config: Config) -> Config:
    """The configuration with the home directory in place of `~`, in every key that names a path or a model."""
    for name in (name for name, key in keys(Config).items() if key.is_path):
        config = _replaced(config, name, _expanded(attrgetter(name)(config)))
    return config


def _expanded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: os.path.expanduser(one) for name, one in value.items()}
    return value and os.path.expanduser(value)


def _replaced(section: Any, name: str, value: Any) -> Any:
    """The section with another value at a dotted name."""
    first, _, rest = name.partition(".")
    return dataclasses.replace(
        section, **{first: _replaced(attrgetter(first)(section), rest, value) if rest else value}
    )


def _without(layer: Layer, dropped: typing.Iterable[str]) -> Layer:
    left = copy.deepcopy(layer)
    for name in dropped:
        names.drop(left, name)
    return left


def _with_bases(path: Path, seen: tuple[Path, ...]) -> list[Layer]:
    path = path.resolve()
    if path in seen:
        raise ConfigError(f"{path}: base: refers back to itself through {' -> '.join(p.name for p in seen)}")
    layer = _read_layer(path)
    base = layer.pop("base", None)
    return [*(_with_bases(path.parent / str(base), (*seen, path)) if base else []), layer]


@functools.cache
def _base() -> Any:
    """base.yaml, typed; to be merged with others, never changed."""
    return OmegaConf.merge(OmegaConf.structured(Config), _read_layer(BASE))


def _read_layer(path: Path) -> Layer:
    if not path.is_file():
        raise ConfigError(f"{path}: no such configuration file")
    try:
        loaded = read_yaml(path.read_text(encoding="utf-8"), Config)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: of text that is not UTF-8, or of a number's form
        raise ConfigError(f"{path}: not valid YAML: {_first_line(error)}") from error
    if not isinstance(loaded, dict | None):
        raise ConfigError(f"{path}: a configuration is a mapping of sections, got {type(loaded).__name__}")
    return loaded or {}


def _parse_overrides(overrides: Sequence[str]) -> list[Layer]:
    """One layer for each override. Raises ConfigError with every one that cannot be read."""
    layers, wrong = list[Layer](), list[str]()
    for text in overrides:
        name, *value = _EQUALS.split(text, maxsplit=1)
        if not value:
            wrong.append(f"override {text!r} is not of the form key=value")
            continue
        try:
            layers.append(_nested(name, read_value(value[0], hint_at(Config, name))))
        except (yaml.YAMLError, ValueError) as error:
            wrong.append(f"override {name}: not valid YAML: {_first_line(error)}; got {value[0]!r}")
    if wrong:
        raise ConfigError("\n".join(wrong))
    return layers


def _nested(name: str, value: Any) -> Layer:
    first, _, rest = name.partition(".")
    return {first: _nested(rest, value) if rest else value}


def _literal(value: Any) -> Any:
    """Resolved values as OmegaConf must read them to get them back: what looks like an interpolation or a missing value is
    text."""
    if isinstance(value, dict):
        return {name: _literal(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_literal(one) for one in value]
    return _LITERAL.sub(r"\1\1\\\2", value) if isinstance(value, str) else value


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
