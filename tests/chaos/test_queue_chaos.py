"""The queue under SIGKILL: actors, scorers, the learner and Redis die at random; no slot may be lost or trained twice.

Run as a script, this file is one of the worker processes. A negative control, whose workers acknowledge what they read
before they have done it, must lose slots: otherwise a green run would prove nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config.config import RedisConfig
from common.queue.codec import encode
from common.queue.ledger import BatchAssembler, Ledger
from common.queue.queue import EmbeddedRedis, Queue, WorkItem
from common.types import Prompt, Reward, Rollout, RolloutGroup, ScoredGroup
from tests.queues import scored_slots_after

ROOT = Path(__file__).resolve().parents[2]
CONFIG = RedisConfig(None, "X", capacity=24, max_record_mib=1, max_attempts=3, reclaim_idle_s=0.8)
BATCH, SAVE_EVERY, POISON = 4, 3, {17}
ROLES = ("actor-0", "actor-1", "scorer-0", "scorer-1", "learner")


@dataclass
class World:
    """What a worker needs to know; passed through its standard input, so the password is in no argument."""

    url: str
    password: str
    directory: str
    incarnation: int
    ack_on_read: bool = False
    slot_s: float = 0.02

    def queue(self) -> Queue:
        return Queue(self.url, self.password, "chaos", CONFIG, self.incarnation)


def make_group(slot: int) -> RolloutGroup:
    rng = np.random.default_rng(slot)
    ids = rng.integers(0, 1000, 64, dtype=np.int32)
    rollout = Rollout("r", ids, -rng.random(64, dtype=np.float32), "stop", ((0, 0),))
    return RolloutGroup(slot, Prompt("p", (), ids[:4], {}), (rollout, rollout))


def make_scored(group: RolloutGroup) -> ScoredGroup:
    one = np.full(1, group.slot, np.float32)
    reward = Reward(one, one, one, one, 0.0)
    return ScoredGroup(group, (reward, reward), 0, "anchor")


def acknowledge(queue: Queue, item: WorkItem) -> None:
    queue._link.client.xack(queue._key["work"], "actors", item.entry_id)
    queue._link.client.xdel(queue._key["work"], item.entry_id)


def actor(world: World, name: str) -> None:
    queue = world.queue()
    while True:
        items = queue.take_work(name, 8, 1)
        for item in items if world.ack_on_read else ():
            acknowledge(queue, item)
        for item in items:
            time.sleep(world.slot_s)
            queue.push_rollouts(item, make_group(item.slot))


def scorer(world: World, name: str) -> None:
    queue = world.queue()
    while True:
        for item in queue.take_rollouts(name, 4, 1):
            time.sleep(0.01)
            if item.slot in POISON:
                os.kill(os.getpid(), signal.SIGKILL)
            queue.push_scored(item, make_scored(item.group))


def learner(world: World, name: str) -> None:
    """Trains (hashes) batches; commits ledger, chain and cursor by rename; logs every step it ran, replays included."""
    queue, path = world.queue(), Path(world.directory) / "state.json"
    state = load_state(world.directory)
    assembler = BatchAssembler(Ledger.from_dict(state["ledger"]), BATCH)
    step, chain, saved_cursor = int(state["step"]), str(state["chain"]), assembler.ledger.cursor
    while True:
        for cursor, record in queue.read_scored(assembler.read_cursor, 16, 1):
            assembler.offer(cursor, record)
        while assembler.ready():
            data = b"".join(encode(group) for group in assembler.take(step))
            chain = hashlib.sha256(chain.encode() + data).hexdigest()
            with (Path(world.directory) / "steps.log").open("a") as log:
                log.write(f"{step} {chain}\n")
            step += 1
            if step % SAVE_EVERY == 0:
                aside = path.with_suffix(".tmp")
                aside.write_text(json.dumps({"ledger": assembler.ledger.to_dict(), "step": step, "chain": chain}))
                aside.rename(path)
                queue.trim_scored(saved_cursor)
                saved_cursor = assembler.ledger.cursor


def load_state(directory: str) -> dict[str, Any]:
    path = Path(directory) / "state.json"
    return json.loads(path.read_text()) if path.exists() else {"ledger": Ledger().to_dict(), "step": 0, "chain": ""}


@dataclass
class Harness:
    """The processes of one run, the slots admitted so far, and the kills."""

    server: EmbeddedRedis
    world: World
    queue: Queue
    rng: random.Random
    admitted: int = 0
    kills: dict[str, int] = field(default_factory=dict)
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def tend(self) -> None:
        """Restarts what is dead and keeps the work stream filled."""
        self.server.start()
        self.revive()
        if self.queue.depths()["work"] < 16:
            self.queue.admit(range(self.admitted, self.admitted + 16))
            self.admitted += 16

    def revive(self) -> None:
        """Starts the workers that are dead."""
        for role in ROLES:
            if role not in self.workers or self.workers[role].poll() is not None:
                self.workers[role] = spawn(role, self.world)

    def kill(self, victim: str) -> None:
        if victim == "redis":
            os.kill(self.server.pid, signal.SIGKILL)
        else:
            self.workers[victim].kill()
            self.workers[victim].wait()
        self.kills[victim] = self.kills.get(victim, 0) + 1
        while victim == "redis" and self.server.alive():
            time.sleep(0.01)

    def storm(self, rounds: int, victims: tuple[str, ...]) -> None:
        """Kills each victim once a round, at random moments and in random order."""
        for _ in range(rounds):
            for victim in self.rng.sample(victims, len(victims)):
                self.tend()
                time.sleep(self.rng.uniform(0.4, 1.0))
                self.kill(victim)

    def restart_driver(self) -> None:
        """Everything is resumed from the learner's file, as a new incarnation."""
        for role in ROLES:
            self.kill(role)
        self.server.start()
        self.world.incarnation = self.queue.begin()
        self.queue.reset_in_flight()
        self.queue.admit(range(self.admitted))  # those scored or ended are skipped

    def drain(self, timeout_s: float) -> set[int]:
        """No more kills: waits until all is scored and trained; returns the slots that never got to the learner."""
        deadline = time.monotonic() + timeout_s
        self.server.start()
        while time.monotonic() < deadline and (self.unscored() or self.untrained() >= BATCH * (SAVE_EVERY + 1)):
            self.revive()
            time.sleep(0.3)
        return self.unscored()

    def settle(self, timeout_s: float) -> set[int]:
        """No more kills: waits until nothing is in flight; returns the slots that are lost, because nobody has them."""
        deadline = time.monotonic() + timeout_s
        while any(self.queue.depths()[name] for name in ("work", "rollouts")):
            assert time.monotonic() < deadline, f"still in flight after {timeout_s:g} s: {self.queue.depths()}"
            self.revive()
            time.sleep(0.3)
        return self.unscored()

    def untrained(self) -> int:
        return self.admitted - self.ledger().ended

    def unscored(self) -> set[int]:
        ledger = self.ledger()
        return (
            set(range(self.admitted))
            - scored_slots_after(self.queue, ledger.cursor)
            - set(ledger.trained)
            - set(ledger.dropped)
        )

    def ledger(self) -> Ledger:
        return Ledger.from_dict(load_state(self.world.directory)["ledger"])


