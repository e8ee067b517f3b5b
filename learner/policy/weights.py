"""Published weights: the policy's parameters as safetensors shards in memory, and the probe that proves their arrival.

Called by learner/worker.py. A shard is a whole safetensors file as bytes; the driver hands them to every engine through
Ray's object store, so no node needs another's disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from common.types import FloatArray, IntArray
from learner.ranks.logprobs import token_logprobs

SHARD_BYTES = 1 << 30


def to_shards(tensors: dict[str, Tensor]) -> tuple[list[bytes], list[str]]:
    """(safetensors files, tensor names). Empties `tensors` as it goes, so that not all of them are there twice."""
    names, shards = list(tensors), list[bytes]()
    pending: dict[str, Tensor] = {}
    for name in names:
        pending[name] = tensors.pop(name).contiguous()
        if sum(tensor.nbytes for tensor in pending.values()) >= SHARD_BYTES:
            shards.append(safetensors.torch.save(pending, {"format": "pt"}))
            pending = {}
    return shards + ([safetensors.torch.save(pending, {"format": "pt"})] if pending else []), names


def probe_logprobs(
    module: Callable[..., Any], token_ids: IntArray, dtype: torch.dtype, device: torch.device
) -> FloatArray:
    """log p(token t | earlier), t = 1 .. T-1, at temperature 1, computed in the precision that the engines run. [T-1]"""
    ids = torch.from_numpy(token_ids.astype(np.int64))[None].to(device)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = module(input_ids=ids, use_cache=False).logits
    return token_logprobs(logits, ids, 1.0)[0, 1:].cpu().numpy()
