"""The whole command with a reward model that switches in the middle of an iteration.

Plan
1. when=steps, parts in turn: a round after steps 2, 4 and 6 of two iterations of 4 steps, each accepted (the test is switched
   off, as in test_adaptation.py). The version on the lines counts up after each; the anchor is sampled once an iteration and
   its samples are scored again for each version that served in it.
2. The same run whose rewarder is killed as it loads version 3, in the middle of iteration 2 and after a checkpoint of that
   iteration: it ends with an error that names it, and the resumed one is the same run, bit for bit.
3. when=steps with overlap and two rewarders: groups in flight at a switch are scored by one version or the other, never lost.
4. when=drift: looks, their baseline, and a round only where the look asks for one.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from common.metrics import read_rows
from tests.e2e.conftest import Launch, ready_made
from tests.e2e.test_adaptation import ROUNDS
from tests.launched import Launched, timeless

EVERY_2 = [*ROUNDS, "adaptation.every_steps=2", "iteration.num=2", "iteration.steps=4"]
STEPS = [*EVERY_2, "adaptation.when=steps", "checkpoint.every_steps=5"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def stepped(first: Path, runs: Path, data: Path) -> Path:
    """One complete run with a round after every second step; its directory."""
    run = Launched(runs, data, "run.name=stepped", *ready_made(first), *STEPS)
    run.assert_ends_well()
    return runs / "stepped"


def test_versions_switch_in_the_middle_of_iterations(stepped: Path) -> None:
    rows = read_rows(stepped / "metrics.jsonl")
    assert [row["rm/version"] for row in rows] == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert [row["step"] for row in rows if row.get("rm/accepted") == 1.0] == [2, 4, 6]
    assert all(row["rm/versions"] == 1 for row in rows[1:]), "the parts take turns, so no step has two versions"
    coverage = [{k: v for k, v in row.items() if k.startswith("reference/coverage/")} for row in rows]
    assert coverage[1] == coverage[2] and coverage[3] == coverage[4] and coverage[5] == coverage[6]


def test_samples_are_taken_once_an_iteration_and_scored_for_each_version_in_it(stepped: Path) -> None:
    """Version 2 is accepted as iteration 1 ends, so it has references of iteration 2 alone."""
    assert len(list((stepped / "references").glob("*.jsonl"))) == 2
    assert len(list((stepped / "references").glob("*.npz"))) == 4


def test_a_rewarder_killed_in_a_switch_comes_back_on_the_right_version(
    stepped: Path, first: Path, launch: Launch, runs: Path
) -> None:
    settings = ["run.name=killed-switch", *ready_made(first), *STEPS]
    run = launch(*settings)
    run.wait_for("step 5/8")
    (rewarder,) = (int(line.split()[0]) for line in run.alive() if "RewarderWorker" in line)
    final = runs / "killed-switch" / "rm" / "version_3"
    while not final.is_dir():
        assert run.process.poll() is None, run.log.read_text()[-3000:]
        time.sleep(0.002)
    os.kill(rewarder, signal.SIGKILL)
    assert run.wait() != 0
    log = run.log.read_text()
    assert "rewarder-0 died during" in log and "version 3 serves" not in log, log[-3000:]
    run.assert_gone()
    state = json.loads((runs / "killed-switch" / "checkpoints" / "step_5" / "driver.json").read_text())
    assert state["reward_model"] == "rm/version_2" and state["rounds"]["num"] == 2
    resumed = launch(*settings, "--resume")
    resumed.assert_ends_well()
    assert timeless(runs / "killed-switch") == timeless(stepped)
    for name in ("labels.jsonl", "samples.jsonl", "rm/version_3/model.safetensors"):
        assert (runs / "killed-switch" / name).read_bytes() == (stepped / name).read_bytes()


def test_overlap_loses_nothing_at_a_switch(first: Path, launch: Launch, runs: Path) -> None:
    settings = ["iteration.max_staleness=1", "rewarder.num=2", "checkpoint.every_steps=100"]
    run = launch("run.name=overlap-switch", *ready_made(first), *STEPS, *settings)
    run.assert_ends_well()
    rows = read_rows(runs / "overlap-switch" / "metrics.jsonl")
    versions = [row["rm/version"] for row in rows]
    assert versions == sorted(versions) and versions[0] == 0 and versions[-1] >= 2
    assert all(row["rm/versions"] in (1, 2) for row in rows[1:])
    switched = sum(row.get("rm/accepted", 0) for row in rows)
    assert switched - 1 <= versions[-1] <= switched, "all that was left may have been scored before the last switch"
    assert "every slot ended once (32 trained, 0 dropped)" in run.log.read_text()
    assert len(list((runs / "overlap-switch" / "references").glob("*.jsonl"))) == 2


def test_drift_is_looked_at_and_a_round_follows_only_where_it_asks_for_one(
    first: Path, launch: Launch, runs: Path
) -> None:
    """The reward model's own objectives stand in for the members of an ensemble."""
    drift = ["when=drift", "drift.signal=disagreement", "drift.change=0", f"ensemble={first}/rm/version_0"]
    run = launch("run.name=drift", *ready_made(first), *EVERY_2, *(f"adaptation.{setting}" for setting in drift))
    run.assert_ends_well()
    rows = read_rows(runs / "drift" / "metrics.jsonl")
    looks = [row for row in rows if "drift/disagreement" in row]
    assert [row["step"] for row in looks] == [2, 4, 6] and all(row["drift/disagreement"] > 0 for row in looks)
    assert looks[0]["drift/baseline"] == looks[0]["drift/disagreement"] == looks[1]["drift/baseline"]
    version = looked_at = 0
    for row in looks:
        first_look = row is looks[0] or looked_at != version
        fires = not first_look and row["drift/disagreement"] >= row["drift/baseline"] - 1e-9
        assert ("rm/accepted" in row) == fires and row["rm/version"] == version
        looked_at, version = version, version + int(row.get("rm/accepted", 0))
