"""The names of a step line's values outside the run: metrics with tags, as Ray hands them to Prometheus.

`policy/entropy` is the metric iter_rlhf_policy_entropy, before which Ray puts `ray_`. A name that holds an objective's or a
term's own name becomes a tag of one metric, so that a panel or an alert need not know the run's objectives. Pure; called by
driver/record/gauges.py. A name that is added to the step line is described here and drawn in configs/grafana.json.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

PREFIX = "iter_rlhf_"
# Names that end in a term of the aggregation, and their metric with the tag `term`
TERMS = {
    "reward/term/": "reward_term",
    "reward/binding/": "reward_binding_term",
    "reference/coverage/": "reference_coverage_term",
}
# Names that end in an objective, beside reward/ and gate/, and their metric with the tag `objective`
OF_OBJECTIVES = {
    "rm/correlation/": "rm_correlation_objective",
    "rm/onpolicy_r2/": "rm_onpolicy_r_squared_objective",
    "rm/candidate_correlation/": "rm_candidate_correlation_objective",
    "rm/candidate_onpolicy_r2/": "rm_candidate_onpolicy_r_squared_objective",
}

# What each metric says, without its prefix
HELP = {
    "step": "Steps trained",
    "iteration": "The iteration that is running, from 1; 0 before the first",
    "policy_version": "The policy version that every engine was proven to hold",
    "rm_version": "The reward model's version, the newest that scored the step",
    "rm_versions": "Versions of the reward model that scored the step: 2 where a switch was in the middle of it",
    "rm_onpolicy_accuracy": "Pair accuracy on fresh samples of the reward model that served up to the last round",
    "rm_candidate_onpolicy_accuracy": "Pair accuracy on fresh samples of the last round's candidate",
    "rm_pair_accuracy": "Pair accuracy on original held-out pairs of the reward model that served up to the last round",
    "rm_candidate_pair_accuracy": "Pair accuracy on original held-out pairs of the last round's candidate",
    "rm_p_value": "Chance of as many wins on the evidence if the candidate were no better, last round",
    "rm_evidence_pairs": "Judged pairs that weighed the last round's candidate",
    "rm_difference_loss": "J of the policy's samples, over its own scale, of the reward model that served up to the last round",
    "rm_candidate_difference_loss": "J of the policy's samples, over its own scale, of the last round's candidate",
    "rm_accepted": "1 if the last round's candidate was accepted",
    "rm_correlation_objective": "Correlation of an objective's head with ratings of fresh samples, served up to the last round",
    "rm_onpolicy_r_squared_objective": "R2 of an objective's head on ratings of fresh samples, served up to the last round",
    "rm_candidate_correlation_objective": "Correlation of an objective's head with ratings of fresh samples, last candidate",
    "rm_candidate_onpolicy_r_squared_objective": "R2 of an objective's head on ratings of fresh samples, last candidate",
    "drift_accuracy": "Share of judged fresh pairs that the served reward orders as the judge does, at the last look",
    "drift_gap": "Rise of the reward less rise of gold since the baseline, in standard deviations, at the last look",
    "drift_variance": "Mean within-prompt standard deviation of the reward, at the last look",
    "drift_disagreement": "Mean standard deviation among the ensemble's members, at the last look",
    "drift_baseline": "The drift signal at the first look at the version that serves",
    "reward_mean": "Mean reward, as trained on",
    "reward_mean_se": "Standard error of the mean reward of a step, over its groups",
    "reward_group_std": "Mean standard deviation of the reward among the responses to one prompt",
    "reward_gated_score": "Mean raw score, weighted by the gate",
    "reward_objective": "Mean raw score of an objective",
    "reward_term": "Mean term of the aggregation, before its weight",
    "reward_saturated_frac": "Share of terms so far above the reference that the transform hardly pays for more (z > 3)",
    "reward_linear_frac": "Share of terms far below the reference (z < -3) that the transform leaves as they are (slope >= .9)",
    "reward_floored_frac": "Share of terms so far below the reference that the floor has flattened them (slope < .5)",
    "reward_no_spread_frac": "Share of groups whose responses all have the same reward, which teach nothing",
    "reward_all_good": "Mean probability that a response is good in every term at once",
    "reward_binding_term": "Share of responses in which raising this term would raise the reward most",
    "reference_coverage_term": "Share of the reference policy's own samples at or below r_ref, by term",
    "gate_objective": "Mean gate weight of an objective",
    "gold_mean": "Mean gold on held-out prompts, where last judged",
    "policy_kl_ref": "KL to the reference, nats per token",
    "policy_kl_sequence": "KL to the reference, nats per response",
    "policy_entropy": "Entropy of the policy, nats per token",
    "policy_clip_frac": "Share of response tokens whose gradient the clip cut off",
    "policy_ratio_mean": "Mean probability ratio of learner to engine",
    "policy_importance_weight_mean": "Mean truncated weight of response tokens, learner over sampler",
    "policy_importance_capped_frac": "Share of response tokens whose weight was cut at learner.importance_cap",
    "policy_rollout_logprob_gap": "Mean |learner - engine| log-prob of sampled tokens, nats",
    "policy_loss": "Loss per update",
    "policy_grad_norm": "Gradient norm before clipping",
    "rollout_tokens_per_s": "Tokens sampled per second that an engine was busy",
    "rollout_response_tokens": "Mean tokens of a response",
    "rollout_truncated_frac": "Share of responses that hit max_response_tokens",
    "rollout_mixed_versions_frac": "Share of responses that more than one policy version sampled",
    "staleness_mean": "Mean policy versions between sampling and training",
    "staleness_max": "Most policy versions between sampling and training",
    "queue_work": "Slots in the work stream",
    "queue_rollouts": "Groups in the rollouts stream",
    "queue_scored": "Groups in the scored stream, trained ones included until they are trimmed",
    "queue_dead": "Dead letters",
    "sync_max_logprob_diff": "Largest |learner - engine| log-prob on the probe after a publication, nats",
    "sync_step_size": "Largest change of the learner's log-probs on the probe since the version before, nats",
    "time_wait_s": "Seconds of the step waiting for a whole batch",
    "time_train_s": "Seconds of the step training",
    "time_publish_s": "Seconds of the step publishing and verifying weights",
    "time_judge_s": "Seconds of the step judging held-out responses",
    "time_adapt_s": "Seconds of the step in a round of the reward model",
    "time_checkpoint_s": "Seconds of the checkpoint before the step",
    "time_step_s": "Seconds of the step, without its checkpoint",
}

# What is 0 before the first step. The usual advice is to start every series with 0; but a reward, an entropy or a gold of 0
# was never measured, and would trip the alerts that watch for a fall. Those series begin with their first measurement.
AT_THE_START = dict.fromkeys(
    ("step", "iteration", "policy/version", "rm/version", "queue/work", "queue/rollouts", "queue/scored", "queue/dead"),
    0.0,
)


@dataclass(frozen=True, slots=True)
class Series:
    """A metric's name and the tags that it has beside `run`; a metric always has the same tag keys."""

    metric: str
    tags: tuple[tuple[str, str], ...] = ()


def series_of(name: str, objectives: Collection[str]) -> Series:
    """Where a value of the step line goes."""
    kind, _, rest = name.partition("/")
    if kind in ("reward", "gate") and rest in objectives:
        return Series(f"{PREFIX}{kind}_objective", (("objective", rest),))
    for tag, kinds in (("term", TERMS), ("objective", OF_OBJECTIVES)):
        for prefix, metric in kinds.items():
            if name.startswith(prefix):
                return Series(PREFIX + metric, ((tag, name.removeprefix(prefix)),))
    return Series(PREFIX + name.replace("/", "_"))


def measured(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among a step line's values: null was not measured, and NaN is no point of a curve."""
    return {name: float(value) for name, value in values.items() if _is_finite(value)}


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
