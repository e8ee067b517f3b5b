"""The real vLLM engine: log-probs equal transformers', weight updates arrive whole and in flight, a batch repeats bit for bit.

One engine on a model with tied embeddings serves all tests. `test_without_the_cure...` runs the same update with the cure of
actors/extension.py left out and must see wrong log-probs: it shows that law 1's probe is needed and can fail.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from actors.engine import VllmEngine, WeightsError
from actors.prompts import SampleRequest
from common.config.file import load_config
from common.models import tensor_names
from common.types import FloatArray, Rollout
from learner.ranks.logprobs import token_logprobs
from tests.integration.models import tiny_policy

ROOT = Path(__file__).parent.parent.parent
MAX_RESPONSE_TOKENS = 96
PROBE = np.array([1, 2, 17, 9, 33, 4, 3, 12, 60, 8, 25, 41], dtype=np.int32)


class Running:
    """The engine on an event loop of its own thread, as in a Ray actor."""

    def __init__(self, directory: Path):
        self.models = {name: tiny_policy(directory / name, seed) for name, seed in (("m0", 0), ("m1", 1), ("m2", 2))}
        self.paths = {name: directory / name for name in self.models}
        overrides = ["policy.dtype=float32", f"actors.max_response_tokens={MAX_RESPONSE_TOKENS}"]
        overrides.append("actors.max_num_seqs=64")
        config = load_config(ROOT / "configs" / "quickstart.yaml", overrides)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.engine = self.run(self._make(str(self.paths["m0"]), config, directory / "shm"))

    async def _make(self, model: str, config: Any, shm: Path) -> VllmEngine:
        return VllmEngine(model, config.policy, config.actors, 32, shm)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(240)

    def load(self, name: str, version: int) -> None:
        self.run(self.loading(name, version))

    async def loading(self, name: str, version: int) -> None:
        shard = (self.paths[name] / "model.safetensors").read_bytes()
        await self.engine.load_weights(version, [shard], tensor_names(self.paths[name]))

    async def in_flight(
        self, requests: list[SampleRequest], then: Callable[[], Coroutine[Any, Any, None]]
    ) -> list[Any]:
        """Samples the requests, calls `then` when the first response has 20 tokens, and waits for what becomes of them."""
        flying = [asyncio.create_task(self.engine.sample_in_flight(request)) for request in requests]
        states = self.engine._llm.output_processor.request_states
        while not any(state.detokenizer and state.detokenizer.num_output_tokens() >= 20 for state in states.values()):
            await asyncio.sleep(0.002)
        await then()
        return await asyncio.gather(*flying)

    def logprobs(self, name: str, request: SampleRequest, rollout: Rollout) -> FloatArray:
        """transformers' log-probs of the response under the weights of `name` alone."""
        return self.mixed_logprobs(name, name, request, rollout, 1)

    def mixed_logprobs(self, old: str, new: str, request: SampleRequest, rollout: Rollout, boundary: int) -> FloatArray:
        """transformers' log-probs of a response whose tokens from `boundary` on are sampled by `new`, over the keys and values
        that `old` computed. The last token before the boundary was sampled by `old` and is fed to `new`."""
        ids = torch.from_numpy(np.concatenate([request.token_ids, rollout.token_ids]).astype(np.int64))[None]
        fed_to_old = len(request.token_ids) + boundary - 1
        with torch.no_grad():
            before = self.models[old](ids[:, :fed_to_old], use_cache=True)
            after = self.models[new](ids[:, fed_to_old:], past_key_values=before.past_key_values, use_cache=True)
        logits = torch.cat([before.logits, after.logits], dim=1)
        return token_logprobs(logits, ids, 1.0)[0, len(request.token_ids) :].numpy()

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
    for rollout in first[3]:
        np.testing.assert_allclose(rollout.rollout_logprobs, running.logprobs("m1", requests[3], rollout), atol=1e-4)


def requests_of(salt: int) -> list[SampleRequest]:
    return [SampleRequest(PROBE[: 4 + i], 8, 1000 * salt + 100 * i) for i in range(6)]


def largest(got: FloatArray, want: FloatArray) -> float:
    return float(np.abs(got - want).max())


