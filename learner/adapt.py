"""One round of reward model adaptation: fit a candidate on judged pairs of the policy's samples, weigh it, accept or not.

    loss  Bradley-Terry of the debiased gated score over its scale, on judged pairs + replay_weight * on original data
    gate  the gate and its scale, on cached features: cannot change what an objective means
    lora  low-rank updates of the attention and the gate; the replay has the ratings too, which hold the objectives

Called by learner/rm_adapter.py. Works on the model it is given, a copy of the served one, and changes it in place; only an
accepted one is ever written. The candidate is weighed after its updates were merged and rounded, as it would serve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from common.config import AdaptationConfig
from learner import calibration, held_out
from learner.evidence import Decision, Evidence, Rules, Standing, decide
from learner.lora import add_lora, merge_lora
from learner.progress import Report
from learner.reward_data import PromptSet, flatten
from learner.reward_training import (
    Features,
    descend_gate,
    extract_features,
    gate_loss,
    gated_score,
)
from learner.schedule import cosine
from learner.stage_1 import stage_1_losses
from rewarder.aggregation import Aggregation
from rewarder.calibrate import fit_temperature
from rewarder.model import GatedRewardModel
from rewarder.scoring import batches, collate

GRAD_CLIP = 1.0


@dataclass(frozen=True)
class Data:
    """Judged pairs of the policy's samples (fit, evidence) and original ratings and pairs (training, held_out)."""

    fit: list[PromptSet]
    evidence: list[PromptSet]
    training: list[PromptSet]
    held_out: list[PromptSet]


@dataclass(frozen=True)
class Method:
    """How a candidate is fitted: the configured settings, the weight of the replayed ratings, the column of the objective
    that the original pairs train (where there is one), the budget of a pass, and whether tier lora computes activations
    twice to keep fewer."""

    settings: AdaptationConfig
    regression_weight: float
    preference: int | None
    micro_batch_tokens: int
    seed: int
    gradient_checkpointing: bool = False

    @property
    def rules(self) -> Rules:
        adaptation = self.settings
        return Rules(adaptation.level, adaptation.min_pairs, adaptation.guard_accuracy, adaptation.guard_r2)


@dataclass(frozen=True)
class Weighing:
    """Features of the evidence and of the original held-out data under one model."""

    evidence: Features
    held_out: Features


def adapt(model: GatedRewardModel, data: Data, aggregation: Aggregation, method: Method, report: Report) -> Decision:
    """Fits `model` in place, calibrates it anew and decides whether it may serve. Raises nothing for a bad candidate: it is
    refused with its reason."""
    if missing := _missing(data, method.rules.min_pairs):
        return Decision(False, missing, {"evidence_pairs": float(len(data.evidence))})
    before = _features(model, data, method)
    served_right, served = _right(model, before.evidence), _standing(model, before.held_out, method)
    scale = logit_scale(model, before.held_out)
    if scale is None:
        return Decision(False, "the served model orders the original held-out pairs no better than chance", {})
    after = _fit(model, data, before, method, scale, report)
    evidence = Evidence(served_right, _right(model, after.evidence))
    decision = decide(evidence, served, _standing(model, after.held_out, method), method.rules)
    if decision.accepted and (problem := _recalibrate(model, after.held_out, aggregation, method)):
        return replace(decision, accepted=False, reason=f"{decision.reason}; {problem}")
    return decision


def _missing(data: Data, min_pairs: int) -> str:
    """Why no candidate can be fitted or weighed; empty where one can."""
    if not data.fit or len(data.evidence) < min_pairs:
        return f"{len(data.fit)} pairs to fit and {len(data.evidence)} of evidence, 1 and {min_pairs} wanted"
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


def fit_gate(
    model: GatedRewardModel, fresh: Features, original: Features, method: Method, scale: float, report: Report
) -> None:
    """Trains the gate and its scale alone, from where they are."""
    settings, generator = method.settings, np.random.default_rng([method.seed, 1])

    def loss() -> Tensor:
        replayed = gate_loss(model, original, generator, scale)
        return gate_loss(model, fresh, generator, scale) + settings.replay_weight * replayed

    descend_gate(model, loss, settings.steps, settings.learning_rate, report)


