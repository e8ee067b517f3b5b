"""One policy step: groups in, one new policy out.

    groups -> advantages -> mini-batches (num_updates) -> micro-batches -> policy loss + kl_coef * KL -> DeepSpeed

Called by learner/worker.py on every rank with the same groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from common.config import LearnerConfig
from common.types import ScoredGroup
from learner.advantages import group_advantages
from learner.batch import Row, Sequences, collate, rank_micro_batches, rows_of
from learner.engine import Engine, num_ranks, reduce_sum
from learner.logprobs import token_entropy, token_logprobs
from learner.losses import clipped_policy_loss, kl_penalty, masked_mean

STATISTICS = ("tokens", "kl_ref", "entropy", "clipped", "ratio", "rollout_gap", "loss", "sequences")


class NonFiniteLoss(RuntimeError):
    """The step's loss or gradient is not a number; the run must go on from its last checkpoint."""


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
    rewards = torch.tensor([[reward.value for reward in group.rewards] for group in groups])
    rows = rows_of(groups, group_advantages(rewards))
    size = len(groups[0].rewards)
    totals, norms = torch.zeros(len(STATISTICS), dtype=torch.float64), []
    for update in range(config.num_updates):
        part = [rows[i] for i in range(len(rows)) if (i // size) % config.num_updates == update]
        totals += _accumulate(engine, reference, part, config, temperature, rank, device)
        if not bool(torch.isfinite(totals).all()):
            raise NonFiniteLoss(
                f"update {updates_done + update}: statistics {dict(zip(STATISTICS, totals.tolist(), strict=True))}"
            )
        norms.append(engine.step(min(1.0, (updates_done + update + 1) / max(config.warmup_steps, 1))))
        if not math.isfinite(norms[-1]):
            raise NonFiniteLoss(
                f"update {updates_done + update}: gradient norm {norms[-1]}; resume the last checkpoint"
            )
    return _metrics(totals, norms)


def _accumulate(
    engine: Engine,
    reference: Callable[..., Any],
    rows: Sequence[Row],
    config: LearnerConfig,
    temperature: float,
    rank: int,
    device: torch.device,
) -> Tensor:
    num_tokens = sum(len(row.token_ids) - row.response_start for row in rows)
    totals = torch.zeros(len(STATISTICS), dtype=torch.float64)
    lengths = [len(row.token_ids) for row in rows]
    for indices in rank_micro_batches(lengths, config.micro_batch_tokens, rank, num_ranks()):
        batch = collate([rows[index] for index in indices]).to(device)
        with torch.no_grad(), engine.precision():
            ref_logits = reference(input_ids=batch.token_ids, attention_mask=batch.mask, use_cache=False).logits
            ref_logprobs = token_logprobs(ref_logits, batch.token_ids, temperature)
        with engine.precision():
            logits = engine.module(input_ids=batch.token_ids, attention_mask=batch.mask, use_cache=False).logits
        logprobs = token_logprobs(logits, batch.token_ids, temperature)
        policy = clipped_policy_loss(logprobs, batch.old_logprobs, batch.advantages, config.clip_low, config.clip_high)
        penalty = kl_penalty(logprobs, ref_logprobs, config.kl_estimator)
        loss = masked_mean(policy + config.kl_coef * penalty, batch.response, num_tokens)
        engine.backward(loss * num_ranks())
        entropy = token_entropy(logits, temperature)
        totals += _statistics(batch, logprobs.detach(), ref_logprobs, entropy, loss.detach(), config)
    return reduce_sum(totals)


def _statistics(
    batch: Sequences, logprobs: Tensor, ref_logprobs: Tensor, entropy: Tensor, loss: Tensor, config: LearnerConfig
) -> Tensor:
    """Sums over the response tokens of a micro-batch, in the order of STATISTICS."""
    mask = batch.response
    gap = torch.where(mask, logprobs - batch.old_logprobs, 0.0)
    ratio = gap.exp()
    clipped = (ratio < 1 - config.clip_low) | (ratio > 1 + config.clip_high)
    to_reference = torch.where(mask, logprobs - ref_logprobs, 0.0)
    sums = (
        mask.sum(),
        to_reference.sum(),
        torch.where(mask, entropy, 0.0).sum(),
        (clipped & mask).sum(),
        torch.where(mask, ratio, 0.0).sum(),
        gap.abs().sum(),
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
        "policy/rollout_logprob_gap": total["rollout_gap"] / tokens,
        "policy/loss": total["loss"] / len(norms),
        "policy/grad_norm": sum(norms) / len(norms),
    }
