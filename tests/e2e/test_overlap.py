"""Sampling that overlaps training, with two of each role."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from common.metrics import read_rows
from tests.e2e.conftest import Launch, ready_made

pytestmark = pytest.mark.timeout(2400)


def test_overlap_of_two_of_each_role_keeps_the_bound_also_after_a_kill(first: Path, launch: Launch, runs: Path) -> None:
    """Two actors updated in flight, two rewarders, two ranks; final_score with a reward model that is only calibrated, and
    rounds of it whose evidence is too little."""
    settings = ["iteration.max_staleness=3", "iteration.num=2", "iteration.steps=5", "aggregation.kind=final_score"]
    settings += [
        "adaptation.when=iteration",
        "adaptation.fit_pairs=6",
        "adaptation.evidence_pairs=6",
        "adaptation.min_pairs=6",
    ]
    settings += ["actors.num=2", "rewarder.num=2", "learner.ranks=2", "learner.zero_stage=2"]
    settings += ["run.name=overlap", *ready_made(first), "stages=[reward_model,iterate,evaluate,report]"]
    run = launch(*settings)
    run.wait_for("step 4/10")
    run.kill(signal.SIGKILL)
    run.assert_gone()
    resumed = launch(*settings, "--resume")
    resumed.assert_ends_well()
    rows = read_rows(runs / "overlap" / "metrics.jsonl")[1:]
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert all(0 <= row["staleness/mean"] <= row["staleness/max"] <= 3 for row in rows)
    assert max(row["staleness/max"] for row in rows) == 3
    assert all(row["sync/max_logprob_diff"] <= 1e-4 for row in rows)
    assert all(0.9 < row["policy/importance_weight_mean"] < 1.1 for row in rows)
    assert all("reward/term/final_score" in row for row in rows)
    calibrated = json.loads((runs / "overlap" / "rm" / "version_0" / "report.json").read_text())
    assert len(calibrated["calibration"]["temperatures"]) == 1
    record = json.loads((runs / "overlap" / "rm" / "rejected_round_1.json").read_text())
    assert not record["accepted"] and record["reason"] and "discarded, version 0 stays" in resumed.log.read_text()
    assert {row["rm/version"] for row in rows} == {0} and rows[4]["rm/accepted"] == 0.0
