"""The export of a whole run: in another engine, and written again from the newest checkpoint."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from actors.engine import VllmEngine
from common.config.file import load_config
from common.types import FloatArray
from learner.ranks.logprobs import token_logprobs
from tests.e2e.conftest import FIRST, Launch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


def test_the_exported_policy_has_in_vllm_the_logprobs_of_transformers(first: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, LlamaForCausalLM

    path = first / "export" / "policy"
    row = json.loads((first / "evaluations" / "step_6.jsonl").read_text().splitlines()[0])
    turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
    ids = AutoTokenizer.from_pretrained(path).apply_chat_template(turns, return_tensors="pt", return_dict=False)
    model: Any = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        want = token_logprobs(model(ids).logits, ids, 1.0)[0, 1:].numpy()
    config = load_config(first / "config.yaml")

    async def probe() -> FloatArray:
        engine = VllmEngine(str(path), config.policy, config.actors, config.data.max_prompt_tokens, tmp_path)
        found = await engine.probe(ids[0].numpy().astype(np.int32))
        engine.shutdown()
        return found

    np.testing.assert_allclose(asyncio.run(probe()), want, atol=1e-4)


def test_the_stage_export_alone_writes_the_same_policy_from_the_checkpoint(
    first: Path, launch: Launch, runs: Path
) -> None:
    shutil.copytree(first, runs / "again")
    shutil.rmtree(runs / "again" / "export")
    copied = yaml.safe_load((runs / "again" / "config.yaml").read_text())
    copied["run"] |= {"name": "again", "dir": str(runs)}
    (runs / "again" / "config.yaml").write_text(yaml.safe_dump(copied))
    run = launch("run.name=again", *FIRST, "--resume", "--stages", "export")
    run.assert_ends_well()
    name = "export/policy/model.safetensors"
    assert (runs / "again" / name).read_bytes() == (first / name).read_bytes()
