"""MetaRM: the difference loss on unlabelled samples of the policy, and the updates that use it. Pure maths.

    J = mean over prompts of (2 / k^2) sum_{i<j} sigmoid(|r_i - r_j|), of the k different responses of a prompt

    none        g = grad L(theta)
    literal     theta' = theta + step(grad J(theta));  g = grad L(theta');  the update leaves from theta
    no_restore  the same g, but the update leaves from theta'
    joint       g = grad [L - w J](theta)
    look_ahead  g = grad L(theta) - w grad J(theta - step(grad L(theta)))

Second order adds what differentiating through the inner step gives, with its length held fixed: + H_J step(v) for literal and
no_restore, + w H_L step(grad J) for look_ahead. Called by learner/adaptation/round.py through the landscapes
(cached_landscape.py, backbone_landscape.py), which know parameters, batches and ranks. literal lowers J at the weights that
serve (to first order by size * gradJ' H_L gradJ / |gradJ|), which is why J never selects anything here. Source: MetaRM
(2405.00438); look_ahead is the form of MLDG (1710.03463).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

Loss = Literal["pairs", "spread"]  # L, the labelled loss, and J
DECAY = 0.99  # of the squares that step adam keeps
EPSILON = 1e-12


@dataclass(frozen=True)
class SpreadPairs:
    """The comparisons in J: pairs [Q, 2] of row indices of one prompt, and weights [Q] = 2 / (k^2 m)."""

    pairs: Tensor
    weights: Tensor


def spread_pairs(prompt_of: Tensor, num_prompts: int) -> SpreadPairs:
    """All pairs of rows that share a prompt; prompt_of [N]. num_prompts is m, of the whole batch."""
    same = prompt_of[:, None] == prompt_of[None, :]
    first, second = torch.nonzero(same.triu(1), as_tuple=True)
    k = same.sum(1)[first].to(torch.float32)
    return SpreadPairs(torch.stack([first, second], 1), 2 / (k.square() * num_prompts))


def spread(reward: Tensor, comparisons: SpreadPairs, signs: Tensor | None = None) -> Tensor:
    """J of rewards [N]; signs [Q] of the differences are taken here unless they are given (frozen for finite differences,
    which are garbage across the kink of |.|: the gradient is the same, and the Hessian almost everywhere)."""
    difference = differences(reward, comparisons)
    size = difference.abs() if signs is None else signs * difference
    return (comparisons.weights.to(reward.dtype) * torch.sigmoid(size)).sum()


def differences(reward: Tensor, comparisons: SpreadPairs) -> Tensor:
    """r_i - r_j of each comparison, [Q]."""
    return reward[comparisons.pairs[:, 0]] - reward[comparisons.pairs[:, 1]]


def spread_gradient(reward: Tensor, comparisons: SpreadPairs) -> Tensor:
    """dJ / dr [N] in closed form: weight * s (1 - s) sign(r_i - r_j), with opposite signs on both sides, so that it sums to 0
    within a prompt: J moves no level. A tie gives 0."""
    difference = differences(reward, comparisons)
    s = torch.sigmoid(difference.abs())
    pull = comparisons.weights.to(reward.dtype) * s * (1 - s) * difference.sign()
    gradient = torch.zeros_like(reward)
    return gradient.index_add(0, comparisons.pairs[:, 0], pull).index_add(0, comparisons.pairs[:, 1], -pull)


class Landscape(Protocol):
    """The two losses around the parameters theta, on one draw of batches. Vectors are flat: this rank's share of the trainable
    parameters. `at` is where: theta + at, theta itself where it is None."""

    def gradient(self, loss: Loss, at: Tensor | None = None) -> tuple[float, Tensor]:
        """(value, gradient); nothing of it stays in the update."""
        ...

    def accumulate(self, loss: Loss, weight: float, at: Tensor | None = None) -> float:
        """Adds weight * gradient to the update; the loss."""
        ...

    def accumulate_curvature(self, loss: Loss, weight: float, vector: Tensor) -> None:
        """Adds weight * H_loss(theta) vector to the update."""
        ...

    def dot(self, a: Tensor, b: Tensor) -> float:
        """Over all ranks."""
        ...

    def keep(self, by: Tensor) -> None:
        """theta <- theta + by, for good."""
        ...


class InnerStep:
    """The inner step: an elementwise scale of the gradient, so that step(g) = scale * g. Holds the squares of step adam, apart
    from the outer optimizer's."""

    def __init__(self, kind: str, size: float):
        self._kind, self._size = kind, size
        self._squares: Tensor | None = None
        self._steps = 0

    def scale(self, gradient: Tensor, landscape: Landscape) -> Tensor:
        """raw: size. normalised: size / |g|. adam: 1 / root mean square of each coordinate, then a step of length size."""
        if self._kind == "raw":
            return gradient.new_tensor(self._size)
        each = self._each(gradient) if self._kind == "adam" else gradient.new_tensor(1.0)
        step = each * gradient
        return self._size * each / max(landscape.dot(step, step) ** 0.5, EPSILON)

    def _each(self, gradient: Tensor) -> Tensor:
        before = torch.zeros_like(gradient) if self._squares is None else self._squares
        self._squares, self._steps = DECAY * before + (1 - DECAY) * gradient.square(), self._steps + 1
        return 1 / ((self._squares / (1 - DECAY**self._steps)).sqrt() + EPSILON)


