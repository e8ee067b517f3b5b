"""Scores to reward terms: debias, combine by the gate, centre, scale, log-sigmoid with a floor, weights. Pure maths.

Owns the order of the reward pipeline; rewarder/aggregation.py says which terms there are. The scorer calls `rewards` for
every group, the reference stage calls `combined_scores` for the anchor's samples, and the learner's reward-model stages call
`debias` and `combine`.
Everything is float32 (float64 stays float64, for tests) and fails closed: a value that is not finite is a ValueError,
never a reward. Letters: B responses, K objectives, M reward terms.

Sources: Wang et al. 2406.12845 (gated score, verbosity debiasing); Wang et al. 2402.00742 (u = log sigmoid(r - r_ref),
and the sum over properties as a logical AND); TRL's GRPOTrainer with several reward functions (reward_weights) for
weighted_sum, which has no gate, no reference and no transform; GDPO (2601.05242) for zscore; the minimum over several
reward models, and their mean less a penalty on their variance (UWO; Coste et al. 2310.02743, ICLR 2024), for min and
ensemble.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rewarder.aggregation import Aggregation

SMALLEST_SHARE = 1e-12  # a group below this share of the gate has no gate inside: its objectives weigh the same
SMALLEST_SPREAD = 1e-4  # added to the standard deviation of a group by zscore, in logits; TRL's and GDPO's number


def _finite(name: str, values: Tensor) -> Tensor:
    """`values` as float32 (float64 kept); ValueError if any is NaN or infinite."""
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise ValueError(
            f"{name} has {bad} of {values.numel()} values that are not finite; nothing is rewarded from them"
        )
    return values if values.dtype == torch.float64 else values.float()


def _gate(values: Tensor) -> Tensor:
    gate = _finite("gate_weights", values)
    if bool((gate < 0).any()):
        raise ValueError(
            f"gate_weights has a negative value ({float(gate.min()):.4g}); want all >= 0; is logit_scale negative?"
        )
    return gate


def debias(scores: Tensor, matrix: Tensor) -> Tensor:
    """r' = r @ T, row vector times matrix: scores [B, K], matrix [K, K] -> [B, K] (2406.12845, verbosity debiasing)."""
    scores, matrix = _finite("scores", scores), _finite("reward_transform_matrix", matrix)
    if matrix.shape != (scores.shape[-1], scores.shape[-1]):
        raise ValueError(
            f"reward_transform_matrix is {tuple(matrix.shape)} for scores of {scores.shape[-1]} objectives"
        )
    return scores @ matrix.to(scores.dtype)


def inside_group(gate: Tensor, among: Tensor | None = None) -> Tensor:
    """Gate of one group's members [..., k], already as shares of the whole gate -> weights that sum to 1 [..., k]. With
    `among` [..., k] the members where it is False weigh 0; where no member is among them, all do."""
    among = torch.ones_like(gate, dtype=torch.bool) if among is None else among
    gate, count = torch.where(among, gate, 0.0), among.sum(-1, keepdim=True).clamp_min(1)
    mass = gate.sum(-1, keepdim=True)
    return torch.where(mass > SMALLEST_SHARE, gate / mass.clamp_min(SMALLEST_SHARE), among.to(gate.dtype) / count)


def _shares(gate: Tensor) -> Tensor:
    """Gate [..., K] over its sum; a gate of zeros stays zeros."""
    total = gate.sum(-1, keepdim=True)
    return torch.where(total > 0, gate / total.clamp_min(torch.finfo(gate.dtype).tiny), torch.zeros_like(gate))


def combine(debiased: Tensor, gate: Tensor, aggregation: Aggregation) -> Tensor:
    """Debiased scores [B, K] and gate [B, K] or [K] -> one value per term [B, M].

    final_score: sum_k g_k r'_k. grouped: the gate-weighted mean inside each group (uniform where the group's gate is
    ~0). weighted_sum: sum_k w_k r'_k, whatever the gate. ensemble: mean - penalty * variance of the members, whatever the
    gate. The others: their objectives as they are."""
    debiased, gate = _finite("debiased scores", debiased), _gate(gate)
    return MATHS[aggregation.kind].combine(debiased, gate, aggregation)


def _gated_sum(debiased: Tensor, gate: Tensor, aggregation: Aggregation) -> Tensor:
    return (debiased * gate).sum(-1, keepdim=True)


def _group_means(debiased: Tensor, gate: Tensor, aggregation: Aggregation) -> Tensor:
    shares = _shares(gate)
    columns = [list(group) for group in aggregation.group_indices]
    return torch.stack([(debiased[..., k] * inside_group(shares[..., k])).sum(-1) for k in columns], dim=-1)


