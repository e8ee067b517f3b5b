"""What the learner publishes is what vLLM loads, for each kind of model: tensors are trained, published in the layout of the
model's files, loaded by vLLM's own rules, and its log-probs are those of the trained module."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from transformers import AutoModelForCausalLM

from actors.engine import VllmEngine, WeightsError
from common.config.file import load_config
from common.models import tensor_names
from learner.policy.file_layout import published_shards
from learner.policy.weights import probe_logprobs
from tests.integration.families import EXPERTS, FAMILIES, tiny_family

ROOT = Path(__file__).parent.parent.parent
PROBE = np.array([1, 2, 17, 9, 33, 4, 3, 12, 60, 8, 25, 41], dtype=np.int32)


def loaded(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_vllm_has_the_logprobs_of_the_trained_module(family: str, tmp_path: Path) -> None:
    directory = tmp_path / family
    tiny_family(family, directory)
    module = loaded(directory)
    for parameter in module.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    got = asyncio.run(published(directory, module, tmp_path / "shm"))
    for logprobs, holder in zip(got, (loaded(directory), module), strict=True):
        expected = probe_logprobs(holder, PROBE, torch.float32, torch.device("cpu"))
        same = float(np.abs(logprobs - expected).max()) <= 1e-4
        # vLLM 0.32 on CPU packs experts when a model is loaded and gets a reload of them wrong (docs/limits.md). The probe of
        # law 1 sees that; delete this exception when the log-probs of experts agree.
        assert same == (family not in EXPERTS)


async def published(directory: Path, module: Any, shm: Path) -> tuple[np.ndarray, np.ndarray]:
    """Log-probs of the probe under the files of a directory and under a published module; nothing that vLLM's own rules would
    leave unset is taken."""
    config = load_config(ROOT / "configs" / "quickstart.yaml", ["policy.dtype=float32", "actors.max_num_seqs=8"])
    engine = VllmEngine(str(directory), config.policy, config.actors, 32, shm)
    files = [file.read_bytes() for file in sorted(directory.glob("*.safetensors"))]
    await engine.load_weights(0, files, tensor_names(directory))
    before = await engine.probe(PROBE)
    shards, names = published_shards(module, module.named_parameters(), torch.float32, keep=True)
    await engine.load_weights(1, shards, names)
    after = await engine.probe(PROBE)
    lacking = {name: tensor for shard in shards for name, tensor in load(shard).items() if "norm" not in name}
    with pytest.raises(WeightsError, match=r"set none of \d+ parameters in vLLM, first .*norm"):
        await engine.load_weights(2, [save(lacking)], sorted(lacking))
    engine.shutdown()
    return before, after
