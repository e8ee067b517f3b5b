"""labels.jsonl: what a judge said of pairs of responses, one line each, bought once.

Owned by driver/adaptation.py. A label is keyed by its content (prompt and both responses) and is on the disk before it is
used, so that no run, repeated round or resume asks for it again. The file only grows; a last line that a kill tore is
dropped when the file is opened.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.config import JudgeConfig
from common.judge import JudgeError, JudgeItem, Labels, PairItem, Preference, ask_judge, load_function
from driver.progress import Progress

Ask = Callable[[PairItem], Preference]
PREFERENCES: tuple[Preference, ...] = ("first", "second", "tie")


class LabelError(RuntimeError):
    """A labels file that cannot be trusted; names the line."""


class LabelBook:
    """The labels of one run: content key -> which response was preferred."""

    def __init__(self, path: Path):
        self._path = path
        self._known = _read(path)

    def __len__(self) -> int:
        return len(self._known)

    def buy(self, items: Sequence[PairItem], ask: Ask) -> dict[str, Preference]:
        """A preference for each item, by key; asks only for what is not known, and keeps each answer before the next."""
        missing = list({item.key: item for item in items if item.key not in self._known}.values())
        progress = Progress("judge", len(missing), "pairs")
        for item in missing:
            self._append(item, ask(item))
            progress.advance(1)
        return {item.key: self._known[item.key] for item in items}

    def _append(self, item: PairItem, preferred: Preference) -> None:
        turns = [asdict(message) for message in item.messages]
        row = {"key": item.key, "prompt": turns, "first": item.first, "second": item.second, "preferred": preferred}
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._known[item.key] = preferred


def make_judge(config: JudgeConfig, seed: int) -> Ask:
    """Compares by judge.labeler (what training labels are bought from), or else by the gold of judge.function."""
    if config.labeler is not None:
        label = load_function(config.labeler)
        return lambda item: _by_labeler(label, item, seed)
    assert config.function is not None, "the configuration asks for a judge"
    judge = load_function(config.function)
    return lambda item: _by_gold(judge, item)


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


def _read(path: Path) -> dict[str, Preference]:
    """Key -> preference of every whole line; cuts a torn last line off the file."""
    if not path.is_file():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return dict(_label(path, number, line) for number, line in enumerate(whole.splitlines(), 1))


def _label(path: Path, number: int, line: bytes) -> tuple[str, Preference]:
    try:
        row: Any = json.loads(line)
        key, preferred = row["key"], row["preferred"]
    except (ValueError, KeyError, TypeError) as error:
        raise LabelError(
            f"{path}:{number}: no label ({error}); wanted a JSON object with key and preferred: remove the line"
        ) from error
    if preferred not in PREFERENCES:
        raise LabelError(
            f"{path}:{number}: preferred is {preferred!r}; wanted one of {', '.join(PREFERENCES)}: remove the line"
        )
    return key, preferred
