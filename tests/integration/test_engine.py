"""The real vLLM engine: log-probs equal transformers', weight updates arrive whole, a batch repeats bit for bit.

One engine on a model with tied embeddings serves all tests. `test_without_the_cure...` runs the same update with the cure of
actors/extension.py left out and must see wrong log-probs: it shows that law 1's probe is needed and can fail.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.engine import Engine, WeightsError
from actors.prompts import SampleRequest
from common.config_file import load_config
from common.models import tensor_names
from learner.logprobs import token_logprobs
from tests.integration.models import tiny_policy

ROOT = Path(__file__).parent.parent.parent
PROBE = np.array([1, 2, 17, 9, 33, 4, 3, 12, 60, 8, 25, 41], dtype=np.int32)


class Running:
    """The engine on an event loop of its own thread, as in a Ray actor."""

    def __init__(self, directory: Path):
        self.models = {name: tiny_policy(directory / name, seed) for name, seed in (("m0", 0), ("m1", 1), ("m2", 2))}
        self.paths = {name: directory / name for name in self.models}
        overrides = ["policy.dtype=float32", "actors.max_response_tokens=24", "actors.max_num_seqs=64"]
        config = load_config(ROOT / "configs" / "quickstart.yaml", overrides)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.engine = self.run(self._make(str(self.paths["m0"]), config, directory / "shm"))

    async def _make(self, model: str, config: Any, shm: Path) -> Engine:
        return Engine(model, config.policy, config.actors, 40, shm)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(240)

    def load(self, name: str, version: int) -> None:
        shard = (self.paths[name] / "model.safetensors").read_bytes()
        self.run(self.engine.load_weights(version, [shard], tensor_names(self.paths[name])))

    def difference(self, name: str) -> float:
        """Largest |engine - transformers| log-prob of the probe, against the weights of `name`."""
        ids = torch.from_numpy(PROBE.astype(np.int64))[None]
        with torch.no_grad():
            want = token_logprobs(self.models[name](ids).logits, ids, 1.0)[0, 1:].numpy()
        return float(np.abs(self.run(self.engine.probe(PROBE)) - want).max())


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    started = Running(tmp_path_factory.mktemp("engine"))
    yield started
    started.engine.shutdown()


def test_a_fresh_engine_agrees_with_transformers(running: Running) -> None:
    running.load("m0", 0)
    assert running.difference("m0") < 1e-4


def test_every_update_arrives_whole_with_tied_embeddings(running: Running) -> None:
    for version, name in enumerate(("m1", "m2", "m0"), start=1):
        running.load(name, version)
        assert running.difference(name) < 1e-4
        others = [other for other in running.models if other != name]
        assert min(running.difference(other) for other in others) > 0.1


def test_without_the_cure_a_tied_head_keeps_its_old_weights_and_the_probe_sees_it(running: Running) -> None:
    running.load("m0", 10)
    llm = running.engine._llm
    running.run(llm.collective_rpc("reload_weights", kwargs={"weights_path": str(running.paths["m1"])}))
    assert running.difference("m1") > 0.01
    running.load("m1", 11)
    assert running.difference("m1") < 1e-4


def test_sampling_repeats_bit_for_bit_and_reports_its_own_logprobs(running: Running) -> None:
    running.load("m1", 20)
    requests = [SampleRequest(PROBE[: 4 + i], 4, 1000 * i) for i in range(8)]
    first, second = (running.run(running.engine.sample(requests, f"salt-{k}")) for k in range(2))
    flat = [rollout for group in first for rollout in group]
    for one, other in zip(flat, (rollout for group in second for rollout in group), strict=True):
        assert one.token_ids.tobytes() == other.token_ids.tobytes()
        assert one.rollout_logprobs.tobytes() == other.rollout_logprobs.tobytes()
    assert len({rollout.response for rollout in first[0]}) > 1
    assert {rollout.version_spans for rollout in flat} == {((0, 20),)}
    for rollout, request in zip(first[3], [requests[3]] * 4, strict=True):
        ids = torch.from_numpy(np.concatenate([request.token_ids, rollout.token_ids]).astype(np.int64))[None]
        with torch.no_grad():
            want = token_logprobs(running.models["m1"](ids).logits, ids, 1.0)[0, len(request.token_ids) :].numpy()
        np.testing.assert_allclose(rollout.rollout_logprobs, want, atol=1e-4)


def test_finish_reasons_and_end_token(running: Running) -> None:
    groups = running.run(running.engine.sample([SampleRequest(PROBE[:5], 32, 5)], "finish"))
    for rollout in groups[0]:
        ended = rollout.token_ids[-1] == 4
        assert ended == (rollout.finish_reason == "stop")
        assert ended or len(rollout.token_ids) == 24


def test_weights_that_lack_a_tensor_are_refused(running: Running) -> None:
    names = tensor_names(running.paths["m1"])
    shard = (running.paths["m1"] / "model.safetensors").read_bytes()
    with pytest.raises(WeightsError, match=r"lack 1 of the model's tensors, first model\.embed_tokens"):
        running.run(running.engine.load_weights(30, [shard], [n for n in names if "embed" not in n]))
    with pytest.raises(WeightsError, match="1 tensors that the model lacks, first extra"):
        running.run(running.engine.load_weights(31, [shard], [*names, "extra"]))
