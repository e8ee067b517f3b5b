"""Files as they are found in the wild: whatever is in them, a reader returns rows or says what is wrong, and loses none.

The law: rows that are returned + rows that are left out, by reason, = rows in the file; or a DataError that names the file in
each of its lines. Rows of every format are mutated in their values, keys, text and encoding, as JSONL and as parquet.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.data.data import read_prompts
from common.data.rows import Rows
from common.data.sources import DataError
from common.judge import pair_item
from common.types import Message
from driver.judges import people
from driver.judges.label_book import LabelError, question
from tests.unit.common.data.wild import FORMATS, VALUES, Row

# How many times the examples of make test
TIERS = pytest.mark.parametrize("times", [1, pytest.param(40, marks=pytest.mark.slow)])


def spelled(row: Row) -> dict[str, str]:
    return {name: json.dumps(value) for name, value in row.items()}


@st.composite
def lines(draw: st.DrawFn, rows: Sequence[Row]) -> list[str]:
    """The lines of a file: rows of one format, some with another value, another key or another text."""
    found = []
    for _ in range(draw(st.integers(1, 4))):
        row = spelled(draw(st.sampled_from(rows)))
        items = list(row.items())
        for _ in range(draw(st.integers(0, 2))):
            at = draw(st.integers(0, len(items) - 1))
            change = draw(st.sampled_from(["value", "value", "key", "twice", "gone"]))
            name, value = items[at]
            if change == "value":
                items[at] = (name, draw(st.sampled_from(VALUES)))
            elif change == "key":
                items[at] = (draw(st.sampled_from(["targets", "conv_A", "chosen", "prompt", "response", "x"])), value)
            elif change == "twice":
                items.append(items[at])
            elif len(items) > 1:
                items.pop(at)
        text = "{" + ", ".join(f"{json.dumps(key)}: {value}" for key, value in items) + "}"
        change = draw(st.sampled_from([""] * 6 + ["cut", "tail", "list", "blank", "NUL"]))
        cut = draw(st.integers(0, len(text) - 1)) if change == "cut" else None
        ends = {"tail": text + " x", "list": f"[{text}]", "blank": "  ", "NUL": text + "\0"}
        found.append(text[:cut] if cut is not None else ends.get(change, text))
    return found


def written(path: Path, texts: Sequence[str], encoding: str, end: str) -> Path:
    content = end.join(texts).encode(encoding, "replace")
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def check(read: Callable[[Any], Any], path: Path, count: int) -> None:
    """The law, on one file of `count` rows."""
    try:
        found = read(path)
    except DataError as error:
        assert all(line.startswith(str(path)) for line in str(error).splitlines()), error
        str(error).encode()
        return
    if isinstance(found, Rows):
        assert len(found) + found.left_out.total() == count, (len(found), found.left_out, count)
        assert len(found.numbers) == len(found) and str(count) in found.counts()


def settled(examples: int):
    return settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("name", FORMATS)
def test_rows_as_they_should_be_are_all_used(tmp_path: Path, name: str) -> None:
    read, rows = FORMATS[name]
    path = written(tmp_path / "f.jsonl", [json.dumps(row) for row in rows], "utf-8", "\n")
    check(read, path, len(rows))
    read(path)


@pytest.mark.parametrize("name", FORMATS)
def test_every_value_in_every_column(tmp_path: Path, name: str) -> None:
    read, rows = FORMATS[name]
    for row in rows:
        for column in row:
            for value in VALUES:
                items = {**spelled(row), column: value}.items()
                text = "{" + ", ".join(f"{json.dumps(key)}: {item}" for key, item in items) + "}"
                check(read, written(tmp_path / "f.jsonl", [text, json.dumps(row)], "utf-8", "\n"), 2)


@TIERS
@pytest.mark.parametrize("name", FORMATS)
def test_jsonl(tmp_path: Path, name: str, times: int) -> None:
    read, rows = FORMATS[name]

    @settled(50 * times)
    @given(
        lines(rows),
        st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1"]),
        st.sampled_from(["\n", "\r\n", "\n\n"]),
        st.sampled_from(["f.jsonl", "f.jsonl.gz"]),
    )
    def law(texts: list[str], encoding: str, end: str, file: str) -> None:
        count = sum(bool(text.strip()) for text in texts)
        check(read, written(tmp_path / file, texts, encoding, end), count)

    law()


def cells(value: Any) -> st.SearchStrategy[Any]:
    """Other values of a cell's own type, which a column of parquet can hold beside it."""
    nothing = st.none()
    if isinstance(value, bool) or value is None:
        return nothing
    if isinstance(value, int | float):
        return st.sampled_from([None, float("nan"), float("inf"), 0.5, -1.0, 1e300])
    if isinstance(value, str):
        return st.sampled_from([None, "", " ", "\0", "\n\nHuman: a\n\nAssistant: b", "\u00e9"])
    if isinstance(value, list):
        return st.sampled_from([None, [], value[:1], value[::-1], value * 2])
    return (
        st.fixed_dictionaries({name: st.one_of(st.just(cell), cells(cell)) for name, cell in value.items()}) | nothing
    )