def accumulate_update(
    method: str, landscape: Landscape, inner: InnerStep, weight: float, second_order: bool
) -> dict[str, float]:
    """Adds the gradient of one update by `method` (of META_METHODS; any other is L alone); the losses that it passed by."""
    if method in ("literal", "no_restore"):
        return _perturbed(landscape, inner, second_order, restore=method == "literal")
    if method == "joint":
        return {
            "preference": landscape.accumulate("pairs", 1.0),
            "difference": landscape.accumulate("spread", -weight),
        }
    if method == "look_ahead":
        return _look_ahead(landscape, inner, weight, second_order)
    return {"preference": landscape.accumulate("pairs", 1.0)}


def _perturbed(landscape: Landscape, inner: InnerStep, second_order: bool, restore: bool) -> dict[str, float]:
    difference, ascent = landscape.gradient("spread")
    scale = inner.scale(ascent, landscape)
    step = scale * ascent
    if second_order:
        _, ahead = landscape.gradient("pairs", step)
        landscape.accumulate_curvature("spread", 1.0, scale * ahead)
    preference = landscape.accumulate("pairs", 1.0, step)
    if not restore:
        landscape.keep(step)
    return {"preference": preference, "difference": difference}


def _look_ahead(landscape: Landscape, inner: InnerStep, weight: float, second_order: bool) -> dict[str, float]:
    preference, descent = landscape.gradient("pairs")
    scale = inner.scale(descent, landscape)
    step = -scale * descent
    if second_order:
        _, ahead = landscape.gradient("spread", step)
        landscape.accumulate_curvature("pairs", weight, scale * ahead)
    landscape.accumulate("pairs", 1.0)
    return {"preference": preference, "difference": landscape.accumulate("spread", -weight, step)}


@dataclass(frozen=True)
class Passes:
    """Counts the passes of one update through the backbone: forward and backward passes over L's batch and over J's, and
    forward passes alone over J's (the signs of its differences)."""

    pairs: int
    spread: int
    looks: int = 0


def passes(method: str, second_order: bool) -> Passes:
    """What accumulate_update costs where second derivatives are finite differences, two passes for each."""
    if method in ("literal", "no_restore"):
        return Passes(2, 3, 1) if second_order else Passes(1, 1)
    if method == "look_ahead":
        return Passes(4, 2) if second_order else Passes(2, 1)
    return Passes(1, 1) if method == "joint" else Passes(1, 0)
