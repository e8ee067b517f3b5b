"""One policy step: groups in, one new policy out.

    groups -> advantages -> mini-batches (num_updates) -> micro-batches -> policy loss + kl_coef * KL -> DeepSpeed

Called by learner/worker.py on every rank with the same groups. With learner.importance_cap the clipped ratio is taken against
the policy at the start of the step, and each token weighs what losses.importance_weights says. With one update the start's
log-probs are those of the update's own pass; with more, a pass without gradient before the first update computes them on
the same micro-batches. Without a cap the ratio is taken against the sampler, and all tokens weigh 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.config.config import LearnerConfig
from common.types import ScoredGroup
from learner.policy.advantages import group_advantages
from learner.ranks.batch import Row, Sequences, collate, rank_micro_batches, rows_of
from learner.ranks.engine import Engine, num_ranks, reduce_sum
from learner.ranks.logprobs import token_entropy, token_logprobs
from learner.ranks.losses import clipped_policy_loss, importance_weights, kl_penalty, masked_mean

STATISTICS = ("tokens", "kl_ref", "entropy", "clipped", "ratio", "importance", "capped", "gap", "loss", "sequences")


class NonFiniteLoss(RuntimeError):
    """The step's loss or gradient is not a number; the run must go on from its last checkpoint."""


@dataclass(frozen=True)
class MiniBatch:
    """One update's share of a step: this rank's micro-batches, and the number of response tokens on all ranks."""

    batches: list[Sequences]
    num_tokens: int


def train_step(
    engine: Engine,
    reference: Callable[..., Any],
    groups: Sequence[ScoredGroup],
    config: LearnerConfig,
    temperature: float,
    rank: int,
    device: torch.device,
    updates_done: int,
) -> dict[str, float]:
    """Runs num_updates optimizer updates on the groups; returns policy/* metrics over all ranks."""
    parts = _mini_batches(groups, config, rank)
    starts = _start_logprobs(engine, parts, config, temperature, device)
    totals, norms = torch.zeros(len(STATISTICS), dtype=torch.float64), []
    for update, (part, start) in enumerate(zip(parts, starts, strict=True), updates_done):
        totals += _accumulate(engine, reference, part, start, config, temperature, device)
        if not bool(torch.isfinite(totals).all()):
            raise NonFiniteLoss(f"update {update}: statistics {dict(zip(STATISTICS, totals.tolist(), strict=True))}")
        norms.append(engine.step(min(1.0, (update + 1) / max(config.warmup_steps, 1))))
        if not math.isfinite(norms[-1]):
            raise NonFiniteLoss(f"update {update}: gradient norm {norms[-1]}; resume the last checkpoint")
    return _metrics(totals, norms)


