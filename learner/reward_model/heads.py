"""Heads on a frozen backbone's hidden states, without gradient steps: what stage_1: ridge is.

    rated objectives           ridge regression of their ratings (learner/reward_model/ridge.py)
    rewarder.preference        penalised logistic regression of its pairs (learner/reward_model/logistic.py)

Called by learner/reward_model/stage.py, on every rank: each does the same on its own copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from common.data.split import is_validation, validation_part
from learner.ranks.progress import Report, silent
from learner.reward_model.data import PromptSet
from learner.reward_model.logistic import FOLDS, Compared, LogisticFit, fit_logistic
from learner.reward_model.ridge import Block, RidgeFit, fit_ridge
from learner.reward_model.training import BLOCK_ROWS, Features
from rewarder.model import GatedRewardModel

RIDGE_HELD_OUT = 0.2  # of the training prompts, to pick each objective's alpha


def fit_frozen(
    model: GatedRewardModel,
    features: Features,
    sets: Sequence[PromptSet],
    preference: int | None,
    report: Report = silent,
) -> dict[str, float]:
    """All heads of a frozen backbone, in place; `preference` is the column that pairs train, where there is one. What
    report.json says of the fits: each penalty, and how the pairs' head did on training prompts that it had not seen. Raises
    ValueError."""
    said = {}
    rated = [k for k in range(len(model.objectives)) if k != preference]
    if rated:
        fit = fit_heads(model, features, sets, rated)
        said |= {f"rm/ridge_alpha/{model.objectives[k]}": alpha for k, alpha in zip(rated, fit.alphas, strict=True)}
    if preference is not None:
        name, head = model.objectives[preference], fit_preference_head(features, sets, report)
        model.regression_layer.weight.data[preference].copy_(head.weight)
        said[f"rm/logistic_alpha/{name}"] = head.alpha
        said["rm/pair_accuracy_cross_validated"] = head.unseen_accuracy
    return said


def fit_heads(
    model: GatedRewardModel, features: Features, sets: Sequence[PromptSet], columns: Sequence[int]
) -> RidgeFit:
    """The heads of these rated objectives by ridge on the hidden states of these prompts. Raises ValueError
    (learner/reward_model/ridge.py)."""
    picks = torch.tensor([is_validation(prompt.messages, RIDGE_HELD_OUT) for prompt in sets])[features.prompt_of]
    names, chosen = [model.objectives[k] for k in columns], list(columns)
    fit = fit_ridge(_blocks(features, ~picks, chosen), _blocks(features, picks, chosen), names)
    model.regression_layer.weight.data[chosen] = fit.weight.to(model.device)
    return fit


def fit_preference_head(features: Features, sets: Sequence[PromptSet], report: Report = silent) -> LogisticFit:
    """The head of rewarder.preference, on its pairs alone. Raises ValueError (learner/reward_model/logistic.py)."""
    kept = features.of_preference
    pairs, labels = features.pairs[kept], features.pair_labels[kept, :3]
    first, second = (features.response[rows].double() for rows in pairs.unbind(1))
    part = torch.tensor([validation_part(prompt.messages, FOLDS) for prompt in sets])[features.prompt_of[pairs[:, 0]]]
    deviation = torch.cat([first, second]).std(0)
    return fit_logistic(
        Compared(first - second, labels, part),
        deviation,
        lambda done, total: report("head of the pairs, fits", done, total, {}),
    )


def _blocks(features: Features, kept: Tensor, columns: list[int]) -> Iterator[Block]:
    for rows in torch.nonzero(kept).flatten().split(BLOCK_ROWS):
        yield features.response[rows], features.ratings[rows][:, columns]
