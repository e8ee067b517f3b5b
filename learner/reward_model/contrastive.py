"""Contrastive losses on what the reward model makes of a response, from two views of it under dropout. Pure maths.

    simcse   l_i = -log( exp(cos(s_i, t_i) / T) / sum_j exp(cos(s_i, t_j) / T) ), j over the batch
    swav     l   = -q(s) . log p(t) - q(t) . log p(s), p = softmax(h . c / T), q the balanced assignment to prototypes c

of the responses of the pairs (`simcse`, `swav`), where the other response to the same prompt is one of the negatives, or of
the differences f_c - f_r and f_r - f_c (`simcse_diff`, `swav_diff`). The batch is the whole step's:
learner/reward_model/views.py gathers it over micro-batches and ranks. Sources: Wang et al. 2401.06080, section 3; SimCSE
(2104.08821); SwAV (2006.09882), whose usual constants stand in where the first says nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, normalize

SINKHORN_EPSILON = 0.05
SINKHORN_ITERATIONS = 3


def contrastive_loss(
    first: Tensor, second: Tensor, pairs: Tensor, kind: str, temperature: float, prototypes: Tensor
) -> Tensor:
    """Mean over the items of a batch: two views [N, F] of N responses, pairs [P, 2] of their indices, prototypes [C, F] (of
    swav). A batch without pairs costs 0."""
    if len(pairs) == 0:
        return 0.0 * (first.sum() + second.sum())
    views = items(first, pairs, kind), items(second, pairs, kind)
    if kind.startswith("simcse"):
        return simcse(*views, temperature).mean()
    return swav(*views, prototypes, temperature).mean()


def items(features: Tensor, pairs: Tensor, kind: str) -> Tensor:
    """What is contrasted, [M, F]: each response that stands in a pair, once; or both differences of each pair."""
    if not kind.endswith("_diff"):
        return features[pairs.unique()]
    differences = features[pairs[:, 0]] - features[pairs[:, 1]]
    return torch.cat([differences, -differences])


def simcse(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Two views [M, F] -> [M]: cross-entropy of finding an item's second view among those of all, by cosine."""
    similarity = normalize(first, dim=-1) @ normalize(second, dim=-1).T / temperature
    return cross_entropy(similarity, torch.arange(len(first), device=first.device), reduction="none")


def swav(first: Tensor, second: Tensor, prototypes: Tensor, temperature: float) -> Tensor:
    """Two views [M, F], prototypes [C, F] -> [M]: each view predicts the other's assignment."""
    centres = normalize(prototypes, dim=-1)
    scores = [normalize(view, dim=-1) @ centres.T for view in (first, second)]
    assigned = [sinkhorn(score) for score in scores]
    predicted = [log_softmax(score / temperature, dim=-1) for score in scores]
    return -(assigned[0] * predicted[1]).sum(-1) - (assigned[1] * predicted[0]).sum(-1)


@torch.no_grad()
def sinkhorn(scores: Tensor) -> Tensor:
    """[M, C] -> assignments [M, C], each row a distribution, the prototypes used about equally (SwAV, equation 3)."""
    logs = scores / SINKHORN_EPSILON
    for _ in range(SINKHORN_ITERATIONS):
        logs = logs - logs.logsumexp(0, keepdim=True)  # each prototype as often
        logs = logs - logs.logsumexp(1, keepdim=True)  # each item once
    return logs.exp()
