"""labels.jsonl: what a judge said of pairs of responses, and how it rated responses, one line each, bought once.

Owned by the rounds (driver/rounds/labelling.py). A label is keyed by its content (the prompt and its responses) and is on the
disk before it is used, so that no run, repeated round or resume asks for it again. The file only grows; a last line that a kill
tore is dropped when the file is opened. Here are also the judges that are functions; the others: driver/judges/judges.py.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.config.config import JudgeConfig
from common.errors import RunError
from common.files import append_line
from common.json_text import json_text
from common.judge import (
    PREFERENCES,
    JudgeError,
    JudgeItem,
    Labels,
    PairItem,
    Preference,
    Verdict,
    ask_judge,
    load_function,
)
from common.ratings import RateItem, Rating
from common.types import Message
from driver.record.progress import Progress

Ask = Callable[[PairItem], Preference]
Keep = Callable[[PairItem, Verdict], None]
Judge = Callable[[Sequence[PairItem], Keep], None]  # calls Keep for each answer as it comes, in any order
KeepRating = Callable[[RateItem, Rating], None]
Rater = Callable[[Sequence[RateItem], KeepRating], None]


class LabelError(RunError):
    """A labels file that cannot be trusted; names the line."""


@dataclass(frozen=True, slots=True)
class Label:
    """What was said of a pair, and the round that asked for it (its number from 0)."""

    item: PairItem
    verdict: Verdict
    round: int


@dataclass(frozen=True, slots=True)
class RatedLabel:
    """How a response was rated, and the round that asked for it."""

    item: RateItem
    rating: Rating
    round: int


class LabelBook:
    """The labels of one run, by content key; `budget` is the most that the run may have bought, a pair or a rated response each
    one, whatever was said of it. Nothing is asked beyond it."""

    def __init__(self, path: Path, budget: int | None = None):
        self._path, self._budget = path, budget
        self._known: dict[str, Label] = {}
        self._rated: dict[str, RatedLabel] = {}
        for label in _read(path):
            if isinstance(label, Label):
                self._known[label.item.key] = label
            else:
                self._rated[label.item.key] = label

    def __len__(self) -> int:
        return len(self._known) + len(self._rated)

    @property
    def left(self) -> int | None:
        """How many labels may still be bought; None where there is no budget."""
        return None if self._budget is None else max(0, self._budget - len(self))

    @property
    def labels(self) -> Sequence[Label]:
        """In the order in which they came."""
        return list(self._known.values())

    @property
    def ratings(self) -> Sequence[RatedLabel]:
        """In the order in which they came."""
        return list(self._rated.values())

    def buy(self, items: Sequence[PairItem], judge: Judge, number: int = 0) -> dict[str, Preference]:
        """The preferences by key: of every item, but for what people have not answered yet and what is beyond the budget. Asks
        only for what is not known, and keeps each answer as it comes, as of round `number`."""
        missing = list({item.key: item for item in items if item.key not in self._known}.values())[: self.left]
        progress = Progress("judge", len(missing), "pairs")

        def keep(item: PairItem, verdict: Verdict) -> None:
            self._append(Label(item, verdict, number))
            progress.advance(1)

        if missing:
            judge(missing, keep)
        return {item.key: self._known[item.key].verdict.preferred for item in items if item.key in self._known}

    def rate(self, items: Sequence[RateItem], rater: Rater, number: int = 0) -> dict[str, Rating]:
        """The ratings by key, as `buy` gives preferences."""
        missing = list({item.key: item for item in items if item.key not in self._rated}.values())[: self.left]
        progress = Progress("judge", len(missing), "ratings")

        def keep(item: RateItem, rating: Rating) -> None:
            self._append_rating(RatedLabel(item, rating, number))
            progress.advance(1)

        if missing:
            rater(missing, keep)
        return {item.key: self._rated[item.key].rating for item in items if item.key in self._rated}

    def reasons(self, items: Sequence[PairItem]) -> Counter[str]:
        """How many of the items are ties for each reason (Verdict.why), "" for all that were meant as they are."""
        return Counter(self._known[item.key].verdict.why for item in items if item.key in self._known)

    def rating_reasons(self, items: Sequence[RateItem]) -> Counter[str]:
        """How many of the items are not rated for each reason (Rating.why), "" for all others."""
        return Counter(self._rated[item.key].rating.why for item in items if item.key in self._rated)

    def _append(self, label: Label) -> None:
        item, verdict = label.item, label.verdict
        said = {"preferred": verdict.preferred, **({"why": verdict.why} if verdict.why else {})}
        append_line(self._path, json_text({**question(item), **said, "round": label.round}))
        self._known[item.key] = label

    def _append_rating(self, label: RatedLabel) -> None:
        said = {"scores": label.rating.scores, **({"why": label.rating.why} if label.rating.why else {})}
        append_line(self._path, json_text({**rating_question(label.item), **said, "round": label.round}))
        self._rated[label.item.key] = label


def question(item: PairItem) -> dict[str, object]:
    """A pair as a line of a file: what a label is asked for."""
    turns = [asdict(message) for message in item.messages]
    return {"key": item.key, "prompt": turns, "first": item.first, "second": item.second}


def rating_question(item: RateItem) -> dict[str, object]:
    """A response as a line of a file: what a rating is asked for."""
    return {"key": item.key, "prompt": [asdict(message) for message in item.messages], "response": item.response}


def make_judge(config: JudgeConfig, seed: int) -> Judge:
    """Compares by judge.labeler (what training labels are bought from), or else by the gold of judge.function."""
    if config.labeler is not None:
        label = load_function(config.labeler)
        return one_by_one(lambda item: _by_labeler(label, item, seed))
    assert config.function is not None, "the configuration asks for a judge"
    judge = load_function(config.function)
    return one_by_one(lambda item: _by_gold(judge, item))


def one_by_one(ask: Ask) -> Judge:
    """A judge that is asked about one pair after the other."""

    def judge(items: Sequence[PairItem], keep: Keep) -> None:
        for item in items:
            keep(item, Verdict(ask(item)))

    return judge


def _by_labeler(label: Callable[[list[JudgeItem], int], Labels], item: PairItem, seed: int) -> Preference:
    """The labeler's seed comes from the content: the same pair gets the same label, whenever it is asked for."""
    digest = hashlib.sha256(f"{seed}\0{item.key}".encode()).digest()
    try:
        pairs = label(item.items, int.from_bytes(digest[:6], "big")).pairs
    except Exception as error:  # the user's code may raise anything; the run ends with its name
        raise JudgeError(f"judge.labeler raised {type(error).__name__}: {error}, on {item.first[:80]!r}") from error
    balance = pairs.count((0, 1)) - pairs.count((1, 0))
    return _preference(balance)


