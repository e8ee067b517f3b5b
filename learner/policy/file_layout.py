"""Tensors of a policy in the layout of its model's files: what is published and exported, and whether it can be.

Called by learner/worker.py. transformers may rename and fuse tensors when it loads a model; vLLM reads the names of files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from common.models import tensor_names
from learner.policy.weights import to_shards


def in_file_layout(module: PreTrainedModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a loaded module, by name, as its model's files hold them: transformers may rename tensors and fuse them
    when it loads (the experts of Mixtral and Qwen3-MoE), and vLLM reads names of files."""
    return revert_weight_conversion(module, dict(tensors))


def whole_tensors(module: nn.Module, parameters: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """What a model's files hold of the module: its parameters, tied ones once, and then its persistent buffers."""
    yield from parameters
    persistent = module.state_dict().keys()
    yield from ((name, buffer) for name, buffer in module.named_buffers() if name in persistent)


def check_publishable(module: PreTrainedModel, directory: Path) -> None:
    """Refuses a policy whose published tensors would not be those of its files, before anything is sampled. The module is as it
    was loaded from the directory; a stored copy of a tied tensor, and what transformers ignores on purpose, may be missing.

    Raises ValueError for a file that lacks a tensor of the module, for one that has more than the module took in, and for a
    stored head that differs from the embedding to which config.json ties it (transformers unties it, vLLM does not)."""
    on_meta = {name: tensor.to("meta") for name, tensor in whole_tensors(module, module.named_parameters())}
    published, stored = set(in_file_layout(module, on_meta)), set(tensor_names(directory))
    if tied_apart := sorted(published & set(module.get_expanded_tied_weights_keys(all_submodels=True))):
        raise ValueError(
            f"{directory}: config.json ties {tied_apart[0]} to another tensor, but the files hold another value of it, which "
            "vLLM would ignore; set tie_word_embeddings: false in its config.json, or take the tensor out of its files"
        )
    if lacking := sorted(published - stored):
        raise ValueError(
            f"{directory}: the files lack {len(lacking)} tensors of {type(module).__name__}, first {lacking[0]}: they would be "
            "random; give a complete model"
        )
    if unread := sorted(name for name in stored - published if not _not_needed(module, name)):
        raise ValueError(
            f"{directory}: {type(module).__name__} leaves {len(unread)} tensors of the files unread, first {unread[0]}, and "
            "they could not be published to vLLM; give a model of this class, saved by transformers' save_pretrained"
        )


def _not_needed(module: PreTrainedModel, name: str) -> bool:
    """Whether a stored tensor is a tied copy of a published one, a buffer that is computed, or ignored by the class."""
    computed = {name for name, _ in module.named_buffers()}
    ignored = module._keys_to_ignore_on_load_unexpected or []
    tied = module.all_tied_weights_keys
    aliases = {*tied.keys(), *tied.values(), *computed}
    return name in aliases or "rotary_emb.inv_freq" in name or any(re.search(pattern, name) for pattern in ignored)


def published_shards(
    module: PreTrainedModel, parameters: Iterable[tuple[str, Tensor]], dtype: torch.dtype, keep: bool
) -> tuple[list[bytes], list[str]]:
    """(safetensors files, tensor names) of a policy. Walks every parameter in any case (gathers are collective); nothing
    comes of it without `keep`, which rank 0 has."""
    tensors = kept_tensors(module, parameters, dtype, keep)
    return to_shards(in_file_layout(module, tensors)) if keep else ([], [])


def kept_tensors(
    module: nn.Module, parameters: Iterable[tuple[str, Tensor]], dtype: torch.dtype, keep: bool
) -> dict[str, Tensor]:
    """Copies of a module's whole tensors on the CPU, by their names in the module; parameters in `dtype`, buffers in their own,
    as transformers keeps them. Nothing without `keep`, though every parameter is walked."""
    trained = {name for name, _ in module.named_parameters()}
    return {
        name: tensor.to("cpu", dtype if name in trained else tensor.dtype, copy=True)
        for name, tensor in whole_tensors(module, parameters)
        if keep
    }
