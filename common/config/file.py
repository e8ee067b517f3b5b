"""Configuration files: base.yaml, a file with its bases, and key=value overrides, merged, checked and typed.

A file may name a `base:` beside it; later wins: base.yaml, the file's bases, the file, the command line. Every problem is
reported at once, a mistyped key with the nearest valid one. The only importer of omegaconf; called by launch.py.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.config.aggregation_checks import undoing
from common.config.checks import wrong_values
from common.config.config import Config

BASE = Path(__file__).resolve().parents[2] / "configs" / "base.yaml"


class ConfigError(ValueError):
    """Everything that is wrong with a configuration, one problem a line."""


def load_config(path: str | Path, overrides: typing.Sequence[str] = ()) -> Config:
    """Reads base.yaml, the file with its bases, and `key=value` overrides. Raises ConfigError with every problem."""
    layers = [_read_yaml(BASE), *_with_bases(Path(path), ()), _parse_overrides(overrides)]
    problems = [problem for layer in layers for problem in unknown_keys(layer)]
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), *layers)
        config = typing.cast(Config, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {error.full_key or 'configuration'}: {_first_line(error)}") from error
    problems = wrong_values(config)
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def save_config(config: Config, path: Path) -> None:
    """Writes the resolved configuration as YAML, every key present."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))


def to_dict(config: Any) -> dict[str, Any]:
    """The section (any of the dataclasses above) as plain data: for hashes and environment records."""
    return dataclasses.asdict(config)


def differing_keys(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the keys whose values differ between two resolved configurations."""
    found: list[str] = []
    for key in sorted({*ours, *theirs}):
        a, b = ours.get(key), theirs.get(key)
        name = f"{prefix}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            found += differing_keys(a, b, f"{name}.")
        elif a != b:
            found.append(name)
    return found


def read_saved(path: Path) -> dict[str, Any]:
    """The resolved configuration of an earlier run, as plain data."""
    return typing.cast("dict[str, Any]", OmegaConf.to_container(_read_yaml(path)))


def unknown_keys(layer: DictConfig) -> list[str]:
    """One line for each key or section of `layer` that does not exist, naming the nearest one that does."""
    valid = dict(_fields(Config))
    found = []
    for key, value in _leaves(layer, valid):
        if key in valid or any(key.startswith(f"{name}.") for name, kind in valid.items() if kind is dict):
            continue
        members = [name for name in valid if name.startswith(f"{key}.")]
        if members:
            found.append(f"{key} is a section, got a single value; set its keys instead, such as {members[0]}")
            continue
        if reason := undoing(key):
            found.append(f"there is no key {key}: {reason} (docs/reward.md)")
            continue
        kind = "section" if isinstance(value, DictConfig) else "key"
        near = _nearest_section(key, valid) if kind == "section" else _nearest_key(key, valid)
        found.append(f"unknown {kind} {key}; the nearest valid {kind} is {near} (all keys: configs/base.yaml)")
    return found


def _nearest_section(name: str, valid: typing.Iterable[str]) -> str:
    """The section most like `name`, among those inside the same section where there are any."""
    sections = {key[:at] for key in valid for at, letter in enumerate(key) if letter == "."}
    beside = [section for section in sections if section.rpartition(".")[0] == name.rpartition(".")[0]]
    return difflib.get_close_matches(name, sorted(beside or sections), n=1, cutoff=0.0)[0]


def _nearest_key(key: str, valid: typing.Iterable[str]) -> str:
    """The key most like `key`: of its own section, else one of the same name elsewhere, else any."""
    section, _, name = key.rpartition(".")
    names = {known.rpartition(".")[2]: known for known in valid if known.rpartition(".")[0] == section}
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    elsewhere = [known for known in valid if known.rpartition(".")[2] == name]
    return names[close[0]] if close else (elsewhere or difflib.get_close_matches(key, valid, n=1, cutoff=0.0))[0]


def _with_bases(path: Path, seen: tuple[Path, ...]) -> list[DictConfig]:
    path = path.resolve()
    if path in seen:
        raise ConfigError(f"{path}: base: refers back to itself through {' -> '.join(p.name for p in seen)}")
    layer = _read_yaml(path)
    base = layer.pop("base", None)
    return [*(_with_bases(path.parent / str(base), (*seen, path)) if base else []), layer]


def _read_yaml(path: Path) -> DictConfig:
    if not path.is_file():
        raise ConfigError(f"{path}: no such configuration file")
    try:
        loaded = OmegaConf.load(path)
    except Exception as error:  # YAML's parser has its own exception tree; each becomes the user's one error
        raise ConfigError(f"{path}: not valid YAML: {_first_line(error)}") from error
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{path}: a configuration is a mapping of sections, got a list")
    return loaded


def _parse_overrides(overrides: typing.Sequence[str]) -> DictConfig:
    wrong = [text for text in overrides if "=" not in text]
    if wrong:
        raise ConfigError("\n".join(f"override {text!r} is not of the form key=value" for text in wrong))
    try:
        return OmegaConf.from_dotlist(list(overrides))
    except Exception as error:  # as in _read_yaml: the value is YAML
        raise ConfigError(f"override: not valid YAML: {_first_line(error)}; got {' '.join(overrides)}") from error


def _fields(kind: type, prefix: str = "") -> typing.Iterator[tuple[str, type]]:
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _fields(typing.cast(Any, hint), f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", typing.get_origin(hint) or hint


def _leaves(layer: DictConfig, valid: dict[str, type], prefix: str = "") -> typing.Iterator[tuple[str, Any]]:
    """The dotted name and the node of everything in `layer` that is not a known section."""
    for key in layer:
        name, value = f"{prefix}{key}", layer._get_node(key)
        is_section = any(known.startswith(f"{name}.") for known in valid)
        if isinstance(value, DictConfig) and not value._is_none() and is_section:
            yield from _leaves(value, valid, f"{name}.")
        else:
            yield name, value


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
