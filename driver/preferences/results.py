"""What the members of stage `preferences` said, as the rows of pairs.jsonl and as report.json. Pure.

Called by driver/preferences/stage.py and driver/preferences/page.py. Differences [M, P] and who left out which pair [M, P]
come in; the maths is learner/preferences/strength.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from common.config.config import PreferencesConfig
from common.data.data import PreferencePair, to_fields
from common.data.split import prompt_key
from common.data.strengths import IN_SAMPLE_MEAN, IN_SAMPLE_STD, MEAN, MEMBERS, STD, digest
from learner.preferences import strength
from learner.preferences.strength import Agreement, Bucket, Floats, Histogram, Mask, Moments
from learner.reward_model.held_out import wilson_interval

OUT_OF_FOLD, IN_SAMPLE = "out of fold", "in sample"


@dataclass(frozen=True)
class Said:
    """By members that left a pair out, or by members that trained on it: over the pairs that have some of these."""

    pairs: int
    share_below_0: float
    mean: float
    std: float
    accuracy: float  # mean over members, of each on those of the pairs that are its own
    agreement: Agreement


@dataclass(frozen=True)
class MemberResult:
    """What one member trained on, and how many of the pairs it orders as their labels do, left out and trained on."""

    member: int
    trained_pairs: int
    left_out_pairs: int
    left_out_accuracy: float
    in_sample_accuracy: float


@dataclass(frozen=True)
class Strength:
    """All that is known. strength and in_sample are of every pair; `compared` of the training pairs, by kind."""

    settings: PreferencesConfig
    pairs: Sequence[PreferencePair]
    held_out: Mask
    strength: Moments
    in_sample: Moments
    compared: dict[str, Said]
    rank_correlation: float  # of out-of-fold and in-sample means of the training pairs
    members: list[MemberResult]
    buckets: list[Bucket]

    @property
    def cross_fitted(self) -> bool:
        """Whether a training pair's strength is by members that left it out."""
        return self.settings.folds > 1

    @property
    def share_below_0(self) -> float:
        """The share of pairs whose label the members contradict."""
        return float((self.strength.mean < 0).mean())

    @property
    def warnings(self) -> list[str]:
        """Where the members know nothing, a strength is noise."""
        mean = self.strength.mean[~self.held_out]
        right = float((mean > 0).mean())
        if not self.cross_fitted or wilson_interval(right, len(mean))[0] > 0.5:
            return []
        return [
            f"the members that left a training pair out prefer its chosen response in {right:.1%} of {len(mean)} pairs, not "
            "clearly above chance: these strengths are mostly noise; raise learner.preferences.learning_rate or epochs, use "
            "train: lora or full, or give more pairs"
        ]

    def histogram(self) -> Histogram:
        """Counts the strengths of the training pairs, by kind."""
        kept, kinds = ~self.held_out, {OUT_OF_FOLD: self.strength.mean, IN_SAMPLE: self.in_sample.mean}
        return strength.histogram({name: kinds[name][kept] for name in self.compared})


def results(
    settings: PreferencesConfig, pairs: Sequence[PreferencePair], differences: NDArray[np.float32], plan: Mask
) -> Strength:
    """Differences [M, P] and plan [M, P] (True: left out) of the pairs, in order."""
    found, values = strength, differences.astype(np.float64)
    held_out: Mask = np.asarray(plan.all(0))
    ours, theirs = found.strength(values, plan), found.in_sample(values, plan)
    sides = ({OUT_OF_FOLD: plan} if settings.folds > 1 else {}) | {IN_SAMPLE: ~plan}
    return Strength(
        settings,
        pairs,
        held_out,
        ours,
        theirs,
        {name: _said(values[:, ~held_out], counted[:, ~held_out]) for name, counted in sides.items()},
        found.rank_correlation(ours.mean[~held_out], theirs.mean[~held_out]),
        _members(values, plan),
        found.buckets(ours),
    )


def rows(found: Strength) -> Iterator[dict[str, object]]:
    """The lines of pairs.jsonl."""
    for at, pair in enumerate(found.pairs):
        yield to_fields(pair) | {
            MEAN: float(found.strength.mean[at]),
            STD: float(found.strength.std[at]),
            MEMBERS: int(found.strength.members[at]),
            IN_SAMPLE_MEAN: _or_null(found.in_sample.mean[at]),
            IN_SAMPLE_STD: _or_null(found.in_sample.std[at]),
        }


def record(found: Strength, seed: int, held_out_fraction: float) -> dict[str, object]:
    """report.json."""
    return {
        "settings": asdict(found.settings) | {"seed": seed, "held_out_fraction": held_out_fraction},
        "digest": digest(found.pairs),
        "pairs": len(found.pairs),
        "prompts": len({prompt_key(pair.messages) for pair in found.pairs}),
        "held_out_pairs": int(found.held_out.sum()),
        "share_below_0": found.share_below_0,
        "warnings": found.warnings,
        "quantiles": strength.quantiles(found.strength.mean),
        "buckets": [asdict(bucket) for bucket in found.buckets],
        "members": [_known(asdict(member)) for member in found.members],
        "training_pairs": {name.replace(" ", "_"): _known(asdict(said)) for name, said in found.compared.items()},
        "rank_correlation_out_of_fold_in_sample": found.rank_correlation if found.cross_fitted else None,
    }


def _said(values: Floats, counted: Mask) -> Said:
    mean = strength.moments(values, counted)
    return Said(
        values.shape[1],
        float((mean.mean < 0).mean()),
        float(mean.mean.mean()),
        float(mean.std.mean()),
        float(np.mean(strength.accuracies(values, counted))),
        strength.agreement(values, counted),
    )


def _members(values: Floats, plan: Mask) -> list[MemberResult]:
    left, trained = strength.accuracies(values, plan), strength.accuracies(values, ~plan)
    return [
        MemberResult(member, int((~out).sum()), int(out.sum()), left[member], trained[member])
        for member, out in enumerate(plan)
    ]


def _or_null(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _known(values: dict[str, object]) -> dict[str, object]:
    """JSON has no NaN."""
    return {name: _known_value(value) for name, value in values.items()}


def _known_value(value: object) -> object:
    if isinstance(value, dict):
        return _known(value)
    return _or_null(value) if isinstance(value, float) else value
