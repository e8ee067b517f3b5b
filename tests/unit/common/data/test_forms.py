"""The forms in which data sets write the same thing: prompts apart or repeated, turns in one text, ratings in several rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.data.data import (
    AVERAGED,
    CONTRADICTED,
    MERGED,
    REPEATED,
    Demonstration,
    PreferencePair,
    RatedResponse,
    read_demonstrations,
    read_pairs,
    read_prompts,
    read_ratings,
)
from common.data.judged import read_answers, read_judged
from common.data.sources import DataError
from common.types import Message

Turn = dict[str, str]


def turn(role: str, content: str) -> Turn:
    return {"role": role, "content": content}


SYSTEM, USER, YES, NO = turn("system", "s"), turn("user", "u"), turn("assistant", "y"), turn("assistant", "n")
MORE = turn("user", "more")
HI = (Message("user", "u"),)
TOLD = (Message("system", "s"), *HI)


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pair(tmp_path: Path, row: dict[str, Any]) -> PreferencePair:
    """The pair of a row, which every reader of pairs takes alike."""
    path = jsonl(tmp_path / "p.jsonl", row)
    (found,) = read_pairs(path)
    (judged,) = read_judged(path, None)
    (explained,) = read_answers(path)
    assert judged.right[0].messages == judged.wrong[0].messages == found.messages == explained[0]
    assert (judged.right[0].response, judged.wrong[0].response) == (found.chosen, found.rejected)
    assert explained[1] == {"chosen": found.chosen, "rejected": found.rejected}
    return found


# ---- prompts apart from their sides, or in them ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "before", "messages"),
    [
        ([USER], [], HI),  # the explicit form: sides are the assistant's turns alone
        ("u", [], HI),
        ([SYSTEM, USER], [], TOLD),
        ([SYSTEM, USER], [USER], TOLD),  # a system turn in "prompt" alone
        ([USER], [SYSTEM, USER], TOLD),  # a system turn in the sides alone
        ([SYSTEM], [USER], TOLD),
        ([SYSTEM, USER], [SYSTEM, USER], TOLD),
        ("u", [USER], HI),
        (" u", [USER], HI),
        ("more", [USER, YES, MORE], (*HI, Message("assistant", "y"), Message("user", "more"))),
        ([USER], [YES, MORE], (*HI, Message("assistant", "y"), Message("user", "more"))),
        ([USER, YES], [MORE], (*HI, Message("assistant", "y"), Message("user", "more"))),
    ],
)
def test_a_prompt_and_its_sides_are_one_conversation(
    tmp_path: Path, prompt: object, before: list[Turn], messages: tuple[Message, ...]
) -> None:
    row = {"prompt": prompt, "chosen": [*before, YES], "rejected": [*before, NO]}
    assert pair(tmp_path, row) == PreferencePair(messages, "y", "n")
    answer = {"prompt": prompt, "response": [*before, YES], "scores": {"a": 1.0}}
    path = jsonl(tmp_path / "r.jsonl", answer)
    assert read_demonstrations(path) == [Demonstration(messages, "y")]
    assert read_ratings(path) == [RatedResponse(messages, "y", {"a": 1.0})]
    assert read_answers(path) == [(messages, {"response": "y"})]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"prompt": [USER], "chosen": [MORE, YES], "rejected": [MORE, NO]},
            '"chosen" neither repeats "prompt" nor goes on',
        ),
        ({"prompt": [SYSTEM, USER], "chosen": [turn("system", "t"), USER, YES], "rejected": [YES]}, "different system"),
        ({"prompt": [USER], "chosen": [USER], "rejected": [NO]}, '"chosen" ends with a turn of the user; wanted the'),
        ({"chosen": [YES], "rejected": [NO]}, '"chosen" has an answer and no prompt'),
        ({"prompt": [USER, YES], "chosen": [YES], "rejected": [NO]}, '"chosen" ends with a turn of the assistant'),
        (
            {"prompt": [USER], "chosen": [YES, MORE, YES], "rejected": [NO, MORE, NO]},
            "the same conversation up to a last",
        ),
    ],
)
def test_a_prompt_that_is_not_that_of_the_sides_is_named(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    path = jsonl(tmp_path / "p.jsonl", row)
    for read in (read_pairs, lambda path: read_judged(path, None), read_answers):
        with pytest.raises(DataError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}:1: ") and words in str(caught.value)


def test_one_side_may_be_text_and_the_other_turns(tmp_path: Path) -> None:
    assert pair(tmp_path, {"prompt": "u", "chosen": "y", "rejected": [NO]}) == PreferencePair(HI, "y", "n")


def test_demonstrations_and_ratings_under_other_columns(tmp_path: Path) -> None:
    rows = [
        {"messages": [SYSTEM, USER, YES]},
        {"prompt": "u", "completion": "y"},
        {"prompt": [USER], "completion": [YES]},
    ]
    assert read_demonstrations(jsonl(tmp_path / "d.jsonl", *rows)) == [
        Demonstration(TOLD, "y"),
        *[Demonstration(HI, "y")] * 2,
    ]
    empty = jsonl(tmp_path / "e.jsonl", {"messages": [USER, turn("assistant", " ")]})
    with pytest.raises(DataError, match='"messages" ends with an empty answer'):
        read_demonstrations(empty)


# ---- turns in one text --------------------------------------------------------------------------------------------------

HH = '"\\n\\nHuman: .. \\n\\nAssistant: .."'


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("\n\nHuman: u\n\nAssistant: {}", HH),
        ("Human: u\n\nAssistant: {}", HH),
        ("<extra_id_0>System\n\n<extra_id_1>User\nu\n<extra_id_1>Assistant\n{}", '"<extra_id_1>"'),
        ("u\n<extra_id_1>Assistant\n{}", '"<extra_id_1>"'),
        ("<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>", '"<|im_start|>"'),
        (
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nu<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>",
            '"<|start_header_id|>"',
        ),
        ("<bos><start_of_turn>user\nu<end_of_turn>\n<start_of_turn>model\n{}<end_of_turn>\n", '"<start_of_turn>"'),
        ("<|user|>\nu</s>\n<|assistant|>\n{}</s>", '"<|user|>"'),
        ("### Human: u\n### Assistant: {}", '"### Human: .."'),
    ],
)
def test_turns_in_one_text_are_turns_and_are_said(tmp_path: Path, text: str, name: str) -> None:
    row = {"chosen": text.format("y"), "rejected": text.format("n")}
    assert pair(tmp_path, row) == PreferencePair(HI, "y", "n")
    rows = read_pairs(tmp_path / "p.jsonl")
    assert rows.counts() == f"1 rows, 1 used; 1 with turns written as {name}, read as turns"
    opened = {"prompt": text.format("").removesuffix("</s>").removesuffix("<|im_end|>")}
    assert read_prompts(jsonl(tmp_path / "q.jsonl", opened))[0].messages == HI
    whole = {**opened, "chosen": "y", "rejected": "n"}
    assert pair(tmp_path, whole) == PreferencePair(HI, "y", "n")
    inside = {"prompt": [turn("user", opened["prompt"])], "response": "y"}
    assert read_demonstrations(jsonl(tmp_path / "i.jsonl", inside)) == [Demonstration(HI, "y")]
    choices = {"input": opened["prompt"], "targets": {"choices": ["n", "y"], "labels": [0, 1]}}
    assert read_judged(jsonl(tmp_path / "h.jsonl", choices), None)[0].right[0].messages == HI


@pytest.mark.parametrize("text", ["Who said: Human: all too human?", "Human: a word", "# a\n## b\n### c", "a ### b"])
def test_words_stay_words(tmp_path: Path, text: str) -> None:
    rows = read_demonstrations(jsonl(tmp_path / "d.jsonl", {"prompt": text, "response": "y"}))
    assert rows == [Demonstration((Message("user", text),), "y")] and not rows.notes


def test_a_response_to_turns_is_words(tmp_path: Path) -> None:
    said = "\n\nHuman: and then?\n\nAssistant: this"
    rows = read_ratings(jsonl(tmp_path / "r.jsonl", {"prompt": [USER], "response": said, "scores": {"a": 1}}))
    assert rows[0].response == said and not rows.notes


# ---- rows that belong together ------------------------------------------------------------------------------------------


def rated(**scores: float | None) -> dict[str, object]:
    return {"prompt": "u", "response": "y", "scores": scores}


def test_one_row_per_objective_is_the_same_as_one_row(tmp_path: Path) -> None:
    rows = read_ratings(jsonl(tmp_path / "r.jsonl", rated(a=1.0), rated(b=0.25), rated(c=None)))
    assert rows == [RatedResponse(HI, "y", {"a": 1.0, "b": 0.25, "c": None})]
    assert rows.left_out == {MERGED: 2} and not rows.notes and rows.numbers == [1]


def test_several_raters_of_one_objective_are_averaged_and_counted(tmp_path: Path) -> None:
    other = {**rated(a=0.5), "response": "n"}
    rows = read_ratings(jsonl(tmp_path / "r.jsonl", rated(a=1.0, b=None), other, rated(a=0.0), rated(a=0.5, b=0.25)))
    assert rows == [RatedResponse(HI, "y", {"a": 0.5, "b": 0.25}), RatedResponse(HI, "n", {"a": 0.5})]
    assert rows.left_out == {MERGED: 2} and rows.notes == {AVERAGED: 1} and rows.numbers == [1, 2]


def test_wide_and_parquet_ratings_of_one_response(tmp_path: Path) -> None:
    table = [{**rated(a=1.0), "scores": {"a": 1.0, "b": None}}, {**rated(b=0.0), "scores": {"a": None, "b": 0.0}}]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "r.parquet")
    assert read_ratings(tmp_path / "r.parquet") == [RatedResponse(HI, "y", {"a": 1.0, "b": 0.0})]


def test_pairs_that_are_there_twice_or_the_other_way_round_are_counted(tmp_path: Path) -> None:
    one, other = {"prompt": "u", "chosen": "y", "rejected": "n"}, {"prompt": "u", "chosen": "n", "rejected": "y"}
    rows = read_pairs(jsonl(tmp_path / "p.jsonl", one, one, other))
    assert len(rows) == 3 and rows.notes == {REPEATED: 1, CONTRADICTED: 2}


def test_a_key_that_is_there_twice_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "u", "response": "y", "scores": {"a": 0, "a": 1}}\n')
    with pytest.raises(DataError, match=f"{path}:1: the key 'a' is there twice in one object; keep one"):
        read_ratings(path)


# ---- numbers and formats ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1" * 400])
def test_labels_are_finite_numbers_in_every_format(tmp_path: Path, number: str) -> None:
    turns = f'"conv_A": {json.dumps([USER, YES])}, "conv_B": {json.dumps([USER, NO])}'
    lines = {
        read_ratings: f'{{"prompt": "u", "response": "y", "scores": {{"a": {number}}}}}',
        read_judged: f'{{{turns}, "conv_A_rating": 1, "conv_B_rating": {number}}}',
    }
    for read, line in lines.items():
        (path := tmp_path / "f.jsonl").write_text(f"{line}\n")
        with pytest.raises(DataError, match=f"{path}:1: "):
            read(path, None)
    labels = f'{{"input": "u", "targets": {{"choices": ["y", "n"], "labels": [1, {number}]}}}}'
    (path := tmp_path / "h.jsonl").write_text(f"{labels}\n")
    with pytest.raises(DataError, match='"labels" is'):
        read_judged(path, None)


def test_a_number_of_parquet_that_is_not_finite_is_named_with_its_row(tmp_path: Path) -> None:
    rows = [
        {"conv_A": [USER, YES], "conv_B": [USER, NO], "conv_A_rating": x, "conv_B_rating": 0.0}
        for x in (1, float("nan"))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "u.parquet")
    with pytest.raises(DataError, match="u.parquet:2: .*wanted two numbers that are finite"):
        read_judged(tmp_path / "u.parquet", None)


PAIR = {"prompt": "u", "chosen": "y", "rejected": "n"}
CHOICES = {"input": "u", "targets": {"choices": ["n", "y"], "labels": [0, 1]}}


def test_the_format_follows_from_the_columns_that_have_values(tmp_path: Path) -> None:
    nothing = {"choices": None, "labels": None}
    rows = [{**PAIR, "targets": None}, {**PAIR, "conv_A": None, "targets": nothing}, {**CHOICES, "chosen": None}]
    found = read_judged(jsonl(tmp_path / "m.jsonl", *rows), None)
    assert [row.right[0].response for row in found] == ["y"] * 3
    columns = dict.fromkeys([*PAIR, *CHOICES])
    pq.write_table(pa.Table.from_pylist([{**columns, **PAIR}, {**columns, **CHOICES}]), tmp_path / "m.parquet")
    assert len(read_judged(tmp_path / "m.parquet", None)) == 2


def test_values_of_two_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="columns of 2 formats have values, pairs and HHH-alignment; keep those of one"):
        read_judged(jsonl(tmp_path / "m.jsonl", {**PAIR, **CHOICES}), None)
    with pytest.raises(DataError, match=r"no column of a known format; got the keys \['text'\]"):
        read_judged(jsonl(tmp_path / "m.jsonl", {"text": "u"}), None)
    with pytest.raises(DataError, match="a row has 'chosen' and 'response'"):
        read_answers(jsonl(tmp_path / "m.jsonl", {**PAIR, "response": "y"}))
