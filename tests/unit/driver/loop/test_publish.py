"""driver/loop/publish.py: an engine that does not hold what was published is loaded once more and never serves otherwise.

The roles are fakes that answer the publisher's calls; the real ones are in tests/integration and tests/e2e.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.types import Message, Prompt
from driver.cluster.cluster import RoleError
from driver.loop.publish import Publisher, probe_tokens

WANT = np.array([-1.0, -2.0], dtype=np.float32)


class Roles:
    """A cluster of one learner and two engines; `answers` are the engines' probes, one pair per round of probing."""

    def __init__(self, *answers: tuple[float, float]):
        self.learners, self.actors = ["learner"], ["a0", "a1"]
        self.answers, self.calls = list(answers), []

    def put(self, value: object) -> object:
        return value

    def call_all(self, roles: list[str], method: str, *arguments: object) -> list[object]:
        self.calls.append((method, tuple(roles)))
        if method == "weights":
            return [([b"shard"], ["name"])]
        if method == "probe":
            return [WANT] if roles == self.learners else [WANT + shift for shift in self.answers.pop(0)]
        return [None for _ in roles]


def publisher(roles: Roles) -> Publisher:
    prompts = [Prompt("p", (Message("user", "x"),), np.arange(3, dtype=np.int32), {})]
    return Publisher(roles, Path("nowhere"), prompts, 1e-4)  # type: ignore[arg-type]


def methods(roles: Roles) -> list[str]:
    return [method for method, _ in roles.calls]


def test_a_good_update_is_served() -> None:
    roles = Roles((0.0, 5e-5))
    assert publisher(roles).policy(1).max_logprob_diff == pytest.approx(5e-5, rel=0.01)
    assert methods(roles)[-1] == "serve"


def test_a_torn_engine_alone_is_loaded_once_more() -> None:
    roles = Roles((0.0, 0.7), (0.0, 0.0))
    publisher(roles).policy(1)
    assert [call for call in roles.calls if call[0] == "load_weights"][1:] == [("load_weights", ("a1",))]
    assert methods(roles)[-1] == "serve"


@pytest.mark.parametrize("shift", [0.7, float("nan")])
def test_an_engine_that_stays_torn_stops_the_run_and_never_serves(shift: float) -> None:
    roles = Roles((0.0, shift), (0.0, shift))
    with pytest.raises(RoleError, match="actor-1 holds other weights than version 1"):
        publisher(roles).policy(1)
    assert "serve" not in methods(roles)


def test_step_size_says_how_far_the_probe_moved() -> None:
    roles = Roles((0.0, 0.0), (0.0, 0.0))
    publishing = publisher(roles)
    assert publishing.policy(1).step_size is None
    assert publishing.policy(2).step_size == 0.0


def test_the_probe_is_a_prompt_s_length_of_real_tokens() -> None:
    prompts = [Prompt(str(i), (Message("user", "x"),), np.full(4 + i, i, dtype=np.int32), {}) for i in range(3)]
    assert probe_tokens(prompts).tolist() == [0, 0, 0, 0, 1, 1]
