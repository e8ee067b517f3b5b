"""What one scorer's scores say on judged rows: accuracy with its interval, calibration, and how much length counts.

Called by driver/evaluate_rm/command.py. Pure: numbers in, numbers out. A scorer is anything that gives each answer a
number: the reward model, the same with a uniform gate, a Bradley-Terry baseline, or the answer's length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from driver.report.records import Interval
from learner.reward_model.held_out import NORMAL_95, wilson_interval
from rewarder.calibrate import NUM_BINS, calibration_report, fit_temperature

Array = NDArray[np.float64]
MIN_FOLD = 20  # pairs; a temperature of fewer says nothing
MIN_SLOPE = 10  # pairs
PER_TOKENS = 100  # the slope is per so many tokens


@dataclass(frozen=True)
class Outcome:
    """One scorer's scores of a judged row: of the right answers and of the wrong ones."""

    right: tuple[float, ...]
    wrong: tuple[float, ...]

    @property
    def won(self) -> bool:
        """Every right answer strictly above every wrong one; for a pair, RewardBench's rule: equal scores lose."""
        return min(self.right) > max(self.wrong)

    @property
    def tied(self) -> bool:
        """Whether the worst right answer and the best wrong one have the same score."""
        return min(self.right) == max(self.wrong)


@dataclass(frozen=True)
class Accuracy:
    """A share of rows with its 95 % Wilson interval (which takes rows as independent, and fractions of a credit as if whole),
    how many rows, and how many were lost to equal scores."""

    share: Interval
    rows: int
    tied: int


@dataclass(frozen=True)
class Bin:
    """Pairs of similar confidence: its mean, the share that was right with its 95 % interval, and how many."""

    confidence: float
    accuracy: Interval
    pairs: int


@dataclass(frozen=True)
class Calibrated:
    """Probabilities sigmoid(score difference / temperature): temperature in score units, fitted on all pairs; mean log loss
    (nats; a coin has 0.693), Brier score and ECE (10 bins of the winner's probability) with each half's temperature from
    the other half; slope in logits per 100 tokens that the right answer is longer. Where no temperature fits: NaN, no bins,
    and `reason`."""

    temperature: float
    nll: float
    brier: float
    ece: float
    bins: tuple[Bin, ...]
    slope: Interval
    reason: str = ""


def accuracy(hits: Sequence[float], tied: int) -> Accuracy:
    """The mean of hits in [0, 1]."""
    share = float(np.mean(hits)) if len(hits) else math.nan
    return Accuracy(Interval(share, *wilson_interval(share, len(hits))), len(hits), tied)


def pair_accuracy(outcomes: Sequence[Outcome]) -> Accuracy:
    """Share of rows won."""
    return accuracy([float(outcome.won) for outcome in outcomes], sum(outcome.tied for outcome in outcomes))


def calibrated(differences: Array, first_half: NDArray[np.bool_], extra_tokens: Array) -> Calibrated:
    """Values of N pairs: score(right) - score(wrong), which half a pair is in (by prompt), tokens(right) - tokens(wrong)."""
    if reason := _unfit(differences, first_half):
        return Calibrated(math.nan, math.nan, math.nan, math.nan, (), Interval(math.nan), reason)
    logits = np.empty_like(differences)
    for half in (first_half, ~first_half):
        logits[half] = differences[half] / _temperature(differences[~half])
    temperature = _temperature(differences)
    report = calibration_report(torch.from_numpy(logits), torch.ones(len(logits)), 1.0)
    slope = length_slope(differences / temperature, extra_tokens)
    return Calibrated(temperature, report.nll, report.brier, report.ece, reliability(logits), slope)


def reliability(logits: Array) -> tuple[Bin, ...]:
    """Pairs binned by the predicted winner's probability on [0.5, 1], as for the ECE; logits [N] of the right answer. Where
    the logit is 0 half of the pair counts as right. Empty bins are left out."""
    confidence = 1 / (1 + np.exp(-np.abs(logits)))
    hits = np.where(logits == 0, 0.5, logits > 0)
    place = np.clip(((confidence - 0.5) * 2 * NUM_BINS).astype(int), 0, NUM_BINS - 1)
    bins = []
    for index in np.unique(place):
        inside, share = place == index, float(hits[place == index].mean())
        count = int(inside.sum())
        bins.append(Bin(float(confidence[inside].mean()), Interval(share, *wilson_interval(share, count)), count))
    return tuple(bins)


def length_slope(logits: Array, extra_tokens: Array) -> Interval:
    """Slope b of logit = a + b x, x = extra tokens of the right answer / 100, by least squares, with its 95 % interval (normal,
    heteroscedasticity-robust HC1): how many logits length adds at equal rightness, which the intercept a takes up. NaN for
    fewer than 10 pairs or where all differ by the same length."""
    x = extra_tokens / PER_TOKENS
    spread = x - x.mean() if len(x) else x
    total = float(spread @ spread)
    if len(x) < MIN_SLOPE or total == 0:
        return Interval(math.nan)
    slope = float(spread @ logits) / total
    residual = logits - logits.mean() - slope * spread
    error = math.sqrt(len(x) / (len(x) - 2) * float((spread * residual) @ (spread * residual))) / total
    return Interval(slope, slope - NORMAL_95 * error, slope + NORMAL_95 * error)


def _unfit(differences: Array, first_half: NDArray[np.bool_]) -> str:
    """Why no temperature can be fitted to each half; empty where it can."""
    halves = [differences[first_half], differences[~first_half]]
    if (fewest := min(len(half) for half in halves)) < MIN_FOLD:
        return f"{fewest} pairs in a half of the prompts; {MIN_FOLD} wanted"
    if min(float(half.sum()) for half in halves) <= 0:
        return "the scores order the pairs no better than chance"
    return ""


def _temperature(differences: Array) -> float:
    return fit_temperature(torch.from_numpy(differences), torch.ones(len(differences)))
