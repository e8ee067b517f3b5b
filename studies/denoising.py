"""Wrong labels in preference pairs: are they found by strength, and which treatment of them gives the better reward model?

A share of the labels of pairs whose truth is known is turned (noisy_pairs.py), ten models say how strong each pair is
(strengths.py), and models on the same features (scorers.py) are trained by each method (treatments.py). Called by the arms of
study `denoising`, whose option `flipped=SHARE` is the share of turned labels. End metrics:

    auc/..        finding turned labels by -strength. out_of_fold: by members that saw no pair of the prompt (one_member: by one
                  of them); out_of_pair: by members that may have seen other pairs of its responses; in_sample: by members that
                  trained on it; apart/..: where no two pairs share a response, so that other pairs tell nothing
    agreement/k   share of right labels in the k-th tenth of the pairs, from the weakest; part/k: accuracy when trained on that
    weakest/n     accuracy when trained on the n % of the pairs that are weakest; strongest/n: strongest
    in/.., out/.. accuracy of each method on test pairs of the SFT policy, and of the shifted policy; labels there are right

Parts and methods go by strength out of fold but where they are called in_sample. Every training has the same number of updates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from learner.preferences.strength import Moments, moments
from studies import noisy_pairs, strengths, treatments
from studies.lab import Lab, Report
from studies.noisy_pairs import Pairs
from studies.scorers import Labelled, Scorer, subset
from studies.strengths import FOLDS, PARTS, Mask, Part, agreement, auc, grown, parts
from studies.study import Arm, Unit
from studies.treatments import Bench, labelled_pairs

OPTION = "flipped="
PERCENT = 100 // PARTS  # of the pairs in a part


def measure(unit: Unit, lab: Lab, report: Report) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The end metrics of a unit; no curves."""
    report("pairs", 0, 4)
    seed, world = unit.seed, noisy_pairs.load(unit.config)
    training, bench = world.training, Bench(world, seed)
    turned = noisy_pairs.flipped(len(training.rows), share_of(unit.arm), seed)
    labelled = labelled_pairs(training, turned)
    report("strength", 1, 4)
    models = strengths.everywhere(labelled, seed)
    found = _strengths(labelled, training.prompts, models, seed)
    ordered = parts(found["out_of_fold"].mean)
    report("parts", 2, 4)
    end = _aucs(found, turned) | _apart(labelled, training, turned, seed)
    end |= _numbered("agreement", agreement(turned, ordered)) | _parts(bench, labelled, ordered)
    report("methods", 3, 4)
    end |= treatments.outcomes(bench, unit.config.learner.reward_model, turned, found, models)
    sizes = {"training": training, "test": world.test, "shifted": world.shifted}
    return end | {f"pairs/{name}": float(len(pairs.rows)) for name, pairs in sizes.items()}, {}


def share_of(arm: Arm) -> float:
    """The share of turned labels. Raises ValueError where the arm's options do not say it once."""
    shares = [float(option.removeprefix(OPTION)) for option in arm.options if option.startswith(OPTION)]
    if len(shares) != 1 or not 0 <= shares[0] < 0.5:
        raise ValueError(f"arm {arm.name!r} has the options {arm.options}; want {OPTION}SHARE once, 0 <= SHARE < 0.5")
    return shares[0]


def _strengths(
    labelled: Labelled, prompts: NDArray[np.int64], models: Sequence[Scorer], seed: int
) -> dict[str, Moments]:
    plan = strengths.left_out(prompts, seed)
    unseen = strengths.differences(strengths.members(labelled, plan, seed), labelled)
    return {
        "out_of_fold": moments(unseen, plan),
        "one_member": moments(unseen[:FOLDS], plan[:FOLDS]),
        "out_of_pair": strengths.out_of_fold(labelled, np.arange(len(prompts)), seed),
        "in_sample": strengths.in_sample(models, labelled),
    }


def _apart(labelled: Labelled, training: Pairs, turned: Mask, seed: int) -> dict[str, float]:
    """AUCs on pairs of which no two share a response, by members that trained on these alone."""
    taken = noisy_pairs.apart(training.rows, seed)
    some = subset(labelled, taken)
    found = {
        "apart/out_of_fold": strengths.out_of_fold(some, training.prompts[taken], seed),
        "apart/in_sample": strengths.in_sample(strengths.everywhere(some, seed), some),
    }
    return _aucs(found, turned[taken])


def _aucs(found: Mapping[str, Moments], turned: Mask) -> dict[str, float]:
    return {f"auc/{name}": auc(-by.mean, turned) for name, by in found.items()}


def _parts(bench: Bench, labelled: Labelled, ordered: Sequence[Part]) -> dict[str, float]:
    """Accuracy in distribution when trained on each part alone, and on sets that grow from either end."""
    alone = _numbered("part", [bench.inside(subset(labelled, part)) for part in ordered])
    for name, sequence in (("weakest", ordered), ("strongest", ordered[::-1])):
        found = [bench.inside(subset(labelled, indices)) for indices in grown(sequence)]
        alone |= _numbered(name, found, PERCENT)
    return alone


def _numbered(name: str, values: Sequence[float], step: int = 1) -> dict[str, float]:
    return {f"{name}/{step * number}": value for number, value in enumerate(values, 1)}
