"""Has the reward drifted from what it should reward? Four signals of the policy's newest samples, as numbers. Pure maths.

    accuracy      share of judged pairs that the served reward orders as the judge does          fires on a fall, in points
    gap           rise of the mean reward less rise of the mean gold, each in standard            fires on a rise, in standard
                  deviations that its samples had at the baseline                                 deviations
    variance      mean within-prompt standard deviation of the reward                            fires on a fall, as a share
    disagreement  mean standard deviation among an ensemble's members of a response's score,     fires on a rise, as a share
                  each member's scores less their mean over the prompt's responses

A look gives `Numbers`; those of the first look at a version are its baseline. No numbers: nothing to see, and nothing fires.
Called by driver/rounds/drift.py and learner/adaptation/disagreement.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from common.judge import Preference

Numbers = tuple[float, ...]  # of a look; (reward mean, its std, gold mean, its std) for gap, one value for the others
ROUNDING = 1e-9  # a change of exactly the wanted size counts


def accuracy(rewards: Sequence[tuple[float, float]], preferred: Sequence[Preference]) -> Numbers:
    """Says which pairs the reward orders as the judge does, by rewards of (first, second); ties are left out, equal rewards
    wrong."""
    pairs = [
        pair if said == "first" else pair[::-1] for pair, said in zip(rewards, preferred, strict=True) if said != "tie"
    ]
    return (float(np.mean([chosen > rejected for chosen, rejected in pairs])),) if pairs else ()


def levels(rewards: Sequence[float], golds: Sequence[float]) -> Numbers:
    """Mean and standard deviation (ddof 0) of both, over the same responses."""
    if not rewards:
        return ()
    return float(np.mean(rewards)), float(np.std(rewards)), float(np.mean(golds)), float(np.std(golds))


def within_prompt(rewards: Sequence[Sequence[float]]) -> Numbers:
    """The mean over prompts of the standard deviation (ddof 0) of the rewards of one prompt's responses."""
    return (float(np.mean([np.std(group) for group in rewards])),) if rewards else ()


def disagreement(scores: Sequence[NDArray[np.floating]]) -> Numbers:
    """Measures how the members' scores [G, M] of each prompt's G responses differ: centred within the prompt for each
    member, then the standard deviation (ddof 0) over members, averaged over all responses. Levels that the members do not
    share are no disagreement."""
    if not scores:
        return ()
    centred = [group.astype(np.float64) - group.mean(axis=0, dtype=np.float64) for group in scores]
    return (float(np.concatenate([group.std(axis=1) for group in centred]).mean()),)


def can_be_baseline(signal: str, numbers: Numbers) -> bool:
    """Whether later looks can be held against it: not without numbers, nor where they would be divided by 0."""
    if not numbers:
        return False
    divisors = {"accuracy": (), "gap": numbers[1::2], "variance": numbers, "disagreement": numbers}[signal]
    return all(number > 0 for number in divisors)


def value(signal: str, numbers: Numbers, baseline: Numbers) -> float:
    """The signal: for gap the difference of two rises since the baseline, for the others what was measured."""
    if signal != "gap":
        return numbers[0]
    reward, reward_std, gold, gold_std = baseline
    return (numbers[0] - reward) / reward_std - (numbers[2] - gold) / gold_std


def has_drifted(signal: str, now: float, before: float, change: float) -> bool:
    """Whether the signal's value is at least `change` worse than the baseline's."""
    if signal in ("variance", "disagreement"):
        now, before = now / before, 1.0
    worse = before - now if signal in ("accuracy", "variance") else now - before
    return worse >= change - ROUNDING
