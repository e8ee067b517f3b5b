"""Paired differences between two evaluations of the same held-out prompts, and their intervals. Pure; no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Row = Mapping[str, Any]
"""A line of evaluations/step_N.jsonl."""
SAMPLES = 4000


@dataclass(frozen=True, slots=True)
class Change:
    """A measure before and after training, over the prompts that have it both times: means, and the mean difference with its
    95 % bootstrap interval over prompts."""

    name: str
    prompts: int
    before: float
    after: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """After less before."""
        return self.after - self.before

    @property
    def verdict(self) -> str:
        """What the interval says of the difference."""
        if self.low > 0:
            return "higher"
        return "lower" if self.high < 0 else "no difference shown"


def change(name: str, before: Sequence[float], after: Sequence[float], seed: int = 0) -> Change:
    """`before[i]` and `after[i]` are of the same prompt; a prompt without either (NaN) is left out."""
    first, second = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    known = np.isfinite(first) & np.isfinite(second)
    first, second = first[known], second[known]
    if not len(first):
        return Change(name, 0, math.nan, math.nan, math.nan, math.nan)
    differences = second - first
    drawn = np.random.default_rng(seed).integers(0, len(differences), (SAMPLES, len(differences)))
    low, high = np.quantile(differences[drawn].mean(1), [0.025, 0.975])
    return Change(name, len(first), float(first.mean()), float(second.mean()), float(low), float(high))


def scores(rows: Sequence[Row], name: str) -> list[float]:
    """What the judge said of each response on one objective; NaN where the prompt does not ask for it."""
    return [float(row["scores"].get(name, math.nan)) for row in rows]


def of_source(rows: Sequence[Row], source: str) -> list[int]:
    """The places of the rows whose prompt is of one source."""
    return [place for place, row in enumerate(rows) if row["meta"]["source"] == source]
