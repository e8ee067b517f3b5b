"""What a run's files say, as records that the report can draw. Made by driver/report/read.py; null numbers are NaN."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % interval; low and high are NaN where there is none."""

    mean: float
    low: float = NAN
    high: float = NAN


@dataclass(frozen=True, slots=True)
class Gold:
    """What the judge said of one policy; step is None for the scripted ideal."""

    policy: str
    step: int | None
    gold: Interval
    prompts: int
    objectives: Mapping[str, Interval]


@dataclass(frozen=True, slots=True)
class Fit:
    """One term's calibration: its temperature, in score units, and the report on held-out pairs."""

    term: str
    temperature: float
    report: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class RewardModel:
    """The held-out report of reward model version 0; baseline_accuracy is NaN where no baseline was trained,
    preference_accuracy (of the head that pairs train) where there is none. warnings say where chance would do as well."""

    accuracy: Interval
    baseline_accuracy: Interval
    preference_accuracy: Interval
    uniform_accuracy: float
    length_accuracy: float
    pairs: float
    prompts: float
    r2: Mapping[str, float | str]
    fits: Sequence[Fit]
    warnings: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """One explained response of samples.jsonl."""

    step: int
    slot: int
    prompt: str
    response: str
    finish_reason: str
    versions: tuple[float, float]
    scores: Mapping[str, float]
    gate: Mapping[str, float]
    terms: Mapping[str, float]
    weights: Mapping[str, float]
    penalty: float
    reward: float


@dataclass(frozen=True, slots=True)
class LedgerCounts:
    """How the slots had ended at the newest checkpoint."""

    step: int
    trained: int
    dropped: Mapping[str, int]

    @property
    def reasons(self) -> list[tuple[str, int]]:
        """Why slots were dropped and how often, the most frequent reason first."""
        return sorted(self.dropped.items(), key=lambda reason: (-reason[1], reason[0]))


@dataclass(frozen=True, slots=True)
class Settings:
    """The configuration's values that the charts show; NaN, 0 or empty where config.yaml is absent.

    good is the reward of a response as good as the reference policy's better samples, NaN where none is centred on them."""

    name: str
    steps: int
    sync_tolerance: float
    max_staleness: float
    terms: Sequence[str]
    good: float


@dataclass(frozen=True, slots=True)
class RunFiles:
    """A run as the report sees it. None and empty mean that the file is absent."""

    objectives: Sequence[str]
    settings: Settings
    rows: Sequence[Mapping[str, Any]]
    golds: Sequence[Gold]
    evaluated: bool
    reward_model: RewardModel | None
    samples: Sequence[Sample]
    ledger: LedgerCounts | None
    dead: Sequence[tuple[str, int]] | None
    config: str | None
    environment: str | None

    @property
    def steps(self) -> list[int]:
        """The steps that have a line."""
        return [int(row["step"]) for row in self.rows]

    @property
    def borders(self) -> list[int]:
        """The last step of each iteration, where the next one begins."""
        size, last = self.settings.steps, max(self.steps, default=0)
        return list(range(size, last, size)) if size > 0 else []

    def series(self, name: str) -> list[float]:
        """The values of a name at every step; NaN where it was not measured."""
        return [number(row.get(name)) for row in self.rows]

    def names(self, prefix: str) -> list[str]:
        """The names on the step lines that start with the prefix, in order of first appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row if name.startswith(prefix)))

    def last(self, name: str) -> float:
        """The last measured value, NaN if there is none."""
        return next((value for value in reversed(self.series(name)) if math.isfinite(value)), NAN)


def number(value: object) -> float:
    """A number of a JSON file; NaN for null and for what is not finite."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else NAN