def _single_objectives(debiased: Tensor, gate: Tensor, aggregation: Aggregation) -> Tensor:
    return debiased[..., [k for (k,) in aggregation.group_indices]]


def _weighted_sum(debiased: Tensor, gate: Tensor, aggregation: Aggregation) -> Tensor:
    weights = aggregation.weights
    if debiased.shape[-1] != len(weights):
        raise ValueError(
            f"debiased scores have {debiased.shape[-1]} objectives, but aggregation.weights has {len(weights)}; "
            "make the aggregation from this reward model's objectives"
        )
    return (debiased * debiased.new_tensor(weights)).sum(-1, keepdim=True)


def _uncertainty_weighted(debiased: Tensor, gate: Tensor, aggregation: Aggregation) -> Tensor:
    """UWO: mean_k r'_k - penalty * var_k r'_k of the members [..., K] -> [..., 1], the variance over K, not K - 1 (2310.02743).

    Scores are logits where the members are Bradley-Terry heads; then the variance is in logits squared and the penalty in
    1 / logits. Not monotone in one member: d/dr_k = (1 - 2 penalty (r_k - mean)) / K, below 0 where a member is more than
    1 / (2 penalty) above the mean, so a response that one member alone praises loses by it."""
    members = debiased[..., list(aggregation.group_indices[0])]
    variance = members.var(-1, correction=0, keepdim=True)
    return _finite("ensemble scores", members.mean(-1, keepdim=True) - aggregation.uncertainty_penalty * variance)


def combined_scores(scores: Tensor, gate: Tensor, matrix: Tensor, aggregation: Aggregation) -> Tensor:
    """Raw scores [B, K] -> uncentred terms [B, M]: what references are taken of and temperatures are fitted on."""
    return combine(debias(scores, matrix), gate, aggregation)


def term_weights(gate: Tensor, aggregation: Aggregation) -> Tensor:
    """Weights of the terms that do not depend on the response, gate [..., K] -> [..., M]; their absolute values sum to 1.

    grouped: floor + (1 - M floor) share, share = the group's part of the gate over all groups (uniform if all are ~0);
    the floor keeps a prompt-only gate from switching a group off. per_objective, absolute: the objective's part of the gate
    over all terms. zscore: the fixed weights. final_score, ensemble, weighted_sum: one term, of weight 1. (min:
    `binding_weights`.)"""
    return MATHS[aggregation.kind].weights(_gate(gate), aggregation)


def _weight_of_one(gate: Tensor, aggregation: Aggregation) -> Tensor:
    return torch.ones_like(gate[..., :1])


def _fixed_weights(gate: Tensor, aggregation: Aggregation) -> Tensor:
    return gate.new_tensor(aggregation.weights).expand(*gate.shape[:-1], aggregation.num_terms)


def _gate_shares(gate: Tensor, aggregation: Aggregation) -> Tensor:
    shares = _shares(gate)
    return inside_group(torch.stack([shares[..., list(group)].sum(-1) for group in aggregation.group_indices], dim=-1))


def _floored_shares(gate: Tensor, aggregation: Aggregation) -> Tensor:
    floor = aggregation.weight_floor
    return floor + (1 - aggregation.num_terms * floor) * _gate_shares(gate, aggregation)


def binding_weights(z: Tensor) -> Tensor:
    """1 for each response's smallest term (the first of equal ones), else 0: z [B, M] -> [B, M]. weights . u is then min u."""
    return torch.nn.functional.one_hot(z.argmin(-1), z.shape[-1]).to(z.dtype)


def center_and_scale(combined: Tensor, reference: Tensor, temperature: Tensor) -> Tensor:
    """z = (r - r_ref) / s: combined [B, M], reference [M] (or [B, M]), temperature [M] -> [B, M]."""
    combined, reference = _finite("combined scores", combined), _finite("reference", reference)
    temperature = _finite("temperature", temperature)
    terms = (combined.shape[-1], reference.shape[-1], temperature.shape[-1])
    if len(set(terms)) != 1:
        raise ValueError(f"combined, reference and temperature have {terms} terms; want the same number")
    if bool((temperature <= 0).any()):
        raise ValueError(
            f"temperature is {temperature.tolist()}; want all > 0; fit the calibration of this reward model"
        )
    return (combined - reference) / temperature


