"""driver/judges/label_book.py: ratings are bought once, whatever is killed, and no label beyond the budget."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from common.judge import UNREADABLE, PairItem, Verdict, pair_item
from common.ratings import RateItem, Rating
from common.types import Message
from driver.judges.label_book import KeepRating, LabelBook, LabelError, one_by_one


def item(text: str = "p") -> RateItem:
    return RateItem((Message("user", text),), {}, "an answer")


class Counter:
    """Rates by the length of the prompt and counts; dies at the n-th question."""

    def __init__(self, dies_at: int = 10**9):
        self.asked: list[str] = []
        self._dies_at = dies_at

    def __call__(self, items: Sequence[RateItem], keep: KeepRating) -> None:
        for one in items:
            if len(self.asked) + 1 == self._dies_at:
                raise KeyboardInterrupt
            self.asked.append(one.key)
            keep(one, Rating({"good": len(one.messages[0].content) / 10}))


def pairs(count: int) -> list[PairItem]:
    return [pair_item((Message("user", f"{n}"),), {}, "a", "b") for n in range(count)]


def test_a_rating_is_bought_once_and_no_kill_loses_one(tmp_path: Path) -> None:
    path, items = tmp_path / "labels.jsonl", [item("p" * n) for n in range(1, 6)]
    with pytest.raises(KeyboardInterrupt):
        LabelBook(path).rate([*items, items[0]], Counter(dies_at=4), 3)
    counter = Counter()
    found = LabelBook(path).rate(items, counter, 4)
    assert counter.asked == [one.key for one in items[3:]]
    assert [found[one.key].scores["good"] for one in items] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert [known.round for known in LabelBook(path).ratings] == [3, 3, 3, 4, 4]
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])  # a torn line
    assert len(LabelBook(path)) == 4
    LabelBook(path).rate(items, counter, 4)
    assert path.read_bytes() == whole


def test_an_unrated_response_is_a_label_too(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    LabelBook(path).rate([item()], lambda items, keep: keep(items[0], Rating({}, UNREADABLE)))
    counter = Counter()
    book = LabelBook(path)
    assert book.rate([item()], counter)[item().key] == Rating({}, UNREADABLE) and not counter.asked
    assert book.rating_reasons([item()]) == {UNREADABLE: 1}


def test_the_budget_of_labels_is_never_exceeded(tmp_path: Path) -> None:
    path, counter = tmp_path / "labels.jsonl", Counter()
    book = LabelBook(path, budget=5)
    bought = book.buy(pairs(3), one_by_one(lambda _: "first"))
    assert len(bought) == 3 and book.left == 2
    found = book.rate([item(f"p{n}") for n in range(9)], counter)
    assert len(found) == 2 == len(counter.asked) and book.left == 0
    again = LabelBook(path, budget=5)
    assert again.buy(pairs(4), one_by_one(lambda _: "first")).keys() == bought.keys(), "what is known costs nothing"
    assert len(path.read_text().splitlines()) == 5
    assert LabelBook(path, budget=4).left == 0 and LabelBook(path).left is None


@pytest.mark.parametrize("bad", ['{"good": 2}', '{"good": "x"}', "[]"])
def test_a_broken_rating_in_the_middle_is_named(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "labels.jsonl"
    LabelBook(path).rate([item()], Counter())
    row = json.loads(path.read_text()) | {"scores": json.loads(bad)}
    path.write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(LabelError, match=r"labels.jsonl:1: no label .*remove the line"):
        LabelBook(path)


def test_pairs_and_ratings_share_the_file(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    book = LabelBook(path)
    book.buy(pairs(1), one_by_one(lambda _: "tie"))
    book.rate([item()], Counter())
    read = LabelBook(path)
    assert [label.verdict for label in read.labels] == [Verdict("tie")] and len(read.ratings) == 1 and len(read) == 2
