"""Rows on disk: the round trip, rounding, NaN, order, and files that are not rows. All numbers are made up."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studies.rows import Row, group_by_arm, read_rows

NAN = math.nan
NUMBERS = st.floats(min_value=-1e6, max_value=1e6)


def row(arm: str = "raw", seed: int = 0, **changes: object) -> Row:
    made = Row("transform", arm, seed, {"gold": 0.5}, {"step": [0, 1], "gold": [0.25, 0.5]}, "c0", "v0", "w0", 1.5)
    return replace(made, **changes)


def test_a_row_comes_back_as_written(tmp_path: Path) -> None:
    row().write(tmp_path / "new" / "raw-0.json")
    assert Row.read(tmp_path / "new" / "raw-0.json") == row()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["raw-0.json"]


def test_floats_keep_six_digits_integers_all_and_nan_is_null(tmp_path: Path) -> None:
    curves = {"step": [12345678, 2], "kl": [1 / 3, NAN], "gold": [np.float32(0.1), math.inf]}
    row(end={"tokens": np.int64(12345678)}, curves=curves).write(tmp_path / "raw.json")
    written = json.loads((tmp_path / "raw.json").read_text())
    assert written["curves"] == {"step": [12345678, 2], "kl": [0.333333, None], "gold": [0.1, None]}
    back = Row.read(tmp_path / "raw.json")
    assert back.end == {"tokens": 12345678}
    assert back.curve("kl")[0] == 0.333333 and math.isnan(back.curve("kl")[1])


@settings(max_examples=30, deadline=None)  # an fsync takes as long as the disk is busy
@given(st.lists(NUMBERS, max_size=5), st.dictionaries(st.text(max_size=3), NUMBERS, max_size=3), st.text(max_size=5))
def test_what_was_read_once_is_read_the_same_ever_after(values: list[float], end: dict[str, float], arm: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "row.json")
        row(arm=arm, end=end, curves={"gold": values}).write(path)
        first, text = Row.read(path), path.read_text()
        first.write(path)
        assert Row.read(path) == first and path.read_text() == text
        assert first.arm == arm and first.curve("gold") == pytest.approx(values, rel=1e-5)


def test_a_failed_write_leaves_the_old_row_and_no_other_file(tmp_path: Path) -> None:
    row().write(tmp_path / "raw.json")
    with pytest.raises(TypeError):
        row(world={"not", "json"}).write(tmp_path / "raw.json")
    assert Row.read(tmp_path / "raw.json") == row()
    assert len(list(tmp_path.iterdir())) == 1


def test_curves_of_two_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"equal lengths; got {'kl': 1, 'gold': 2}"):
        row(curves={"kl": [0.0], "gold": [0.0, 1.0]})


def test_a_curve_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"transform: arm 'raw', seed 0 has no curve 'kl'; it has gold, step"):
        row().curve("kl")


def test_rows_are_sorted_by_arm_and_seed(tmp_path: Path) -> None:
    for name, arm, seed in (("a", "raw", 10), ("b", "raw", 2), ("c", "log", 3)):
        row(arm, seed).write(tmp_path / f"{name}.json")
    (tmp_path / ".d.json.1.tmp").write_text("half a r")
    (tmp_path / "notes.txt").write_text("no row")
    rows = read_rows(tmp_path)
    assert [(r.arm, r.seed) for r in rows] == [("log", 3), ("raw", 2), ("raw", 10)]
    assert [(arm, len(group)) for arm, group in group_by_arm(reversed(rows)).items()] == [("raw", 2), ("log", 1)]


def test_a_directory_that_is_not_there_has_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "none") == []


def test_two_files_of_one_run_are_refused(tmp_path: Path) -> None:
    row().write(tmp_path / "a.json")
    row().write(tmp_path / "b.json")
    with pytest.raises(ValueError, match=r"a\.json and .*b\.json both hold transform: arm 'raw', seed 0"):
        read_rows(tmp_path)


NOT_ROWS = [
    ("", "Expecting value"),
    ("[1]", "the file must be an object; got list"),
    ('{"arm": "raw"}', r"the keys must be \['study'.*got \['arm'\]"),
    ({"more": 1}, "got .*'more'"),
    ({"study": 3}, "study must be a text; got 3"),
    ({"seed": True}, "seed must be an integer; got True"),
    ({"seed": 1.5}, "seed must be an integer; got 1.5"),
    ({"wall_s": "1"}, "wall_s must be a number or null; got '1'"),
    ({"end": [1]}, "end must be an object; got list"),
    ({"end": {"gold": False}}, "end.gold must be a number or null; got False"),
    ({"curves": {"kl": 1}}, "curves.kl must be a list of numbers; got int"),
    ({"curves": {"kl": [0, "x"]}}, r"curves.kl\[1\] must be a number or null; got 'x'"),
    ({"curves": {"kl": [0], "gold": []}}, "equal lengths"),
]


@pytest.mark.parametrize(("change", "problem"), NOT_ROWS)
def test_a_file_that_is_not_a_row_is_named(tmp_path: Path, change: str | dict[str, object], problem: str) -> None:
    path = tmp_path / "raw.json"
    row().write(path)
    text = change if isinstance(change, str) else json.dumps(json.loads(path.read_text()) | change)
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"raw\.json is not a row of a study: .*{problem}.*run that arm again"):
        read_rows(tmp_path)
