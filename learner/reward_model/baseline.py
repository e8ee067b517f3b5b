"""The plain Bradley-Terry model that the gated one must beat: the same start, the same pairs, one scalar head.

    score = w . h_R       loss = -log sigmoid(score of the chosen - score of the rejected), and nothing else

Called by learner/reward_model/stage.py where learner.reward_model.baseline is set. It is a gated model with one objective and a
frozen gate of 1 (rewarder/bradley_terry.py), so what trains and reads the gated one trains and reads it too. Source: Bradley
and Terry 1952, as in 2203.02155.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from common.config.config import RewardTrainingConfig
from learner.ranks.progress import Report
from learner.reward_model.data import PromptSet
from learner.reward_model.training import Features, descend, gate_loss
from rewarder.model import GatedRewardModel

NAME = "Bradley-Terry baseline"


def paired(sets: Sequence[PromptSet]) -> list[PromptSet]:
    """The prompts that have pairs, with the conversations that stand in one; ratings are [n, 1], none known. Raises ValueError
    where there is no pair."""
    with_pairs = [_paired(prompt) for prompt in sets if prompt.pairs]
    if not with_pairs:
        raise ValueError(
            f"learner.reward_model.baseline is true, but none of the {len(sets)} training prompts has a pair; give more pairs "
            "in data.preferences, or set learner.reward_model.baseline: false"
        )
    return with_pairs


def _paired(prompt: PromptSet) -> PromptSet:
    kept = sorted({index for pair in prompt.pairs for index in (pair.chosen, pair.rejected)})
    place = {old: new for new, old in enumerate(kept)}
    unknown = np.full((len(kept), 1), np.nan, np.float32)
    pairs = tuple(replace(p, chosen=place[p.chosen], rejected=place[p.rejected]) for p in prompt.pairs)
    return replace(prompt, conversations=tuple(prompt.conversations[i] for i in kept), ratings=unknown, pairs=pairs)


def pairs_alone(config: RewardTrainingConfig) -> RewardTrainingConfig:
    """The settings of the gated model's stage 1 without its regression."""
    return replace(config, regression_weight=0.0)


def named(report: Report) -> Report:
    """Progress of stage 1 under the baseline's name, with the one loss that it has."""
    return lambda _, done, total, losses: report(NAME, done, total, {"preference": losses["preference"]})


def fit_head(
    model: GatedRewardModel, features: Features, config: RewardTrainingConfig, seed: int, progress: Report
) -> None:
    """Beside a gated model of frozen backbone (stage_1: ridge): the head alone, on the same hidden states, by as many updates
    of the same size as the gate has. Every rank does the same on its own copy."""
    generator = np.random.default_rng([seed, 3])
    descend(
        model.regression_layer.parameters(),
        lambda: gate_loss(model, features, generator),
        config.gate_steps,
        config.gate_learning_rate,
        lambda done, total, loss: progress(NAME, done, total, {"preference": loss}),
    )
