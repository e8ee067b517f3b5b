"""Whatever call of the queue it is whose reply is lost: the queue is as if it had come, and so is the answer.

Between client and a real redis-server stands a door that cuts the connection after the command was run
(tests/reply_dropper.py).
Each case is run twice, on a run whose replies come and on one whose replies do not, and both must end the same.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from common.config.config import RedisConfig
from common.queue import scripts
from common.queue.queue import EmbeddedRedis, Queue, QueueError, RolloutItem, WorkItem
from common.types import Prompt, Reward, Rollout, RolloutGroup, ScoredGroup
from tests.reply_dropper import ReplyDropper, reply_dropper

CONFIG = RedisConfig(None, "X", capacity=100, max_record_mib=1, max_attempts=3, reclaim_idle_s=30)
LOSES = 2  # replies of one call in a row


def group(slot: int) -> RolloutGroup:
    ids = np.arange(3, dtype=np.int32)
    rollout = Rollout("r", ids, -np.ones(3, np.float32), "stop", ((0, 0),))
    return RolloutGroup(slot, Prompt("p", (), ids[:1], {}), (rollout,))


def scored(of: RolloutGroup) -> ScoredGroup:
    one = np.ones(1, np.float32)
    return ScoredGroup(of, (Reward(one, one, one, one, 0.0),), 0, "anchor")


def taken(queue: Queue) -> list[WorkItem]:
    queue.admit(range(4))
    return queue.take_work("actor", 4, 0)


def pushed(queue: Queue) -> list[RolloutItem]:
    for item in taken(queue)[:3]:
        queue.push_rollouts(item, group(item.slot))
    return queue.take_rollouts("rewarder", 3, 0)


def finished(queue: Queue) -> list[Any]:
    """Slots 0 and 1 are scored, 2 is dropped; the cursors of the three."""
    first, second, third = pushed(queue)
    queue.push_scored(first, scored(first.group))
    queue.push_scored(second, scored(second.group))
    queue.drop(third, "why", b"bytes")
    queue._link.client.xadd(queue._key["scored"], {"slot": 9, "data": b"no record"})
    return [cursor for cursor, _ in queue._read_after("0-0", 9, None)]


def settled(queue: Queue) -> list[Any]:
    queue.trim_scored(finished(queue)[-1])
    return queue.settled_letters()


@dataclass(frozen=True)
class Case:
    """What is there before, the call whose reply is lost, and the script that it runs ("": a plain command)."""

    script: str
    before: Callable[[Queue], Any]
    call: Callable[[Queue, Any], Any]


CASES = {
    "begin": Case("BEGIN", lambda q: None, lambda q, _: q.begin()),
    "admit": Case("ADMIT", lambda q: None, lambda q, _: q.admit(range(3))),
    "take_work": Case("TAKE", lambda q: q.admit(range(4)), lambda q, _: q.take_work("actor", 3, 0)),
    "take_rollouts": Case(
        "TAKE", lambda q: [q.push_rollouts(i, group(i.slot)) for i in taken(q)], lambda q, _: takes(q)
    ),
    "data": Case("DATA", lambda q: [q.push_rollouts(i, group(i.slot)) for i in taken(q)], lambda q, _: data(q)),
    "renew": Case("RENEW", taken, lambda q, items: q.renew(items)),
    "push_rollouts": Case("PUSH", taken, lambda q, items: q.push_rollouts(items[0], group(0))),
    "push_scored": Case("PUSH", pushed, lambda q, items: q.push_scored(items[0], scored(items[0].group))),
    "drop": Case("DROP", taken, lambda q, items: q.drop(items[1], "why", b"x")),
    "bad_scored": Case("BAD_SCORED", finished, lambda q, at: bad(q, at[-1])),
    "trim": Case("TRIM", finished, lambda q, at: q.trim_scored(at[2])),
    "write_off": Case("WRITE_OFF", finished, lambda q, _: q.write_off([0, 1], "not a number")),
    "blame": Case("BLAME", taken, lambda q, _: q.blame()),
    "reset": Case("RESET", lambda q: (taken(q), q.blame()), lambda q, _: q.reset_in_flight()),
    "forget_after": Case("FORGET_AFTER", finished, lambda q, at: q.forget_scored_after(at[0])),
    "delete": Case("DELETE", finished, lambda q, _: q.delete_run()),
    "slots": Case("SLOTS", taken, lambda q, _: q.slots_in_flight()),
    "settled": Case("SETTLED", settled, lambda q, _: [(x.slot, x.reason) for x in q.settled_letters()]),
    "forget_letters": Case("FORGET_DEAD", settled, lambda q, letters: q.forget_letters(letters)),
    "read_scored": Case("", finished, lambda q, _: [slot for slot, _ in enumerate(q.read_scored("0-0", 3, 0))]),
    "await_entry": Case("", taken, lambda q, _: q._await_entry("work", "0-0", 50)),
    "dead_letters": Case("", finished, lambda q, _: [(x.slot, x.data) for x in q.dead_letters()]),
    "depths": Case("", finished, lambda q, _: q.depths()),
    "check": Case("", lambda q: None, lambda q, _: q.check()),
}


def takes(queue: Queue) -> list[tuple[int, int]]:
    return [(item.slot, item.attempt) for item in queue.take_rollouts("rewarder", 3, 0)]


def bad(queue: Queue, entry: str) -> None:
    queue._script(scripts.BAD_SCORED, entry, 9, b"it cannot be read", b"x")


def data(queue: Queue) -> list[bytes | None]:
    entries, _ = queue._take_now("rollouts", "rewarder", 3)
    return queue._data(entries)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    running = EmbeddedRedis(tmp_path_factory.mktemp("redis"))
    running.start()
    yield running
    running.stop()


@pytest.fixture
def door(server: EmbeddedRedis) -> Iterator[ReplyDropper]:
    with reply_dropper(server.url) as opened:
        yield opened


def opened(server: EmbeddedRedis, url: str, run: str, incarnation: int = 0) -> Queue:
    return Queue(url, server.password, run, CONFIG, incarnation, retry_s=10)


def outcome(server: EmbeddedRedis, case: Case, run: str, door: ReplyDropper | None) -> tuple[Any, dict[str, Any]]:
    """What the call answers, and what the queue then holds; entries by their order, since their ids are times."""
    near = opened(server, server.url, run)
    incarnation = near.begin()
    found = case.before(near)
    queue = opened(server, door.url if door else server.url, run, incarnation)
    queue.check()  # the connection is there
    if door is not None:
        door.lose(LOSES)
    answer = case.call(queue, found)
    if door is not None:
        assert door.lost == LOSES, f"the call lost {door.lost} replies; the door proves nothing"
    return without_ids(answer), held(near)


def without_ids(answer: Any) -> Any:
    if isinstance(answer, list):
        return [without_ids(one) for one in answer]
    return (answer.slot, answer.attempt) if isinstance(answer, (WorkItem, RolloutItem)) else answer


def held(queue: Queue) -> dict[str, Any]:
    client, key = queue._link.client, queue._key
    streams = {
        name: [fields for _, fields in client.xrange(key[name])] for name in ("work", "rollouts", "scored", "dead")
    }
    found: dict[str, Any] = {**streams, "ended": client.smembers(key["ended"])}
    found |= {name: client.hgetall(key[name]) for name in ("seen", "attempts")}
    found["meta"] = {k if not k.startswith(b"bad:") else b"bad": v for k, v in client.hgetall(key["meta"]).items()}
    for name, readers in (("work", "actors"), ("rollouts", "rewarders")):
        found[f"{name} held"] = client.xpending(key[name], readers)["pending"] if client.exists(key[name]) else None
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_lost_reply_changes_nothing(server: EmbeddedRedis, door: ReplyDropper, name: str) -> None:
    case = CASES[name]
    assert outcome(server, case, f"{name}-lost", door) == outcome(server, case, f"{name}-heard", None)


def test_every_script_has_a_case() -> None:
    every = {name for name, value in vars(scripts).items() if name.isupper() and isinstance(value, str)}
    helpers = {"FENCE", "GROUPS", "HEAD", "STAGE"}
    assert every - helpers == {case.script for case in CASES.values()} - {""}


def test_a_flaky_link_dead_letters_nobody(server: EmbeddedRedis, door: ReplyDropper) -> None:
    """More lost replies than max_attempts, one slot: each is one attempt of it, however often it is asked for."""
    queue = opened(server, door.url, "flaky")
    queue.begin()
    queue.admit([0])
    door.lose(4)
    assert [(item.slot, item.attempt) for item in queue.take_work("actor", 1, 0)] == [(0, 1)]
    assert door.lost == 4
    assert queue.dead_letters() == []


def test_an_entry_whose_reply_was_lost_is_not_parked(server: EmbeddedRedis, door: ReplyDropper) -> None:
    queue = opened(server, door.url, "parked")
    queue.begin()
    queue.admit([0])
    door.lose(1)
    start = time.monotonic()
    assert len(queue.take_work("actor", 1, 20)) == 1
    assert time.monotonic() - start < CONFIG.reclaim_idle_s / 2


def test_a_server_that_does_not_answer_is_given_up_in_time() -> None:
    """It takes connections and says nothing, as a stopped process does: tries end by the clock, not by their number."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        queue = Queue(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", None, "silent", CONFIG, retry_s=2)
        start = time.monotonic()
        with pytest.raises(QueueError, match="cannot be reached"):
            queue.depths()
        assert 1.5 < time.monotonic() - start < 8
