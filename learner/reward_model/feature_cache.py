"""Hidden states on disk: computed once for a backbone and its rows, then memory-mapped by every later use.

Called by learner/reward_model/training.py where learner.reward_model.feature_cache names a directory; waits for the backbone's
passes only. One .npy file [2, N, H] float32 per key, written aside and renamed: it is whole or it is not there, and ranks that
write the same one replace it by itself. Nothing is ever deleted; a file that no run needs may be.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor
from transformers import PreTrainedModel

from learner.ranks.engine import num_ranks, reduce_sum
from rewarder.scoring import Rendered

VERSION = 1  # of what is stored; another one reads no older file
HEADER_BYTES = 128  # of a .npy file with so short a header


def features_key(backbone: PreTrainedModel, rendered: Sequence[Rendered], how: Sequence[object]) -> str:
    """A hash of all that hidden states depend on: weights and configuration of the backbone, the rows, and `how` they are
    batched (rounding follows it). Rows are hashed as rendered, token ids and both positions: whatever tokenizer, template and
    max_tokens change, they change there."""
    config = {key: value for key, value in backbone.config.to_dict().items() if key != "_name_or_path"}
    attention = backbone.config._attn_implementation
    digest = hashlib.sha256(
        json.dumps([VERSION, config, attention, *map(str, how)], sort_keys=True, default=str).encode()
    )
    for name, value in sorted(backbone.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    for ids, prompt_end, response_end in rendered:
        digest.update(np.array([len(ids), prompt_end, response_end, *ids], dtype="<i8").tobytes())
    return digest.hexdigest()[:32]


def cached_states(directory: Path, key: str, shape: tuple[int, ...], compute: Callable[[Tensor], None]) -> Tensor:
    """The states of this key, memory-mapped (pages are read as they are used; writes stay private). Where a rank has no
    file, `compute` fills zeros of this shape on all ranks, since its passes are collective."""
    path = directory / f"{key}.npy"
    if float(reduce_sum(torch.tensor(float(path.is_file())))) < num_ranks():
        directory.mkdir(parents=True, exist_ok=True)
        _write(path, shape, compute)
    size, wanted = path.stat().st_size, HEADER_BYTES + 4 * int(np.prod(shape))
    if size != wanted:
        raise ValueError(f"{path} has {size} bytes, want {wanted} for float32 {list(shape)}; delete the file")
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def _write(path: Path, shape: tuple[int, ...], compute: Callable[[Tensor], None]) -> None:
    aside = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.npy")
    with ExitStack() as cleanup:
        cleanup.callback(aside.unlink, missing_ok=True)
        states = open_memmap(aside, mode="w+", dtype=np.float32, shape=shape)
        compute(torch.from_numpy(states))
        states.flush()
        aside.replace(path)
