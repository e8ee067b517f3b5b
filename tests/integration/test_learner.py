"""The real DeepSpeed: the same step at ZeRO 0, 2 and 3, on one rank and on two, cut into one micro-batch or many, straight
through and after a restart. One process (or two) does all jobs (tests/integration/rank.py); they are compared here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.models import tiny_policy
from tests.integration.rank import work
from tests.integration.ranks import SAME, relative_difference, start

LARGE = {"micro_batch_tokens": 4096}
# With importance weights and two updates a step, the start's log-probs come from a pass of their own.
WEIGHTED = {"importance_cap": 1.1, "num_updates": 2}
# By number of ranks, then by name: settings of section learner.
JOBS: dict[int, dict[str, dict[str, object]]] = {
    1: {
        "straight": {**LARGE},
        "small": {"micro_batch_tokens": 20},
        "restarted": {**LARGE, "restart_after": 1},
        "capped": {**LARGE, "importance_cap": 2.0},
        "weighted": {**LARGE, **WEIGHTED},
    },
    2: {
        **{f"zero_{stage}": {"zero_stage": stage, "micro_batch_tokens": 40} for stage in (0, 2, 3)},
        **{f"weighted_{stage}": {**WEIGHTED, "zero_stage": stage, "micro_batch_tokens": 40} for stage in (0, 3)},
    },
}


class Results:
    """The policy that all jobs start from, and what each job wrote."""

    def __init__(self, root: Path):
        self._root = root
        self.before = load_file(root / "policy" / "model.safetensors")

    def parameters(self, job: str) -> dict[str, torch.Tensor]:
        return load_file(self._root / job / "parameters.safetensors")

    def metrics(self, job: str) -> list[dict[str, Any]]:
        return json.loads((self._root / job / "metrics.json").read_text())

    def assert_same(self, job: str, other: str) -> None:
        assert relative_difference(self.parameters(job), self.parameters(other), self.before) < SAME


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    root = tmp_path_factory.mktemp("learner")
    tiny_policy(root / "policy", 0)
    for ranks, jobs in JOBS.items():
        start(work, ranks, jobs, str(root / "policy"), root)
    return Results(root)


def test_steps_move_the_policy_and_report(results: Results) -> None:
    parameters, metrics = results.parameters("straight"), results.metrics("straight")
    assert max(float((parameters[name] - value).abs().max()) for name, value in results.before.items()) > 1e-3
    assert metrics[0]["policy/ratio_mean"] == pytest.approx(1.0, abs=1e-5)
    assert metrics[0]["policy/kl_ref"] == pytest.approx(0.0, abs=1e-6)
    assert metrics[0]["policy/grad_norm"] > 0
    assert metrics[2]["policy/kl_ref"] != 0.0
    assert metrics[2]["policy/importance_weight_mean"] == 1.0, "off: every token weighs 1"


def test_many_micro_batches_equal_one(results: Results) -> None:
    results.assert_same("small", "straight")
    many, one = (results.metrics(job)[2]["policy/grad_norm"] for job in ("small", "straight"))
    assert many == pytest.approx(one, rel=1e-3)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_two_ranks_at_any_zero_stage_equal_one(stage: int, results: Results) -> None:
    results.assert_same(f"zero_{stage}", "straight")
    for ours, theirs in zip(results.metrics(f"zero_{stage}"), results.metrics("straight"), strict=True):
        for name in ("policy/kl_ref", "policy/grad_norm", "policy/loss", "policy/entropy"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name


def test_a_restart_in_the_middle_changes_no_bit(results: Results) -> None:
    assert results.metrics("restarted") == results.metrics("straight")
    straight = results.parameters("straight")
    for name, value in results.parameters("restarted").items():
        assert torch.equal(value, straight[name]), name


def test_importance_weights_are_one_on_policy_and_capped_off_it(results: Results) -> None:
    """The batches are sampled by the policy of the start, so the first is on-policy and the later ones are not."""
    metrics = results.metrics("weighted")
    assert metrics[0]["policy/importance_weight_mean"] == pytest.approx(1.0, abs=1e-5)
    assert metrics[0]["policy/importance_capped_frac"] == 0.0
    for later in metrics[1:]:
        assert abs(later["policy/importance_weight_mean"] - 1.0) > 1e-4
        assert later["policy/importance_weight_mean"] <= 1.1
        assert 0 < later["policy/importance_capped_frac"] < 1
        assert later["policy/rollout_logprob_gap"] > 0


def test_one_update_with_weights_needs_no_clip(results: Results) -> None:
    for line in results.metrics("capped"):
        assert (line["policy/ratio_mean"], line["policy/clip_frac"]) == (1.0, 0.0)


def test_on_policy_the_cap_changes_no_more_than_rounding(results: Results) -> None:
    capped, straight = (results.metrics(job)[0]["policy/grad_norm"] for job in ("capped", "straight"))
    assert capped == pytest.approx(straight, rel=1e-4)


@pytest.mark.parametrize("stage", [0, 3])
def test_the_pass_before_the_updates_is_the_same_on_two_ranks(stage: int, results: Results) -> None:
    results.assert_same(f"weighted_{stage}", "weighted")
    for ours, theirs in zip(results.metrics(f"weighted_{stage}"), results.metrics("weighted"), strict=True):
        for name in ("policy/importance_weight_mean", "policy/importance_capped_frac", "policy/grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name
