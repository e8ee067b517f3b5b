"""What a study is: a question, arms that differ in a few settings, seeds; and the unit of work, one arm with one seed.

Owns the names, hashes and file names of units. The catalog lists the studies, the runner runs their units.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from common.config.config import Config
from common.config.file import BASE, differing_keys, load_config, read_saved, to_dict
from studies.worlds import HERE, SANDBOX, World

ROWS = HERE / "rows"
SEEDS = (0, 1, 2, 3, 4)


@dataclass(frozen=True)
class Arm:
    """One way of doing it. `measure` names its function, "package.module:function"; `overrides` are settings over the world's
    configuration; `options` are what no setting can say, explained by the measure; `needs` are the shared artifacts that it
    reads."""

    name: str
    measure: str
    overrides: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ("sft", "reward_model")


@dataclass(frozen=True)
class Study:
    """A question and its arms; `page` holds the table made from its rows."""

    name: str
    question: str
    arms: tuple[Arm, ...]
    page: str
    seeds: tuple[int, ...] = SEEDS
    rows: Path = ROWS
    world: World = SANDBOX

    @property
    def directory(self) -> Path:
        """Where its rows are."""
        return self.rows / self.name

    def units(self) -> list[Unit]:
        """Every arm with every seed, seed by seed, so that an interrupted study has whole seeds."""
        return [Unit(self, arm, seed) for seed in self.seeds for arm in self.arms]


@dataclass(frozen=True)
class Unit:
    """One arm with one seed: what is run, recorded and skipped as a whole."""

    study: Study
    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        """The study, the arm and the seed."""
        return f"{self.study.name}/{self.arm.name}/{self.seed}"

    @property
    def row_path(self) -> Path:
        """The file of the unit's row."""
        return self.study.directory / f"{self.arm.name}.seed{self.seed}.json"

    @property
    def base(self) -> Path:
        """The file that its configuration starts from, by the data that are there."""
        return self.study.world.config_of(self.seed)

    @property
    def world(self) -> str:
        """What its row says of the world."""
        return self.study.world.label(self.base)

    @cached_property
    def config(self) -> Config:
        """The configuration that the unit runs."""
        return self._over(self.base)

    def config_hash(self) -> str:
        """Hashes what the arm says, beyond the defaults of configs/base.yaml, and of the world: a new key with a default leaves
        the rows valid, a changed setting does not."""
        return self._hash(self.config)

    @cached_property
    def config_hashes(self) -> frozenset[str]:
        """The hashes over every configuration that the world's data may ask for: a row of any of them is the unit's, so that
        committed rows count where their data are not."""
        others = [base for base in self.study.world.configs if base != self.base]
        return frozenset((self.config_hash(), *(self._hash(self._over(base)) for base in others)))

    def _over(self, base: Path) -> Config:
        return load_config(base, [*self.arm.overrides, f"run.seed={self.seed}"])

    def _hash(self, config: Config) -> str:
        told = [self.arm.measure, sorted(self.arm.options), self.seed, explicit(config), self.study.world.version()]
        return digest(told)


def find(studies: Sequence[Study], name: str) -> Study:
    """The study of this name; ValueError with the names there are."""
    for study in studies:
        if study.name == name:
            return study
    raise ValueError(f"no study is called {name!r}; there are {', '.join(study.name for study in studies)}")


def unit_called(studies: Sequence[Study], name: str) -> Unit:
    """The unit that calls itself study/arm/seed."""
    study_name, arm_name, seed = name.split("/")
    study = find(studies, study_name)
    return Unit(study, next(arm for arm in study.arms if arm.name == arm_name), int(seed))


def explicit(config: Config) -> dict[str, Any]:
    """The settings that differ from configs/base.yaml, by dotted name."""
    ours, base = to_dict(config), to_dict(read_saved(BASE).config)
    return {name: _at(ours, name) for name in differing_keys(ours, base)}


def digest(value: object) -> str:
    """12 hex digits over plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def with_aggregation_weights(config: Config, weights: Sequence[float]) -> Config:
    """The configuration with aggregation.weights given in the order of rewarder.objectives."""
    named = dict(zip(config.rewarder.objectives, weights, strict=True))
    return replace(config, aggregation=replace(config.aggregation, weights=named))


def _at(values: dict[str, Any], name: str) -> Any:
    """The value at a dotted name; None where a free mapping lacks the key."""
    value: Any = values
    for part in name.split("."):
        value = value.get(part)
    return value
