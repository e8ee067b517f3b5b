"""A stock sequence classifier with one label as a reward model: the frozen Bradley-Terry model beside a gated one.

Such a model is a gated one with a single objective, whose gate is always 1 (softmax over one objective): score = w . h_R.
So it is rendered, batched and read at the same token as the model that it is compared with, not by the classifier's own
rule, which looks for a pad token (a known source of silent errors). Called by driver/rm_scores.py (evaluate_rm.baseline).
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from common.models import local_directory
from rewarder.layout import CheckpointError
from rewarder.model import GatedRewardModel

HEAD = "score.weight"
OBJECTIVE = "score"


def is_classifier(directory: Path) -> bool:
    """Whether a directory of safetensors holds a classifier's head."""
    return any(HEAD in names for names in _tensor_names(directory).values())


def load_classifier(source: str | Path, dtype: str, revision: str | None = None) -> GatedRewardModel:
    """A classifier's decoder and head, on the CPU: a directory or a Hub id. Raises CheckpointError where the head is missing
    or has more than one label."""
    directory = local_directory(str(source), revision)
    weight = _head(directory)
    if weight.ndim != 2 or weight.shape[0] != 1 or not bool(torch.isfinite(weight).all()):
        raise CheckpointError(
            f"{source}: {HEAD} has shape {tuple(weight.shape)}; want [1, hidden] with finite values: a classifier with one "
            "label, trained as a Bradley-Terry reward model"
        )
    model = GatedRewardModel.from_policy(directory, [OBJECTIVE], 1, 0, 1.0, 1.0, seed=0, dtype=dtype)
    if weight.shape[1] != model.sizes.hidden:
        raise CheckpointError(f"{source}: {HEAD} reads {weight.shape[1]} units; the decoder has {model.sizes.hidden}")
    with torch.no_grad():
        model.regression_layer.weight.copy_(weight)
    return model.eval()


def _head(directory: Path) -> torch.Tensor:
    """score.weight in float32."""
    for file, names in _tensor_names(directory).items():
        if HEAD in names:
            with safe_open(file, "pt") as tensors:
                return tensors.get_tensor(HEAD).float()
    raise CheckpointError(
        f"{directory}: no tensor {HEAD}; give a sequence classifier with one label, or a gated reward model"
    )


def _tensor_names(directory: Path) -> dict[Path, list[str]]:
    names = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            names[file] = list(tensors.keys())
    return names