def _by_gold(judge: Callable[[JudgeItem], dict[str, float]], item: PairItem) -> Preference:
    first, second = (ask_judge(judge, response)["gold"] for response in item.items)
    return _preference(first - second)


def _preference(difference: float) -> Preference:
    if difference == 0:
        return "tie"
    return "first" if difference > 0 else "second"


def _read(path: Path) -> list[Label | RatedLabel]:
    """The label of every whole line; cuts a torn last line off the file."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return [_label(path, number, line) for number, line in enumerate(whole.splitlines(), 1)]


def _label(path: Path, number: int, line: bytes) -> Label | RatedLabel:
    try:
        row: Any = json.loads(line)
        turns = tuple(Message(turn["role"], turn["content"]) for turn in row["prompt"])
        why, asked_in = row.get("why", ""), int(row.get("round", 0))
        if "scores" in row:
            return RatedLabel(RateItem(turns, {}, row["response"]), Rating(row["scores"], why), asked_in)
        item, preferred = PairItem(turns, {}, row["first"], row["second"]), row["preferred"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LabelError(
            f"{path}:{number}: no label ({error}); wanted key, prompt, and first, second and preferred or response and scores: "
            "remove the line"
        ) from error
    if preferred not in PREFERENCES:
        raise LabelError(
            f"{path}:{number}: preferred is {preferred!r}; wanted one of {', '.join(PREFERENCES)}: remove the line"
        )
    return Label(item, Verdict(preferred, why), asked_in)
