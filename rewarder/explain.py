"""What a gated score is made of, objective by objective. Pure maths.

    score = sum_k g_k (r T)_k, so contribution_k = g_k (r T)_k, and the contributions sum to the score.

Called by driver/explain/command.py (stage explain). Source: Wang et al. 2406.12845, the gated score.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rewarder.aggregate import debias


@dataclass(frozen=True)
class Contributions:
    """The parts of the scores of G responses to one prompt, float64: scores, debiased and contributions [G, K],
    gate_weights [K], total [G]."""

    scores: Tensor
    debiased: Tensor
    gate_weights: Tensor
    contributions: Tensor
    total: Tensor


def explain(scores: Tensor, gate_weights: Tensor, matrix: Tensor) -> Contributions:
    """scores [G, K] raw, gate_weights [K] of the prompt, matrix T [K, K]. Computed in float64, so that the parts sum to the
    total within its rounding. Raises ValueError for values that are not finite and shapes that do not fit."""
    if gate_weights.shape != scores.shape[-1:] or scores.ndim != 2:
        raise ValueError(
            f"scores {tuple(scores.shape)} and gate_weights {tuple(gate_weights.shape)} do not fit; want [G, K] and [K]"
        )
    if not bool(torch.isfinite(gate_weights).all()):
        raise ValueError("gate_weights has values that are not finite; train or download the reward model again")
    scores, gate_weights = scores.double(), gate_weights.double()
    debiased = debias(scores, matrix.double())
    contributions = debiased * gate_weights
    return Contributions(scores, debiased, gate_weights, contributions, contributions.sum(-1))