def scale(combined: Tensor, temperature: Tensor) -> Tensor:
    """z = r / s, not centred: combined [B, M], temperature [M] -> [B, M]. For weighted_sum and zscore: through the transform
    of the other kinds such a z would mean nothing, there it must be centred."""
    return center_and_scale(combined, torch.zeros_like(temperature), temperature)


def log_sigmoid_floor(z: Tensor, eps: float) -> Tensor:
    """u = log(eps + (1 - 2 eps) sigmoid(z)), elementwise, in [log eps, log(1 - eps)]; exactly log sigmoid at eps = 0.

    eps is the label noise of a judge that is wrong with probability eps; it bounds what one bad sample can cost."""
    if not 0 <= eps < 0.5:
        raise ValueError(f"probability_floor is {eps}; want 0 <= eps < 0.5")
    z = _finite("z", z)
    if eps == 0:
        return torch.nn.functional.logsigmoid(z)
    return torch.log(eps + (1 - 2 * eps) * torch.sigmoid(z))


def group_z_scores(z: Tensor) -> Tensor:
    """(z - mean) / (std + SMALLEST_SPREAD) of each term over the responses to one prompt: [B, M] -> [B, M]; ddof = 1.

    An objective on which the responses agree says nothing; one on which they hardly differ says as much as any other, which
    is what the transform is there to avoid. Raises ValueError for fewer than 2 responses."""
    if z.ndim != 2 or z.shape[0] < 2:
        raise ValueError(f"zscore has terms of shape {tuple(z.shape)}; want [B, M] with B >= 2 responses to one prompt")
    return (z - z.mean(0)) / (z.std(0, correction=1) + SMALLEST_SPREAD)


def rewards(
    scores: Tensor, gate: Tensor, matrix: Tensor, reference: Tensor, temperature: Tensor, aggregation: Aggregation
) -> tuple[Tensor, Tensor]:
    """The whole pipeline for the responses to one prompt: scores [B, K], gate [K], matrix [K, K], reference [M],
    temperature [M] -> (terms [B, M], weights [M]; [B, M] for min); the reward is weights . terms, plus any penalty.

    Terms are log-probabilities, at most 0; that of weighted_sum is a logit, those of zscore are z-scores, and for these and
    absolute `reference` does not count. A gate [B, K] (several prompts, not for zscore) gives weights [B, M]."""
    combined = combined_scores(scores, gate, matrix, aggregation)
    maths = MATHS[aggregation.kind]
    z = maths.standardise(combined, reference, temperature, aggregation)
    terms = log_sigmoid_floor(z, aggregation.probability_floor) if aggregation.is_transformed else z
    return terms, binding_weights(z) if maths.only_the_smallest else term_weights(gate, aggregation)


def _centred(combined: Tensor, reference: Tensor, temperature: Tensor, aggregation: Aggregation) -> Tensor:
    return center_and_scale(combined, reference, temperature)


def _over_thresholds(combined: Tensor, reference: Tensor, temperature: Tensor, aggregation: Aggregation) -> Tensor:
    return center_and_scale(combined, combined.new_tensor(aggregation.thresholds), temperature)


def _scaled(combined: Tensor, reference: Tensor, temperature: Tensor, aggregation: Aggregation) -> Tensor:
    return scale(combined, temperature)


def _z_scores(combined: Tensor, reference: Tensor, temperature: Tensor, aggregation: Aggregation) -> Tensor:
    return group_z_scores(scale(combined, temperature))


@dataclass(frozen=True)
class KindMaths:
    """The maths of one kind of aggregation: scores to values of terms, values to z, gate to weights of the terms.
    only_the_smallest: a response's smallest term has all the weight."""

    combine: Callable[[Tensor, Tensor, Aggregation], Tensor]
    standardise: Callable[[Tensor, Tensor, Tensor, Aggregation], Tensor]
    weights: Callable[[Tensor, Aggregation], Tensor]
    only_the_smallest: bool = False


# The maths of each kind of common/config/aggregations.py
MATHS = {
    "final_score": KindMaths(_gated_sum, _centred, _weight_of_one),
    "grouped": KindMaths(_group_means, _centred, _floored_shares),
    "per_objective": KindMaths(_single_objectives, _centred, _gate_shares),
    "min": KindMaths(_single_objectives, _centred, _gate_shares, only_the_smallest=True),
    "absolute": KindMaths(_single_objectives, _over_thresholds, _gate_shares),
    "ensemble": KindMaths(_uncertainty_weighted, _centred, _weight_of_one),
    "weighted_sum": KindMaths(_weighted_sum, _scaled, _weight_of_one),
    "zscore": KindMaths(_single_objectives, _z_scores, _fixed_weights),
}
