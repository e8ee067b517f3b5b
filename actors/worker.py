"""One rollout actor: a Ray actor around one vLLM engine. Only samples.

The serving loop (actors/rollout_loop.py) turns slots into groups. The driver brings each iteration's prompts and each
version's weights. `load_weights` closes the gate (actors/gate.py), `serve` opens it when the driver has verified what was
loaded, and nothing else does (law 1). With closed batches a load waits for the batch in hand; in flight it only
stops the engine for as long as it takes, and what is being sampled goes on under the new weights.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from actors.engine_process import start_server
from actors.gate import Gate
from actors.prompts import SampleRequest, SlotPrompts
from actors.rollout_loop import RolloutLoop
from actors.shared_memory import directory
from common.config.config import ActorsConfig, PolicyConfig
from common.later import Later
from common.queue.address import QueueAddress
from common.types import FloatArray, IntArray, Prompt, Rollout

if TYPE_CHECKING:
    from actors.engine import VllmEngine

logger = logging.getLogger(__name__)


class ActorWorker:
    """One engine and its serving loop."""

    def __init__(
        self, name: str, model: str, policy: PolicyConfig, actors: ActorsConfig, max_prompt_tokens: int, run_seed: int
    ):
        self._name, self._actors, self._seed = name, actors, run_seed
        self._shm = directory(name)
        start_server(actors)  # it imports vLLM while this process does
        self._build = (model, policy, actors, max_prompt_tokens, self._shm)
        self._engine_lock = asyncio.Lock()  # held by whatever stops the engine: a closed batch, or a weight update
        self._gate = Gate()
        self._failure: BaseException | None = None
        self._engine: Later[VllmEngine] = Later("start")
        self._loop: Later[RolloutLoop] = Later("connect")
        self._serving: Later[asyncio.Task[None]] = Later("connect")

    async def start(self) -> None:
        """Starts the engine (tens of seconds)."""
        # vllm takes ten seconds to import, and the driver imports this file without needing it
        from actors.engine import VllmEngine

        self._engine.set(VllmEngine(*self._build))

    async def load_weights(self, version: int, shards: Sequence[bytes], names: Sequence[str]) -> None:
        """Closes the gate, waits for the closed batch in hand if there is one, and loads a version; `serve` opens the gate
        again. Over weights that were never proven, what is in flight is thrown away first."""
        if self._gate.close():
            await self._engine.value.discard_in_flight()
        async with self._engine_lock:
            await self._engine.value.load_weights(version, shards, names)
            self._gate.loaded = version

    async def probe(self, token_ids: IntArray) -> FloatArray:
        """Log-probs of the probe sequence under the loaded weights, [T-1] float32."""
        async with self._engine_lock:
            return await self._engine.value.probe(token_ids)

    async def sample(
        self, prompts: Sequence[Prompt], num_responses: int, seeds: Sequence[int], salt: str
    ) -> list[list[Rollout]]:
        """Samples outside the ledger: references, evaluation, preference collection."""
        requests = [
            SampleRequest(prompt.token_ids, num_responses, seed) for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        async with self._engine_lock:
            return await self._engine.value.sample(requests, salt)

    async def set_iteration(self, shard: Sequence[Prompt], first_slot: int) -> None:
        """The prompts of the iteration whose first slot is first_slot."""
        self._loop.value.slots = SlotPrompts(shard, first_slot, self._seed)

    async def connect(self, address: QueueAddress, max_slots: int, in_flight: bool) -> None:
        """Starts the serving loop behind its closed gate; it takes at most max_slots slots at once."""
        queue, size = address.connect(), self._actors.responses_per_prompt
        loop = RolloutLoop(self._name, self._engine.value, self._engine_lock, self._gate, queue, self._seed, size)
        self._loop.set(loop)
        self._serving.set(asyncio.create_task(self._run(max_slots, in_flight, address.config.reclaim_idle_s / 3)))

    async def serve(self, version: int) -> None:
        """Opens the gate: the driver has verified that this engine holds `version`."""
        self._gate.open(version)

    async def health(self) -> dict[str, float]:
        """Raises the failure of the serving loop, if any; else tokens sampled and the seconds that took."""
        if self._failure is not None:
            raise self._failure
        return {"tokens": float(self._loop.value.tokens), "busy_s": self._loop.value.busy.seconds}

    async def stop(self) -> None:
        """Ends the engine and removes the shared memory of its weights."""
        self._engine.value.shutdown()
        shutil.rmtree(self._shm, ignore_errors=True)

    async def _run(self, max_slots: int, in_flight: bool, renew_s: float) -> None:
        try:
            await self._loop.value.run(max_slots, in_flight, renew_s)
        except Exception as error:  # the loop's boundary: the driver asks `health` and stops the run
            logger.exception("actor %s stopped sampling", self._name)
            self._failure = error
