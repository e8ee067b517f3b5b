"""Programs by hand, what a bad one is told, and where each objective's labels come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.data.data import RatedResponse
from common.data.label_sources import (
    LabelFiles,
    ProgramError,
    label_files,
    load_programs,
    rate,
    rated_objectives,
    wrong_sources,
)
from common.types import Message
from rewarder.programs import FREE_WORDS, MOST_WORDS, brevity, non_repetition

ASK = (Message("user", "w1"),)


@pytest.mark.parametrize(
    ("words", "value"), [(0, 1.0), (FREE_WORDS, 1.0), (35, 0.75), (50, 0.5), (MOST_WORDS, 0.0), (500, 0.0)]
)
def test_brevity_by_hand(words: int, value: float) -> None:
    assert brevity(ASK, " ".join(["w"] * words)) == pytest.approx(value)


@pytest.mark.parametrize(
    ("response", "value"),
    [
        ("", 1.0),
        ("a b", 1.0),
        ("a b a d", 3 / 4),
        ("No no No NO", 1 / 4),  # upper case does not make it new
        ("a b c d e f g h a", 8 / 9),  # eight words before is near enough
        ("a b c d e f g h i a", 1.0),
    ],
)
def test_non_repetition_by_hand(response: str, value: float) -> None:
    assert non_repetition(ASK, response) == pytest.approx(value)


@given(st.text())
def test_the_programs_take_any_text(response: str) -> None:
    programs = load_programs({"b": "rewarder.programs:brevity", "n": "rewarder.programs:non_repetition"})
    assert all(0 <= value <= 1 for value in rate(programs, ASK, response).values())


def two(messages: Sequence[Message], response: str) -> float:
    return 2.0


def fails(messages: Sequence[Message], response: str) -> float:
    return 1 / len(response)


def nothing(messages: Sequence[Message], response: str) -> float:
    return None  # type: ignore[return-value]


def not_finite(messages: Sequence[Message], response: str) -> float:
    return float("nan")


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (two, r"rewarder.programs.mine returned 2.0 for the response ''; wanted a number in \[0, 1\]"),
        (nothing, "returned None"),
        (not_finite, "returned nan"),
        (fails, "rewarder.programs.mine raised ZeroDivisionError: .* on the response ''"),
    ],
)
def test_a_program_that_does_not_rate_is_named(program, words: str) -> None:
    with pytest.raises(ProgramError, match=words):
        rate({"mine": program}, ASK, "")


def test_numbers_of_any_kind_are_ratings() -> None:
    values: tuple[Any, ...] = (1, 0.5, True, np.float32(0.25), np.int64(0))
    assert [rate({"x": lambda m, r, v=v: v}, ASK, "")["x"] for v in values] == [1.0, 0.5, 1.0, 0.25, 0.0]


def test_each_objective_has_one_source() -> None:
    assert wrong_sources(["a", "b", "c"], {"a"}, {"b"}, "c", 5) == []
    (two_sources,) = wrong_sources(["a", "b"], {"a", "b"}, {"b"}, None, 0)
    assert "objective 'b' has 2 sources of labels, ratings (b) and rewarder.programs.b; keep one" in two_sources
    (missing,) = wrong_sources(["a", "b", "c"], {"a"}, {}, None, 5)
    assert missing.startswith("no rating of b, c: the ratings have a; add ratings, name a program in rewarder.programs")
    (no_pairs,) = wrong_sources(["p"], set(), {}, "p", 0)
    assert "rewarder.preference 'p' is trained on preference pairs, and there are none" in no_pairs


def test_an_objective_counts_as_rated_where_one_response_is() -> None:
    rows = [RatedResponse(ASK, "r", {"a": None, "b": 1.0}), RatedResponse(ASK, "s", {"a": None})]
    assert rated_objectives(rows) == {"b"}


def test_what_people_brought_and_what_was_collected_stand_side_by_side(tmp_path: Path) -> None:
    made = str(tmp_path / "ratings.jsonl"), str(tmp_path / "preferences.jsonl")
    assert label_files("r", "p", None, "s") == LabelFiles("r", "p", "s")
    assert label_files(None, None, tmp_path) == LabelFiles(*made)
    assert label_files(None, "p", tmp_path) == LabelFiles(made[0], "p", None, None, made[1])
    assert label_files("r", None, tmp_path) == LabelFiles("r", made[1], None, made[0], None)
    both = label_files("r", "p", tmp_path, "s")
    assert both == LabelFiles("r", "p", "s", *made) and both.all() == ("r", "p", "s", *made), "every node gets all five"
