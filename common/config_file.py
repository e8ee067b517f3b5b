"""Configuration files: base.yaml, a file with its bases, and key=value overrides, merged, checked and typed.

A file may name a `base:` beside it; later wins: base.yaml, the file's bases, the file, the command line. Every problem is
reported at once, a mistyped key with the nearest valid one. The only importer of omegaconf; called by launch.py.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import typing
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.config import STAGES, Config, ExportConfig

BASE = Path(__file__).resolve().parent.parent / "configs" / "base.yaml"
_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class ConfigError(ValueError):
    """Everything that is wrong with a configuration, one problem a line."""


CHOICES: dict[str, tuple[str, ...]] = {
    "data.long_prompts": ("refuse", "skip"),
    "policy.dtype": ("float32", "bfloat16"),
    "rewarder.dtype": ("float32", "bfloat16"),
    "aggregation.kind": ("final_score", "grouped", "weighted_sum"),
    "aggregation.estimator": ("gaussian", "empirical"),
    "learner.kl_estimator": ("k2", "k3"),
    "iteration.policy_start": ("continue", "reset"),
}

# key: (lowest, highest) allowed, ends included
RANGES: dict[str, tuple[float, float]] = {
    "redis.capacity": (1, 10**7),
    "redis.max_attempts": (1, 100),
    "data.max_prompt_tokens": (1, 10**7),
    "actors.num": (1, 10**4),
    "actors.responses_per_prompt": (2, 10**4),
    "actors.max_response_tokens": (1, 10**7),
    "actors.temperature": (1e-3, 10),
    "actors.top_p": (1e-3, 1),
    "actors.tensor_parallel": (1, 64),
    "actors.gpu_memory_utilization": (0.05, 1),
    "rewarder.num": (1, 10**4),
    "rewarder.truncation_penalty": (-(10**3), 0),
    "aggregation.weight_floor": (0, 1),
    "aggregation.probability_floor": (0, 0.2),
    "aggregation.references_per_prompt": (2, 10**4),
    "aggregation.quantile": (0.01, 0.99),
    "learner.ranks": (1, 10**4),
    "learner.zero_stage": (0, 3),
    "learner.groups_per_step": (1, 10**6),
    "learner.num_updates": (1, 64),
    "learner.kl_coef": (0, 10**3),
    "iteration.num": (1, 10**4),
    "iteration.steps": (1, 10**7),
    "iteration.max_staleness": (0, 8),
    "checkpoint.every_steps": (1, 10**7),
    "checkpoint.keep": (2, 10**4),
    "learner.reward_model.held_out_fraction": (0.01, 0.9),
}


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


def wrong_values(config: Config) -> list[str]:
    """One line for each value outside its choices or range, and for keys that contradict one another."""
    found = []
    for key, choices in CHOICES.items():
        if (value := _get(config, key)) not in choices:
            found.append(f"{key} is {value!r}; it must be one of {', '.join(choices)}")
    for key, (low, high) in RANGES.items():
        if not low <= (value := _get(config, key)) <= high:
            found.append(f"{key} is {value}; it must be between {low:g} and {high:g}")
    for stage in config.stages:
        if stage not in STAGES:
            found.append(f"stages has {stage!r}; the stages are {', '.join(STAGES)}")
    return found + _contradictions(config)


def _contradictions(config: Config) -> list[str]:
    found, names = _wrong_push(config.export), config.rewarder.objectives
    if config.aggregation.kind == "grouped":
        found += _wrong_groups(config.aggregation.groups, config.aggregation.weight_floor, names)
    if config.aggregation.kind == "weighted_sum":
        found += _wrong_weights(config.aggregation.weights, names)
    found += _wrong_label_sources(config.rewarder.programs, config.rewarder.preference, names)
    verbosity = config.learner.reward_model.verbosity
    if verbosity is not None and verbosity not in names:
        found.append(f"learner.reward_model.verbosity is {verbosity!r}, which is not in rewarder.objectives")
    if config.actors.top_p < 1:
        found.append("actors.top_p is below 1, but the learner's log-probs are over all tokens; set actors.top_p: 1")
    if config.learner.num_updates > config.learner.groups_per_step:
        found.append("learner.num_updates is above learner.groups_per_step; every update needs at least one group")
    if config.learner.ranks > 0 and config.learner.groups_per_step % config.learner.ranks:
        found.append(
            f"learner.groups_per_step {config.learner.groups_per_step} is not a multiple of learner.ranks "
            f"{config.learner.ranks}; every rank trains on whole groups"
        )
    cap = config.learner.importance_cap
    if cap is not None and not 1 <= cap < math.inf:
        found.append(f"learner.importance_cap is {cap}; it must be a number from 1 up (2 is usual), or null for none")
    window = (config.iteration.max_staleness + 1) * config.learner.groups_per_step
    if window > config.redis.capacity:
        found.append(
            f"redis.capacity {config.redis.capacity} is below the window of {window} groups; raise it to {window}"
        )
    return found


def _wrong_push(export: ExportConfig) -> list[str]:
    found = []
    if export.push_to_hub is not None and export.push_to_hub.count("/") != 1:
        found.append(f"export.push_to_hub is {export.push_to_hub!r}; it must be null or owner/name")
    if export.token_env.startswith("hf_") or not _ENVIRONMENT_NAME.fullmatch(export.token_env):
        found.append(  # the value is not shown, since it may be a token
            "export.token_env must be the name of an environment variable, such as HF_TOKEN, and what it is set to is "
            "none; put the token into the environment, never into a configuration"
        )
    return found


def _wrong_groups(groups: dict[str, list[str]], weight_floor: float, objectives: list[str]) -> list[str]:
    if not groups:
        return ["aggregation.kind is grouped but aggregation.groups is empty; name at least one group"]
    grouped = [name for members in groups.values() for name in members]
    found = [
        f"aggregation.groups names {n!r}, which is not in rewarder.objectives" for n in grouped if n not in objectives
    ]
    found += [f"aggregation.groups names {n!r} twice" for n in sorted({n for n in grouped if grouped.count(n) > 1})]
    if weight_floor * len(groups) > 1:
        found.append(
            f"aggregation.weight_floor {weight_floor} times {len(groups)} groups is above 1; "
            f"lower it to at most {1 / len(groups):.3g}"
        )
    return found


def _wrong_weights(weights: dict[str, float], objectives: list[str]) -> list[str]:
    if not any(weights.values()):
        return [
            f"aggregation.kind is weighted_sum but aggregation.weights is {weights}; "
            "give at least one objective a weight other than 0"
        ]
    found = [
        f"aggregation.weights names {n!r}, which is not in rewarder.objectives" for n in weights if n not in objectives
    ]
    found += [
        f"aggregation.weights has {w} for {n!r}; it must be a finite number"
        for n, w in weights.items()
        if not math.isfinite(w)
    ]
    return found


def _wrong_label_sources(programs: dict[str, str], preference: str | None, objectives: list[str]) -> list[str]:
    found = [
        f"rewarder.programs names {n!r}, which is not in rewarder.objectives" for n in programs if n not in objectives
    ]
    if preference is not None and preference not in objectives:
        found.append(f"rewarder.preference is {preference!r}, which is not in rewarder.objectives")
    if preference in programs:
        found.append(f"rewarder.preference {preference!r} also has a program; an objective has one source of labels")
    return found


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


def _get(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
