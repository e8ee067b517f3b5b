"""Slots in, groups out: the serving loop of one actor, in closed batches or in flight.

Owned by actors/worker.py; takes slots from `{run}:work`, samples G responses to each slot's prompt, pushes the groups to
`{run}:rollouts`. Waits for the gate (actors/gate.py), for slots, and for room in the queue.

- `serve_batches` (max_staleness 0): a step's slots are one closed batch, and weights change between batches only, so that
  the same requests always meet in the same forward passes and a repeated run is bit-identical.
- `serve_in_flight` (max_staleness > 0): each slot is a task of its own, a new one starts whenever one ends, and weights
  change while responses grow. A group that was finished while the gate was closed leaves when it opens; if the weights
  turn out torn instead, its slot is sampled again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

from actors.gate import Gate
from actors.prompts import SampleRequest, SlotPrompts, response_seed
from common.queue.codec import EncodeError
from common.queue.queue import Queue, WorkItem
from common.types import Prompt, Rollout, RolloutGroup

BLOCK_S = 1.0


class Sampler(Protocol):
    """What is used here of actors/engine.py."""

    async def sample(self, requests: Sequence[SampleRequest], salt: str) -> list[list[Rollout]]:
        """One list of rollouts for each request; all of them are sampled by the weights that `salt` names."""
        ...

    async def sample_in_flight(self, request: SampleRequest) -> list[Rollout] | None:
        """The rollouts of one request, which new weights may reach on the way; None if they are thrown away."""
        ...


class BusyTime:
    """Seconds during which at least one `with` block of it was running."""

    def __init__(self) -> None:
        self._depth, self._since, self._total = 0, 0.0, 0.0

    def __enter__(self) -> None:
        if self._depth == 0:
            self._since = time.monotonic()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._total += time.monotonic() - self._since

    @property
    def seconds(self) -> float:
        """The seconds in which at least one span was open, the present one included."""
        return self._total + (time.monotonic() - self._since if self._depth else 0.0)


class RolloutLoop:
    """Serves slots until cancelled or until something fails. `slots` must be set before the gate opens."""

    slots: SlotPrompts

    def __init__(
        self,
        name: str,
        engine: Sampler,
        engine_lock: asyncio.Lock,
        gate: Gate,
        queue: Queue,
        seed: int,
        group_size: int,
    ):
        self._name, self._engine, self._engine_lock, self._gate = name, engine, engine_lock, gate
        self._queue, self._seed, self._group_size = queue, seed, group_size
        self._in_hand: dict[int, WorkItem] = {}
        self._pushing = asyncio.Lock()  # one push at a time: many that wait for room would take every thread there is
        self.tokens, self.busy = 0, BusyTime()

    async def run(self, max_slots: int, in_flight: bool, renew_s: float) -> None:
        """Serves at most max_slots slots at once; raises the first failure."""
        serve = self.serve_in_flight if in_flight else self.serve_batches
        await asyncio.gather(serve(max_slots), self._renew(renew_s))

    # ---- closed batches (max_staleness 0) -----------------------------------------------------------------------------

    async def serve_batches(self, max_slots: int) -> None:
        """Samples batches of up to `max_slots` slots while the gate is open; ends only when it is cancelled."""
        while True:
            await self._gate.opened()
            items = await self._take(max_slots)
            groups = await self._batch(items) if items else []
            for item, group in zip(items, groups, strict=True):
                await self._push(item, group)

    async def _batch(self, items: Sequence[WorkItem]) -> list[RolloutGroup]:
        """The groups of the slots, sampled from a proven version: an update that comes between is waited for."""
        prompts = [self.slots.prompt(item.slot) for item in items]
        requests = [self._request(item, prompt) for item, prompt in zip(items, prompts, strict=True)]
        sampled: list[list[Rollout]] = []
        while not sampled:
            await self._gate.opened()
            async with self._engine_lock:
                if self._gate.is_open():
                    with self.busy:
                        sampled = await self._engine.sample(requests, salt=f"rollout-{self._gate.loaded}")
        return [self._group(*parts) for parts in zip(items, prompts, sampled, strict=True)]

    # ---- in flight (max_staleness > 0) --------------------------------------------------------------------------------

    async def serve_in_flight(self, max_slots: int) -> None:
        """Keeps up to `max_slots` slots in flight while the gate is open; ends only when it is cancelled."""
        flying: set[asyncio.Task[None]] = set()
        while True:
            await self._gate.opened()
            items = await self._take(max_slots - len(flying))
            flying |= {asyncio.create_task(self._roll_out(item)) for item in items}
            flying = await _landed(flying, wait=len(flying) == max_slots)

    async def _roll_out(self, item: WorkItem) -> None:
        await self._push(item, await self._proven_group(item))

    async def _proven_group(self, item: WorkItem) -> RolloutGroup:
        """The slot's group; sampled again for as long as weights that it saw turn out torn."""
        prompt = self.slots.prompt(item.slot)
        while True:
            discards = await self._gate.opened()
            with self.busy:
                rollouts = await self._engine.sample_in_flight(self._request(item, prompt))
            if await self._gate.opened() == discards and rollouts is not None:
                return self._group(item, prompt, rollouts)

    # ---- both ---------------------------------------------------------------------------------------------------------

    async def _take(self, most: int) -> list[WorkItem]:
        items = await asyncio.to_thread(self._queue.take_work, self._name, most, BLOCK_S)
        self._in_hand |= {item.slot: item for item in items}
        return items

    def _request(self, item: WorkItem, prompt: Prompt) -> SampleRequest:
        return SampleRequest(prompt.token_ids, self._group_size, response_seed(self._seed, item.slot))

    def _group(self, item: WorkItem, prompt: Prompt, rollouts: Sequence[Rollout]) -> RolloutGroup:
        self.tokens += sum(len(rollout.token_ids) for rollout in rollouts)
        return RolloutGroup(item.slot, prompt, tuple(rollouts))

    async def _push(self, item: WorkItem, group: RolloutGroup) -> None:
        async with self._pushing:
            await asyncio.to_thread(self._hand_on, item, group)
        self._in_hand.pop(item.slot, None)  # a slot that came twice (redelivery) is in hand once

    def _hand_on(self, item: WorkItem, group: RolloutGroup) -> None:
        try:
            self._queue.push_rollouts(item, group)
        except EncodeError as error:  # this slot's fault: it is too large for a record
            self._queue.drop(item, str(error))

    async def _renew(self, every_s: float) -> None:
        """Keeps the slots in hand ours: another actor takes what is idle for redis.reclaim_idle_s."""
        while True:
            await asyncio.sleep(every_s)
            if items := list(self._in_hand.values()):
                await asyncio.to_thread(self._queue.renew, items)


async def _landed(flying: set[asyncio.Task[None]], wait: bool) -> set[asyncio.Task[None]]:
    """The tasks that still fly, after waiting for at least one to end if `wait`; raises what a task raised."""
    if not flying:
        return flying
    landed, left = await asyncio.wait(flying, timeout=None if wait else 0, return_when=asyncio.FIRST_COMPLETED)
    for task in landed:
        task.result()
    return left
