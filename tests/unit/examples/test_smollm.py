"""The real model's task: what each family of constraints accepts, how prompts are dealt, and what raters and the judge say."""

import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.judge import JudgeItem
from common.types import Message
from examples.smollm import gold, labels
from examples.smollm.constraints import CLASHES, FAMILIES, Constraint, from_text, num_sentences, to_text, words
from examples.smollm.measures import change
from examples.smollm.people import PARTS, constrained, part_of
from examples.smollm.prompts import QUESTIONS, TOPICS, combinations, draw_constraints, is_held_out, prompt_rows, topics

MET = [
    ("sentences", "2", "Rain falls. Rivers rise!", "Rain falls."),
    ("sentences", "1", "It costs 3.5 dollars today", "One. Two. Three."),
    ("sentences", "3", 'He said "no." She left. Then what?', "a b c"),
    ("words", "12", "Twelve words or fewer don't count twice.", " ".join(["word"] * 13)),
    ("bullets", "2", "- rain\n\n* snow", "- rain\n- snow\nand wind"),
    ("bullets", "3", "• a\n• b\n• c", "- a\n- b"),
    ("keyword", "people", "Most PEOPLE like it.", "Most peoples like it."),
    ("avoid", "the", "Other weather.", "It is The rain."),
    ("case", "lower", "all small, 3 words", "Not small"),
    ("case", "upper", "ALL LARGE, 3 WORDS", "ALL LARGe"),
    ("closing", "That is all.", "Rain falls. That is all.", "That is all."),
    ("opening", "It", "It rains.", "it rains."),
    ("json", "", '{"answer": "rain"}', '{"answer": "rain", "more": 1}'),
    ("json", "", '{"answer": 3}', 'Sure: {"answer": "rain"}'),
    ("commas", "", "Rain falls and rivers rise.", "Rain, snow."),
    ("quoted", "", '"Rain falls."', '"Rain" falls "hard"'),
]


def item(response: str, *constraints: tuple[str, str], finish: str = "stop") -> JudgeItem:
    meta = {"constraints": to_text([Constraint(*constraint) for constraint in constraints])}
    return JudgeItem((Message("user", "?"),), meta, response, finish)


@pytest.mark.parametrize(("family", "value", "good", "bad"), MET)
def test_a_family_accepts_what_was_asked_and_nothing_else(family: str, value: str, good: str, bad: str) -> None:
    assert Constraint(family, value).met(good)
    assert Constraint(family, value).met(f"  {good}\n")
    assert not Constraint(family, value).met(bad)


@pytest.mark.parametrize(
    ("family", "value"), [(name, value) for name, family in FAMILIES.items() for value in family.values]
)
@pytest.mark.parametrize("response", ["", "  \n"])
def test_an_empty_response_meets_nothing(family: str, value: str, response: str) -> None:
    assert not Constraint(family, value).met(response)


@given(st.text(max_size=60))
def test_every_check_takes_any_text(text: str) -> None:
    for name, family in FAMILIES.items():
        for value in family.values:
            assert Constraint(name, value).met(text) in (True, False)
    assert 0 <= labels.language([], text) <= 1
    assert 0 <= labels.brevity([], text) <= 1


def test_deeply_nested_json_is_no_answer_and_no_error() -> None:
    assert not Constraint("json", "").met("[" * 100_000)


def test_words_and_sentences_by_hand() -> None:
    assert words("Don't stop: 3 o\u2019clock!") == ["don't", "stop", "3", "o\u2019clock"]
    assert [num_sentences(text) for text in ("", "a", "A. B", "Wait... what?! Yes.", "v1.2 is out.")] == [0, 1, 2, 3, 1]


def test_a_prompt_carries_its_constraints_as_text() -> None:
    asked = (Constraint("words", "12"), Constraint("json", ""))
    assert from_text(to_text(asked)) == asked
    with pytest.raises(ValueError, match="no family 'rhyme'"):
        from_text('[["rhyme", ""]]')
    with pytest.raises(ValueError, match="not a list of"):
        from_text("words")


# ---- prompts


def test_held_out_prompts_have_topics_and_pairs_of_families_of_their_own() -> None:
    sides = [list(prompt_rows(np.random.default_rng(3), 400, held_out)) for held_out in (False, True)]
    asked = [{frozenset(names) for row in side if len(names := families(row)) == 2} for side in sides]
    assert asked[0] and asked[1] and not asked[0] & asked[1]
    assert set(topics(True)).isdisjoint(topics(False)) and set(topics(True)) | set(topics(False)) == set(TOPICS)
    texts = [row["prompt"][0]["content"] for row in itertools.chain(*sides)]  # type: ignore[index]
    assert len(set(texts)) == 800


def families(row: dict[str, Any]) -> list[str]:
    return [name for name, _ in json.loads(row["meta"]["constraints"])]


def test_there_are_two_thousand_prompts_and_no_topic_twice() -> None:
    assert len(TOPICS) == len(set(TOPICS))
    assert len(topics(False)) * len(QUESTIONS) >= 2000
    with pytest.raises(ValueError, match="want fewer"):
        list(prompt_rows(np.random.default_rng(0), 10_000, held_out=False))