def test_an_update_in_flight_gives_two_spans_with_the_boundary_where_the_weights_changed(running: Running) -> None:
    """Exactly: before it the old weights' log-probs, from it the new weights' over the old weights' keys and values."""
    running.load("m1", 40)
    requests = requests_of(1)
    groups = running.run(running.in_flight(requests, lambda: running.loading("m2", 41)))
    spans = {rollout.version_spans for group in groups for rollout in group}
    assert all([version for _, version in span] in ([40], [41], [40, 41]) for span in spans)
    mixed = [
        (q, rollout)
        for q, group in zip(requests, groups, strict=True)
        for rollout in group
        if len(rollout.version_spans) == 2
    ]
    assert len(mixed) >= 5, spans
    recomputed, shifted = [], []
    for request, rollout in mixed:
        boundary = rollout.version_spans[1][0]
        got = rollout.rollout_logprobs
        assert largest(got, running.mixed_logprobs("m1", "m2", request, rollout, boundary)) < 1e-4
        shifted += [
            largest(got, running.mixed_logprobs("m1", "m2", request, rollout, other))
            for other in (boundary - 1, boundary + 1)
            if 1 <= other <= len(got)
        ]
        recomputed.append(largest(got[boundary:], running.logprobs("m2", request, rollout)[boundary:]))
    assert min(shifted) > 1e-3, "a boundary that is one off would be seen"
    assert max(recomputed) > 1e-2, "kept keys and values are not those that the new weights would compute"


def test_requests_join_and_leave_while_others_run(running: Running) -> None:
    running.load("m2", 50)

    async def one_after_another() -> list[Any]:
        flying = []
        for request in requests_of(2):
            flying.append(asyncio.create_task(running.engine.sample_in_flight(request)))
            await asyncio.sleep(0.02)
        return await asyncio.gather(*flying)

    for request, group in zip(requests_of(2), running.run(one_after_another()), strict=True):
        for rollout in group:
            assert rollout.version_spans == ((0, 50),)
            assert largest(rollout.rollout_logprobs, running.logprobs("m2", request, rollout)) < 1e-4


def test_what_torn_weights_touched_is_discarded_and_sampled_again_from_the_good_ones(running: Running) -> None:
    running.load("m0", 60)

    async def torn_then_mended() -> None:
        await running.loading("m1", 61)  # stands for the torn load
        await asyncio.sleep(0.02)
        await running.engine.discard_in_flight()
        await running.loading("m2", 61)

    discarded = running.run(running.in_flight(requests_of(3), torn_then_mended))
    assert None in discarded
    assert running.difference("m2") < 1e-4
    again = [running.run(running.engine.sample_in_flight(request)) for request in requests_of(3)]
    for request, group in zip(requests_of(3), again, strict=True):
        for rollout in group:
            assert rollout.version_spans == ((0, 61),)
            assert largest(rollout.rollout_logprobs, running.logprobs("m2", request, rollout)) < 1e-4


def test_the_probe_is_exact_beside_running_requests(running: Running) -> None:
    running.load("m0", 70)
    seen: list[float] = []

    async def update_and_probe() -> None:
        await running.loading("m1", 71)
        ids = torch.from_numpy(PROBE.astype(np.int64))[None]
        with torch.no_grad():
            want = token_logprobs(running.models["m1"](ids).logits, ids, 1.0)[0, 1:].numpy()
        seen.append(largest(await running.engine.probe(PROBE), want))

    groups = running.run(running.in_flight(requests_of(4), update_and_probe))
    assert seen[0] < 1e-4
    assert any(len(rollout.version_spans) == 2 for group in groups for rollout in group)


def test_finish_reasons_and_end_token(running: Running) -> None:
    running.load("m1", 25)
    groups = running.run(running.engine.sample([SampleRequest(PROBE[:5], 32, 5)], "finish"))
    for rollout in groups[0]:
        ended = rollout.token_ids[-1] == 4
        assert ended == (rollout.finish_reason == "stop")
        assert ended or len(rollout.token_ids) == MAX_RESPONSE_TOKENS


def test_weights_that_lack_a_tensor_are_refused(running: Running) -> None:
    tensors = load_file(running.paths["m1"] / "model.safetensors")
    without = save({name: tensor for name, tensor in tensors.items() if "embed" not in name})
    with pytest.raises(WeightsError, match=r"set none of 1 parameters in vLLM, first model\.embed_tokens"):
        running.run(running.engine.load_weights(30, [without], [name for name in tensors if "embed" not in name]))
    shard, names = save(tensors), [*tensors]
    with pytest.raises(WeightsError, match="1 tensors that the model lacks, first extra"):
        running.run(running.engine.load_weights(31, [shard], [*names, "extra"]))
    running.load("m1", 32)  # the engine of the other tests is whole again
