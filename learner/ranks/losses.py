"""The policy's and the reward model's losses: pure maths, on tensors of one micro-batch. Ranks never reach this file: sums
are divided by counts that the caller reduced over ranks.

Letters: B sequences, T tokens, K objectives. Masks are bool, True = keep. Prompt and padding tokens have log-probs too, and
these may be anything: each function here masks before its exp, so that they reach neither a value nor a gradient (0 times
infinity is not a number, and a mask after the exp does not undo it).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def log_ratio(logprobs: Tensor, base_logprobs: Tensor, mask: Tensor) -> Tensor:
    """logprobs - base_logprobs where the mask keeps, else 0, whatever stands there. [B, T] -> [B, T]"""
    return torch.where(mask, logprobs - base_logprobs, 0.0)


def clipped_policy_loss(
    policy_logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """Per-token surrogate -min(ratio A, clip(ratio) A), PPO's clip with its two ends set apart (1707.06347; 2503.14476).

    policy_logprobs (with gradient), old_logprobs (the policy's at the start of the step, or the sampler's) [B, T];
    advantages [B, 1] or [B, T]; mask [B, T] -> [B, T].
    """
    ratio = log_ratio(policy_logprobs, old_logprobs, mask).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def clip_acts(
    policy_logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """Where the clipped term is the one that `clipped_policy_loss` takes, so that the token has no gradient: above the upper
    end for a good response, below the lower end for a bad one. [B, T] bool; False where masked."""
    ratio = log_ratio(policy_logprobs, old_logprobs, mask).exp()
    return mask & torch.where(advantages > 0, ratio > 1 + clip_high, (advantages < 0) & (ratio < 1 - clip_low))


def importance_weights(old_logprobs: Tensor, rollout_logprobs: Tensor, mask: Tensor, cap: float | None) -> Tensor:
    """Truncated importance sampling: min(exp(old - rollout), cap) per token, without gradient; 1 where masked. [B, T] -> [B, T]

    A token was drawn by the sampler, whose weights may be older and whose arithmetic is another, but its gradient is meant
    for one drawn by the policy at the start of the step; the cap bounds the variance that the exact weight would bring
    (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"). No cap: all weights are 1.
    """
    if cap is None:
        return torch.ones_like(rollout_logprobs)
    return log_ratio(old_logprobs, rollout_logprobs, mask).detach().exp().clamp(max=cap)


def kl_penalty(policy_logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, estimator: str) -> Tensor:
    """Per-token penalty whose gradient draws the policy to the reference, on samples of the policy; 0 where masked.
    [B, T] -> [B, T]

    k2 = (log p - log ref)^2 / 2: its gradient is that of KL(policy || reference). k3 = ref/p - 1 - log(ref/p): unbiased as
    a value, non-negative; as a loss its gradient is that of KL(reference || policy) on policy samples.
    """
    difference = log_ratio(policy_logprobs, ref_logprobs, mask)
    if estimator == "k2":
        return difference.square() / 2
    assert estimator == "k3", f"kl_estimator is checked by the configuration, got {estimator}"
    return (-difference).exp() - 1 + difference


def masked_mean(values: Tensor, mask: Tensor, total: float | Tensor) -> Tensor:
    """Sum of the kept values over `total`, the number kept in the whole step (all micro-batches, all ranks): token mean
    over the global batch, so that accumulation and ranks change nothing."""
    return torch.where(mask, values, torch.zeros_like(values)).sum() / total


def masked_regression(scores: Tensor, ratings: Tensor, known: Tensor, num_known: Tensor) -> Tensor:
    """Squared error on the ratings that exist, averaged per objective first: scores, ratings, known [B, K], num_known [K]
    (of the whole batch) -> scalar (a sum over micro-batches gives the mean over objectives of the mean over ratings)."""
    errors = torch.where(known, scores - ratings, torch.zeros_like(scores)).square()
    return (errors.sum(0) / num_known.clamp_min(1)).mean()


def bradley_terry(difference: Tensor, target: Tensor | float = 1.0, margin: Tensor | float = 0.0) -> Tensor:
    """-t log sigmoid(D - m) - (1 - t) log sigmoid(m - D), elementwise: D = score of the first - score of the second, t the
    probability that the first is better, m the margin by which it should win, all in nats. t = 1, m = 0: Bradley-Terry.

    Smoothed labels and adaptive margins as in 2401.06080 (its equation 6 has the margin outside the log-sigmoid, where it
    would have no gradient; inside is what it means)."""
    over = difference - margin
    return -target * logsigmoid(over) - (1 - target) * logsigmoid(-over)