def _mini_batches(groups: Sequence[ScoredGroup], config: LearnerConfig, rank: int) -> list[MiniBatch]:
    """The groups dealt to the updates in turn."""
    rewards = torch.tensor([[reward.value for reward in group.rewards] for group in groups])
    rows, size = rows_of(groups, group_advantages(rewards)), len(groups[0].rewards)
    shares = [
        [rows[i] for i in range(len(rows)) if (i // size) % config.num_updates == update]
        for update in range(config.num_updates)
    ]
    return [_mini_batch(share, config.micro_batch_tokens, rank) for share in shares]


def _mini_batch(rows: Sequence[Row], token_budget: int, rank: int) -> MiniBatch:
    cuts = rank_micro_batches([len(row.token_ids) for row in rows], token_budget, rank, num_ranks())
    num_tokens = sum(len(row.token_ids) - row.response_start for row in rows)
    return MiniBatch([collate([rows[index] for index in cut]) for cut in cuts], num_tokens)


def _start_logprobs(
    engine: Engine, parts: Sequence[MiniBatch], config: LearnerConfig, temperature: float, device: torch.device
) -> list[list[Tensor | None]]:
    """The policy's log-probs before the first update for each micro-batch of each update; None where its own pass (the only
    update's) or the sampler (no cap) gives what the ratio is taken against."""
    if config.importance_cap is None or len(parts) == 1:
        return [[None] * len(part.batches) for part in parts]
    with torch.no_grad():
        return [[_policy(engine, batch.to(device), temperature)[0] for batch in part.batches] for part in parts]


def _policy(engine: Engine, batch: Sequences, temperature: float) -> tuple[Tensor, Tensor]:
    """The policy's log-probs [B, T] and logits [B, T, V]."""
    with engine.precision():
        logits = engine.module(input_ids=batch.token_ids, attention_mask=batch.mask, use_cache=False).logits
    return token_logprobs(logits, batch.token_ids, temperature), logits


def _accumulate(
    engine: Engine,
    reference: Callable[..., Any],
    part: MiniBatch,
    starts: Sequence[Tensor | None],
    config: LearnerConfig,
    temperature: float,
    device: torch.device,
) -> Tensor:
    totals = torch.zeros(len(STATISTICS), dtype=torch.float64)
    for on_cpu, start in zip(part.batches, starts, strict=True):
        batch = on_cpu.to(device)
        with torch.no_grad(), engine.precision():
            ref_logits = reference(input_ids=batch.token_ids, attention_mask=batch.mask, use_cache=False).logits
            ref_logprobs = token_logprobs(ref_logits, batch.token_ids, temperature)
        logprobs, logits = _policy(engine, batch, temperature)
        start = logprobs.detach() if start is None else start
        old = batch.rollout_logprobs if config.importance_cap is None else start
        weights = importance_weights(start, batch.rollout_logprobs, config.importance_cap)
        policy = weights * clipped_policy_loss(logprobs, old, batch.advantages, config.clip_low, config.clip_high)
        penalty = kl_penalty(logprobs, ref_logprobs, config.kl_estimator)
        loss = masked_mean(policy + config.kl_coef * penalty, batch.response, part.num_tokens)
        engine.backward(loss * num_ranks())
        entropy = token_entropy(logits, temperature)
        totals += _statistics(batch, logprobs.detach(), old, weights, ref_logprobs, entropy, loss.detach(), config)
    return reduce_sum(totals)


def _statistics(
    batch: Sequences,
    logprobs: Tensor,
    old_logprobs: Tensor,
    weights: Tensor,
    ref_logprobs: Tensor,
    entropy: Tensor,
    loss: Tensor,
    config: LearnerConfig,
) -> Tensor:
    """Sums over the response tokens of a micro-batch, in the order of STATISTICS."""
    mask = batch.response
    ratio = torch.where(mask, logprobs - old_logprobs, 0.0).exp()
    clipped = (ratio < 1 - config.clip_low) | (ratio > 1 + config.clip_high)
    capped = weights >= (math.inf if config.importance_cap is None else config.importance_cap)
    sums = (
        mask.sum(),
        torch.where(mask, logprobs - ref_logprobs, 0.0).sum(),
        torch.where(mask, entropy, 0.0).sum(),
        (clipped & mask).sum(),
        torch.where(mask, ratio, 0.0).sum(),
        torch.where(mask, weights, 0.0).sum(),
        (capped & mask).sum(),
        torch.where(mask, logprobs - batch.rollout_logprobs, 0.0).abs().sum(),
        loss,
        mask.any(-1).sum(),
    )
    return torch.stack([value.double().cpu() for value in sums])


def _metrics(totals: Tensor, norms: list[float]) -> dict[str, float]:
    total = dict(zip(STATISTICS, totals.tolist(), strict=True))
    tokens, sequences = max(total["tokens"], 1.0), max(total["sequences"], 1.0)
    return {
        "policy/kl_ref": total["kl_ref"] / tokens,
        "policy/kl_sequence": total["kl_ref"] / sequences,
        "policy/entropy": total["entropy"] / tokens,
        "policy/clip_frac": total["clipped"] / tokens,
        "policy/ratio_mean": total["ratio"] / tokens,
        "policy/importance_weight_mean": total["importance"] / tokens,
        "policy/importance_capped_frac": total["capped"] / tokens,
        "policy/rollout_logprob_gap": total["gap"] / tokens,
        "policy/loss": total["loss"] / len(norms),
        "policy/grad_norm": sum(norms) / len(norms),
    }