@TIERS
@pytest.mark.parametrize("name", FORMATS)
def test_parquet(tmp_path: Path, name: str, times: int) -> None:
    read, rows = FORMATS[name]

    @settled(20 * times)
    @given(st.data(), st.integers(1, 4), st.one_of(st.none(), st.integers(0, 2000)))
    def law(data: st.DataObject, count: int, cut: int | None) -> None:
        base = data.draw(st.sampled_from(rows))  # one schema a file
        table = [
            {key: data.draw(st.one_of(st.just(cell), cells(cell))) for key, cell in base.items()} for _ in range(count)
        ]
        pq.write_table(pa.Table.from_pylist(table), tmp_path / "f.parquet")
        if cut is not None:
            content = (tmp_path / "f.parquet").read_bytes()
            (tmp_path / "f.parquet").write_bytes(content[:cut])
        check(read, tmp_path / "f.parquet", count)

    law()


def test_a_text_of_parquet_that_is_no_utf_8_is_named(tmp_path: Path) -> None:
    broken = pa.array([b"hi", b"\xff\xfe", b"ho"], pa.binary()).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"prompt": broken}), tmp_path / "f.parquet")
    with pytest.raises(DataError, match=f"{tmp_path}/f.parquet:2: a column cannot be read: .*utf-8"):
        read_prompts(tmp_path / "f.parquet")


def test_times_are_no_columns_of_any_format(tmp_path: Path) -> None:
    times = pa.array([2**62, 5], pa.timestamp("ns"))
    pq.write_table(pa.table({"prompt": ["hi", "ho"], "when": times}), tmp_path / "f.parquet")
    assert len(read_prompts(tmp_path / "f.parquet")) == 2


ANSWER = {**question(pair_item((Message("user", "hi"),), {}, "y", "n")), "preferred": "first"}


def test_every_value_in_every_column_of_an_answer(tmp_path: Path) -> None:
    for column in ANSWER:
        for value in VALUES:
            items = {**spelled(ANSWER), column: value}.items()
            text = "{" + ", ".join(f"{json.dumps(key)}: {item}" for key, item in items) + "}"
            answers(written(tmp_path / "answers.jsonl", [text], "utf-8", "\n"))


@settled(100)
@given(lines([ANSWER, {**ANSWER, "preferred": None}]), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]))
def test_answers_of_people(tmp_path: Path, texts: list[str], encoding: str) -> None:
    answers(written(tmp_path / "answers.jsonl", texts, encoding, "\n"))


def answers(path: Path) -> None:
    try:
        people.read_answers(path)
    except LabelError as error:
        assert str(error).startswith(str(path))
