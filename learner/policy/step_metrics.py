"""What a step's groups say about themselves: the reward/*, gate/*, rollout/* and staleness/* names of a step line, and the
explained samples. Pure; called by learner/worker.py on rank 0."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from common.types import Reward, Rollout, ScoredGroup

SAME_REWARD = 1e-6  # rewards that differ by less are the same but for rounding


def group_metrics(
    groups: Sequence[ScoredGroup], objectives: Sequence[str], terms: Sequence[str], policy_version: int
) -> dict[str, float]:
    """Means over all responses of the step; policy_version is the learner's when it trains on them."""
    rewards = [reward for group in groups for reward in group.rewards]
    rollouts = [rollout for group in groups for rollout in group.group.rollouts]
    scores = np.array([reward.scores for reward in rewards])
    gates = np.array([reward.gate_weights for reward in rewards])
    values = np.array([[reward.value for reward in group.rewards] for group in groups])
    terms_seen = np.array([reward.terms for reward in rewards])
    staleness = [policy_version - rollout.oldest_version for rollout in rollouts]
    versions = {group.rm_version for group in groups}
    mixed = [len(rollout.version_spans) > 1 for rollout in rollouts]
    return {
        "reward/mean": float(values.mean()),
        **_standard_error(values.mean(axis=1)),
        "reward/group_std": float(values.std(axis=1).mean()),
        "reward/no_spread_frac": float((np.ptp(values, axis=1) <= SAME_REWARD).mean()),
        "reward/gated_score": float((scores * gates).sum(-1).mean()),
        **{f"reward/{name}": float(scores[:, k].mean()) for k, name in enumerate(objectives)},
        **{f"gate/{name}": float(gates[:, k].mean()) for k, name in enumerate(objectives)},
        **{f"reward/term/{name}": float(terms_seen[:, m].mean()) for m, name in enumerate(terms)},
        "rollout/response_tokens": float(np.mean([len(rollout.token_ids) for rollout in rollouts])),
        "rollout/truncated_frac": float(np.mean([rollout.finish_reason == "length" for rollout in rollouts])),
        "rollout/mixed_versions_frac": float(np.mean(mixed)),
        "staleness/mean": float(np.mean(staleness)),
        "staleness/max": float(np.max(staleness)),
        "rm/version": float(max(versions)),  # the newest, where a switch was in the middle of the step
        "rm/versions": float(len(versions)),
    }


def _standard_error(means: NDArray[np.float64]) -> dict[str, float]:
    """The standard error of the mean reward, over the groups [n] of the step: prompts differ, and responses to one prompt are
    alike. Nothing for one group alone."""
    return {"reward/mean_se": float(means.std(ddof=1) / np.sqrt(len(means)))} if len(means) > 1 else {}


def check_staleness(groups: Sequence[ScoredGroup], policy_version: int, max_staleness: int) -> None:
    """Asserts the window's promise for every group: its oldest token is at most max_staleness versions old (docs/async.md)."""
    for group in groups:
        staleness = policy_version - min(rollout.oldest_version for rollout in group.group.rollouts)
        assert 0 <= staleness <= max_staleness, (
            f"slot {group.group.slot} has tokens {staleness} versions older than the policy {policy_version} that trains on "
            f"them, iteration.max_staleness is {max_staleness}: the window or the versions of the engines are wrong"
        )


def explained_sample(
    step: int, group: ScoredGroup, index: int, objectives: Sequence[str], terms: Sequence[str]
) -> dict[str, object]:
    """One response with everything its reward was made of, for samples.jsonl."""
    rollout, reward = group.group.rollouts[index], group.rewards[index]
    return {
        "step": step,
        "slot": group.group.slot,
        "prompt": group.group.prompt.messages[-1].content,
        "response": rollout.response,
        "finish_reason": rollout.finish_reason,
        "policy_version": rollout.oldest_version,
        "rm_version": group.rm_version,
        **_parts(reward, objectives, terms),
        "logprob": _logprob(rollout),
    }


def _parts(reward: Reward, objectives: Sequence[str], terms: Sequence[str]) -> dict[str, object]:
    return {
        "scores": {name: round(float(v), 4) for name, v in zip(objectives, reward.scores, strict=True)},
        "gate": {name: round(float(v), 4) for name, v in zip(objectives, reward.gate_weights, strict=True)},
        "terms": {name: round(float(v), 4) for name, v in zip(terms, reward.terms, strict=True)},
        "weights": {name: round(float(v), 4) for name, v in zip(terms, reward.weights, strict=True)},
        "penalty": reward.penalty,
        "reward": round(reward.value, 4),
    }


def _logprob(rollout: Rollout) -> float:
    return round(float(rollout.rollout_logprobs.sum()), 4)
