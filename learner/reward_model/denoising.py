"""What the strength of a pair says of its label: which pairs are left out, turned, softened, or given a margin. Pure maths.

    rank      r = share of the pairs that are weaker
    keep      pairs with r in [low, high)
    flip      pairs with r < flip change sides, and their strength its sign
    targets   t = 1 (labels), or the ensemble's own probability that the first is better
    smoothing t = (1 - a) t + a (1 - t), where the strength is negative, or everywhere
    margin    m = c * strength, cut at +-cap

    loss = -t log sigmoid(D - m) - (1 - t) log sigmoid(m - D)          (losses.bradley_terry)

Each is neutral by default, and they compose. Called by learner/reward_model/data.py for training pairs alone: what is held out
keeps its labels. Source: Wang et al. 2401.06080, section 2; the ensemble's targets are ours, the mean of sigmoid(d) over a
Normal d by MacKay's approximation (1992).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from common.config.config import DenoisingConfig
from common.data.data import PreferencePair

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Denoised:
    """For each of P pairs: is it kept, does it change sides; target and margin (nats) of the pair as it then stands."""

    kept: NDArray[np.bool_]
    flipped: NDArray[np.bool_]
    targets: Floats
    margins: Floats


def denoise(mean: Floats, std: Floats, config: DenoisingConfig) -> Denoised:
    """mean, std [P]: the strength of each pair, in nats. Ties in strength keep the order of the pairs."""
    rank = np.argsort(np.argsort(mean, kind="stable"), kind="stable") / max(len(mean), 1)
    flipped = rank < config.flip
    strength = np.where(flipped, -mean, mean)
    targets = ensemble_targets(strength, std) if config.targets == "ensemble" else np.ones(len(mean))
    softened = np.ones(len(mean), bool) if config.smooth == "all" else strength < 0
    share = np.where(softened, config.smoothing, 0.0)
    return Denoised(
        (config.keep[0] <= rank) & (rank < config.keep[1]),
        flipped,
        (1 - share) * targets + share * (1 - targets),
        np.clip(config.margin * strength, -config.margin_cap, config.margin_cap),
    )


def ensemble_targets(mean: Floats, std: Floats) -> Floats:
    """The mean of sigmoid(d) for d ~ Normal(mean, std): sigmoid(mean / sqrt(1 + pi std^2 / 8))."""
    return 1 / (1 + np.exp(-mean / np.sqrt(1 + math.pi * std**2 / 8)))


def denoised_pairs(
    pairs: Sequence[PreferencePair], mean: Floats, std: Floats, config: DenoisingConfig
) -> list[PreferencePair]:
    """The pairs that are kept, in their order, each with its sides, target and margin. Raises ValueError where none is."""
    verdicts = denoise(mean, std, config)
    made = [
        replace(_turned(pair) if flipped else pair, target=float(target), margin=float(margin))
        for pair, kept, flipped, target, margin in zip(
            pairs, verdicts.kept, verdicts.flipped, verdicts.targets, verdicts.margins, strict=True
        )
        if kept
    ]
    if not made:
        raise ValueError(
            f"learner.reward_model.denoising.keep is {config.keep}, which leaves none of {len(pairs)} training pairs; widen it"
        )
    return made


def _turned(pair: PreferencePair) -> PreferencePair:
    return replace(pair, chosen=pair.rejected, rejected=pair.chosen)
