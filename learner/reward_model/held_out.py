"""How good a reward model is on prompts that it was not trained on, beside what is to be had without one.

Called by learner/reward_model/stage.py at the end of stage `reward_model`; the numbers go into the version's report.json.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from learner.reward_model.calibration import outputs
from learner.reward_model.data import PromptSet
from learner.reward_model.training import Features, gated_score
from rewarder.aggregate import debias
from rewarder.model import GatedRewardModel

NORMAL_95 = 1.959964
CONSTANT = "rm/constant/"


def held_out_report(model: GatedRewardModel, features: Features, preference: int | None) -> dict[str, float]:
    """Pair accuracy of the gated score with its 95 % interval, with a uniform gate, and of the head that pairs train, on the
    pairs that are its labels, with its own (where there is one); R2 of each objective's ratings, NaN where there is none, and
    CONSTANT + its name where that is because they are all alike."""
    output, pairs = outputs(model, features), features.pairs
    matrix = model.reward_transform_matrix
    uniform = debias(output.scores, matrix).mean(-1)
    accuracy = _pair_accuracy(gated_score(output, matrix).cpu(), pairs)
    report = {
        **_with_interval("rm/pair_accuracy", accuracy, len(pairs)),
        "rm/pair_accuracy_uniform_gate": _pair_accuracy(uniform.cpu(), pairs),
        "rm/held_out_pairs": float(len(pairs)),
    }
    if preference is not None:
        own = pairs[features.of_preference]
        head = _pair_accuracy(output.scores[:, preference].cpu(), own)
        report |= _with_interval("rm/pair_accuracy_preference_head", head, len(own))
        report["rm/held_out_preference_pairs"] = float(len(own))
    for k, name in enumerate(model.objectives):
        report[f"rm/r2/{name}"] = _r2(output.scores[:, k].cpu(), features.ratings[:, k])
        if is_constant(features.ratings[:, k]):
            report[f"{CONSTANT}{name}"] = 1.0
    return report


def is_constant(ratings: Tensor) -> bool:
    """Whether at least two ratings are known and all of them are alike, up to rounding: nothing is there to explain, and R2,
    whose divisor is their spread, would be any number."""
    known = ratings[ratings.isfinite()].double()
    spread = (known - known.mean()).square().sum()
    return len(known) >= 2 and bool(spread <= 1e-12 * known.square().sum())


def baseline_report(model: GatedRewardModel, features: Features) -> dict[str, float]:
    """Pair accuracy of the Bradley-Terry baseline with its 95 % interval, on features of its own of the same conversations."""
    score = gated_score(outputs(model, features), model.reward_transform_matrix).cpu()
    return _with_interval("rm/pair_accuracy_baseline", _pair_accuracy(score, features.pairs), len(features.pairs))


def length_accuracy(training: Sequence[PromptSet], held_out: Sequence[PromptSet]) -> float:
    """Held-out pair accuracy of length alone: the longer or the shorter response, whichever won more often in training
    (equal lengths count half); NaN without pairs."""
    longer = _longer_wins(held_out)
    return longer if _longer_wins(training) > 0.5 else 1 - longer


def wilson_interval(share: float, number: int) -> tuple[float, float]:
    """95 % interval of a share counted in `number` independent cases (Wilson 1927); NaN without a case."""
    if number == 0:
        return math.nan, math.nan
    z2 = NORMAL_95**2 / number
    middle = (share + z2 / 2) / (1 + z2)
    half = math.sqrt(z2 * share * (1 - share) + z2 * z2 / 4) / (1 + z2)
    return middle - half, middle + half


def _with_interval(name: str, accuracy: float, num_pairs: int) -> dict[str, float]:
    low, high = wilson_interval(accuracy, num_pairs)
    return {name: accuracy, f"{name}_low": low, f"{name}_high": high}


def _longer_wins(sets: Sequence[PromptSet]) -> float:
    """Share of the pairs whose chosen response has more tokens."""
    gaps = [
        len(prompt.conversations[pair.chosen].ids) - len(prompt.conversations[pair.rejected].ids)
        for prompt in sets
        for pair in prompt.pairs
    ]
    return float(np.mean((np.sign(gaps) + 1) / 2)) if gaps else math.nan


def _pair_accuracy(score: Tensor, pairs: Tensor) -> float:
    if len(pairs) == 0:
        return math.nan
    return float((score[pairs[:, 0]] > score[pairs[:, 1]]).float().mean())


def _r2(predicted: Tensor, ratings: Tensor) -> float:
    known = ratings.isfinite()
    if int(known.sum()) < 2 or is_constant(ratings):
        return math.nan
    target, residual = ratings[known], (ratings - predicted)[known]
    return float(1 - residual.square().sum() / (target - target.mean()).square().sum().clamp_min(1e-12))