@contextmanager
def harness(directory: Path, seed: int, ack_on_read: bool = False, slot_s: float = 0.02) -> Iterator[Harness]:
    server = EmbeddedRedis(directory / "redis")
    server.start()
    world = World(server.url, server.password, str(directory), 0, ack_on_read, slot_s)
    queue = world.queue()
    world.incarnation = queue.begin()
    run = Harness(server, world, queue, random.Random(seed))
    try:
        yield run
    finally:
        for worker in run.workers.values():
            worker.kill()
            worker.wait()
        server.stop()


def spawn(role: str, world: World) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with (Path(world.directory) / f"{role}.log").open("ab") as log:
        command = [sys.executable, __file__, role]
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment)
    assert worker.stdin is not None
    worker.stdin.write(json.dumps(vars(world)).encode())
    worker.stdin.close()
    return worker


def test_no_slot_is_lost_or_trained_twice_under_kills(tmp_path: Path) -> None:
    with harness(tmp_path, seed=1) as run:
        run.storm(2, (*ROLES, "redis"))
        run.restart_driver()
        run.storm(2, (*ROLES, "redis"))
        assert run.drain(300) == set(), f"lost after {run.kills}"
        ledger = run.ledger()
        in_flight = scored_slots_after(run.queue, ledger.cursor) - set(ledger.trained) - set(ledger.dropped)
        assert ledger.audit(run.admitted, in_flight) == []
        dead = {letter.slot for letter in run.queue.dead_letters()}
    assert dead >= POISON
    assert dead >= ledger.dropped.keys() >= POISON
    steps = [line.split() for line in (tmp_path / "steps.log").read_text().splitlines()]
    assert len(set(map(tuple, steps))) == len({step for step, _ in steps}), "a replayed step gave another batch"
    assert run.kills.keys() == {*ROLES, "redis"}
    print(f"{run.kills}, {run.admitted} slots, {len(steps)} steps, {len(dead)} dead: {sorted(dead)}")
    print(f"{len(steps) - len(set(map(tuple, steps)))} steps replayed")


def test_the_control_that_acknowledges_on_read_loses_slots(tmp_path: Path) -> None:
    with harness(tmp_path, seed=2, ack_on_read=True, slot_s=0.15) as run:
        for _ in range(10):  # on a busy machine a worker may die before it has read anything
            run.storm(4, ("actor-0", "actor-1"))
            if run.settle(300):
                return
        pytest.fail("the control lost nothing: this suite could not see a loss")


if __name__ == "__main__":
    {"actor": actor, "scorer": scorer, "learner": learner}[sys.argv[1].split("-")[0]](
        World(**json.loads(sys.stdin.read())), sys.argv[1]
    )
