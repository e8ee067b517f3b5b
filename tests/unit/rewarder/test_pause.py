"""A rewarder that is paused: nothing is scored, nothing is lost, a group in hand is finished."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any

import pytest

from common.config.file import BASE, load_config
from common.queue.queue import RolloutItem
from common.types import RolloutGroup, ScoredGroup
from rewarder.worker import RewarderWorker
from tests.unit.adaptation import group as scored_group

SHORT_S = 0.15  # in which a rewarder that is not paused would have scored
WITHIN_S = 20.0


class Stream:
    """The run's queue for one rewarder: items to take, and what was handed on, in order."""

    def __init__(self) -> None:
        self.items: queue.Queue[RolloutItem] = queue.Queue()
        self.scored: list[tuple[int, int]] = []

    def connect(self) -> Stream:
        return self

    def add(self, *slots: int) -> None:
        for slot in slots:
            self.items.put(RolloutItem(str(slot), slot, 1, scored_group(slot, ["a", "b"]).group))

    def take_rollouts(self, name: str, count: int, block_s: float) -> list[RolloutItem]:
        try:
            return [self.items.get(timeout=0.01)]
        except queue.Empty:
            return []

    def push_scored(self, item: RolloutItem, scored: ScoredGroup) -> None:
        self.scored.append((item.slot, scored.rm_version))

    def await_scored(self, count: int) -> list[tuple[int, int]]:
        deadline = time.monotonic() + WITHIN_S
        while len(self.scored) < count and time.monotonic() < deadline:
            time.sleep(0.005)
        return list(self.scored)


class Scorer(RewarderWorker):
    """Scores by the version that it was told last; each group waits until it may end."""

    def __init__(self) -> None:
        config = load_config(BASE, ["aggregation.kind=final_score"])
        super().__init__("rewarder-0", config.rewarder, config.aggregation, "cpu")
        self.version, self.begun, self.may_end = 0, threading.Event(), threading.Event()
        self.may_end.set()

    def score(self, group: RolloutGroup) -> ScoredGroup:
        version = self.version
        self.begun.set()
        assert self.may_end.wait(WITHIN_S)
        return ScoredGroup(group, scored_group(group.slot, ["a", "b"]).rewards, version, "none")


@pytest.fixture
def parts() -> tuple[Scorer, Stream]:
    scorer, stream = Scorer(), Stream()
    address: Any = stream
    scorer.serve(address)
    return scorer, stream


def test_what_waits_in_a_pause_is_scored_after_it_by_the_next_version(parts: tuple[Scorer, Stream]) -> None:
    scorer, stream = parts
    stream.add(0, 1)
    assert stream.await_scored(2) == [(0, 0), (1, 0)]
    scorer.pause()
    stream.add(2, 3, 4)
    time.sleep(SHORT_S)
    assert len(stream.scored) == 2, "nothing is scored while paused"
    assert stream.items.qsize() >= 2, "at most the one that it was about to take has left the queue"
    scorer.version = 1
    scorer.resume()
    assert stream.await_scored(5)[2:] == [(2, 1), (3, 1), (4, 1)], "nothing is lost, each by the new version"
    assert scorer.health()["groups"] == 5


def test_a_group_in_hand_is_finished_before_the_pause_begins(parts: tuple[Scorer, Stream]) -> None:
    scorer, stream = parts
    scorer.may_end.clear()
    stream.add(0, 1)
    assert scorer.begun.wait(WITHIN_S)
    paused = threading.Event()
    threading.Thread(target=lambda: (scorer.pause(), paused.set()), daemon=True).start()
    assert not paused.wait(SHORT_S), "the pause waits for the group"
    scorer.may_end.set()
    assert paused.wait(WITHIN_S) and stream.scored == [(0, 0)], "it was handed on, and the next one waits"
    scorer.version = 1
    time.sleep(SHORT_S)
    assert stream.scored == [(0, 0)]
    scorer.resume()
    assert stream.await_scored(2) == [(0, 0), (1, 1)]


def test_a_group_that_fails_does_not_hold_a_pause_up(parts: tuple[Scorer, Stream]) -> None:
    """An error that is the rewarder's own ends its thread, and the driver hears of it."""
    scorer, stream = parts
    scorer.score = lambda group: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    stream.add(0)
    deadline = time.monotonic() + WITHIN_S
    while scorer._failure is None and time.monotonic() < deadline:
        time.sleep(0.005)
    scorer.pause()
    with pytest.raises(ZeroDivisionError):
        scorer.health()
