"""Rows whose right answers are known: each format, what is counted and left out, and the line of each mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.data.data import DataError
from common.data.judged import Answer, Judged, read_answers, read_judged
from common.types import Message

HI = (Message("user", "hi"),)
USER, YES, NO = (
    {"role": role, "content": text} for role, text in (("user", "hi"), ("assistant", "y"), ("assistant", "n"))
)
LONGER = [USER, NO, {"role": "user", "content": "why"}]


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def one(tmp_path: Path, row: dict[str, object], slice_key: str | None = "subset") -> Judged:
    (found,) = read_judged(jsonl(tmp_path / "r.jsonl", row), slice_key)
    return found


PAIR = Judged((Answer(HI, "y"),), (Answer(HI, "n"),))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "hi", "chosen": "y", "rejected": "n"},
        {"chosen": [USER, YES], "rejected": [USER, NO]},
        {"prompt": "hi", "chosen": ["y"], "rejected": ["n"]},
        {"input": "hi", "targets": {"choices": ["n", "y"], "labels": [0, 1]}},
        {"conv_A": [USER, NO], "conv_B": [USER, YES], "conv_A_rating": 0, "conv_B_rating": 1.5},
        {"conversation_a": [USER, YES], "conversation_b": [USER, NO], "winner": "model_a", "turn": 1},
        {"conversation_a": [USER, NO], "conversation_b": [USER, YES], "winner": "model_b"},
    ],
)
def test_a_pair_in_every_format(tmp_path: Path, row: dict[str, object]) -> None:
    assert one(tmp_path, row) == PAIR


def test_best_of_n_with_its_subset_and_id(tmp_path: Path) -> None:
    row = {"prompt": "hi", "chosen": ["a", "b"], "rejected": ["c", "d", ""], "subset": "Ties", "id": "tied:3"}
    found = one(tmp_path, row)
    assert [answer.response for answer in found.answers] == ["a", "b", "c", "d", ""]
    assert (len(found.right), found.slice, found.row_id) == (2, "Ties", "tied:3")
    assert one(tmp_path, row, None).slice is None and one(tmp_path, row, "source").slice is None


def test_sides_of_mt_bench_keep_their_own_turns(tmp_path: Path) -> None:
    row = {"conversation_a": [*LONGER, YES], "conversation_b": [USER, YES, LONGER[2], NO], "winner": "model_a"}
    first, second = one(tmp_path, {**row, "turn": 1}), one(tmp_path, {**row, "turn": 2})
    assert first.right[0] == Answer(HI, "n") and first.wrong[0] == Answer(HI, "y")
    assert second.right[0].messages != second.wrong[0].messages and second.right[0].response == "y"


def test_rows_without_a_preference_are_counted(tmp_path: Path) -> None:
    rows = [
        {"prompt": "hi", "chosen": "y", "rejected": "n"},
        {"prompt": "hi", "chosen": "y", "rejected": "y"},
        {"prompt": "hi", "chosen": ["y"], "rejected": ["n", "y"]},
        {"conv_A": [USER, NO], "conv_B": [USER, YES], "conv_A_rating": 1, "conv_B_rating": 1},
        {"conversation_a": [USER, YES], "conversation_b": [USER, NO], "winner": "tie (inconsistent)", "turn": 1},
        {"input": "hi", "targets": {"choices": ["n", "y"], "labels": [1, 1]}},
    ]
    found = read_judged(jsonl(tmp_path / "r.jsonl", *rows), None)
    assert found == [PAIR]
    assert found.left_out == {
        "a right and a wrong answer of the same text": 2,
        "no preference between the answers": 3,
    }
    with pytest.raises(
        DataError, match="no row holds a preference .*1 left out: a right and a wrong .*nothing to judge"
    ):
        read_judged(jsonl(tmp_path / "r.jsonl", rows[1]), None)


def test_parquet_with_the_columns_of_rewardbench_2(tmp_path: Path) -> None:
    row = {"id": "7", "prompt": "hi", "chosen": ["y"], "rejected": ["n"], "num_correct": 1, "subset": "Math"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "r.parquet")
    (found,) = read_judged(tmp_path / "r.parquet", "subset")
    assert (found.right, found.slice, found.row_id) == (PAIR.right, "Math", "7")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "hi", "chosen": "y"}, '"rejected" is missing'),
        ({"chosen": "y", "rejected": "n"}, 'no "prompt"'),
        ({"prompt": "hi", "chosen": ["y"], "rejected": "n"}, "\"rejected\" is 'n'; wanted a list of at least one text"),
        ({"prompt": "hi", "chosen": [], "rejected": ["n"]}, '"chosen" is []; wanted a list of at least one text'),
        ({"prompt": "hi", "chosen": "y", "rejected": "n", "subset": 1.5}, '"subset", which names the slice, is 1.5'),
        ({"input": "hi", "targets": {"choices": ["n", "y"], "labels": [1]}}, '"targets" is'),
        ({"input": "hi", "targets": {"choices": ["n", "y"], "labels": [1, 2]}}, '"labels" is [1, 2]; wanted 1'),
        ({"input": " ", "targets": {"choices": ["n", "y"], "labels": [1, 0]}}, '"input" is empty'),
        ({"conv_A": [USER, NO], "conv_B": [USER, YES], "conv_A_rating": 1}, "wanted two numbers"),
        ({"conv_A": [USER], "conv_B": [USER, YES], "conv_A_rating": 1, "conv_B_rating": 0}, '"conv_A" must end with'),
        ({"conv_A": "x", "conv_B": [USER, YES], "conv_A_rating": 1, "conv_B_rating": 0}, "\"conv_A\" is 'x'; wanted"),
        ({"conversation_a": [USER, YES], "conversation_b": [USER, NO], "winner": "a"}, "\"winner\" is 'a'; wanted"),
        ({"conversation_a": [USER, YES], "conversation_b": [USER, NO], "winner": "model_a", "turn": 0}, '"turn" is 0'),
        (
            {"conversation_a": [USER, YES], "conversation_b": [USER, NO], "winner": "model_a", "turn": 2},
            "wanted turn 2",
        ),
    ],
)
def test_each_mistake_is_named_with_its_line(tmp_path: Path, row: dict[str, object], words: str) -> None:
    path = jsonl(tmp_path / "r.jsonl", {"prompt": "hi", "chosen": "y", "rejected": "n"}, row)
    with pytest.raises(DataError) as caught:
        read_judged(path, "subset")
    assert f"{path}:2: " in str(caught.value) and words in str(caught.value)


def test_answers_to_explain(tmp_path: Path) -> None:
    rows = [
        {"prompt": "hi", "response": "y"},
        {"prompt": "hi", "responses": ["y", "n"]},
        {"prompt": "hi", "chosen": "y", "rejected": "n"},
    ]
    assert read_answers(jsonl(tmp_path / "r.jsonl", *rows)) == [
        (HI, {"response": "y"}),
        (HI, {"response 1": "y", "response 2": "n"}),
        (HI, {"chosen": "y", "rejected": "n"}),
    ]
    for wrong, words in (
        ({"prompt": "hi"}, '"response" is missing'),
        ({"prompt": "hi", "responses": []}, "at least one text"),
    ):
        with pytest.raises(DataError, match=words):
            read_answers(jsonl(tmp_path / "r.jsonl", wrong))
