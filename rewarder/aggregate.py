"""Scores to reward terms: debias, combine by the gate, centre, scale, log-sigmoid with a floor, weights. Pure maths.

Owns the order of the reward pipeline. The scorer calls `rewards` for every group, the reference stage calls
`combined_scores` for the anchor's samples, and the learner's reward-model stages call `debias` and `combine`.
Everything is float32 (float64 stays float64, for tests) and fails closed: a value that is not finite is a ValueError,
never a reward. Letters: B responses, K objectives, M reward terms.

Sources: Wang et al. 2406.12845 (gated score, verbosity debiasing); Wang et al. 2402.00742 (u = log sigmoid(r - r_ref),
and the sum over properties as a logical AND); TRL's GRPOTrainer with several reward functions (reward_weights) for
weighted_sum, which has no gate, no reference and no transform.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

KINDS = ("final_score", "grouped", "weighted_sum")
SMALLEST_SHARE = 1e-12  # a group below this share of the gate has no gate inside: its objectives weigh the same


@dataclass(frozen=True)
class Aggregation:
    """How K debiased scores become M terms. group_indices holds, per group, its objectives' columns (grouped only);
    weight_floor is the smallest weight of a term, as a share of 1; probability_floor is eps of the transform; weights
    holds one weight per objective, their absolute values summing to 1 (weighted_sum only)."""

    kind: str
    group_indices: tuple[tuple[int, ...], ...]
    weight_floor: float
    probability_floor: float
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"aggregation.kind is {self.kind!r}; want one of {KINDS}")
        if not 0 <= self.probability_floor < 0.5:
            raise ValueError(f"aggregation.probability_floor is {self.probability_floor}; want 0 <= eps < 0.5")
        if self.kind == "grouped":
            self._check_groups()
        if self.kind == "weighted_sum":
            self._check_weights()

    def _check_groups(self) -> None:
        members = [k for group in self.group_indices for k in group]
        if not self.group_indices or not all(self.group_indices):
            raise ValueError(f"aggregation.groups is {self.group_indices}; want at least one group, none of them empty")
        if len(set(members)) != len(members):
            raise ValueError(f"aggregation.groups {self.group_indices} use an objective twice; put it in one group")
        if self.weight_floor < 0 or self.weight_floor * len(self.group_indices) > 1:
            raise ValueError(
                f"aggregation.weight_floor is {self.weight_floor} for {len(self.group_indices)} groups; "
                f"want between 0 and {1 / len(self.group_indices):.3g}"
            )

    def _check_weights(self) -> None:
        total = sum(abs(weight) for weight in self.weights)
        if not math.isclose(total, 1, rel_tol=1e-6):  # a NaN is not close to 1 either
            raise ValueError(
                f"aggregation.weights is {self.weights}, of absolute sum {total:.6g}; want 1; let make_aggregation scale them"
            )

    @property
    def num_terms(self) -> int:
        """M: the number of groups for grouped, 1 for final_score and weighted_sum."""
        return len(self.group_indices) if self.kind == "grouped" else 1

    @property
    def needs_reference(self) -> bool:
        """Whether terms are centred on r_ref: all kinds but weighted_sum, whose constant the group's baseline cancels."""
        return self.kind != "weighted_sum"


def make_aggregation(
    kind: str,
    groups: Mapping[str, Sequence[str]],
    weights: Mapping[str, float],
    weight_floor: float,
    probability_floor: float,
    objectives: Sequence[str],
) -> Aggregation:
    """The aggregation named by the configuration; terms keep the order of `groups`, and `weights` (objective -> weight,
    0 where not named) are scaled to an absolute sum of 1.

    Raises ValueError for an objective that the reward model does not have, or that two groups name, and for weights that
    are all 0 or not finite."""
    unknown = sorted({name for names in groups.values() for name in names} - set(objectives))
    if kind == "grouped" and unknown:
        raise ValueError(
            f"aggregation.groups names {unknown}, not objectives of the reward model; it has {list(objectives)}"
        )
    columns = {name: k for k, name in enumerate(objectives)}
    indices = tuple(tuple(columns[name] for name in names) for names in groups.values()) if kind == "grouped" else ()
    scaled = _scaled_weights(weights, objectives) if kind == "weighted_sum" else ()
    return Aggregation(kind, indices, weight_floor, probability_floor, scaled)


def _scaled_weights(weights: Mapping[str, float], objectives: Sequence[str]) -> tuple[float, ...]:
    """The weights of all K objectives, over the sum of their absolute values."""
    if unknown := sorted(set(weights) - set(objectives)):
        raise ValueError(
            f"aggregation.weights names {unknown}, not objectives of the reward model; it has {list(objectives)}"
        )
    total = sum(abs(weight) for weight in weights.values())
    if not 0 < total < math.inf:
        raise ValueError(f"aggregation.weights is {dict(weights)}; want finite weights, at least one of them not 0")
    return tuple(weights.get(name, 0.0) / total for name in objectives)


