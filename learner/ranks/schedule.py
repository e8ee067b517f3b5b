"""Learning-rate schedules as factors of the configured rate: pure."""

from __future__ import annotations

import math


def cosine(step: int, total: int, warmup_fraction: float) -> float:
    """Linear warm-up over the first warmup_fraction of `total` steps, then half a cosine to 0; step counts from 0."""
    warmup = max(1, round(total * warmup_fraction))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
