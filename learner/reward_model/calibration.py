"""The temperatures that make a reward model's terms probabilities, fitted on held-out prompts.

Called by learner/reward_model/stage.py at the end of stage `reward_model` and by learner/adaptation/round.py for each
candidate; the result is part of the RM version and frozen with it. Each term is calibrated on labels of its own: a group on
the ratings of its objectives; a group with the objective that pairs train (rewarder.preference), a group that nothing
rates, and one score (final_score, ensemble, weighted_sum) on preferences. An objective that is a term of its own is
calibrated on its own ratings, or on the pairs where these train it, and on nothing else; with a threshold, on which of its
ratings reach that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from common.config.config import RewarderConfig
from learner.reward_model.training import Features
from rewarder.aggregate import combine, debias, inside_group
from rewarder.aggregation import Aggregation, check_live_groups
from rewarder.calibrate import (
    Calibration,
    CalibrationReport,
    calibration_report,
    calibration_warnings,
    closed_form_temperature,
    fit_temperature,
)
from rewarder.model import GatedRewardModel, RewardOutput


def preference_column(config: RewarderConfig, objectives: Sequence[str]) -> int | None:
    """Which objective the pairs train (rewarder.preference), where there is one."""
    return None if config.preference is None else objectives.index(config.preference)


def outputs(model: GatedRewardModel, features: Features) -> RewardOutput:
    """Scores and gates of all conversations [N, K], without gradient."""
    with torch.no_grad():
        return model.heads(features.prompt.to(model.device), features.response.to(model.device))


@dataclass(frozen=True)
class Predicted:
    """Debiased scores and gates of all conversations [N, K]."""

    debiased: Tensor
    gate: Tensor


@dataclass(frozen=True)
class Labelled:
    """What one term is fitted on: differences [P] between the term's values of two responses (or of one and the threshold),
    labels [P] in {0, .5, 1} (the first is better, the threshold is reached), and where ratings made the labels theirs [P]."""

    differences: Tensor
    labels: Tensor
    rated: Tensor | None = None


def calibrate(
    model: GatedRewardModel, features: Features, aggregation: Aggregation, preference: int | None
) -> Calibration:
    """One temperature per term, fitted on held-out conversations; `preference` is the column that pairs train, where
    there is one. Raises ValueError where a term orders its labelled pairs no better than chance (then no temperature makes
    it a probability), has no labels of its own, or is constant."""
    matrix = model.reward_transform_matrix
    check_live_groups(matrix.detach(), aggregation, model.objectives)
    output = outputs(model, features)
    predicted = Predicted(debias(output.scores, matrix).cpu(), output.gate_weights.cpu())
    terms = aggregation.calibrated_terms(model.objectives)
    fitted = [
        _fit_term(_describe(model, aggregation, m), _labels(predicted, features, aggregation, m, preference, terms[m]))
        for m in range(aggregation.num_terms)
    ]
    return Calibration(tuple(s for s, _ in fitted), tuple(report for _, report in fitted), aggregation.kind, terms)


def warnings(calibration: Calibration) -> list[str]:
    """What is suspicious about the temperatures, a line each."""
    return [
        f"calibration of {term}: {text}"
        for term, s, report in zip(calibration.terms, calibration.temperatures, calibration.reports, strict=True)
        for text in calibration_warnings(s, report)
    ]


def _labels(
    predicted: Predicted, features: Features, aggregation: Aggregation, term: int, preference: int | None, name: str
) -> Labelled:
    """The labels of one term: the ratings of its objectives where there are any, and none of them is what the pairs
    themselves say; of one score the pairs, rated or not. `name` is for errors."""
    if aggregation.thresholds:
        return _reached(predicted, features, aggregation.group_indices[term][0], aggregation.thresholds[term], name)
    if not aggregation.is_one_score and preference not in aggregation.group_indices[term]:
        labelled = _rated_pairs(predicted, features, list(aggregation.group_indices[term]))
        if len(labelled.labels):
            return labelled
        if aggregation.traits.single_objectives:
            raise ValueError(
                f"calibration of {name}: nothing rates two responses to one held-out prompt on it, and preferences are not "
                "labels of one objective; rate it (data.ratings, rewarder.programs), leave it out of the aggregation, or use "
                "aggregation.kind grouped or final_score"
            )
    value = combine(predicted.debiased, predicted.gate, aggregation)[:, term]
    return Labelled(value[features.pairs[:, 0]] - value[features.pairs[:, 1]], torch.ones(len(features.pairs)))


def _rated_pairs(predicted: Predicted, features: Features, columns: list[int]) -> Labelled:
    """All pairs of responses to one prompt with a rating of the same objective on both sides: the better mean wins.

    Scores and ratings are compared over the same objectives with the same weights: those that are rated on both sides, by
    the gate. A mean of all scores against a mean of some ratings would take what is not rated for noise, and the more so
    the fewer are rated: in the sandbox, where two of five are, the temperature came out three times too large."""
    same = [torch.nonzero(features.prompt_of == p).flatten() for p in features.prompt_of.unique()]
    pairs = torch.cat([torch.combinations(rows) for rows in same])
    first, second = pairs[:, 0, None], pairs[:, 1, None]
    gaps = features.ratings[first, columns] - features.ratings[second, columns]
    both = gaps.isfinite()
    weights = inside_group(predicted.gate[first, columns], both)
    rated = (weights * gaps.nan_to_num(0.0)).sum(-1)
    differences = (weights * (predicted.debiased[first, columns] - predicted.debiased[second, columns])).sum(-1)
    some = both.any(-1)
    return Labelled(differences[some], 0.5 * (1.0 + torch.sign(rated[some])), rated[some])


def _reached(predicted: Predicted, features: Features, column: int, threshold: float, name: str) -> Labelled:
    """Every rated response: does its rating reach the threshold?"""
    known = features.ratings[:, column].isfinite()
    above = features.ratings[known, column] - threshold
    share = float((above >= 0).float().mean()) if len(above) else 0.0
    if not 0 < share < 1:
        raise ValueError(
            f"calibration of {name}: {share:.0%} of {len(above)} held-out ratings reach the threshold {threshold:g}; give "
            "ratings, and in aggregation.thresholds a number that some reach and some do not"
        )
    return Labelled(predicted.debiased[known, column] - threshold, (above >= 0).float(), above)


def _describe(model: GatedRewardModel, aggregation: Aggregation, term: int) -> str:
    """What a term is of, for an error message."""
    names = model.objectives
    if aggregation.group_indices:
        names = [model.objectives[k] for k in aggregation.group_indices[term]]
    return f"{aggregation.kind} of {', '.join(names)}"


def _fit_term(what: str, labelled: Labelled) -> tuple[float, CalibrationReport]:
    differences, labels = labelled.differences, labelled.labels
    half = len(differences) // 2  # fitted on one half, reported on the other
    try:
        temperature = fit_temperature(differences[:half], labels[:half])
        report = calibration_report(differences[half:], labels[half:], temperature)
    except ValueError as error:  # which of the terms is what the user must know
        raise ValueError(f"calibration of the term {what}: {error}") from error
    if labelled.rated is None:
        return temperature, report
    return temperature, replace(report, closed_form=closed_form_temperature(differences, labelled.rated))
