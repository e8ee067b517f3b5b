"""One round of reward model adaptation: fit a candidate (learner/adaptation/tiers.py says what is trained,
learner/adaptation/meta_rm.py how), weigh it on judged pairs that it was not fitted on, accept it or not.

    L  Bradley-Terry of the debiased gated score over its scale, on judged (or self-labelled) pairs + replay_weight * on
       original data; alone on original data where nothing fresh is labelled
    J  the difference loss on unlabelled samples, for the meta methods

Called by learner/adaptation/worker.py. Works on the model it is given, a copy of the served one, and changes it in place;
only an accepted one is ever written. The candidate is weighed after its updates were merged and rounded, as it would serve.
J is reported and never decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from common.config.config import CACHED_TIERS, META_METHODS, LearnerConfig
from learner.adaptation import heads
from learner.adaptation.backbone_landscape import FitSets
from learner.adaptation.cached_landscape import CachedLandscape, FitFeatures
from learner.adaptation.evidence import Decision, Evidence, Standing, decide
from learner.adaptation.fit import Method, fit_candidate
from learner.adaptation.meta_rm import spread, spread_pairs
from learner.adaptation.pseudo_labels import labelled_by_itself
from learner.adaptation.tiers import fit_backbone_tier
from learner.ranks.progress import Report
from learner.reward_model import calibration, held_out
from learner.reward_model.data import PromptSet
from learner.reward_model.training import Features, extract_features, gated_score
from rewarder.aggregation import Aggregation
from rewarder.calibrate import fit_temperature
from rewarder.model import GatedRewardModel


@dataclass(frozen=True)
class Data:
    """Labels of the policy's samples (fit; older, of earlier rounds, drawn apart; validation, looked at alone; evidence, pairs;
    rated, ratings on the evidence's side), unlabelled samples of it (meta: each prompt's different responses), and original
    ratings and pairs (training, held_out)."""

    fit: list[PromptSet]
    evidence: list[PromptSet]
    meta: list[PromptSet]
    training: list[PromptSet]
    held_out: list[PromptSet]
    older: list[PromptSet] = field(default_factory=list)
    validation: list[PromptSet] = field(default_factory=list)
    rated: list[PromptSet] = field(default_factory=list)


@dataclass(frozen=True)
class Weighing:
    """Features of the evidence (pairs, and rated responses where there are any), of the original held-out data and of the
    unlabelled samples under one model, and the scale of its gated score."""

    evidence: Features
    rated: Features | None
    held_out: Features
    meta: Features | None
    scale: float


def adapt(
    model: GatedRewardModel,
    data: Data,
    aggregation: Aggregation,
    method: Method,
    learner: LearnerConfig,
    report: Report,
) -> Decision:
    """Fits `model` in place, calibrates it anew and decides whether it may serve. Raises nothing for a bad candidate: it is
    refused with its reason. Every rank calls it and comes to the same decision."""
    if missing := _missing(data, method):
        return Decision(False, missing, {"evidence_pairs": float(len(data.evidence))})
    before = _weighing(model, data, method)
    if before is None:
        return Decision(False, "the served model orders the original held-out pairs no better than chance", {})
    served_right, served = _right(model, before.evidence), _standing(model, before.held_out, method)
    numbers = _spreads(model, before, "difference_loss") | _heads(model, before, method, "")
    fresh = _fresh(model, data, before, method)
    if not fresh and method.settings.method == "pseudo_label":
        return Decision(False, f"no pair is labelled with a confidence of {method.settings.confidence:g}", numbers)
    after = _fit(model, replace(data, fit=fresh), before, method, learner, report)
    if after is None:
        return Decision(False, "the candidate orders the original held-out pairs no better than chance", numbers)
    evidence = Evidence(served_right, _right(model, after.evidence))
    decision = decide(evidence, served, _standing(model, after.held_out, method), method.rules)
    numbers |= decision.numbers | _spreads(model, after, "candidate_difference_loss")
    numbers |= _heads(model, after, method, "candidate_") | {"fitted_pairs": float(len(fresh))}
    decision = replace(decision, numbers=numbers)
    if decision.accepted and (problem := _recalibrate(model, after.held_out, aggregation, method)):
        return replace(decision, accepted=False, reason=f"{decision.reason}; {problem}")
    return decision


def _missing(data: Data, method: Method) -> str:
    """Why no candidate can be fitted or weighed; empty where one can."""
    min_pairs, kind = method.rules.min_pairs, method.settings.method
    if len(data.evidence) < min_pairs or (kind == "labelled" and not data.fit):
        return f"{len(data.fit)} labelled prompts to fit and {len(data.evidence)} of evidence, 1 and {min_pairs} wanted"
    if kind in (*META_METHODS, "pseudo_label") and not data.meta:
        return f"there are no unlabelled samples, which method {kind} is fitted on"
    if method.settings.patience is not None and not data.validation:
        return "no freshly labelled prompt is left out of the fit, by which adaptation.patience could end it"
    for name, sets in (("training", data.training), ("held-out", data.held_out)):
        if not any(prompt.pairs for prompt in sets):
            return f"there are no original {name} pairs"
    return ""


def logit_scale(model: GatedRewardModel, features: Features) -> float | None:
    """The scale of the gated score: the temperature that makes its differences probabilities on the labelled pairs; None
    where it orders them no better than chance. A model made by stage reward_model is near 1; released ones are far from it."""
    score = _scores(model, features)
    difference = score[features.pairs[:, 0]] - score[features.pairs[:, 1]]
    try:
        return fit_temperature(difference, torch.ones(len(difference)))
    except ValueError:  # what fit_temperature says of scores without order
        return None


def _fresh(model: GatedRewardModel, data: Data, before: Weighing, method: Method) -> list[PromptSet]:
    """What is fitted on beside the original data."""
    if method.settings.method == "labelled":
        return data.fit
    if method.settings.method == "pseudo_label":
        assert before.meta is not None, "checked by _missing"
        reward = _scores(model, before.meta) / before.scale
        return labelled_by_itself(data.meta, reward, method.settings.confidence, method.seed)
    return []


def _fit(
    model: GatedRewardModel, data: Data, before: Weighing, method: Method, learner: LearnerConfig, report: Report
) -> Weighing | None:
    """Fits by the configured tier; the features under the candidate (cached tiers leave them as they are)."""
    settings = method.settings
    if settings.tier not in CACHED_TIERS:
        sets = FitSets(data.fit, data.training, data.meta, data.older, data.validation)
        fit_backbone_tier(model, sets, method, learner, before.scale, report)
        return _weighing(model, data, method)
    fresh, older, validation = (
        _extract(model, sets, method) if sets else None for sets in (data.fit, data.older, data.validation)
    )
    original = _extract(model, data.training, method)
    features = FitFeatures(fresh, original, before.meta, older, validation)
    fit_candidate(CachedLandscape(model, features, method, before.scale), settings, report)
    scale = logit_scale(model, before.held_out)
    return None if scale is None else replace(before, scale=scale)


def _weighing(model: GatedRewardModel, data: Data, method: Method) -> Weighing | None:
    """None where the model orders the held-out pairs no better than chance."""
    seen, meta = _extract(model, data.held_out, method), _extract(model, data.meta, method) if data.meta else None
    scale = logit_scale(model, seen)
    if scale is None:
        return None
    rated = _extract(model, data.rated, method) if data.rated else None
    return Weighing(_extract(model, data.evidence, method), rated, seen, meta, scale)


def _spreads(model: GatedRewardModel, weighing: Weighing, name: str) -> dict[str, float | None]:
    """J of the unlabelled samples, over the model's own scale: what it gains by larger scores alone is not counted."""
    if weighing.meta is None:
        return {}
    prompt_of = weighing.meta.prompt_of
    comparisons = spread_pairs(prompt_of, len(prompt_of.unique()))
    return {name: float(spread(_scores(model, weighing.meta) / weighing.scale, comparisons))}


