"""labels.jsonl: what a judge said of pairs of responses, one line each, bought once.

Owned by the rounds (driver/rounds/labelling.py). A label is keyed by its content (prompt and both responses) and is on the disk
before it is used, so that no run, repeated round or resume asks for it again. The file only grows; a last line that a kill tore
is dropped when the file is opened. Here are also the judges that are functions; the others: driver/judges/judges.py.
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
from common.types import Message
from driver.record.progress import Progress

Ask = Callable[[PairItem], Preference]
Keep = Callable[[PairItem, Verdict], None]
Judge = Callable[[Sequence[PairItem], Keep], None]  # calls Keep for each answer as it comes, in any order


class LabelError(RunError):
    """A labels file that cannot be trusted; names the line."""


@dataclass(frozen=True, slots=True)
class Label:
    """What was said of a pair, and the round that asked for it (its number from 0)."""

    item: PairItem
    verdict: Verdict
    round: int


class LabelBook:
    """The labels of one run, by content key."""

    def __init__(self, path: Path):
        self._path = path
        self._known: dict[str, Label] = _read(path)

    def __len__(self) -> int:
        return len(self._known)

    @property
    def labels(self) -> Sequence[Label]:
        """In the order in which they came."""
        return list(self._known.values())

    def buy(self, items: Sequence[PairItem], judge: Judge, number: int = 0) -> dict[str, Preference]:
        """The preferences by key: of every item, but for what people have not answered yet. Asks only for what is not known,
        and keeps each answer as it comes, as of round `number`."""
        missing = list({item.key: item for item in items if item.key not in self._known}.values())
        progress = Progress("judge", len(missing), "pairs")

        def keep(item: PairItem, verdict: Verdict) -> None:
            self._append(Label(item, verdict, number))
            progress.advance(1)

        if missing:
            judge(missing, keep)
        return {item.key: self._known[item.key].verdict.preferred for item in items if item.key in self._known}

    def reasons(self, items: Sequence[PairItem]) -> Counter[str]:
        """How many of the items are ties for each reason (Verdict.why), "" for all that were meant as they are."""
        return Counter(self._known[item.key].verdict.why for item in items if item.key in self._known)

    def _append(self, label: Label) -> None:
        item, verdict = label.item, label.verdict
        said = {"preferred": verdict.preferred, **({"why": verdict.why} if verdict.why else {})}
        row = {**question(item), **said, "round": label.round}
        append_line(self._path, json.dumps(row))
        self._known[item.key] = label


def question(item: PairItem) -> dict[str, object]:
    """A pair as a line of a file: what a label is asked for."""
    turns = [asdict(message) for message in item.messages]
    return {"key": item.key, "prompt": turns, "first": item.first, "second": item.second}


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


def _read(path: Path) -> dict[str, Label]:
    """Key -> label of every whole line; cuts a torn last line off the file."""
    if not path.is_file():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return dict(_label(path, number, line) for number, line in enumerate(whole.splitlines(), 1))


def _label(path: Path, number: int, line: bytes) -> tuple[str, Label]:
    try:
        row: Any = json.loads(line)
        key, preferred, why = row["key"], row["preferred"], row.get("why", "")
        turns = tuple(Message(turn["role"], turn["content"]) for turn in row["prompt"])
        item = PairItem(turns, {}, row["first"], row["second"])
        asked_in = int(row.get("round", 0))
    except (ValueError, KeyError, TypeError) as error:
        raise LabelError(
            f"{path}:{number}: no label ({error}); wanted key, prompt, first, second and preferred: remove the line"
        ) from error
    if preferred not in PREFERENCES:
        raise LabelError(
            f"{path}:{number}: preferred is {preferred!r}; wanted one of {', '.join(PREFERENCES)}: remove the line"
        )
    return key, Label(item, Verdict(preferred, why), asked_in)