def check_live_groups(matrix: Tensor, aggregation: Aggregation, objectives: Sequence[str]) -> None:
    """Refuse a group with an objective that debiasing sets to 0 for every response (the verbosity axis): it would only
    dilute its group, and alone it would be a constant term. matrix [K, K]."""
    constant = [k for group in aggregation.group_indices for k in group if not bool(matrix[:, k].any())]
    if constant:
        names = [objectives[k] for k in constant]
        raise ValueError(f"aggregation.groups names {names}, which debiasing makes 0 for every response; take them out")


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


def _inside_group(gate: Tensor) -> Tensor:
    """Gate of one group's members [..., k], already as shares of the whole gate -> weights that sum to 1 [..., k]."""
    mass = gate.sum(-1, keepdim=True)
    uniform = torch.full_like(gate, 1 / gate.shape[-1])
    return torch.where(mass > SMALLEST_SHARE, gate / mass.clamp_min(SMALLEST_SHARE), uniform)


def _shares(gate: Tensor) -> Tensor:
    """Gate [..., K] over its sum; a gate of zeros stays zeros."""
    total = gate.sum(-1, keepdim=True)
    return torch.where(total > 0, gate / total.clamp_min(torch.finfo(gate.dtype).tiny), torch.zeros_like(gate))


def combine(debiased: Tensor, gate: Tensor, aggregation: Aggregation) -> Tensor:
    """Debiased scores [B, K] and gate [B, K] or [K] -> one value per term [B, M].

    final_score: sum_k g_k r'_k. grouped: the gate-weighted mean inside each group (uniform where the group's gate is
    ~0). weighted_sum: sum_k w_k r'_k, whatever the gate."""
    debiased, gate = _finite("debiased scores", debiased), _gate(gate)
    if aggregation.kind == "weighted_sum":
        return _weighted_sum(debiased, aggregation.weights)
    if aggregation.kind == "final_score":
        return (debiased * gate).sum(-1, keepdim=True)
    shares = _shares(gate)
    columns = [list(group) for group in aggregation.group_indices]
    return torch.stack([(debiased[..., k] * _inside_group(shares[..., k])).sum(-1) for k in columns], dim=-1)


def _weighted_sum(debiased: Tensor, weights: Sequence[float]) -> Tensor:
    if debiased.shape[-1] != len(weights):
        raise ValueError(
            f"debiased scores have {debiased.shape[-1]} objectives, but aggregation.weights has {len(weights)}; "
            "make the aggregation from this reward model's objectives"
        )
    return (debiased * debiased.new_tensor(weights)).sum(-1, keepdim=True)


def combined_scores(scores: Tensor, gate: Tensor, matrix: Tensor, aggregation: Aggregation) -> Tensor:
    """Raw scores [B, K] -> uncentred terms [B, M]: what references are taken of and temperatures are fitted on."""
    return combine(debias(scores, matrix), gate, aggregation)


def term_weights(gate: Tensor, aggregation: Aggregation) -> Tensor:
    """Weights of the terms, gate [..., K] -> [..., M], summing to 1.

    grouped: floor + (1 - M floor) share, share = the group's part of the gate over all groups (uniform if all are ~0);
    the floor keeps a prompt-only gate from switching a group off. The others have one term, of weight 1."""
    gate = _gate(gate)
    if aggregation.kind != "grouped":
        return torch.ones_like(gate[..., :1])
    shares = _shares(gate)
    masses = torch.stack([shares[..., list(group)].sum(-1) for group in aggregation.group_indices], dim=-1)
    floor = aggregation.weight_floor
    return floor + (1 - aggregation.num_terms * floor) * _inside_group(masses)


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
    """z = r / s, not centred: combined [B, M], temperature [M] -> [B, M]. For weighted_sum alone: through the transform of
    the other kinds such a z would mean nothing, there it must be centred on r_ref."""
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


def rewards(
    scores: Tensor, gate: Tensor, matrix: Tensor, reference: Tensor, temperature: Tensor, aggregation: Aggregation
) -> tuple[Tensor, Tensor]:
    """The whole pipeline for the responses to one prompt: scores [B, K], gate [K], matrix [K, K], reference [M],
    temperature [M] -> (terms [B, M], weights [M]); the reward is weights . terms, plus any penalty.

    Terms are log-probabilities, at most 0; that of weighted_sum is a logit, and `reference` does not count.
    A gate [B, K] (several prompts) gives weights [B, M]."""
    combined = combined_scores(scores, gate, matrix, aggregation)
    if not aggregation.needs_reference:
        return scale(combined, temperature), term_weights(gate, aggregation)
    z = center_and_scale(combined, reference, temperature)
    return log_sigmoid_floor(z, aggregation.probability_floor), term_weights(gate, aggregation)
