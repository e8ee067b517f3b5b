"""Which responses the report shows, and what a full bar of their scores and gate weights stands for.

Called by driver/report/page.py with a run's records; the template samples.html shows them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from driver.report.records import Sample

SAMPLES = 12


@dataclass(frozen=True, slots=True)
class Shown:
    """Samples spread over the run, and the largest score and gate weight among them."""

    samples: Sequence[Sample]
    top_score: float
    top_gate: float


def samples(found: Sequence[Sample]) -> Shown:
    """What the section shows of all samples."""
    shown = spread(found, SAMPLES)
    return Shown(shown, _largest([sample.scores for sample in shown]), _largest([sample.gate for sample in shown]))


def spread(samples: Sequence[Sample], most: int) -> list[Sample]:
    """Up to `most` samples at even distances, the first and the last among them."""
    if len(samples) <= most:
        return list(samples)
    return [samples[round(at * (len(samples) - 1) / (most - 1))] for at in range(most)]


def _largest(parts: Sequence[Mapping[str, float]]) -> float:
    """The size that a full bar stands for."""
    return max((abs(value) for part in parts for value in part.values() if math.isfinite(value)), default=1.0)
