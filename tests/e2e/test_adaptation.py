"""The whole command with adaptation.when=iteration: real engines, Redis, Ray, DeepSpeed and the adapter's own process.

Plan
1. A tiny run of three iterations whose test is switched off (level and guards 1, min_pairs 1): every round accepts, so the
   switch of versions is really walked: rm/version_1 and _2 with decision.json, rm/* names on the last step line of the first
   two iterations, rm/version on the lines counting 0, 1, 2, references under another key each time, the ledger in order, the
   export that of version_2, labels.jsonl with each pair once; the second round is fitted on the first one's labels too.
2. The same run, killed when a version was accepted and before the next checkpoint, is the same run, bit for bit, and buys no
   label twice: its labels.jsonl is byte for byte that of the first.
3. The same with judge.model, as two processes over Ray: the model that serves agrees with all of its own labels.
4. Two rewarders, overlap (max_staleness 1) and the lora tier: the same, with the ratings' R2 in the decision.

All start from the models and labels of the session's first run. A round that is discarded: tests/e2e/test_overlap.py.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from common.metrics import read_rows
from rewarder.layout import read_layout
from tests.e2e.conftest import OPEN, Launch, ready_made
from tests.launched import Launched, timeless

ROUNDS = (*OPEN, "iteration.num=3", "adaptation.fit_rounds=2")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def adapted(first: Path, runs: Path, data: Path) -> Path:
    """One complete run in which every round accepts; its directory."""
    run = Launched(runs, data, "run.name=adapted", *ready_made(first), *ROUNDS, "stages=[iterate,export]")
    run.assert_ends_well()
    return runs / "adapted"


def decision(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_accepted_versions_serve_one_after_the_other(adapted: Path) -> None:
    rows = read_rows(adapted / "metrics.jsonl")
    assert [row["rm/version"] for row in rows] == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [row["step"] for row in rows if "rm/accepted" in row] == [3, 6]
    for row in (rows[3], rows[6]):
        assert row["rm/accepted"] == 1.0
        assert 0 <= row["rm/onpolicy_accuracy"] <= 1 and 0 <= row["rm/pair_accuracy"] <= 1
    for version in (1, 2):
        directory = adapted / "rm" / f"version_{version}"
        assert read_layout(directory, [], None).info.rm_version == version
        record = decision(directory / "decision.json")
        assert record["accepted"] and record["served_version"] == version - 1
        assert record["numbers"]["fit_pairs"] > 0 and record["numbers"]["evidence_pairs"] > 0
        assert (record["numbers"]["earlier_pairs"] > 0) == (version == 2)
    assert not list((adapted / "rm").glob("rejected*")) and not (adapted / "rm" / "candidate").exists()


def test_each_iteration_has_references_of_its_own_version(adapted: Path) -> None:
    assert len(list((adapted / "references").glob("*.npz"))) == 3


def test_the_export_is_the_newest_version(adapted: Path) -> None:
    exported, served = adapted / "export" / "reward_model", adapted / "rm" / "version_2"
    assert (exported / "model.safetensors").read_bytes() == (served / "model.safetensors").read_bytes()


def test_labels_are_bought_once(adapted: Path) -> None:
    keys = [json.loads(line)["key"] for line in (adapted / "labels.jsonl").read_text().splitlines()]
    assert 0 < len(keys) <= 2 * 12 and len(set(keys)) == len(keys)


def test_killed_after_a_round_and_resumed_is_bit_identical_and_buys_nothing_twice(
    adapted: Path, first: Path, launch: Launch, runs: Path
) -> None:
    run = launch("run.name=killed-round", *ready_made(first), *ROUNDS)
    run.wait_for("version 2 serves")  # but for a race before the checkpoint: the round is repeated
    run.kill(signal.SIGKILL)
    run.assert_gone()
    bought = (runs / "killed-round" / "labels.jsonl").read_bytes()
    resumed = launch("run.name=killed-round", *ready_made(first), *ROUNDS, "--resume")
    resumed.assert_ends_well()
    assert timeless(runs / "killed-round") == timeless(adapted)
    labels = (runs / "killed-round" / "labels.jsonl").read_bytes()
    assert labels.startswith(bought) and labels == (adapted / "labels.jsonl").read_bytes()
    for name in ("model.safetensors", "decision.json"):
        ours, theirs = (path / "rm" / "version_2" / name for path in (runs / "killed-round", adapted))
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_judge_model_of_its_own_labels_the_pairs(first: Path, launch: Launch, runs: Path) -> None:
    settings = [f"judge.model={first}/rm/version_0", "judge.num=2", "iteration.num=2", "iteration.steps=2"]
    run = launch("run.name=judged", *ready_made(first), *ROUNDS, *settings, "stages=[iterate]")
    run.assert_ends_well()
    labels = [json.loads(line) for line in (runs / "judged" / "labels.jsonl").read_text().splitlines()]
    assert labels and {label["preferred"] for label in labels} <= {"first", "second", "tie"}
    (record,) = (runs / "judged" / "rm").glob("*/decision.json")
    numbers = decision(record)["numbers"]
    assert numbers["judge_too_long"] == 0 and numbers["judged_pairs"] == len(labels)
    assert numbers["onpolicy_accuracy"] == 1.0  # the judge is the model that served


def test_lora_while_sampling_overlaps_training(first: Path, launch: Launch, runs: Path) -> None:
    settings = ["adaptation.tier=lora", "adaptation.learning_rate=1e-4", "adaptation.guard_r2=1"]
    settings += ["rewarder.num=2", "iteration.max_staleness=1"]
    run = launch("run.name=lora", *ready_made(first), *ROUNDS, *settings, "iteration.num=2")
    run.assert_ends_well()
    rows = read_rows(runs / "lora" / "metrics.jsonl")
    assert [row["rm/version"] for row in rows[-3:]] == [1, 1, 1]
    record = decision(runs / "lora" / "rm" / "version_1" / "decision.json")
    assert "candidate_r2/safe" in record["numbers"]
