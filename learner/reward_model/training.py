"""Trains the gated multi-objective reward model from ratings and pairs.

    stage 1  backbone + heads + gate by gradient (learner/reward_model/stage_1.py), or, with stage_1: ridge, heads alone, on the
             frozen backbone's hidden states and without gradient steps (learner/reward_model/heads.py)
    debias   the verbosity matrix T from the predicted scores (rewarder/debias.py)
    stage 2  gate and its scale alone, Bradley-Terry on the debiased score, on cached hidden states

Called by learner/reward_model/stage.py, on every rank. Source: ArmoRM (2406.12845).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.config.config import RewardTrainingConfig
from learner.ranks.batch import rank_micro_batches
from learner.ranks.engine import num_ranks, reduce_sum
from learner.ranks.losses import bradley_terry
from learner.ranks.progress import Report, silent
from learner.ranks.schedule import cosine
from learner.reward_model.data import PromptSet, check_finite_rows, flatten
from learner.reward_model.feature_cache import cached_states, features_key
from rewarder.aggregate import debias
from rewarder.model import GatedRewardModel, RewardOutput
from rewarder.scoring import Rendered, pad_conversations

GATE_PAIRS = 1024  # of one update
BLOCK_ROWS = 8192  # hidden states in hand at a time
STATES = "hidden states, conversations"  # what progress calls them


@dataclass(frozen=True)
class Features:
    """Hidden states of N conversations: prompt and response [N, H] float32; pairs [P, 2] indices, with target, margin, weight
    and whether it is of_preference (1 or 0) of each in pair_labels [P, 4]; ratings [N, K] with NaN; prompt_of [N] tells which
    conversations share a prompt."""

    prompt: Tensor
    response: Tensor
    pairs: Tensor
    pair_labels: Tensor
    ratings: Tensor
    prompt_of: Tensor

    @property
    def of_preference(self) -> Tensor:
        """Whether each pair [P] is a label of the objective rewarder.preference, where that is set."""
        return self.pair_labels[:, 3] > 0


def gated_score(output: RewardOutput, matrix: Tensor) -> Tensor:
    """sum_k g_k (r T)_k: the Bradley-Terry logit of each response, [B]."""
    return (debias(output.scores, matrix) * output.gate_weights).sum(-1)


def pair_losses(score: Tensor, pairs: Tensor, labels: Tensor) -> Tensor:
    """Bradley-Terry of scores [B], for pairs [P, 2] of their indices with labels [P, 4] (target, margin, weight,
    of_preference); [P]."""
    target, margin, weight, _ = labels.unbind(1)
    return weight * bradley_terry(score[pairs[:, 0]] - score[pairs[:, 1]], target, margin)


def head_losses(score: Tensor, pairs: Tensor, labels: Tensor) -> Tensor:
    """The loss of each pair for the head that pairs train: 0 where a pair is no label of rewarder.preference."""
    return labels[:, 3] * pair_losses(score, pairs, labels)


def extract_features(
    model: GatedRewardModel,
    sets: Sequence[PromptSet],
    micro_batch_tokens: int,
    rank: int,
    device: torch.device,
    cache: str | None = None,
    report: Report = silent,
) -> Features:
    """Hidden states of every conversation, one pass each, by all ranks together, without autocast; `cache` is the directory
    that keeps them between runs, memory-mapped, where there is one; `report` hears how many are done. Raises ValueError for a
    state that is not finite; nothing is kept then."""
    rendered, ratings, pairs, pair_labels, prompt_of = flatten(sets)

    def compute(states: Tensor) -> None:
        _fill_states(states, model, rendered, micro_batch_tokens, rank, device, report)
        check_finite_rows("hidden states", tuple(states), sets)

    shape = (2, len(rendered), model.sizes.hidden)
    if cache is None:
        compute(states := torch.zeros(shape))
    else:
        key = features_key(model.backbone, rendered, (device.type, micro_batch_tokens, num_ranks()))
        states = cached_states(Path(cache), key, shape, compute)
    return Features(states[0], states[1], pairs, pair_labels, ratings, prompt_of)


def _fill_states(
    states: Tensor,
    model: GatedRewardModel,
    rendered: Sequence[Rendered],
    micro_batch_tokens: int,
    rank: int,
    device: torch.device,
    report: Report,
) -> None:
    """Writes h_P and h_R of all rows into zeros [2, N, H]: each rank its own, then the sum over ranks, part by part. Progress
    is counted in tokens, on which the time depends, and told in conversations."""
    lengths = [len(r.ids) for r in rendered]
    mine = rank_micro_batches(lengths, micro_batch_tokens, rank, num_ranks())
    done, tokens = 0, max(1, sum(lengths[i] for indices in mine for i in indices))
    for indices in mine:
        with torch.no_grad():
            output: RewardOutput = model(*pad_conversations([rendered[i] for i in indices] or rendered[:1], device))
        for kind, state in enumerate((output.prompt_state, output.response_state)):
            states[kind, indices] = state[: len(indices)].cpu()
        done += sum(lengths[i] for i in indices)
        report(STATES, len(rendered) * done // tokens, len(rendered), {})
    for part in states.flatten(0, 1).split(BLOCK_ROWS):
        reduce_sum(part)


def train_gate(
    model: GatedRewardModel, features: Features, config: RewardTrainingConfig, seed: int, progress: Report
) -> None:
    """Stage 2: the gate and its scale on cached features; small, so every rank does the same on its own copy."""
    generator = np.random.default_rng([seed, 2])
    descend_gate(
        model, lambda: gate_loss(model, features, generator), config.gate_steps, config.gate_learning_rate, progress
    )


def gate_loss(
    model: GatedRewardModel, features: Features, generator: np.random.Generator, scale: float = 1.0
) -> Tensor:
    """Mean Bradley-Terry loss of at most GATE_PAIRS pairs, drawn from the features."""
    size = min(GATE_PAIRS, len(features.pairs))
    drawn = generator.choice(len(features.pairs), size, replace=False)
    rows = features.pairs[drawn].flatten()
    output = model.heads(features.prompt[rows].to(model.device), features.response[rows].to(model.device))
    neighbours = torch.arange(len(rows), device=model.device).reshape(-1, 2)
    score = gated_score(output, model.reward_transform_matrix) / scale
    return pair_losses(score, neighbours, features.pair_labels[drawn].to(model.device)).mean()


def descend_gate(
    model: GatedRewardModel, loss_of: Callable[[], Tensor], steps: int, learning_rate: float, progress: Report
) -> None:
    """AdamW on the gate and its scale alone, at a rate that falls to 0."""

    def said(done: int, total: int, loss: float) -> None:
        progress("gate", done, total, {"preference": loss})

    descend(model.gating.parameters(), loss_of, steps, learning_rate, said)


def descend(
    parameters: Iterable[torch.nn.Parameter],
    loss_of: Callable[[], Tensor],
    steps: int,
    learning_rate: float,
    progress: Callable[[int, int, float], None],
) -> None:
    """AdamW on these parameters, at a rate that falls to 0; progress gets (done, total, loss)."""
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    for step in range(steps):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * cosine(step, steps, 0.0)
        optimizer.step()
        progress(step + 1, steps, loss.item())
