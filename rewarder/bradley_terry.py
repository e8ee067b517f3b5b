"""A stock sequence classifier with one label as a reward model: the Bradley-Terry model beside a gated one.

Such a model is a gated one with a single objective, whose gate is always 1 (softmax over one objective): score = w . h_R.
So it is rendered, batched and read at the same token as the model that it is compared with, not by the classifier's own
rule, which looks for a pad token (a known source of silent errors). Read by driver/evaluate_rm/models.py
(evaluate_rm.baseline) and rewarder/judge.py;
made and written by learner/reward_model/stage.py (learner.reward_model.baseline).
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from common.models import local_directory
from rewarder import layout
from rewarder.layout import CheckpointError
from rewarder.model import GatedRewardModel

HEAD = "score.weight"
OBJECTIVE = "score"


def is_classifier(directory: Path) -> bool:
    """Whether a directory of safetensors holds a classifier's head."""
    return any(HEAD in names for names in _tensor_names(directory).values())


def new_scalar_model(
    model_dir: str | Path, seed: int, dtype: str = "float32", revision: str | None = None
) -> GatedRewardModel:
    """A new Bradley-Terry model on a copy of a language model's decoder, its head at random from `seed`: one objective, and a
    gate of 1 that is not trained. Raises CheckpointError."""
    model = GatedRewardModel.from_policy(model_dir, [OBJECTIVE], 1, 0, 1.0, 1.0, seed, dtype, revision=revision)
    model.gating.requires_grad_(False)
    return model


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
    model = new_scalar_model(directory, seed=0, dtype=dtype)
    if weight.shape[1] != model.sizes.hidden:
        raise CheckpointError(f"{source}: {HEAD} reads {weight.shape[1]} units; the decoder has {model.sizes.hidden}")
    with torch.no_grad():
        model.regression_layer.weight.copy_(weight)
    return model.eval()


def load_gated_or_classifier(source: str, dtype: str, revision: str | None) -> GatedRewardModel:
    """A classifier with one label, or a gated model with whatever objectives it has, on the CPU: a directory or a Hub id.
    Raises CheckpointError and OSError."""
    if is_classifier(local_directory(source, revision)):
        return load_classifier(source, dtype, revision)
    return GatedRewardModel.load(source, dtype, revision)


def save_classifier(
    model: GatedRewardModel, directory: str | Path, tokenizer: PreTrainedTokenizerBase, max_shard_size: str = "5GB"
) -> None:
    """Writes a Bradley-Terry model as transformers' classifier with one label: safetensors (decoder in its dtype, head F32),
    the tokenizer and, last, config.json. Raises CheckpointError (see stock_classifier)."""
    kind = stock_classifier(model)
    assert len(model.objectives) == 1, f"{model.objectives} for a classifier with one label"
    state = {f"{kind.base_model_prefix}.{name}": value for name, value in model.backbone.state_dict().items()}
    state[HEAD] = model.regression_layer.weight.detach()
    config = copy.deepcopy(model.backbone.config)
    config.num_labels = 1
    values = {key: value for key, value in config.to_dict().items() if key not in ("_name_or_path", "auto_map")}
    tokenizer.save_pretrained(str(directory))
    layout.write(Path(directory), state, values | {"architectures": [kind.__name__]}, max_shard_size)


def stock_classifier(model: GatedRewardModel) -> type[PreTrainedModel]:
    """transformers' sequence classifier on this model's decoder. Raises CheckpointError where it has none whose head is
    `score.weight` beside exactly these decoder weights."""
    config = model.backbone.config
    kind = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    if kind is not None:
        kind = cast(type[PreTrainedModel], kind)
        with torch.device("meta"):  # names alone
            wanted = set(kind(config).state_dict())
        if wanted == {HEAD, *(f"{kind.base_model_prefix}.{name}" for name in model.backbone.state_dict())}:
            return kind
    raise CheckpointError(
        f"transformers has no sequence classifier with a {HEAD} on a decoder of model_type {config.model_type!r}; set "
        "learner.reward_model.baseline: false"
    )


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