def fit_lora(
    model: GatedRewardModel,
    fresh: Sequence[PromptSet],
    original: Sequence[PromptSet],
    method: Method,
    scale: float,
    report: Report,
) -> None:
    """Trains low-rank updates of the attention, and the gate; the updates are then merged into the weights."""
    settings, generator = method.settings, np.random.default_rng([method.seed, 2])
    parameters = _trainable(model, method)
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    budget = method.micro_batch_tokens
    for step in range(settings.steps):
        optimizer.zero_grad()
        judged, replayed = (_draw(sets, settings.batch_pairs, generator) for sets in (fresh, original))
        loss = accumulate(model, judged, 1.0, 0.0, None, scale, budget)
        weights = settings.replay_weight, method.regression_weight
        accumulate(model, replayed, *weights, method.preference, scale, budget)
        torch.nn.utils.clip_grad_norm_(parameters, GRAD_CLIP)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * cosine(step, settings.steps, 0.03)
        optimizer.step()
        report("lora", step + 1, settings.steps, {"preference": loss})
    merge_lora(model.backbone)
    model.backbone.gradient_checkpointing_disable()
    model.eval()


def _trainable(model: GatedRewardModel, method: Method) -> list[torch.nn.Parameter]:
    """The low-rank updates, which are put in place, and the gate; all else is frozen."""
    model.requires_grad_(False)
    updates = add_lora(model.backbone, method.settings.lora_rank, method.seed)
    model.gating.requires_grad_(True)
    if method.gradient_checkpointing:
        model.backbone.gradient_checkpointing_enable({"use_reentrant": False})
        model.backbone.train()  # transformers checkpoints in training mode only
    return [*updates, *model.gating.parameters()]


def accumulate(
    model: GatedRewardModel,
    sets: Sequence[PromptSet],
    weight: float,
    regression_weight: float,
    column: int | None,
    scale: float,
    micro_batch_tokens: int,
) -> float:
    """Adds the gradient of weight * stage 1's loss (stage_1.stage_1_losses), means over the sets, in micro-batches of
    whole prompts; returns the Bradley-Terry part of the gated score."""
    num_pairs = max(1, sum(len(prompt.pairs) for prompt in sets))
    known = torch.from_numpy(sum(np.isfinite(prompt.ratings).sum(0) for prompt in sets)).to(model.device)
    total = 0.0
    for indices in batches([sum(len(c.ids) for c in prompt.conversations) for prompt in sets], micro_batch_tokens):
        rendered, ratings, pairs, pair_labels, _ = flatten([sets[i] for i in indices])
        labels = ratings.to(model.device), pairs.to(model.device), pair_labels.to(model.device)
        output = model(*collate(rendered, model.device))
        losses = stage_1_losses(output, model.reward_transform_matrix, *labels, known, num_pairs, column, scale)
        (weight * (regression_weight * losses[0] + losses[1] + losses[2])).backward()
        total += losses[1].item()
    return total


def _fit(
    model: GatedRewardModel, data: Data, before: Weighing, method: Method, scale: float, report: Report
) -> Weighing:
    """Fits by the configured tier; the features under the candidate (the gate leaves them as they are)."""
    if method.settings.tier == "lora":
        fit_lora(model, data.fit, data.training, method, scale, report)
        return _features(model, data, method)
    fresh, original = (_extract(model, sets, method) for sets in (data.fit, data.training))
    fit_gate(model, fresh, original, method, scale, report)
    return before


def _features(model: GatedRewardModel, data: Data, method: Method) -> Weighing:
    return Weighing(_extract(model, data.evidence, method), _extract(model, data.held_out, method))


def _extract(model: GatedRewardModel, sets: Sequence[PromptSet], method: Method) -> Features:
    return extract_features(model, sets, method.micro_batch_tokens, 0, model.device)


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
    guarded = rated if method.settings.tier == "lora" else ()
    return Standing(report["rm/pair_accuracy"], {name: report[f"rm/r2/{name}"] for name in guarded})


def _recalibrate(model: GatedRewardModel, unseen: Features, aggregation: Aggregation, method: Method) -> str:
    """Puts the candidate's own temperatures in place; why there are none, else empty."""
    try:
        fitted = calibration.calibrate(model, unseen, aggregation, method.preference)
    except ValueError as error:  # a term at chance level: this candidate's fault, so it is refused and not the run
        return f"it cannot be calibrated: {error}"
    model.info = replace(model.info, calibration=fitted)
    return ""


def _draw(sets: Sequence[PromptSet], count: int, generator: np.random.Generator) -> list[PromptSet]:
    picked = generator.choice(len(sets), min(count, len(sets)), replace=False)
    return [sets[index] for index in picked]
