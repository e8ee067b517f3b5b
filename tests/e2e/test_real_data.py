"""The whole command on preference pairs alone: made-up ones, and a tiny random model in place of the real one."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.data.data import to_fields, write_jsonl
from common.metrics import read_rows, step_names
from tests.launched import ROOT, Launched
from tests.small_chat_model import save_model, wordy_pairs

OBJECTIVES = ["preference", "brevity", "non_repetition"]
STEPS = 6

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page's first command writes, beside the model."""
    directory = tmp_path_factory.mktemp("real")
    pairs = wordy_pairs()
    save_model(directory / "model", pairs)
    write_jsonl(directory / "mine.jsonl", map(to_fields, pairs))
    command = [sys.executable, "-m", "examples.real_data", "--pairs", str(directory / "mine.jsonl")]
    told = ["--out", str(directory), "--model", str(directory / "model")]
    subprocess.run([*command, *told], cwd=ROOT, check=True, timeout=300)
    return directory


@pytest.fixture(scope="module")
def launched(runs: Path, prepared: Path) -> Iterator[Launched]:
    """One complete run."""
    started = Launched(runs, prepared, "run.name=real", config="tests/e2e/real.yaml")
    try:
        assert started.wait(1800) == 0, started.log.read_text()[-4000:]
        started.assert_gone()
        yield started
    finally:
        if started.process.poll() is None:
            started.kill()


@pytest.fixture(scope="module")
def run(launched: Launched, runs: Path) -> Path:
    """Its directory."""
    return runs / "real"


def test_every_step_has_reward_kl_and_length(run: Path) -> None:
    rows = read_rows(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(STEPS + 1))
    names = ("reward/mean", "policy/kl_ref", "rollout/response_tokens", *(f"reward/{name}" for name in OBJECTIVES))
    for row in rows[1:]:
        assert set(step_names(OBJECTIVES)) <= set(row)
        assert all(math.isfinite(row[name]) for name in names)
        assert 0 < row["rollout/response_tokens"] <= 32
    assert all(row["sync/max_logprob_diff"] <= 1e-4 for row in rows)
    assert all(row["gold/mean"] is None for row in rows), "there is no judge"


def test_the_reward_model_is_reported(run: Path) -> None:
    record = json.loads((run / "rm" / "version_0" / "report.json").read_text())
    report = record["report"]
    assert report["rm/held_out_pairs"] > 10
    assert report["rm/pair_accuracy_low"] <= report["rm/pair_accuracy"] <= report["rm/pair_accuracy_high"]
    assert report["rm/pair_accuracy_preference_head"] > 0.5, "chosen and rejected answers begin with other words"
    assert report["rm/pair_accuracy_cross_validated"] > 0.5
    assert math.isfinite(report["rm/r2/brevity"])
    assert len(record["calibration"]["temperatures"]) == 2


def test_a_run_without_a_judge_says_what_is_known(launched: Launched, run: Path) -> None:
    said = launched.log.read_text()
    assert "reward model: held-out pair accuracy" in said and "chance 0.500" in said
    assert f"at step {STEPS} (nats per response)" in said
    assert json.loads((run / "evaluation.json").read_text()) == []
    assert (run / "report.html").is_file() and (run / "export" / "policy" / "model.safetensors").is_file()