def _heads(model: GatedRewardModel, weighing: Weighing, method: Method, name: str) -> dict[str, float | None]:
    """How well each objective's head does on the policy's own rated samples; nothing where none are rated."""
    if (rated := weighing.rated) is None:
        return {}
    scores = calibration.outputs(model, rated).scores.cpu()
    found = heads.standings(scores, rated.ratings, rated.prompt_of, method.seed)
    return heads.numbers(name, dict(zip(model.objectives, found, strict=True)))


def _extract(model: GatedRewardModel, sets: Sequence[PromptSet], method: Method) -> Features:
    return extract_features(model, sets, method.micro_batch_tokens, method.rank, model.device)


def _scores(model: GatedRewardModel, features: Features) -> Tensor:
    return gated_score(calibration.outputs(model, features), model.reward_transform_matrix).detach().cpu()


def _right(model: GatedRewardModel, features: Features) -> np.ndarray:
    """Which pairs the gated score orders as the judge does, [P] bool; an equal score is wrong."""
    score = _scores(model, features)
    return (score[features.pairs[:, 0]] > score[features.pairs[:, 1]]).numpy()


def _standing(model: GatedRewardModel, features: Features, method: Method) -> Standing:
    """On the original held-out data. R2 is of the objectives that something rates (pairs guard the other one); none for the
    gate tier, whose objectives stay as they are, bit for bit."""
    report = held_out.held_out_report(model, features, method.preference)
    rated = [name for k, name in enumerate(model.objectives) if k != method.preference]
    guarded = rated if method.settings.tier != "gate" else []
    constant = tuple(name for name in guarded if f"{held_out.CONSTANT}{name}" in report)
    r2 = {name: report[f"rm/r2/{name}"] for name in guarded if name not in constant}
    return Standing(report["rm/pair_accuracy"], r2, constant)


def _recalibrate(model: GatedRewardModel, unseen: Features, aggregation: Aggregation, method: Method) -> str:
    """Puts the candidate's own temperatures in place; why there are none, else empty."""
    try:
        fitted = calibration.calibrate(model, unseen, aggregation, method.preference)
    except ValueError as error:  # a term at chance level: this candidate's fault, so it is refused and not the run
        return f"it cannot be calibrated: {error}"
    model.info = replace(model.info, calibration=fitted)
    return ""
