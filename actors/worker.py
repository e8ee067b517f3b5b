"""One rollout actor: a Ray actor around one vLLM engine. Only samples.

The serving loop takes slots from `{run}:work`, samples G responses to each slot's prompt as one batch, and pushes the groups
to `{run}:rollouts`. The driver brings each iteration's prompts and each version's weights; weights are loaded between
batches, and the loop goes on only when the driver has verified them (law 1): `load_weights` closes the gate,
`serve` opens it, and nothing else does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from actors.prompts import SampleRequest, SlotPrompts, response_seed
from common.address import QueueAddress
from common.codec import EncodeError
from common.config import ActorsConfig, PolicyConfig
from common.queue import WorkItem
from common.types import FloatArray, IntArray, Prompt, Rollout, RolloutGroup

logger = logging.getLogger(__name__)
BLOCK_S = 1.0


class ActorWorker:
    """One engine and its serving loop."""

    def __init__(
        self, name: str, model: str, policy: PolicyConfig, actors: ActorsConfig, max_prompt_tokens: int, run_seed: int
    ):
        self._name, self._actors, self._seed = name, actors, run_seed
        self._shm = Path("/dev/shm") / f"iter-rlhf-{os.getpid()}-{name}"
        self._build = (model, policy, actors, max_prompt_tokens, self._shm)
        self._idle = asyncio.Lock()  # held by whatever uses the engine: a batch, or a weight update
        self._verified = asyncio.Event()
        self._version = -1
        self._failure: BaseException | None = None
        self._tokens, self._busy_s = 0, 0.0

    async def start(self) -> None:
        """Starts the engine (tens of seconds)."""
        # vllm takes ten seconds to import, and the driver imports this file without needing it
        from actors.engine import Engine

        self._engine = Engine(*self._build)

    async def load_weights(self, version: int, shards: Sequence[bytes], names: Sequence[str]) -> None:
        """Waits for the batch in hand, closes the gate and loads a version; `serve` opens the gate again."""
        self._verified.clear()
        async with self._idle:
            await self._engine.load_weights(version, shards, names)
            self._version = version

    async def probe(self, token_ids: IntArray) -> FloatArray:
        """Log-probs of the probe sequence under the loaded weights, [T-1] float32."""
        async with self._idle:
            return await self._engine.probe(token_ids)

    async def sample(
        self, prompts: Sequence[Prompt], num_responses: int, seeds: Sequence[int], salt: str
    ) -> list[list[Rollout]]:
        """Samples outside the ledger: references, evaluation, preference collection."""
        requests = [
            SampleRequest(prompt.token_ids, num_responses, seed) for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        async with self._idle:
            return await self._engine.sample(requests, salt)

    async def set_iteration(self, shard: Sequence[Prompt], first_slot: int) -> None:
        """The prompts of the iteration whose first slot is first_slot."""
        self._slots = SlotPrompts(shard, first_slot, self._seed)

    async def connect(self, queue: QueueAddress, max_slots: int) -> None:
        """Starts the serving loop behind its closed gate; it takes at most max_slots slots at once."""
        self._queue, self._renew_s = queue.connect(), queue.config.reclaim_idle_s / 3
        self._loop = asyncio.create_task(self._run(max_slots))

    async def serve(self, version: int) -> None:
        """Opens the gate: the driver has verified that this engine holds `version`."""
        if version != self._version:
            raise RuntimeError(f"actor {self._name} holds version {self._version}, not the verified {version}")
        self._verified.set()

    async def health(self) -> dict[str, float]:
        """Raises the failure of the serving loop, if any; else tokens sampled and the seconds that took."""
        if self._failure is not None:
            raise self._failure
        return {"tokens": float(self._tokens), "busy_s": self._busy_s, "version": float(self._version)}

    async def stop(self) -> None:
        self._engine.shutdown()
        shutil.rmtree(self._shm, ignore_errors=True)

    async def _run(self, max_slots: int) -> None:
        try:
            while True:
                await self._verified.wait()
                items = await asyncio.to_thread(self._queue.take_work, self._name, max_slots, BLOCK_S)
                if items:
                    await self._roll_out(items)
        except Exception as error:  # the loop's boundary: the driver asks `health` and stops the run
            logger.exception("actor %s stopped sampling", self._name)
            self._failure = error

    async def _roll_out(self, items: Sequence[WorkItem]) -> None:
        renewing = asyncio.create_task(self._renew(items))
        try:
            groups = await self._sample_verified(items)
        finally:
            renewing.cancel()
        for item, group in zip(items, groups, strict=True):
            await asyncio.to_thread(self._push, item, group)

    async def _renew(self, items: Sequence[WorkItem]) -> None:
        """Keeps the slots ours while they are sampled: another actor takes what is idle for redis.reclaim_idle_s."""
        while True:
            await asyncio.sleep(self._renew_s)
            await asyncio.to_thread(self._queue.renew, items)

    def _push(self, item: WorkItem, group: RolloutGroup) -> None:
        try:
            self._queue.push_rollouts(item, group)
        except EncodeError as error:  # this slot's fault: it is too large for a record
            self._queue.drop(item, str(error))

    async def _sample_verified(self, items: Sequence[WorkItem]) -> list[RolloutGroup]:
        """The groups of the slots, sampled from a verified version: an update that comes between is waited for."""
        groups: list[RolloutGroup] = []
        while not groups:
            await self._verified.wait()
            async with self._idle:
                if self._verified.is_set():
                    started = time.monotonic()
                    groups = await self._sample_groups(items)
                    self._busy_s += time.monotonic() - started
        return groups

    async def _sample_groups(self, items: Sequence[WorkItem]) -> list[RolloutGroup]:
        prompts = [self._slots.prompt(item.slot) for item in items]
        size = self._actors.responses_per_prompt
        requests = [
            SampleRequest(prompt.token_ids, size, response_seed(self._seed, item.slot))
            for prompt, item in zip(prompts, items, strict=True)
        ]
        sampled = await self._engine.sample(requests, salt=f"rollout-{self._version}")
        self._tokens += sum(len(rollout.token_ids) for rollouts in sampled for rollout in rollouts)
        return [
            RolloutGroup(item.slot, prompt, tuple(rollouts))
            for item, prompt, rollouts in zip(items, prompts, sampled, strict=True)
        ]
