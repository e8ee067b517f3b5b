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

from common.config.config import LearnerConfig, LimitsConfig
from common.types import ScoredGroup
from learner.policy.advantages import group_advantages
from learner.policy.statistics import TokenSums, TokenValues, add_sums, policy_metrics, token_sums
from learner.ranks.batch import Sequences, TokenRow, collate, rank_micro_batches, rows_of
from learner.ranks.engine import Engine, num_ranks, reduce_sum
from learner.ranks.logprobs import token_entropy, token_logprobs
from learner.ranks.losses import clipped_policy_loss, importance_weights, kl_penalty, masked_mean


class BadBatch(RuntimeError):
    """The step's loss or gradient is not a number, or beyond a limit of learner.limits. The update that it names changed no
    weight; those of earlier updates of the step stay."""


@dataclass(frozen=True)
class MiniBatch:
    """One update's share of a step: this rank's micro-batches, and the number of response tokens on all ranks."""

    batches: list[Sequences]
    num_tokens: int


@dataclass(frozen=True)
class PolicyStep:
    """What every step of a run is made with: the trained policy, the frozen reference's forward pass, section `learner`, the
    sampling temperature, and this rank with its device."""

    engine: Engine
    reference: Callable[..., Any]
    config: LearnerConfig
    temperature: float
    rank: int
    device: torch.device

    def run(self, groups: Sequence[ScoredGroup], updates_done: int) -> dict[str, float]:
        """Runs num_updates optimizer updates on the groups; returns policy/* metrics over all ranks. updates_done counts the
        updates of earlier steps, for the warm-up. Raises BadBatch."""
        parts = _mini_batches(groups, self.config, self.rank)
        starts = self._start_logprobs(parts)
        sums: TokenSums = {}
        grad_norms: list[float] = []
        for update, (part, start) in enumerate(zip(parts, starts, strict=True), updates_done):
            sums = add_sums(sums, self._accumulate(part, start))
            _check(sums, update, self.config.limits)
            grad_norms.append(self._step(update))
        return policy_metrics({name: float(value) for name, value in sums.items()}, grad_norms)

    def _start_logprobs(self, parts: Sequence[MiniBatch]) -> list[list[Tensor | None]]:
        """The policy's log-probs before the first update for each micro-batch of each update; None where its own pass (the
        only update's) or the sampler (no cap) gives what the ratio is taken against."""
        if self.config.importance_cap is None or len(parts) == 1:
            return [[None] * len(part.batches) for part in parts]
        with torch.no_grad():
            return [[self._policy_pass(batch.to(self.device))[0] for batch in part.batches] for part in parts]

    def _accumulate(self, part: MiniBatch, starts: Sequence[Tensor | None]) -> TokenSums:
        """Adds up the gradient of one update, and returns the sums of its tokens over all ranks."""
        sums: TokenSums = {}
        for batch, start in zip(part.batches, starts, strict=True):
            sums = add_sums(sums, self._backward(batch.to(self.device), start, part.num_tokens))
        totals = reduce_sum(torch.stack(list(sums.values())))
        return dict(zip(sums, totals, strict=True))

    def _backward(self, batch: Sequences, start: Tensor | None, num_tokens: int) -> TokenSums:
        ref_logprobs = self._ref_logprobs(batch)
        policy_logprobs, logits = self._policy_pass(batch)
        start = policy_logprobs.detach() if start is None else start
        old = batch.rollout_logprobs if self.config.importance_cap is None else start
        mask = batch.response_mask
        weights = importance_weights(start, batch.rollout_logprobs, mask, self.config.importance_cap)
        clip = self.config.clip_low, self.config.clip_high
        policy_loss = weights * clipped_policy_loss(policy_logprobs, old, batch.advantages, mask, *clip)
        penalty = kl_penalty(policy_logprobs, ref_logprobs, mask, self.config.kl_estimator)
        loss = masked_mean(policy_loss + self.config.kl_coef * penalty, mask, num_tokens)
        self.engine.backward(loss * num_ranks())
        logprobs = policy_logprobs.detach(), old, batch.rollout_logprobs, ref_logprobs
        entropy = token_entropy(logits, self.temperature)
        return token_sums(TokenValues(*logprobs, weights, entropy, batch.advantages, mask), loss, self.config)

    def _policy_pass(self, batch: Sequences) -> tuple[Tensor, Tensor]:
        """The policy's log-probs [B, T] and logits [B, T, V]."""
        with self.engine.precision():
            logits = self.engine.module(input_ids=batch.token_ids, attention_mask=batch.mask, use_cache=False).logits
        return token_logprobs(logits, batch.token_ids, self.temperature), logits

    def _ref_logprobs(self, batch: Sequences) -> Tensor:
        with torch.no_grad(), self.engine.precision():
            logits = self.reference(input_ids=batch.token_ids, attention_mask=batch.mask, use_cache=False).logits
            return token_logprobs(logits, batch.token_ids, self.temperature)

    def _step(self, update: int) -> float:
        grad_norm = self.engine.step(min(1.0, (update + 1) / max(self.config.warmup_steps, 1)))
        if not math.isfinite(grad_norm):
            raise BadBatch(f"update {update}: the gradient's norm is {grad_norm}")
        return grad_norm


def _check(sums: TokenSums, update: int, limits: LimitsConfig) -> None:
    """Raises BadBatch, before the gradient is used, for what no healthy step has. All ranks have the same sums."""
    values = {name: float(value) for name, value in sums.items()}
    if wrong := [name for name, value in values.items() if not math.isfinite(value)]:
        raise BadBatch(f"update {update}: {', '.join(f'{name} is {values[name]}' for name in wrong)}")
    tokens = max(values["tokens"], 1.0)
    for name, most in (("kl_ref", limits.kl_ref), ("ratio", limits.ratio)):
        if most is not None and values[name] / tokens > most:
            mean = values[name] / tokens
            raise BadBatch(f"update {update}: {name} is {mean:.4g} a token on average, learner.limits.{name} {most:g}")


def _mini_batches(groups: Sequence[ScoredGroup], config: LearnerConfig, rank: int) -> list[MiniBatch]:
    """The groups dealt to the updates in turn."""
    rewards = torch.tensor([[reward.value for reward in group.rewards] for group in groups])
    rows, size = rows_of(groups, group_advantages(rewards)), len(groups[0].rewards)
    shares = [
        [rows[i] for i in range(len(rows)) if (i // size) % config.num_updates == update]
        for update in range(config.num_updates)
    ]
    return [_mini_batch(share, config.micro_batch_tokens, rank) for share in shares]


def _mini_batch(rows: Sequence[TokenRow], token_budget: int, rank: int) -> MiniBatch:
    cuts = rank_micro_batches([len(row.token_ids) for row in rows], token_budget, rank, num_ranks())
    num_tokens = sum(len(row.token_ids) - row.response_start for row in rows)
    return MiniBatch([collate([rows[index] for index in cut]) for cut in cuts], num_tokens)
