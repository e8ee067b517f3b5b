"""The files that people bring: what is read, and the line that each mistake is answered with."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.data import data
from common.data.data import DataError, PreferencePair, PromptRow, RatedResponse
from common.data.rows import MAX_PROBLEMS
from common.types import Message

HI = (Message("user", "hi"),)


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def problem(read, path: Path | str) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    return str(caught.value)


def test_prompts_as_text_and_as_messages(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": ""}, {"role": "user", "content": "hi"}]
    first = {"id": 7, "prompt": "hi", "meta": {"kind": "x", "level": 3, "none": None}}
    rows = data.read_prompts(jsonl(tmp_path / "p.jsonl", first, "", {"context_messages": turns}))
    assert rows[0] == PromptRow("7", HI, {"kind": "x", "level": "3"})
    assert rows[1].messages == (Message("system", ""), Message("user", "hi")) and len(rows[1].prompt_id) == 16


def test_the_id_is_a_hash_of_the_messages(tmp_path: Path) -> None:
    rows = data.read_prompts(jsonl(tmp_path / "p.jsonl", *[{"prompt": text} for text in ("a", "b", "a")]))
    assert rows[0].prompt_id == rows[2].prompt_id != rows[1].prompt_id


def test_one_id_for_two_prompts_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", {"id": "a", "prompt": "x"}, {"id": "a", "prompt": "y"})
    assert "'a' stands for two different prompts" in problem(data.read_prompts, path)


def test_gzip_and_parquet_hold_the_same_rows(tmp_path: Path) -> None:
    rows = [{"prompt": [{"role": "user", "content": "hi"}], "response": "yo", "scores": {"a": 0.5, "b": None}}]
    (tmp_path / "r.jsonl.gz").write_bytes(gzip.compress(json.dumps(rows[0]).encode()))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "r.parquet")
    expected = [RatedResponse(HI, "yo", {"a": 0.5, "b": None})]
    assert data.read_ratings(tmp_path / "r.jsonl.gz") == data.read_ratings(str(tmp_path / "r.parquet")) == expected


def test_the_limit_stops_before_a_later_bad_line(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", {"prompt": "a"}, "broken")
    assert len(data.read_prompts(path, limit=1)) == 1


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{broken", "not valid JSON"),
        ([1], "wanted one JSON object a line"),
        ({"text": "a"}, "no \"prompt\"; got the keys ['text']"),
        ({"prompt": 3}, '"prompt" is 3; wanted text or a non-empty list'),
        ({"prompt": " "}, '"prompt" is empty'),
        ({"prompt": []}, "non-empty list"),
        ({"prompt": ["a"]}, "has the turn 'a'"),
        (
            {"prompt": [{"role": "robot", "content": "a"}]},
            "has the role 'robot'; wanted one of system, user, assistant",
        ),
        ({"prompt": [{"role": "assistant", "content": "a"}]}, "ends with a turn of the assistant"),
        ({"prompt": [{"role": "user", "content": None}]}, '"content" is None; wanted text'),
        ({"prompt": "\ud800"}, "lone surrogate"),
        ({"prompt": "a", "meta": "b"}, "\"meta\" is 'b'"),
        ({"prompt": "a", "id": [1]}, '"id" is [1]'),
    ],
)
def test_a_malformed_prompt_names_its_line(tmp_path: Path, row: object, words: str) -> None:
    path = jsonl(tmp_path / "p.jsonl", {"prompt": "fine"}, row)
    found = problem(data.read_prompts, path)
    assert found.startswith(f"{path}:2: ") and words in found


def test_every_bad_line_is_listed(tmp_path: Path) -> None:
    found = problem(data.read_prompts, jsonl(tmp_path / "p.jsonl", "x", {"prompt": "a"}, "y")).splitlines()
    assert [line.split(": ")[0] for line in found] == [f"{tmp_path}/p.jsonl:1", f"{tmp_path}/p.jsonl:3"]
    many = problem(data.read_prompts, jsonl(tmp_path / "p.jsonl", *["x"] * 50)).splitlines()
    assert len(many) == MAX_PROBLEMS + 1


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ("NaN", 'the score of "a" is nan; wanted a number in [0, 1], or null'),
        ("Infinity", "is inf"),
        ("true", "is True"),
        ('"1"', "is '1'"),
    ],
)
def test_scores_are_finite_numbers_or_null(tmp_path: Path, scores: str, words: str) -> None:
    path = jsonl(tmp_path / "r.jsonl", f'{{"prompt": "p", "response": "r", "scores": {{"a": {scores}}}}}')
    assert words in problem(data.read_ratings, path)


def test_other_malformed_rows(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", {"prompt": "p", "chosen": "a", "rejected": "a", "response": "", "scores": {}})
    assert f'{path}:1: "chosen" and "rejected" are the same text' in problem(data.read_pairs, path)
    assert '"response" is empty' in problem(data.read_demonstrations, path)
    assert '"scores" is {}' in problem(data.read_ratings, path)
    jsonl(path, {"prompt": "p"})
    assert "\"response\" is missing; got the keys ['prompt']" in problem(data.read_demonstrations, path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "the file is empty" in problem(data.read_prompts, jsonl(tmp_path / "p.jsonl", ""))
    assert "no such file" in problem(data.read_prompts, tmp_path / "none.jsonl")
    (tmp_path / "p.txt").write_text("a")
    assert "wanted .jsonl, .jsonl.gz or .parquet" in problem(data.read_prompts, tmp_path / "p.txt")
    (tmp_path / "p.jsonl.gz").write_text("not gzip")
    assert "cannot be read" in problem(data.read_prompts, tmp_path / "p.jsonl.gz")
    (tmp_path / "p.parquet").write_text("not parquet")
    assert "not a readable parquet file" in problem(data.read_prompts, tmp_path / "p.parquet")


def test_a_hub_name_without_the_package_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.data.sources.importlib.util.find_spec", lambda name: None)
    assert "pip install datasets" in problem(data.read_prompts, "owner/name:train")


WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, texts: list[tuple[str, str]]) -> None:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [PreferencePair((Message("user", a),), f"{b}1", f"{b}2") for a, b in texts]
    data.write_jsonl(path, map(data.to_fields, rows))
    assert data.read_pairs(path) == rows


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", {"prompt": "old"})
    with pytest.raises(ValueError):
        data.write_jsonl(path, [{"prompt": "new"}, {"prompt": float("nan")}])
    assert data.read_prompts(path)[0].messages[0].content == "old" and list(tmp_path.iterdir()) == [path]


def test_pairs_as_two_whole_conversations(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}]
    good, bad = ([*turns, {"role": "assistant", "content": text}] for text in ("hello", "go away"))
    rows = data.read_pairs(jsonl(tmp_path / "p.jsonl", {"chosen": good, "rejected": bad, "source": "x"}))
    assert rows == [PreferencePair(HI, "hello", "go away")]
    other = [{"role": "user", "content": "bye"}, bad[-1]]
    path = jsonl(tmp_path / "q.jsonl", {"chosen": good, "rejected": other})
    assert "same conversation up to a last turn of the assistant" in problem(data.read_pairs, path)
