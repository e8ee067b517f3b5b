"""Loads the reward models of the commands evaluate_rm and explain, in the driver's own process: on its GPU where rewarder.gpus
asks for one, else on the CPU. No Ray, no queue: a command looks at a model that is at rest.

Called by driver/evaluate_rm/command.py and driver/explain/command.py.
"""

from __future__ import annotations

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from common.config.config import RewarderConfig
from driver.evaluate_rm.source import ModelSource
from rewarder.bradley_terry import load_gated_or_classifier
from rewarder.model import GatedRewardModel


def load_model(source: ModelSource, config: RewarderConfig) -> GatedRewardModel:
    """The gated model with the configured objectives, on its device. Raises CheckpointError and OSError."""
    model = GatedRewardModel.load(source.name, config.dtype, source.revision, config.objectives)
    return model.to(device(config)).eval()


def load_baseline(source: ModelSource, config: RewarderConfig) -> GatedRewardModel:
    """A classifier with one label, or a gated model with whatever objectives it has. Raises CheckpointError and OSError."""
    return load_gated_or_classifier(source.name, config.dtype, source.revision).to(device(config)).eval()


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model."""
    return AutoTokenizer.from_pretrained(source.name, revision=source.revision)


def device(config: RewarderConfig) -> str:
    """cuda where rewarder.gpus is not 0 (the preflight has seen a GPU here), else the CPU with rewarder.threads threads."""
    if config.gpus:
        return "cuda"
    torch.set_num_threads(config.threads)
    return "cpu"
