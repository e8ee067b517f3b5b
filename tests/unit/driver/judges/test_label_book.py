"""driver/judges/label_book.py and the pairs of common/judge.py: a label is bought once, whatever is killed, and keyed by
content."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from common.config.config import JudgeConfig
from common.config.file import BASE, load_config
from common.judge import JudgeError, JudgeItem, Labels, PairItem, Preference, Verdict, pair_item
from common.types import Message
from driver.judges.label_book import Keep, LabelBook, LabelError, make_judge, one_by_one, question

GOLD = f"{__name__}:gold_by_length"
LABELER = f"{__name__}:label_by_length"
LABELER_SEEDS: list[int] = []


def gold_by_length(item: JudgeItem) -> dict[str, float]:
    return {"gold": float(len(item.response))}


def label_by_length(items: list[JudgeItem], seed: int) -> Labels:
    LABELER_SEEDS.append(seed)
    lengths = [len(item.response) for item in items]
    pairs = [(a, b) for a, b in ((0, 1), (1, 0)) if lengths[a] > lengths[b]]
    return Labels([{} for _ in items], pairs)


def gold_of_nothing(item: JudgeItem) -> dict[str, float]:
    return {"gold": float("nan")}


def failing(items: list[JudgeItem], seed: int) -> Labels:
    raise KeyError("no such rater")


def pair(prompt: str, response: str = "short", other: str = "much longer") -> PairItem:
    return pair_item((Message("user", prompt),), {"kind": "plain"}, response, other)


LINE = json.dumps({**question(pair("p")), "preferred": "tie"})


class Counter:
    """A judge that counts and prefers the longer response; dies at the n-th question."""

    def __init__(self, dies_at: int = 10**9):
        self.asked: list[str] = []
        self._dies_at = dies_at

    def __call__(self, item: PairItem) -> Preference:
        if len(self.asked) + 1 == self._dies_at:
            raise KeyboardInterrupt
        self.asked.append(item.key)
        return "first" if len(item.first) > len(item.second) else "second"


def config(function: str | None, labeler: str | None) -> JudgeConfig:
    return replace(load_config(BASE, ["aggregation.kind=final_score"]).judge, function=function, labeler=labeler)


def ask(judge: JudgeConfig, item: PairItem, seed: int = 0) -> Preference:
    """What the judge says of one pair."""
    said: list[Preference] = []
    make_judge(judge, seed)([item], lambda _, verdict: said.append(verdict.preferred))
    return said[0]


def test_a_pair_has_one_key_whichever_response_comes_first() -> None:
    assert pair("p", "a", "b") == pair("p", "b", "a")
    keys = {pair("p").key, pair("q").key, pair("p", "short", "other").key}
    assert len(keys) == 3


def test_places_do_not_depend_on_the_alphabet() -> None:
    firsts = [pair("p", f"a{i}", f"b{i}").first[0] for i in range(200)]
    assert 70 < firsts.count("a") < 130


def test_a_pair_of_equal_responses_is_refused() -> None:
    with pytest.raises(ValueError, match="two different responses"):
        pair("p", "same", "same")


def test_a_label_is_bought_once(tmp_path: Path) -> None:
    judge, items = Counter(), [pair("p"), pair("q"), pair("p")]
    book = LabelBook(tmp_path / "labels.jsonl")
    first = book.buy(items, one_by_one(judge))
    assert len(judge.asked) == 2 and first.keys() == {item.key for item in items}
    assert book.buy(items, one_by_one(judge)) == first
    assert LabelBook(tmp_path / "labels.jsonl").buy([*items, pair("r")], one_by_one(judge)).items() >= first.items()
    assert len(judge.asked) == 3 == len((tmp_path / "labels.jsonl").read_text().splitlines())


def test_a_kill_in_the_middle_loses_no_label(tmp_path: Path) -> None:
    items = [pair(f"p{i}") for i in range(5)]
    with pytest.raises(KeyboardInterrupt):
        LabelBook(tmp_path / "labels.jsonl").buy(items, one_by_one(Counter(dies_at=4)))
    judge = Counter()
    book = LabelBook(tmp_path / "labels.jsonl")
    assert len(book) == 3
    book.buy(items, one_by_one(judge))
    assert judge.asked == [item.key for item in items[3:]]


def test_a_label_is_of_the_round_that_asked_first(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(f"{LINE}\n")  # of a run before lines named their round
    LabelBook(path).buy([pair("p"), pair("q")], one_by_one(Counter()), 1)
    LabelBook(path).buy([pair("q"), pair("r")], one_by_one(Counter()), 2)
    labels = LabelBook(path).labels
    assert [(label.item.messages[0].content, label.round) for label in labels] == [("p", 0), ("q", 1), ("r", 2)]
    assert [label.item.key for label in labels] == [pair(prompt).key for prompt in "pqr"]


def test_a_torn_last_line_is_dropped_and_the_file_goes_on_whole(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    LabelBook(path).buy([pair("p"), pair("q")], one_by_one(Counter()))
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    book, judge = LabelBook(path), Counter()
    assert len(book) == 1
    book.buy([pair("p"), pair("q")], one_by_one(judge))
    assert judge.asked == [pair("q").key] and path.read_bytes() == whole


@pytest.mark.parametrize("line", ['{"key": "k"}', "{", LINE.replace("tie", "third"), "3"])
def test_a_broken_line_in_the_middle_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(f"{LINE}\n{line}\n")
    with pytest.raises(LabelError, match=r"labels.jsonl:2: .*remove the line"):
        LabelBook(path)


@pytest.mark.parametrize("judge", [config(GOLD, None), config(None, LABELER), config(GOLD, LABELER)])
def test_functions_of_the_judge_section_compare(judge: JudgeConfig) -> None:
    item = pair("p")
    assert ask(judge, item) == ("first" if item.first == "much longer" else "second")
    assert ask(judge, pair("p", "abc", "xyz")) == "tie"


def test_the_labeler_comes_first_and_its_seed_from_the_content() -> None:
    LABELER_SEEDS.clear()
    for seed in (0, 0, 1):
        ask(config(GOLD, LABELER), pair("p"), seed)
    ask(config(GOLD, LABELER), pair("q"))
    assert LABELER_SEEDS[0] == LABELER_SEEDS[1] and len(set(LABELER_SEEDS)) == 3


def test_answers_in_another_order_come_back_in_that_of_the_items(tmp_path: Path) -> None:
    def backwards(items: Sequence[PairItem], keep: Keep) -> None:
        for item in reversed(items):
            keep(item, Verdict(Counter()(item)))

    items = [pair(f"p{n}") for n in range(5)]
    bought = LabelBook(tmp_path / "labels.jsonl").buy(items, backwards)
    assert list(bought) == [item.key for item in items]
    assert bought == LabelBook(tmp_path / "other.jsonl").buy(items, one_by_one(Counter()))


def test_a_failing_judge_is_named() -> None:
    with pytest.raises(JudgeError, match="gold nan"):
        ask(config(f"{__name__}:gold_of_nothing", None), pair("p"))
    with pytest.raises(JudgeError, match="judge.labeler raised KeyError"):
        ask(config(None, f"{__name__}:failing"), pair("p"))
