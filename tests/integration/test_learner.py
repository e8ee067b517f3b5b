"""The real DeepSpeed: the same step at ZeRO 0, 2 and 3, on one rank and on two, cut into one micro-batch or many, straight
through and after a restart. Each rank is a process; results come back as safetensors and are compared with each other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.models import tiny_policy
from tests.integration.ranks import ROOT, SAME, free_port, relative_difference


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("policy")
    tiny_policy(directory, 0)
    return directory


def steps(policy: Path, out: Path, ranks: int = 1, **settings: object) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Parameters and metrics after the steps of tests/integration/rank.py."""
    out.mkdir()
    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.integration.rank", str(rank), str(ranks), str(port), str(policy), str(out)]
            + [f"{key}={value}" for key, value in settings.items()],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    for process in started:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors[-3000:]
    return load_file(out / "parameters.safetensors"), json.loads((out / "metrics.json").read_text())


@pytest.fixture(scope="module")
def straight(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Three steps on one rank at ZeRO 0, in large micro-batches."""
    return steps(policy, tmp_path_factory.mktemp("straight") / "out", micro_batch_tokens=4096)


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], policy: Path) -> None:
    assert relative_difference(ours, theirs, load_file(policy / "model.safetensors")) < SAME


def test_steps_move_the_policy_and_report(straight: tuple[dict, list[dict]], policy: Path) -> None:
    parameters, metrics = straight
    before = load_file(policy / "model.safetensors")
    assert max(float((parameters[name] - value).abs().max()) for name, value in before.items()) > 1e-3
    assert metrics[0]["policy/ratio_mean"] == pytest.approx(1.0, abs=1e-5)
    assert metrics[0]["policy/kl_ref"] == pytest.approx(0.0, abs=1e-6)
    assert metrics[0]["policy/grad_norm"] > 0
    assert metrics[2]["policy/kl_ref"] != 0.0


def test_many_micro_batches_equal_one(straight: tuple[dict, list[dict]], policy: Path, tmp_path: Path) -> None:
    parameters, metrics = steps(policy, tmp_path / "out", micro_batch_tokens=20)
    assert_same(parameters, straight[0], policy)
    assert metrics[2]["policy/grad_norm"] == pytest.approx(straight[1][2]["policy/grad_norm"], rel=1e-3)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_two_ranks_at_any_zero_stage_equal_one(
    stage: int, straight: tuple[dict, list[dict]], policy: Path, tmp_path: Path
) -> None:
    parameters, metrics = steps(policy, tmp_path / "out", ranks=2, zero_stage=stage, micro_batch_tokens=40)
    assert_same(parameters, straight[0], policy)
    for ours, theirs in zip(metrics, straight[1], strict=True):
        for name in ("policy/kl_ref", "policy/grad_norm", "policy/loss", "policy/entropy"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name


def test_a_restart_in_the_middle_changes_no_bit(
    straight: tuple[dict, list[dict]], policy: Path, tmp_path: Path
) -> None:
    parameters, metrics = steps(policy, tmp_path / "out", micro_batch_tokens=4096, restart_after=1)
    assert metrics == straight[1]
    for name, value in parameters.items():
        assert torch.equal(value, straight[0][name]), name


@pytest.fixture(scope="module")
def weighted(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """As `straight`, with importance weights and two updates a step: the start's log-probs come from a pass of their own."""
    out = tmp_path_factory.mktemp("weighted") / "out"
    return steps(policy, out, micro_batch_tokens=4096, importance_cap=1.1, num_updates=2)


def test_importance_weights_are_one_on_policy_and_capped_off_it(weighted: tuple[dict, list[dict]]) -> None:
    """The batches are sampled by the policy of the start, so the first is on-policy and the later ones are not."""
    _, metrics = weighted
    assert metrics[0]["policy/importance_weight_mean"] == pytest.approx(1.0, abs=1e-5)
    assert metrics[0]["policy/importance_capped_frac"] == 0.0
    for later in metrics[1:]:
        assert abs(later["policy/importance_weight_mean"] - 1.0) > 1e-4
        assert later["policy/importance_weight_mean"] <= 1.1
        assert 0 < later["policy/importance_capped_frac"] < 1
        assert later["policy/rollout_logprob_gap"] > 0


def test_one_update_with_weights_needs_no_clip(policy: Path, tmp_path: Path) -> None:
    _, metrics = steps(policy, tmp_path / "out", micro_batch_tokens=4096, importance_cap=2.0)
    for line in metrics:
        assert (line["policy/ratio_mean"], line["policy/clip_frac"]) == (1.0, 0.0)


def test_on_policy_the_cap_changes_no_more_than_rounding(
    straight: tuple[dict, list[dict]], policy: Path, tmp_path: Path
) -> None:
    _, metrics = steps(policy, tmp_path / "out", micro_batch_tokens=4096, importance_cap=2.0)
    assert metrics[0]["policy/grad_norm"] == pytest.approx(straight[1][0]["policy/grad_norm"], rel=1e-4)
    assert straight[1][2]["policy/importance_weight_mean"] == 1.0, "off: every token weighs 1"


@pytest.mark.parametrize("stage", [0, 3])
def test_the_pass_before_the_updates_is_the_same_on_two_ranks(
    stage: int, weighted: tuple[dict, list[dict]], policy: Path, tmp_path: Path
) -> None:
    settings = {"importance_cap": 1.1, "num_updates": 2, "micro_batch_tokens": 40}
    parameters, metrics = steps(policy, tmp_path / "out", ranks=2, zero_stage=stage, **settings)
    assert_same(parameters, weighted[0], policy)
    for ours, theirs in zip(metrics, weighted[1], strict=True):
        for name in ("policy/importance_weight_mean", "policy/importance_capped_frac", "policy/grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name
