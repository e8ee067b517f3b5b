"""Trains the gated multi-objective reward model from ratings and pairs.

    stage 1  backbone + heads + gate: regression_weight * masked MSE of the objectives + Bradley-Terry of the gated score
             (+ Bradley-Terry of the head that rewarder.preference names: pairs are that objective's labels), where the backbone
             may be low-rank updates of it (learner/lora.py);
             or, with stage_1: ridge, heads alone, in closed form on the frozen backbone's hidden states (learner/ridge.py)
    debias   the verbosity matrix T from the predicted scores (rewarder/debias.py)
    stage 2  gate and its scale alone, Bradley-Terry on the debiased score, on cached hidden states

Called by learner/reward_stage.py, on every rank. Source: ArmoRM (2406.12845); training the heads jointly
with a Bradley-Terry term follows SMORM (2507.07375).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.config import RewardTrainingConfig
from common.split import is_validation
from learner.batch import rank_micro_batches
from learner.engine import Engine, num_ranks, reduce_sum
from learner.feature_cache import cached_states, features_key
from learner.losses import bradley_terry, masked_regression
from learner.progress import Report
from learner.reward_data import PromptSet, check_finite_rows
from learner.ridge import Block, RidgeFit, fit_ridge
from learner.schedule import cosine
from rewarder.aggregate import debias
from rewarder.model import GatedRewardModel, RewardOutput
from rewarder.scoring import Rendered, collate

GATE_PAIRS = 1024  # of one update
RIDGE_HELD_OUT = 0.2  # of the training prompts, to pick each objective's alpha
BLOCK_ROWS = 8192  # hidden states in hand at a time


@dataclass(frozen=True)
class Features:
    """Hidden states of N conversations: prompt and response [N, H] float32; pairs [P, 2] indices; ratings [N, K] with NaN;
    prompt_of [N] tells which conversations share a prompt."""

    prompt: Tensor
    response: Tensor
    pairs: Tensor
    ratings: Tensor
    prompt_of: Tensor


def gated_score(output: RewardOutput, matrix: Tensor) -> Tensor:
    """sum_k g_k (r T)_k: the Bradley-Terry logit of each response, [B]."""
    return (debias(output.scores, matrix) * output.gate_weights).sum(-1)


def pair_losses(output: RewardOutput, pairs: Tensor, matrix: Tensor, scale: float = 1.0) -> Tensor:
    """Bradley-Terry on the debiased gated score over `scale`, for pairs [P, 2] of rows of the output; [P]."""
    score = gated_score(output, matrix) / scale
    return bradley_terry(score[pairs[:, 0]], score[pairs[:, 1]])


def train_stage_1(
    engine: Engine,
    matrix: Tensor,
    sets: Sequence[PromptSet],
    config: RewardTrainingConfig,
    preference: int | None,
    micro_batch_tokens: int,
    seed: int,
    rank: int,
    device: torch.device,
    progress: Report,
) -> None:
    """Trains everything, prompts as units, about batch_size conversations a step; `preference` is the column of the
    objective that the pairs train, where there is one."""
    mean_size = max(1.0, float(np.mean([len(prompt.conversations) for prompt in sets])))
    per_step = max(1, round(config.batch_size / mean_size))
    total, done = config.epochs * -(-len(sets) // per_step), 0
    for epoch in range(config.epochs):
        order = np.random.default_rng([seed, 1, epoch]).permutation(len(sets))
        for start in range(0, len(sets), per_step):
            part = [sets[index] for index in order[start : start + per_step]]
            weight = config.regression_weight
            losses = _accumulate(engine, matrix, part, weight, preference, micro_batch_tokens, rank, device)
            engine.step(cosine(done, total, 0.03))
            done += 1
            progress("reward model", done, total, losses)


def _accumulate(
    engine: Engine,
    matrix: Tensor,
    sets: Sequence[PromptSet],
    regression_weight: float,
    column: int | None,
    micro_batch_tokens: int,
    rank: int,
    device: torch.device,
) -> dict[str, float]:
    num_known = torch.from_numpy(sum(np.isfinite(prompt.ratings).sum(0) for prompt in sets)).to(device)
    num_pairs = max(1, sum(len(prompt.pairs) for prompt in sets))
    parts = torch.zeros(3, dtype=torch.float64)
    lengths = [sum(len(c.ids) for c in prompt.conversations) for prompt in sets]
    for indices in rank_micro_batches(lengths, micro_batch_tokens, rank, num_ranks()):
        part = [sets[i] for i in indices] or [sets[0]]
        rendered, ratings, pairs, _ = flatten(part)
        weight = float(bool(indices))  # a rank without rows still runs the pass that ZeRO-3 waits for
        with engine.precision():
            output = engine.module(*collate(rendered, device))
        check_finite_rows("scores or gate weights", (output.scores.detach(), output.gate_weights.detach()), part)
        losses = stage_1_losses(output, matrix, ratings.to(device), pairs.to(device), num_known, num_pairs, column)
        engine.backward(weight * (regression_weight * losses[0] + losses[1] + losses[2]) * num_ranks())
        parts += weight * losses.detach().double().cpu()
    regression, gated, head = reduce_sum(parts).tolist()
    return {"regression": regression, "preference": gated} | ({} if column is None else {"preference_head": head})


def stage_1_losses(
    output: RewardOutput,
    matrix: Tensor,
    ratings: Tensor,
    pairs: Tensor,
    num_known: Tensor,
    num_pairs: int,
    column: int | None,
    scale: float = 1.0,
) -> Tensor:
    """[3]: masked MSE of the ratings, Bradley-Terry of the gated score over `scale`, and of the head in `column` (0 without
    one), of a micro-batch with ratings [B, K] (NaN where there is none) and pairs [P, 2]; num_known [K] and num_pairs are of
    the whole batch."""
    regression = masked_regression(output.scores, ratings.nan_to_num(), ratings.isfinite(), num_known)
    gated = pair_losses(output, pairs, matrix, scale).sum() / num_pairs
    if column is None:
        return torch.stack([regression, gated, torch.zeros_like(gated)])
    head, (chosen, rejected) = output.scores[:, column], pairs.unbind(1)
    return torch.stack([regression, gated, bradley_terry(head[chosen], head[rejected]).sum() / num_pairs])


def flatten(sets: Sequence[PromptSet]) -> tuple[list[Rendered], Tensor, Tensor, Tensor]:
    """All conversations in one list, with ratings [N, K], pairs [P, 2] and prompt_of [N] in its indices."""
    rendered = [conversation for prompt in sets for conversation in prompt.conversations]
    starts = np.cumsum([0, *(len(prompt.conversations) for prompt in sets)])
    pairs = [(starts[i] + a, starts[i] + b) for i, prompt in enumerate(sets) for a, b in prompt.pairs]
    prompt_of = np.repeat(np.arange(len(sets)), [len(prompt.conversations) for prompt in sets])
    ratings = torch.from_numpy(np.concatenate([prompt.ratings for prompt in sets]))
    return rendered, ratings, torch.tensor(pairs, dtype=torch.long).reshape(-1, 2), torch.from_numpy(prompt_of)


def extract_features(
    model: GatedRewardModel,
    sets: Sequence[PromptSet],
    micro_batch_tokens: int,
    rank: int,
    device: torch.device,
    cache: str | None = None,
) -> Features:
    """Hidden states of every conversation, computed once, by all ranks together, without autocast; `cache` is the directory
    that keeps them between runs, memory-mapped, where there is one. Raises ValueError for a state that is not finite; nothing
    is kept then."""
    rendered, ratings, pairs, prompt_of = flatten(sets)

    def compute(states: Tensor) -> None:
        _fill_states(states, model, rendered, micro_batch_tokens, rank, device)
        check_finite_rows("hidden states", tuple(states), sets)

    shape = (2, len(rendered), model.sizes.hidden)
    if cache is None:
        compute(states := torch.zeros(shape))
    else:
        key = features_key(model.backbone, rendered, (device.type, micro_batch_tokens, num_ranks()))
        states = cached_states(Path(cache), key, shape, compute)
    return Features(states[0], states[1], pairs, ratings, prompt_of)


def _fill_states(
    states: Tensor,
    model: GatedRewardModel,
    rendered: Sequence[Rendered],
    micro_batch_tokens: int,
    rank: int,
    device: torch.device,
) -> None:
    """Writes h_P and h_R of all rows into zeros [2, N, H]: each rank its own, then the sum over ranks, part by part."""
    for indices in rank_micro_batches([len(r.ids) for r in rendered], micro_batch_tokens, rank, num_ranks()):
        with torch.no_grad():
            output: RewardOutput = model(*collate([rendered[i] for i in indices] or rendered[:1], device))
        for kind, state in enumerate((output.prompt_state, output.response_state)):
            states[kind, indices] = state[: len(indices)].cpu()
    for part in states.flatten(0, 1).split(BLOCK_ROWS):
        reduce_sum(part)


def fit_heads(model: GatedRewardModel, features: Features, sets: Sequence[PromptSet]) -> RidgeFit:
    """Stage 1 in closed form: the heads by ridge on the hidden states of these prompts; every rank does the same on its own
    copy. Raises ValueError (learner/ridge.py)."""
    picks = torch.tensor([is_validation(prompt.messages, RIDGE_HELD_OUT) for prompt in sets])[features.prompt_of]
    fit = fit_ridge(_blocks(features, ~picks), _blocks(features, picks), model.objectives)
    model.regression_layer.weight.data.copy_(fit.weight)
    return fit


def _blocks(features: Features, kept: Tensor) -> Iterator[Block]:
    for rows in torch.nonzero(kept).flatten().split(BLOCK_ROWS):
        yield features.response[rows], features.ratings[rows]


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
    pairs = features.pairs[generator.choice(len(features.pairs), size, replace=False)]
    rows = pairs.flatten()
    output = model.heads(features.prompt[rows].to(model.device), features.response[rows].to(model.device))
    neighbours = torch.arange(len(rows), device=model.device).reshape(-1, 2)
    return pair_losses(output, neighbours, model.reward_transform_matrix, scale).mean()


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
