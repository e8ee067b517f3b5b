"""common/metrics.py and driver/record/checkpoint.py: what a run keeps on disk, and what a broken disk looks like."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.metrics import RecordError, StepLog, read_rows, step_names
from driver.record import checkpoint
from driver.record.gauges import Gauges
from driver.record.step_lines import StepLines


def test_every_row_has_the_fixed_names(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "m.jsonl", step_names(["safe"]))
    log.write(0, {"gold/mean": 0.5})
    (row,) = read_rows(tmp_path / "m.jsonl")
    assert row["step"] == 0 and row["gold/mean"] == 0.5
    assert row["reward/safe"] is None and row["gate/safe"] is None


def test_cut_removes_later_rows_and_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    log = StepLog(path)
    for step in range(4):
        log.write(step, {})
    with path.open("a") as file:
        file.write('{"step": 1, "half')
    log.cut(2)
    assert [row["step"] for row in read_rows(path)] == [0, 1, 2]
    log.cut(-1)
    assert read_rows(path) == []


def write(root: Path, step: int, content: str = "weights") -> Path:
    def put(aside: Path) -> None:
        (aside / "w").write_text(content)

    return checkpoint.write_checkpoint(root, step, {"step": step}, put, 2)


def test_newest_is_the_highest_step_and_old_ones_go(tmp_path: Path) -> None:
    for step in (2, 4, 10):
        write(tmp_path, step)
    assert checkpoint.steps(tmp_path) == [4, 10]
    assert checkpoint.newest(tmp_path) == tmp_path / "step_10"
    assert checkpoint.read_state(tmp_path / "step_10") == {"step": 10}


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path: (path / "w").write_text("weighty"), "w has changed"),
        (lambda path: (path / "w").unlink(), "w is missing"),
        (lambda path: (path / checkpoint.MANIFEST).unlink(), "not a finished checkpoint"),
    ],
)
def test_a_broken_checkpoint_stops_the_resume(tmp_path: Path, harm, said: str) -> None:
    write(tmp_path, 1)
    harm(write(tmp_path, 2))
    with pytest.raises(checkpoint.CheckpointError, match=said):
        checkpoint.newest(tmp_path)


def test_a_writer_that_dies_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 1)

    def die(aside: Path) -> None:
        (aside / "w").write_text("half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        checkpoint.write_checkpoint(tmp_path, 2, {"step": 2}, die, 2)
    assert checkpoint.newest(tmp_path) == tmp_path / "step_1"
    write(tmp_path, 2)
    assert checkpoint.newest(tmp_path) == tmp_path / "step_2"


def test_foreign_names_beside_checkpoints_are_no_checkpoints(tmp_path: Path) -> None:
    """Copies, notes and other spellings of a number: none is counted, and none ends a resume or is cleaned away."""
    foreign = ["step_6-hf", "step_", "step_x", "step_06", "old_step_3", "writing_step_9", "readme.md"]
    for name in foreign:
        (tmp_path / name).mkdir()
    write(tmp_path, 4)
    assert checkpoint.steps(tmp_path) == [4]
    assert checkpoint.newest(tmp_path) == tmp_path / "step_4"
    write(tmp_path, 5)
    write(tmp_path, 6)
    assert checkpoint.steps(tmp_path) == [5, 6]
    assert {path.name for path in tmp_path.iterdir()} >= set(foreign)


@pytest.mark.parametrize("text", ["", '{"files": ', "[]", "\x00"])
def test_a_cut_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "written.json").write_text(text)
    with pytest.raises(checkpoint.CheckpointError, match="written.json .*JSON|written.json holds a list"):
        checkpoint.read_json(tmp_path / "written.json")
    path = write(tmp_path, 4)
    (path / checkpoint.MANIFEST).write_text(text)
    with pytest.raises(checkpoint.CheckpointError, match="MANIFEST.json"):
        checkpoint.newest(tmp_path)


def test_a_line_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for torn in ('{"step": 1, "a', "[]", '{"a": 1}', "null"):
        path.write_text(f'{{"step": 0}}\n{torn}\n{{"step": 2}}\n')
        with pytest.raises(RecordError, match=r"metrics.jsonl:2 is no row of a step.* remove the line"):
            StepLog(path).cut(2)


def test_lines_that_are_gone_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 3}\n{"step": 4')
    StepLines(tmp_path, ["a"], 3, Gauges("run", ["a"]), tensorboard=False)
    assert "lacks the lines of 2 steps (1, 2)" in capsys.readouterr().out
    StepLines(tmp_path / "none", ["a"], -1, Gauges("run", ["a"]), tensorboard=False)
    assert capsys.readouterr().out == ""
