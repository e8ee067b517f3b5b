"""driver/loop/publish.py: an engine that does not hold what was published is loaded once more and never serves otherwise.

The roles are fakes that answer the publisher's calls; the real ones are in tests/integration and tests/e2e.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from common.types import FloatArray, IntArray, Message, Prompt
from driver.cluster.calls import RoleError, Stored
from driver.cluster.doors import Actors, Learners
from driver.loop.publish import Publisher, probe_tokens
from tests.unit.driver.fake_groups import group_of

WANT = np.array([-1.0, -2.0], dtype=np.float32)


class OneLearner(Learners):
    """One learner, whose probe answers WANT."""

    def __init__(self) -> None:
        super().__init__(group_of(1))

    def weights(self) -> tuple[list[bytes], list[str]]:
        return [b"shard"], ["name"]

    def probe(self, token_ids: IntArray, anchor: bool) -> FloatArray:
        return WANT


class TwoEngines(Actors):
    """Two engines; `answers` are how far their probes are from WANT, one pair for each time that they are probed."""

    def __init__(self, *answers: tuple[float, float]):
        super().__init__(group_of(2))
        self.answers, self.loaded, self.served = list(answers), list[list[int]](), list[int]()

    def store(self, shards: list[bytes]) -> Stored[list[bytes]]:
        return Stored(shards)

    def load_weights(
        self, version: int, shards: Stored[list[bytes]], names: Sequence[str], only: Iterable[int] | None = None
    ) -> None:
        self.loaded.append([0, 1] if only is None else list(only))

    def probe(self, token_ids: IntArray) -> list[FloatArray]:
        return [WANT + np.float32(shift) for shift in self.answers.pop(0)]

    def serve(self, version: int) -> None:
        self.served.append(version)


def publisher(engines: TwoEngines) -> Publisher:
    prompts = [Prompt("p", (Message("user", "x"),), np.arange(3, dtype=np.int32), {})]
    return Publisher(OneLearner(), engines, Path("nowhere"), prompts, 1e-4)


def test_a_good_update_is_served() -> None:
    engines = TwoEngines((0.0, 5e-5))
    assert publisher(engines).policy(1).max_logprob_diff == pytest.approx(5e-5, rel=0.01)
    assert engines.served == [1]


def test_a_torn_engine_alone_is_loaded_once_more() -> None:
    engines = TwoEngines((0.0, 0.7), (0.0, 0.0))
    publisher(engines).policy(1)
    assert engines.loaded == [[0, 1], [1]] and engines.served == [1]


@pytest.mark.parametrize("shift", [0.7, float("nan")])
def test_an_engine_that_stays_torn_stops_the_run_and_never_serves(shift: float) -> None:
    engines = TwoEngines((0.0, shift), (0.0, shift))
    with pytest.raises(RoleError, match="actor-1 holds other weights than version 1"):
        publisher(engines).policy(1)
    assert engines.served == []


def test_step_size_says_how_far_the_probe_moved() -> None:
    engines = TwoEngines((0.0, 0.0), (0.0, 0.0))
    publishing = publisher(engines)
    assert publishing.policy(1).step_size is None
    assert publishing.policy(2).step_size == 0.0


def test_the_probe_is_a_prompt_s_length_of_real_tokens() -> None:
    prompts = [Prompt(str(i), (Message("user", "x"),), np.full(4 + i, i, dtype=np.int32), {}) for i in range(3)]
    assert probe_tokens(prompts).tolist() == [0, 0, 0, 0, 1, 1]
