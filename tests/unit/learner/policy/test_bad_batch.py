"""What becomes of a batch that cannot be trained on: found before a weight changes, then a stop or a step that never was."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.config.config import LimitsConfig
from common.config.file import BASE, ConfigError, load_config
from common.types import Prompt, Reward, Rollout, RolloutGroup, ScoredGroup
from learner.policy.train import BadBatch, _check
from learner.ranks.engine import Engine
from learner.worker import LearnerWorker, StepResult

HEALTHY = {"tokens": 10.0, "kl_ref": 2.0, "ratio": 10.1, "loss": 0.5}


def sums(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in {**HEALTHY, **values}.items()}


def test_a_healthy_batch_passes() -> None:
    _check(sums(), 0, LimitsConfig(None, None))
    _check(sums(), 0, LimitsConfig(0.21, 1.02))


@pytest.mark.parametrize(
    ("values", "limits", "said"),
    [
        ({"loss": float("nan")}, LimitsConfig(None, None), "update 3: loss is nan"),
        ({"ratio": float("inf"), "loss": float("nan")}, LimitsConfig(None, None), "ratio is inf, loss is nan"),
        ({"kl_ref": 30.0}, LimitsConfig(2.5, None), r"kl_ref is 3 a token on average, learner.limits.kl_ref 2.5"),
        ({"ratio": 40.0}, LimitsConfig(None, 3.0), r"ratio is 4 a token on average, learner.limits.ratio 3"),
    ],
)
def test_a_bad_batch_is_named(values: dict[str, float], limits: LimitsConfig, said: str) -> None:
    with pytest.raises(BadBatch, match=said):
        _check(sums(**values), 3, limits)


class Forgetting(Engine):
    """An engine that notes what it forgets."""

    def __init__(self) -> None:
        self.forgot = 0

    def forget_gradient(self) -> None:
        self.forgot += 1


class Learner(LearnerWorker):
    """A rank whose training on slot 1 is bad."""

    def __init__(self, *settings: str):
        config = load_config(BASE, ["aggregation.kind=final_score", "learner.groups_per_step=2", *settings])
        super().__init__(0, config)
        self.engine = Forgetting()
        self._engine.set(self.engine)
        for slot in range(4):
            self._assembler.offer(f"{slot + 1}-0", group(slot))

    def train_groups(self, step: int, groups: object) -> StepResult:
        assert isinstance(groups, list)
        if any(one.group.slot == 1 for one in groups):
            raise BadBatch("update 0: loss is nan")
        return StepResult({"policy/loss": 0.0}, [])


def group(slot: int) -> ScoredGroup:
    ids, one = np.arange(3, dtype=np.int32), np.ones(1, np.float32)
    rollout = Rollout("r", ids, -np.ones(3, np.float32), "stop", ((0, 0),))
    return ScoredGroup(
        RolloutGroup(slot, Prompt("p", (), ids[:1], {}), (rollout,)), (Reward(one, one, one, one, 0.0),), 0, ""
    )


def test_stop_lets_the_error_end_the_run() -> None:
    with pytest.raises(BadBatch, match="loss is nan"):
        Learner().train(1)


def test_skip_drops_the_groups_with_the_reason_and_takes_the_next_ones_for_the_same_step() -> None:
    learner = Learner("learner.on_bad_batch=skip")
    refused = learner.train(1)
    assert refused.refused == "step 1: update 0: loss is nan" and refused.slots == (0, 1) and not refused.metrics
    assert learner.engine.forgot == 1
    assert learner._ledger.dropped == dict.fromkeys((0, 1), refused.refused) and learner._ledger.trained == {}
    assert learner.train(1).refused == ""
    assert learner._ledger.trained == {2: 1, 3: 1}
    assert learner._ledger.audit(4, ()) == []


def test_skip_wants_one_update_a_step() -> None:
    with pytest.raises(ConfigError, match="on_bad_batch is skip with learner.num_updates 2"):
        load_config(BASE, ["aggregation.kind=final_score", "learner.on_bad_batch=skip", "learner.num_updates=2"])