def test_families_that_clash_are_never_asked_together() -> None:
    both = [frozenset(pair) for held_out in (False, True) for pair in combinations(held_out)]
    assert not CLASHES & set(both)
    assert {name for pair in both for name in pair} == set(FAMILIES)  # each can meet another
    assert {frozenset(pair) for pair in itertools.combinations(FAMILIES, 2)} > CLASHES


def test_the_same_seed_draws_the_same_prompts() -> None:
    first, again, other = (list(prompt_rows(np.random.default_rng(seed), 50, False)) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("held_out", [False, True])
def test_every_combination_can_be_met_by_one_text(held_out: bool) -> None:
    """Written by hand, one text a pair: a pair that nothing can meet would teach nothing."""
    for pair in combinations(held_out):
        asked = [Constraint(name, POSSIBLE[name]) for name in pair]
        text = compose(pair)
        assert all(constraint.met(text) for constraint in asked), (pair, text)


POSSIBLE = {
    "sentences": "1", "words": "20", "bullets": "2", "keyword": "people", "avoid": "the", "case": "lower",
    "closing": "That is all.", "opening": "The", "json": "", "commas": "", "quoted": "",
}  # fmt: skip


def compose(pair: Sequence[str]) -> str:
    """A text that meets the first value of each family of a pair."""
    first = "The people grow" if "opening" in pair else "People grow"
    if "bullets" in pair:
        first = f"- {first}\n- {first}"
    if "closing" in pair:
        first = f"{first}. That is all."
    if "case" in pair:
        first = first.lower()
    if "json" in pair:
        return json.dumps({"answer": first})
    return f'"{first}"' if "quoted" in pair else first


# ---- labels and gold


def test_the_rater_rates_every_family_and_compares_by_what_was_asked() -> None:
    asked = (("commas", ""), ("words", "20"))
    made = labels.label([item("Rain falls.", *asked), item("Rain, snow and the hail.", *asked)], seed=5)
    assert [set(rated) for rated in made.ratings] == [set(FAMILIES)] * 2
    met = [{name for name, value in rated.items() if value} for rated in made.ratings]
    assert met == [{"sentences", "words", "avoid", "commas"}, {"sentences", "words"}]
    assert made.pairs == [(0, 1)]


def test_answers_of_the_same_worth_are_no_pair() -> None:
    asked = ("commas", "")
    assert labels.label([item("Rain falls.", asked), item("Snow falls.", asked)], seed=0).pairs == []


def test_gold_is_all_constraints_at_once() -> None:
    both = (("commas", ""), ("case", "lower"))
    assert gold.judge(item("rain falls.", *both))["gold"] == 1.0
    half = gold.judge(item("Rain falls.", *both))
    assert (half["gold"], half["met"], half["commas"], half["case"]) == (0.0, 0.5, 1.0, 0.0)
    assert "json" not in half


def test_a_prompt_of_another_maker_is_named() -> None:
    with pytest.raises(ValueError, match='has no "constraints" in its meta'):
        gold.judge(JudgeItem((Message("user", "?"),), {}, "text", "stop"))


def test_language_by_hand() -> None:
    assert labels.language([], "Rain falls.") == 1.0
    assert labels.language([], "rain rain rain rain") == pytest.approx((0.25 + 1 + 0) / 3)
    assert labels.language([], "xkcd qrst.") == pytest.approx((1 + 0 + 1) / 3)
    assert labels.language([], "!") == 0.0


# ---- people's pairs


def test_a_conversation_is_in_one_part_by_its_opening() -> None:
    opening = Message("user", "hello")
    longer = (opening, Message("assistant", "hi"), Message("user", "more"))
    assert part_of((opening,)) == part_of(longer)
    found = {part_of((Message("user", f"prompt {number}"),)) for number in range(60)}
    assert found == set(PARTS)


def test_the_constraint_goes_on_the_last_turn() -> None:
    turns = (Message("user", "hello"), Message("assistant", "hi"), Message("user", "more "))
    row = constrained(turns, "hh", np.random.default_rng(0), held_out=False)
    asked = draw_constraints(np.random.default_rng(0), held_out=False)
    expected = " ".join(["more", *(constraint.text() for constraint in asked)])
    assert row["prompt"][-1] == {"role": "user", "content": expected}  # type: ignore[index]
    assert row["meta"] == {"source": "hh", "constraints": to_text(asked)}


def test_the_hash_that_deals_does_not_change() -> None:
    """A held-out topic that became a training one would be in the old runs' training data."""
    assert [name for name in TOPICS[:12] if is_held_out(name)] == HELD_OUT


HELD_OUT = ["deserts", "earthquakes"]


# ---- measures


def test_a_change_is_paired_and_leaves_out_what_is_missing() -> None:
    found = change("met", [0, 0, 1, math.nan], [1, 1, 1, 0])
    assert (found.prompts, found.before, found.after) == (3, pytest.approx(1 / 3), 1.0)
    assert found.difference == pytest.approx(2 / 3)
    assert found.low <= found.difference <= found.high
    assert change("same", [1.0] * 5, [1.0] * 5).verdict == "no difference shown"
    assert change("up", [0.0] * 5, [1.0] * 5).verdict == "higher"
    assert change("none", [], []).prompts == 0
