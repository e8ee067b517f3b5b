"""Stage 1 by gradient under DeepSpeed, of the whole backbone or of low-rank updates that are then merged into it.

Called by learner/reward_model/stage.py (the gated model and its baseline) and learner/preferences/members.py (members);
every rank calls it, and it waits for the other ranks' passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from common.config.config import LearnerConfig, RewardTrainingConfig
from common.data.split import is_validation
from learner.ranks.engine import Engine
from learner.ranks.progress import Report
from learner.reward_model.data import PromptSet
from learner.reward_model.lora import add_lora, merge_lora
from learner.reward_model.stage_1 import Stage1
from rewarder.model import GatedRewardModel


@dataclass(frozen=True)
class Seeds:
    """`order` of the data, and `start` of low-rank updates."""

    order: int
    start: int


def fit_backbone(
    model: GatedRewardModel,
    training: Sequence[PromptSet],
    learner: LearnerConfig,
    settings: RewardTrainingConfig,
    column: int | None,
    seeds: Seeds,
    rank: int,
    device: torch.device,
    report: Report,
) -> None:
    """Trains the model in place; `column` is the objective that the pairs train, where there is one."""
    lora_rank = settings.lora_rank
    if lora_rank is not None:
        model.backbone.requires_grad_(False)
        add_lora(model.backbone, lora_rank, seeds.start)
    # Stage 2 and calibration read the heads outside DeepSpeed, so the parameters stay whole: no ZeRO-3 here.
    whole = replace(learner, zero_stage=min(learner.zero_stage, 2))
    engine = Engine(model, whole, settings.learning_rate, device)
    budget = learner.micro_batch_tokens
    fitted, validation = parted(training, settings)
    Stage1(engine, model, settings, column, budget, seeds.order, rank).train(fitted, validation, report)
    engine.free()
    if lora_rank is not None:
        merge_lora(model.backbone)


def parted(
    training: Sequence[PromptSet], settings: RewardTrainingConfig
) -> tuple[Sequence[PromptSet], Sequence[PromptSet]]:
    """(fitted on, looked at), by a hash of the prompt; all are fitted on where nothing is stopped early. Raises ValueError
    where one side has no label that the loss knows."""
    if settings.patience is None:
        return training, []
    sides: dict[bool, list[PromptSet]] = {False: [], True: []}
    for prompt in training:
        sides[is_validation(prompt.messages, settings.validation_fraction)].append(prompt)
    for side, name in ((sides[False], "fitted on"), (sides[True], "left out of the fit")):
        if not any(prompt.pairs or (settings.regression_weight and prompt.is_rated) for prompt in side):
            raise ValueError(
                f"learner.reward_model.patience is {settings.patience}, but of {len(training)} training prompts none with a "
                f"label is {name} (validation_fraction {settings.validation_fraction:g}); give more labels, another "
                "validation_fraction, or patience: null"
            )
    return sides[False], sides[True]
