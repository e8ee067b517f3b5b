"""What a stage was done with: a changed key or file is named, a key that is younger than the run is not."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from common.config.file import BASE, load_config
from driver.record.stage_inputs import changed_inputs, stage_inputs

SECTIONS = ("rewarder", "learner.preferences", "judge.labeler", "actors")


def inputs(*overrides: str) -> dict[str, object]:
    config = load_config(BASE, ["aggregation.kind=final_score", *overrides])
    return stage_inputs(config, SECTIONS, ("ratings", "preferences"))


def test_a_key_or_file_that_changed_is_named(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("1\n")
    given = f"data.preferences={pairs}"
    before = json.loads(json.dumps(inputs(given)))
    assert changed_inputs(before, inputs(given)) == []
    others = inputs(given, "rewarder.max_tokens=9", "learner.preferences.folds=5", "judge.labeler=a:b")
    assert changed_inputs(before, others) == ["judge.labeler", "learner.preferences.folds", "rewarder.max_tokens"]
    pairs.write_text("2\n")
    assert changed_inputs(before, inputs(given)) == ["data.preferences"]
    assert changed_inputs(before, inputs()) == ["data.preferences"]


def test_a_key_that_the_run_is_older_or_newer_than_is_not_held_against_it() -> None:
    before = copy.deepcopy(inputs())
    del before["sections"]["rewarder"]["batch_tokens"]  # pyright: ignore[reportIndexIssue]
    before["sections"]["rewarder"]["gone"] = 3  # pyright: ignore[reportIndexIssue]
    assert changed_inputs(before, inputs("actors.sync_tolerance=1")) == []


def test_an_older_record_of_hashes_is_held_against_the_files_alone(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("1\n")
    now = inputs(f"data.preferences={tmp_path}/pairs.jsonl")
    digests = now["files"]
    assert isinstance(digests, dict)
    assert changed_inputs({"rewarder": "a hash", **digests}, now) == []
    assert changed_inputs({"rewarder": "a hash", "data.preferences": "another"}, now) == ["data.preferences"]
