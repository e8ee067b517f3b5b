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
from learner.reward_model.unrated import fit_residuals, group_gap
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

FOLDS = 5  # parts of the held-out prompts; each is judged by the temperature that the others give


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
    labels [P] in [0, 1] (the probability that the first is better, or that the threshold is reached), and the prompt of each
    [P]. Where ratings made the labels, their difference follows: rated [P], and what is not known of it, spread [P], as a
    standard deviation."""

    differences: Tensor
    labels: Tensor
    prompts: Tensor
    rated: Tensor | None = None
    spread: Tensor | None = None


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
    own = not aggregation.is_one_score and preference in aggregation.group_indices[term]
    pairs = features.pairs[features.of_preference] if own else features.pairs
    first, second = pairs[:, 0], pairs[:, 1]
    return Labelled(value[first] - value[second], torch.ones(len(first)), features.prompt_of[first])


def _rated_pairs(predicted: Predicted, features: Features, columns: list[int]) -> Labelled:
    """All pairs of responses to one prompt with a rating of the same objective on both sides: the better group mean wins.

    The mean is the one that is served, over all objectives by the gate. Where some are not rated its sign is known with a
    probability only (learner/reward_model/unrated.py), which is then the label."""
    same = [torch.nonzero(features.prompt_of == p).flatten() for p in features.prompt_of.unique()]
    pairs = torch.cat([torch.combinations(rows) for rows in same])
    first, second = pairs[:, 0, None], pairs[:, 1, None]
    gaps = features.ratings[first, columns] - features.ratings[second, columns]
    some = gaps.isfinite().any(-1)
    if not bool(some.any()):
        nothing = torch.zeros(0)
        return Labelled(nothing, nothing, nothing)
    pairs, first, second, gaps = pairs[some], first[some], second[some], gaps[some]
    weights = inside_group(predicted.gate[first, columns])
    differences = predicted.debiased[first, columns] - predicted.debiased[second, columns]
    gap = group_gap(gaps, differences, weights, fit_residuals(gaps, differences))
    served, prompts = (weights * differences).sum(-1), features.prompt_of[pairs[:, 0]]
    return Labelled(served, gap.probability_first(), prompts, gap.mean, gap.spread)


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
    differences = predicted.debiased[known, column] - threshold
    return Labelled(differences, (above >= 0).float(), features.prompt_of[known], above)


def _describe(model: GatedRewardModel, aggregation: Aggregation, term: int) -> str:
    """What a term is of, for an error message."""
    names = model.objectives
    if aggregation.group_indices:
        names = [model.objectives[k] for k in aggregation.group_indices[term]]
    return f"{aggregation.kind} of {', '.join(names)}"


def _fit_term(what: str, labelled: Labelled) -> tuple[float, CalibrationReport]:
    """The temperature fitted on all pairs, and a report of how such a fit does on prompts that it did not see."""
    try:
        temperature = fit_temperature(labelled.differences, labelled.labels)
        unseen = _cross_fitted(labelled, temperature)
        report = calibration_report(labelled.differences, labelled.labels, unseen)
    except ValueError as error:  # which of the terms is what the user must know
        raise ValueError(f"calibration of the term {what}: {error}") from error
    if labelled.rated is None:
        return temperature, report
    closed = closed_form_temperature(labelled.differences, labelled.rated, labelled.spread)
    return temperature, replace(report, closed_form=closed)


def _cross_fitted(labelled: Labelled, temperature: float) -> Tensor:
    """For each pair [P] the temperature that the pairs of other prompts give: prompts are dealt to FOLDS parts, and each part
    has the fit of the others. `temperature` itself where there is one prompt alone, and so nothing else to fit on."""
    order = torch.unique(labelled.prompts, return_inverse=True)[1]
    fold = order % FOLDS
    unseen = torch.full((len(fold),), temperature, dtype=torch.float64)
    if bool((order > 0).any()):
        for part in fold.unique():
            others = fold != part
            unseen[~others] = fit_temperature(labelled.differences[others], labelled.labels[others])
    return unseen
