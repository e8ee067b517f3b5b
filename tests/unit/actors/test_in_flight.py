"""actors/gate.py, rollout_loop.py and worker.py: law 1 while sampling goes on through weight updates, on a fake engine.

The fake writes the identity of the weights in place into each response, token by token, so a test sees what a response was
really sampled from: "good-3" or "torn-3", whatever version number its spans show.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.gate import Gate
from actors.prompts import SampleRequest
from actors.rollout_loop import BusyTime
from actors.worker import ActorWorker
from common.config.config import ActorsConfig, PolicyConfig
from common.config.file import BASE, load_config
from common.queue.queue import QueueError, WorkItem
from common.types import Message, Prompt, Rollout, RolloutGroup
from driver.loop.slot_window import slots_per_actor

MAX_SLOTS = 3
CONFIG = load_config(BASE, ["aggregation.kind=final_score", "actors.responses_per_prompt=2"])


class FakeEngine:
    """Requests grow by `grow` and end by `finish`, both called by the test; weights are replaced as in the real one."""

    def __init__(self) -> None:
        self.weights, self.version = "none", -1
        self.flying: dict[asyncio.Future[list[Rollout] | None], list[tuple[str, int]]] = {}

    async def load_weights(self, version: int, shards: list[bytes], names: list[str]) -> None:
        await asyncio.sleep(0)
        self.weights, self.version = shards[0].decode(), version

    async def sample_in_flight(self, request: SampleRequest) -> list[Rollout] | None:
        ended: asyncio.Future[list[Rollout] | None] = asyncio.get_running_loop().create_future()
        self.flying[ended] = []
        return await ended

    async def discard_in_flight(self) -> None:
        for ended in list(self.flying):
            del self.flying[ended]
            ended.set_result(None)

    async def sample(self, requests: list[SampleRequest], salt: str) -> list[list[Rollout]]:
        await asyncio.sleep(0.01)
        return [[_rollout([(self.weights, self.version)])] for _ in requests]

    def grow(self) -> None:
        for tokens in self.flying.values():
            tokens.append((self.weights, self.version))

    def finish(self, index: int) -> None:
        grown = [ended for ended, tokens in self.flying.items() if tokens]
        if grown:
            ended = grown[index % len(grown)]
            ended.set_result([_rollout(self.flying.pop(ended))])


def _rollout(tokens: list[tuple[str, int]]) -> Rollout:
    spans = [(at, version) for at, (_, version) in enumerate(tokens) if at == 0 or tokens[at - 1][1] != version]
    text = " ".join(weights for weights, _ in tokens)
    return Rollout(text, np.ones(len(tokens), np.int32), np.zeros(len(tokens), np.float32), "stop", tuple(spans))


class FakeQueue:
    """Slots 0 .. num-1, then nothing; keeps what is pushed."""

    def __init__(self, num: int):
        self.waiting = [WorkItem(f"{slot}-0", slot, 1) for slot in range(num)]
        self.pushed: dict[int, RolloutGroup] = {}
        self.in_hand = self.most_in_hand = 0
        self.config = SimpleNamespace(reclaim_idle_s=30.0)
        self.fails = False

    def connect(self) -> FakeQueue:
        return self

    def take_work(self, consumer: str, max_slots: int, block_s: float) -> list[WorkItem]:
        taken, self.waiting = self.waiting[:max_slots], self.waiting[max_slots:]
        if not taken:
            time.sleep(0.001)
        self.in_hand += len(taken)
        self.most_in_hand = max(self.most_in_hand, self.in_hand)
        return taken

    def push_rollouts(self, item: WorkItem, group: RolloutGroup) -> bool:
        if self.fails:
            raise QueueError("redis is away")
        assert item.slot not in self.pushed, "one slot, one group"
        self.pushed[item.slot] = group
        self.in_hand -= 1
        return True


class Actor:
    """The real ActorWorker on the fakes, driven as driver/loop/publish.py does."""

    def __init__(self, num_slots: int, in_flight: bool = True):
        self.engine, self.queue, self._in_flight = FakeEngine(), FakeQueue(num_slots), in_flight
        self.worker = _worker(CONFIG.policy, CONFIG.actors, self.engine)

    async def start(self) -> None:
        queue: Any = self.queue
        await self.worker.connect(queue, MAX_SLOTS, self._in_flight)
        message = (Message("user", "x"),)
        await self.worker.set_iteration([Prompt("p", message, np.ones(3, np.int32), {})], first_slot=0)

    async def load(self, version: int, weights: str) -> None:
        await self.worker.load_weights(version, [weights.encode()], [])

    async def publish(self, version: int) -> None:
        await self.load(version, f"good-{version}")
        await self.worker.serve(version)

    def sampled_from(self) -> set[str]:
        texts = [rollout.response for group in self.queue.pushed.values() for rollout in group.rollouts]
        return {weights for text in texts for weights in text.split()}


def _worker(policy: PolicyConfig, actors: ActorsConfig, engine: FakeEngine) -> ActorWorker:
    worker = ActorWorker("actor-0", "model", policy, actors, 16, 0)
    worker._engine.set(engine)  # type: ignore[arg-type]
    return worker


def run(story: Callable[[Actor], Awaitable[None]], num_slots: int = 3, in_flight: bool = True) -> Actor:
    async def play() -> Actor:
        actor = Actor(num_slots, in_flight)
        await actor.start()
        await story(actor)
        actor.worker._serving.value.cancel()
        return actor

    return asyncio.run(play())


async def settle() -> None:
    """Lets the tasks, and the threads of takes and pushes, come to rest."""
    for _ in range(3):
        await asyncio.sleep(0.004)


def test_nothing_is_sampled_before_the_first_version_is_served() -> None:
    async def story(actor: Actor) -> None:
        await actor.load(0, "good-0")
        await settle()
        assert not actor.engine.flying
        await actor.worker.serve(0)
        await settle()
        assert len(actor.engine.flying) == 3

    run(story)


def test_a_group_that_ends_before_the_proof_leaves_after_it_with_both_spans() -> None:
    async def story(actor: Actor) -> None:
        await actor.publish(0)
        await settle()
        actor.engine.grow()
        await actor.load(1, "good-1")
        actor.engine.grow()
        actor.engine.finish(0)
        await settle()
        assert not actor.queue.pushed, "sampled from weights that nobody has proven yet"
        await actor.worker.serve(1)
        await settle()
        (group,) = actor.queue.pushed.values()
        assert group.rollouts[0].version_spans == ((0, 0), (1, 1))

    run(story)


def test_torn_weights_take_all_that_saw_them_along_and_the_slots_are_sampled_again() -> None:
    async def story(actor: Actor) -> None:
        await actor.publish(0)
        await settle()
        actor.engine.grow()
        await actor.load(1, "torn-1")
        actor.engine.grow()
        actor.engine.finish(0)  # ended and held back
        await settle()
        await actor.load(1, "good-1")
        await actor.worker.serve(1)
        await settle()
        assert not actor.queue.pushed and len(actor.engine.flying) == 3
        actor.engine.grow()
        for _ in range(3):
            actor.engine.finish(0)
        await settle()

    actor = run(story)
    assert sorted(actor.queue.pushed) == [0, 1, 2]
    assert actor.sampled_from() == {"good-1"}


def test_weights_that_stay_torn_never_let_anything_out() -> None:
    async def story(actor: Actor) -> None:
        await actor.publish(0)
        await settle()
        for _ in range(2):
            await actor.load(1, "torn-1")
            actor.engine.grow()
            actor.engine.finish(0)
            await settle()
        with pytest.raises(RuntimeError, match="holds version 1, not the verified 0"):
            await actor.worker.serve(0)

    assert not run(story).queue.pushed


def test_a_finished_group_makes_room_at_once_and_no_more_than_that() -> None:
    async def story(actor: Actor) -> None:
        await actor.publish(0)
        await settle()
        for left in range(6, 0, -1):
            assert len(actor.engine.flying) == min(MAX_SLOTS, left)
            actor.engine.grow()
            actor.engine.finish(0)
            await settle()

    actor = run(story, num_slots=6)
    assert sorted(actor.queue.pushed) == [0, 1, 2, 3, 4, 5]
    assert actor.queue.most_in_hand <= MAX_SLOTS
    assert actor.worker._loop.value.tokens == sum(
        len(group.rollouts[0].token_ids) for group in actor.queue.pushed.values()
    )


def test_a_failure_of_one_slot_is_the_health_of_the_actor() -> None:
    async def story(actor: Actor) -> None:
        await actor.publish(0)
        await settle()
        assert (await actor.worker.health())["tokens"] == 0
        actor.queue.fails = True
        actor.engine.grow()
        actor.engine.finish(0)
        await settle()
        with pytest.raises(QueueError, match="redis is away"):
            await actor.worker.health()

    run(story, num_slots=1)


def test_a_load_waits_for_the_closed_batch_in_hand() -> None:
    async def story(actor: Actor) -> None:
        await actor.publish(0)
        await asyncio.sleep(0.006)  # the batch is being sampled
        await actor.publish(1)
        await settle()

    actor = run(story, in_flight=False)
    assert sorted(actor.queue.pushed) == [0, 1, 2]
    assert all(len(group.rollouts[0].version_spans) == 1 for group in actor.queue.pushed.values())


EVENTS = st.sampled_from(["grow", "finish", "publish", "torn then mended", "torn twice then mended", "wait"])


@given(st.lists(EVENTS, max_size=20))
@settings(max_examples=30, deadline=None)
def test_whatever_happens_nothing_torn_leaves_and_every_slot_ends_once(events: list[str]) -> None:
    async def story(actor: Actor) -> None:
        await actor.publish(0)
        version = 0
        for at, event in enumerate(events):
            if event == "grow":
                actor.engine.grow()
            elif event == "finish":
                actor.engine.finish(at)
            elif event == "wait":
                await asyncio.sleep(0.002)
            else:
                version += 1
                for _ in range({"publish": 0, "torn then mended": 1, "torn twice then mended": 2}[event]):
                    await actor.load(version, f"torn-{version}")
                    actor.engine.grow()
                    actor.engine.finish(at)
                    await asyncio.sleep(0)
                await actor.publish(version)
        while len(actor.queue.pushed) < 5:
            actor.engine.grow()
            actor.engine.finish(0)
            await asyncio.sleep(0.001)

    actor = run(story, num_slots=5)
    assert not [weights for weights in actor.sampled_from() if weights.startswith("torn")]


def test_the_gate_counts_discards_only_for_weights_that_were_never_proven() -> None:
    async def story() -> None:
        gate = Gate()
        assert gate.close()
        gate.loaded = 0
        gate.open(0)
        assert await gate.opened() == 1
        assert not gate.close()
        assert gate.close()
        assert not gate.is_open()

    asyncio.run(story())


def test_busy_time_counts_what_overlaps_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 13.0, 20.0, 21.0])
    monkeypatch.setattr("actors.rollout_loop.time.monotonic", lambda: next(now))
    busy = BusyTime()
    with busy, busy:
        pass
    assert busy.seconds == 3.0
    with busy:
        assert busy.seconds == 4.0
        monkeypatch.undo()


@pytest.mark.parametrize(("staleness", "want"), [(0, 32), (1, 64), (3, 64)])
def test_an_actor_holds_its_share_of_the_window_up_to_twice_its_engine(staleness: int, want: int) -> None:
    settings = [f"iteration.max_staleness={staleness}", "actors.num=2", "actors.max_num_seqs=256"]
    assert slots_per_actor(load_config(BASE, ["aggregation.kind=final_score", *settings])) == want
