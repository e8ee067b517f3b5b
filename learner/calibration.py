"""The temperatures that make a reward model's terms probabilities, fitted on held-out prompts.

Called by learner/reward_stage.py at the end of stage `reward_model` and by learner/adapt.py for each candidate; the result is
part of the RM version and frozen with it. Each term is calibrated on labels of its own: a group on the ratings of its
objectives; a group with the objective that pairs train (rewarder.preference), a group that nothing rates, and one score
(final_score, weighted_sum) on preferences.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from common.config import AggregationConfig, RewarderConfig
from learner.reward_training import Features
from rewarder.aggregate import Aggregation, combine, debias, make_aggregation
from rewarder.calibrate import Calibration, CalibrationReport, calibration_report, fit_temperature
from rewarder.model import GatedRewardModel, RewardOutput


def aggregation_of(config: AggregationConfig, objectives: Sequence[str]) -> Aggregation:
    """The configured aggregation over a reward model's objectives."""
    return make_aggregation(
        config.kind, config.groups, config.weights, config.weight_floor, config.probability_floor, objectives
    )


def preference_column(config: RewarderConfig, objectives: Sequence[str]) -> int | None:
    """Which objective the pairs train (rewarder.preference), where there is one."""
    return None if config.preference is None else objectives.index(config.preference)


def outputs(model: GatedRewardModel, features: Features) -> RewardOutput:
    """Scores and gates of all conversations [N, K], without gradient."""
    with torch.no_grad():
        return model.heads(features.prompt.to(model.device), features.response.to(model.device))


def calibrate(
    model: GatedRewardModel, features: Features, aggregation: Aggregation, preference: int | None
) -> Calibration:
    """One temperature per term, fitted on held-out conversations; `preference` is the column that pairs train, where
    there is one. Raises ValueError where a term orders its labelled pairs no better than chance (then no temperature makes
    it a probability)."""
    output = outputs(model, features)
    matrix = model.reward_transform_matrix
    combined = combine(debias(output.scores, matrix), output.gate_weights, aggregation).cpu()
    fitted = [
        _fit_term(_describe(model, aggregation, m), combined[:, m], *_labels(features, aggregation, m, preference))
        for m in range(aggregation.num_terms)
    ]
    return Calibration(tuple(s for s, _ in fitted), tuple(report for _, report in fitted))


def _labels(features: Features, aggregation: Aggregation, term: int, preference: int | None) -> tuple[Tensor, Tensor]:
    """(pairs [P, 2], labels [P] in {0, .5, 1}) for one term: by the ratings of its objectives where there are any, and none
    of them is what the pairs themselves say."""
    if aggregation.kind == "grouped" and preference not in aggregation.group_indices[term]:
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


def _describe(model: GatedRewardModel, aggregation: Aggregation, term: int) -> str:
    """What a term is of, for an error message."""
    names = model.objectives
    if aggregation.kind == "grouped":
        names = [model.objectives[k] for k in aggregation.group_indices[term]]
    return f"{aggregation.kind} of {', '.join(names)}"


def _fit_term(what: str, values: Tensor, pairs: Tensor, labels: Tensor) -> tuple[float, CalibrationReport]:
    differences = values[pairs[:, 0]] - values[pairs[:, 1]]
    half = len(differences) // 2  # fitted on one half, reported on the other
    try:
        temperature = fit_temperature(differences[:half], labels[:half])
        return temperature, calibration_report(differences[half:], labels[half:], temperature)
    except ValueError as error:  # which of the terms is what the user must know
        raise ValueError(f"calibration of the term {what}: {error}") from error
