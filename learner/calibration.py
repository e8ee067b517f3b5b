"""How good a reward model is on held-out prompts, and the temperatures that make its terms probabilities.

Called by learner/worker.py at the end of stage `reward_model`; the result is part of the RM version and frozen with it.
Each term is calibrated on labels of its own: a group on the ratings of its objectives, one score
(final_score, weighted_sum) on preferences.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from learner.reward_training import Features, gated_score
from rewarder.aggregate import Aggregation, combine, debias
from rewarder.calibrate import Calibration, calibration_report, fit_temperature
from rewarder.model import GatedRewardModel, RewardOutput


def outputs(model: GatedRewardModel, features: Features) -> RewardOutput:
    """Scores and gates of all conversations [N, K], without gradient."""
    with torch.no_grad():
        return model.heads(features.prompt.to(model.device), features.response.to(model.device))


def calibrate(model: GatedRewardModel, features: Features, aggregation: Aggregation) -> Calibration:
    """One temperature per term, fitted on held-out conversations. Raises ValueError where a term orders its labelled pairs
    no better than chance (then no temperature makes it a probability)."""
    output = outputs(model, features)
    matrix = model.reward_transform_matrix
    combined = combine(debias(output.scores, matrix), output.gate_weights, aggregation).cpu()
    fitted = [_fit_term(combined[:, m], *_labels(features, aggregation, m)) for m in range(aggregation.num_terms)]
    return Calibration(tuple(s for s, _ in fitted), tuple(report for _, report in fitted))


def held_out_report(model: GatedRewardModel, features: Features) -> dict[str, float]:
    """Pair accuracy with the learned and with a uniform gate, and R2 of each objective's ratings."""
    output = outputs(model, features)
    matrix = model.reward_transform_matrix
    uniform = debias(output.scores, matrix).mean(-1)
    report = {
        "rm/pair_accuracy": _pair_accuracy(gated_score(output, matrix).cpu(), features.pairs),
        "rm/pair_accuracy_uniform_gate": _pair_accuracy(uniform.cpu(), features.pairs),
        "rm/held_out_pairs": float(len(features.pairs)),
    }
    for k, name in enumerate(model.objectives):
        report[f"rm/r2/{name}"] = _r2(output.scores[:, k].cpu(), features.ratings[:, k])
    return report


def _labels(features: Features, aggregation: Aggregation, term: int) -> tuple[Tensor, Tensor]:
    """(pairs [P, 2], labels [P] in {0, .5, 1}) for one term: by the ratings of its objectives where there are any."""
    if aggregation.kind == "grouped":
        pairs, labels = _rated_pairs(features, list(aggregation.group_indices[term]))
        if len(pairs):
            return pairs, labels
    return features.pairs, torch.ones(len(features.pairs))


def _rated_pairs(features: Features, columns: list[int]) -> tuple[Tensor, Tensor]:
    """All pairs of responses to one prompt with a rating of the same objective on both sides: the better mean wins."""
    pairs, labels = [], []
    for prompt in range(int(features.prompt_of.max()) + 1):
        rows = torch.nonzero(features.prompt_of == prompt).flatten().tolist()
        for a, b in combinations(rows, 2):
            gap = (features.ratings[a, columns] - features.ratings[b, columns]).nanmean()
            if torch.isfinite(gap):
                pairs.append((a, b))
                labels.append(0.5 * (1.0 + float(torch.sign(gap))))
    return torch.tensor(pairs, dtype=torch.long).reshape(-1, 2), torch.tensor(labels)


def _fit_term(values: Tensor, pairs: Tensor, labels: Tensor):
    differences = values[pairs[:, 0]] - values[pairs[:, 1]]
    half = len(differences) // 2  # fitted on one half, reported on the other
    temperature = fit_temperature(differences[:half], labels[:half])
    return temperature, calibration_report(differences[half:], labels[half:], temperature)


def _pair_accuracy(score: Tensor, pairs: Tensor) -> float:
    if len(pairs) == 0:
        return float("nan")
    return float((score[pairs[:, 0]] > score[pairs[:, 1]]).float().mean())


def _r2(predicted: Tensor, ratings: Tensor) -> float:
    known = ratings.isfinite()
    if int(known.sum()) < 2:
        return float("nan")
    target, residual = ratings[known], (ratings - predicted)[known]
    return float(1 - residual.square().sum() / (target - target.mean()).square().sum().clamp_min(1e-12))
