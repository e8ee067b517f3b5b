"""What a policy step measures: sums over response tokens, by name, and the policy/* metrics made of them. Pure maths; called
by learner/policy/train.py."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from common.config.config import LearnerConfig
from learner.ranks.losses import clip_acts, log_ratio

TokenSums = dict[str, Tensor]


@dataclass(frozen=True)
class TokenValues:
    """What a micro-batch's loss was made of, [B, T] each: log-probs of the policy, of what its ratio is taken against, of the
    sampler and of the reference; the importance weights; the entropy in nats; the advantages [B, 1]; and the response mask.
    Where the mask is False a value may be anything."""

    policy_logprobs: Tensor
    old_logprobs: Tensor
    rollout_logprobs: Tensor
    ref_logprobs: Tensor
    importance_weights: Tensor
    entropy: Tensor
    advantages: Tensor
    response_mask: Tensor


def token_sums(values: TokenValues, loss: Tensor, config: LearnerConfig) -> TokenSums:
    """TokenSums over the response tokens of a micro-batch, without gradient, as float64 scalars on the CPU."""
    mask, logprobs, weights = values.response_mask, values.policy_logprobs, values.importance_weights
    ratio = log_ratio(logprobs, values.old_logprobs, mask).exp()
    clip = values.advantages, mask, config.clip_low, config.clip_high
    capped = weights >= (math.inf if config.importance_cap is None else config.importance_cap)
    sums = {
        "tokens": mask.sum(),
        "kl_ref": log_ratio(logprobs, values.ref_logprobs, mask).sum(),
        "entropy": torch.where(mask, values.entropy, 0.0).sum(),
        "clipped": clip_acts(logprobs, values.old_logprobs, *clip).sum(),
        "ratio": torch.where(mask, ratio, 0.0).sum(),
        "importance": torch.where(mask, weights, 0.0).sum(),
        "capped": (capped & mask).sum(),
        "gap": log_ratio(logprobs, values.rollout_logprobs, mask).abs().sum(),
        "loss": loss,
        "sequences": mask.any(-1).sum(),
    }
    return {name: value.detach().double().cpu() for name, value in sums.items()}


def add_sums(first: TokenSums, second: TokenSums) -> TokenSums:
    """Both added name by name; no sums yet (an empty dict) count as zeros."""
    zero = torch.zeros((), dtype=torch.float64)
    return {name: first.get(name, zero) + value for name, value in second.items()}


def policy_metrics(sums: Mapping[str, float], grad_norms: list[float]) -> dict[str, float]:
    """The policy/* metrics of a step: means over its response tokens (kl_sequence: over its responses), and over its updates
    of the loss and the gradient norm."""
    tokens, sequences, num_updates = max(sums["tokens"], 1.0), max(sums["sequences"], 1.0), len(grad_norms)
    return {
        "policy/kl_ref": sums["kl_ref"] / tokens,
        "policy/kl_sequence": sums["kl_ref"] / sequences,
        "policy/entropy": sums["entropy"] / tokens,
        "policy/clip_frac": sums["clipped"] / tokens,
        "policy/ratio_mean": sums["ratio"] / tokens,
        "policy/importance_weight_mean": sums["importance"] / tokens,
        "policy/importance_capped_frac": sums["capped"] / tokens,
        "policy/rollout_logprob_gap": sums["gap"] / tokens,
        "policy/loss": sums["loss"] / num_updates,
        "policy/grad_norm": sum(grad_norms) / num_updates,
    }
