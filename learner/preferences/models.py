"""Members of stage `preferences` as models that rewarder.model loads, and averages of them.

    average    the mean of the members' weights: one model of the cost of one (WARM, 2401.12187). Of heads on one backbone it is
               exactly the mean of the members' scores; of trained backbones only near it, and only for members that start from
               one head (common/config/preference_checks.py)
    ensemble   of heads: one backbone, M objectives (the members), and a gate of 1/M each, so that the gated score is their mean

Called by learner/preferences/worker.py. Nothing here is calibrated: stage reward_model does that to a model that is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rewarder.model import DTYPES, GatedRewardModel


def save_member(
    model: GatedRewardModel, objective: str, directory: str | Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """A member with a backbone of its own, under the objective's name."""
    model.info = replace(model.info, objectives=(objective,))
    model.save(directory, tokenizer)


def with_heads(
    policy: str, heads: Tensor, objectives: Sequence[str], dtype: str, revision: str | None
) -> GatedRewardModel:
    """The policy's decoder under heads [K, H], whose gated score is their mean. Raises CheckpointError."""
    model = GatedRewardModel.from_policy(policy, objectives, 1, 0, 1.0, 1.0, 0, dtype, revision=revision)
    model.regression_layer.weight.data.copy_(heads)
    last = model.gating.layers[-1]
    assert isinstance(last, nn.Linear), f"the gate ends in a {type(last).__name__}"
    for parameter in last.parameters():
        parameter.data.zero_()
    return model


def average(directories: Sequence[str], dtype: str) -> GatedRewardModel:
    """The mean of saved members' weights, taken in float32, two models in memory at once; the backbone in `dtype`."""
    mean = GatedRewardModel.load(directories[0], "float32")
    for seen, directory in enumerate(directories[1:], 2):
        other = GatedRewardModel.load(directory, "float32").state_dict()
        for name, value in mean.state_dict().items():
            value.lerp_(other[name], 1 / seen)
    for parameter in mean.backbone.parameters():
        parameter.data = parameter.data.to(DTYPES[dtype])
    return mean


def save_average(directories: Sequence[str], target: str, dtype: str) -> None:
    """Writes the average of the members' models."""
    average(directories, dtype).save(target, AutoTokenizer.from_pretrained(directories[0]))
