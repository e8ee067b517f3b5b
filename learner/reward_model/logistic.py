"""The head that preference pairs train, without gradient steps: L2-penalised logistic regression on hidden states. Pure maths.

    v = argmin  mean over pairs of  w BT(v . (h_chosen - h_rejected) / d)  +  alpha / 2 |v|^2        BT: losses.bradley_terry
    head = v / d        d [H]: the standard deviation of each feature over the pairs' responses

Standardising makes the penalty the same for every feature, whatever its scale; the mean of a feature cancels in a difference,
and so would a constant, which is why the head has none. alpha is the one of `alphas` with the least loss on pairs of other
prompts, by cross-validation over FOLDS parts of the training prompts; held-out pairs have no say. Then all training pairs are
fitted.

Called by learner/reward_model/heads.py where learner.reward_model.stage_1 is ridge. In float64 and deterministic. P pairs, H
features. Source: Bradley and Terry 1952; Hastie, Tibshirani and Friedman, The Elements of Statistical Learning, sections 4.4
and 7.10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from learner.ranks.losses import bradley_terry

ALPHAS = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3)  # each starts where the one before ended
FOLDS = 5
TOLERANCE = 1e-6  # of the gradient's largest entry
MOST_STEPS = 500

Said = Callable[[int, int], None]  # (fits done, of how many)


@dataclass(frozen=True)
class Compared:
    """differences [P, H] of hidden states, chosen - rejected; labels [P, 3]: target, margin and weight; part [P]: the part of
    the training prompts that a pair is in, from 0."""

    differences: Tensor
    labels: Tensor
    part: Tensor

    def only(self, kept: Tensor) -> Compared:
        """The pairs marked in kept [P]."""
        return Compared(self.differences[kept], self.labels[kept], self.part[kept])


@dataclass(frozen=True)
class LogisticFit:
    """weight [H] float32, fitted on all pairs; the alpha that was picked, the mean loss (nats) and the accuracy that it had on
    the parts that a fit had not seen; and the number of pairs."""

    weight: Tensor
    alpha: float
    unseen_loss: float
    unseen_accuracy: float
    num_pairs: int


def fit_logistic(
    compared: Compared, deviation: Tensor, said: Said = lambda *_: None, alphas: Sequence[float] = ALPHAS
) -> LogisticFit:
    """The head of one objective; deviation [H] of the features. Raises ValueError for alphas that do not fall, for differences
    that are not finite, and for pairs of one part alone, which leave nothing to choose alpha by."""
    if not alphas or alphas[-1] <= 0 or any(before <= after for before, after in pairwise(alphas)):
        raise ValueError(f"alphas are {list(alphas)}; want at least one, falling, above 0")
    parts = compared.part.unique().tolist()
    if len(parts) < 2:
        raise ValueError(
            f"{len(compared.part)} training pairs of rewarder.preference are in {len(parts)} part(s) of the prompts, and its "
            "penalty is chosen on pairs of other prompts; give pairs of more prompts in data.preferences"
        )
    if not bool(compared.differences.isfinite().all()):
        raise ValueError("differences of hidden states are not finite; use rewarder.dtype float32 or bfloat16")
    scale = deviation.double().clamp_min(1e-12)
    scaled = replace(compared, differences=compared.differences.double() / scale, labels=compared.labels.double())
    margins = torch.zeros(len(alphas), len(scaled.part), dtype=torch.float64)
    for done, part in enumerate(parts):
        unseen = scaled.part == part
        path = _path(scaled.only(~unseen), alphas)
        margins[:, unseen] = torch.stack(path) @ scaled.differences[unseen].T
        said(done + 1, len(parts) + 1)
    losses = torch.stack([_loss(row, scaled.labels) for row in margins])
    best = int(losses.argmin())
    weight = _path(scaled, alphas[: best + 1])[-1] / scale
    said(len(parts) + 1, len(parts) + 1)
    accuracy = float((margins[best] > 0).double().mean())
    return LogisticFit(weight.float(), alphas[best], float(losses[best]), accuracy, len(scaled.part))


def _path(compared: Compared, alphas: Sequence[float]) -> list[Tensor]:
    """The minimum [H] for each alpha."""
    found, weight = [], torch.zeros(compared.differences.shape[1], dtype=torch.float64)
    for alpha in alphas:
        weight = _minimum(compared, alpha, weight)
        found.append(weight)
    return found


def _minimum(compared: Compared, alpha: float, start: Tensor) -> Tensor:
    """By L-BFGS: convex, and strongly so by the penalty, so where it starts changes nothing but the time."""
    weight = start.clone().requires_grad_()
    search = torch.optim.LBFGS(
        [weight], 1.0, MOST_STEPS, tolerance_grad=TOLERANCE, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        search.zero_grad()
        loss = _loss(compared.differences @ weight, compared.labels) + alpha / 2 * weight.square().sum()
        loss.backward()
        return loss

    search.step(closure)
    return weight.detach()


def _loss(margins: Tensor, labels: Tensor) -> Tensor:
    target, margin, weight = labels.unbind(1)
    return (weight * bradley_terry(margins, target, margin)).sum() / len(labels)
