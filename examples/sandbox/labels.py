"""Noisy labels for the sandbox: what human raters would give where the gold programs know the truth.

`label` is what a configuration names (`judge.labeler: examples.sandbox.labels:label`). Holds no torch.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from common.judge import JudgeItem, Labels
from examples.sandbox.gold import OBJECTIVES, VERBOSE_WORDS, judge

RATING_NOISE = 0.12
MISSING_SHARE = 0.35
PAIR_SHARPNESS = 10.0
FLIP_SHARE = 0.1
LENGTH_BIAS = 0.3  # of a rating, for each VERBOSE_WORDS words beyond NEUTRAL_WORDS
NEUTRAL_WORDS = 16
BIASED = ("correct", "cover", "polite", "fluent")  # what raters find better in a longer answer


def label(items: list[JudgeItem], seed: int) -> Labels:
    """Labels for the samples of one prompt: ratings of each, and a preference for each two whose texts differ."""
    rng = np.random.default_rng(seed)
    golds = [judge(item) for item in items]
    ratings = [rate(rng, gold, len(item.response.split())) for item, gold in zip(items, golds, strict=True)]
    pairs = [
        (i, j) if prefers_first(rng, golds[i]["gold"] - golds[j]["gold"]) else (j, i)
        for i, j in itertools.combinations(range(len(items)), 2)
        if items[i].response.split() != items[j].response.split()
    ]
    return Labels(ratings, pairs)


def rate(rng: np.random.Generator, gold: dict[str, float], num_words: int) -> dict[str, float | None]:
    """Each objective's gold with normal noise, clipped to [0, 1]; None where the rater left it out. Longer answers are
    rated too high in BIASED, which debiasing is there to undo."""
    noise = rng.normal(0.0, RATING_NOISE, len(OBJECTIVES))
    missing = rng.random(len(OBJECTIVES)) < MISSING_SHARE
    bias = LENGTH_BIAS * (num_words - NEUTRAL_WORDS) / VERBOSE_WORDS
    seen = {name: gold[name] + (bias if name in BIASED else 0.0) for name in OBJECTIVES}
    return {
        name: None if missing[i] else min(1.0, max(0.0, seen[name] + float(noise[i])))
        for i, name in enumerate(OBJECTIVES)
    }


def prefers_first(rng: np.random.Generator, difference: float) -> bool:
    """Bernoulli(sigmoid(PAIR_SHARPNESS * difference in gold)), then flipped with FLIP_SHARE."""
    first = rng.random() < 1 / (1 + math.exp(-PAIR_SHARPNESS * difference))
    return bool(first != (rng.random() < FLIP_SHARE))
