"""The real vLLM engine on a policy whose chat template closes turns with a token that is not in the model's EOS set."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, LlamaForCausalLM

from actors.engine import VllmEngine
from actors.prompts import SampleRequest
from common.config.file import load_config
from common.models import tensor_names
from common.types import Rollout
from tests.integration.models import tiny_policy

ROOT = Path(__file__).parent.parent.parent
LIMIT, END, EOS = 48, 4, 0


def other_eos(directory: Path) -> Path:
    """The tiny policy, whose texts end with <pad> by configuration, while its template closes turns with <end>."""
    tiny_policy(directory, 0)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.eos_token = "<pad>"
    tokenizer.save_pretrained(directory)
    model = LlamaForCausalLM.from_pretrained(directory)
    model.config.eos_token_id = model.generation_config.eos_token_id = EOS  # pyright: ignore[reportOptionalMemberAccess]
    model.save_pretrained(directory)
    return directory


async def sampled(directory: Path, shm: Path) -> list[Rollout]:
    overrides = ["policy.dtype=float32", f"actors.max_response_tokens={LIMIT}", "actors.max_num_seqs=64"]
    config = load_config(ROOT / "configs" / "quickstart.yaml", overrides)
    engine = VllmEngine(str(directory), config.policy, config.actors, 32, shm)
    shard = (directory / "model.safetensors").read_bytes()
    await engine.load_weights(0, [shard], tensor_names(directory))
    groups = await engine.sample([SampleRequest(np.array([1, 2, 17, 9, 4, 3], np.int32), 48, 5)], "end")
    engine.shutdown()
    return groups[0]


def test_a_response_ends_where_the_template_closes_a_turn(tmp_path: Path) -> None:
    """No token follows the end of a turn, such a response is no cut one, and its text has no trace of the token."""
    rollouts = asyncio.run(sampled(other_eos(tmp_path / "policy"), tmp_path / "shm"))
    ended = [rollout for rollout in rollouts if END in rollout.token_ids.tolist()]
    assert len(ended) > 4, "the tiny policy ends some of its turns"
    for rollout in ended:
        ids = rollout.token_ids.tolist()
        assert (ids.index(END), rollout.finish_reason) == (len(ids) - 1, "stop")
        assert "<end>" not in rollout.response and len(rollout.rollout_logprobs) == len(ids)
    for rollout in rollouts:
        assert (rollout.finish_reason == "length") == (rollout.token_ids[-1] not in (END, EOS))
