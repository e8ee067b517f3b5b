"""Labels that people give: the questions that wait for them, and the answers in judge.file.

    <run>/labels_pending.jsonl  one line a pair: key, prompt, first, second, preferred: null; whole or absent, written anew
                                by each round
    judge.file                  the same lines with preferred: first, second or tie; null where nobody has answered yet

Called by driver/judges/judges.py, the rounds (driver/rounds/labelling.py) and the preflight. Waits for nobody: what is not
answered stays a question.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.data.sources import json_object
from common.files import write_whole
from common.json_text import json_text
from common.judge import PREFERENCES, PairItem, Preference, Verdict
from common.types import Message
from driver.judges.label_book import Judge, Keep, LabelError, question

LINE = "a JSON object with the key, prompt, first and second of its question, and preferred"


def people(path: Path) -> Judge:
    """Answers what judge.file has, and leaves out the rest."""

    def judge(items: Sequence[PairItem], keep: Keep) -> None:
        answers = read_answers(path)
        for item in items:
            if item.key in answers:
                keep(item, Verdict(answers[item.key]))

    return judge


def read_answers(path: Path) -> dict[str, Preference]:
    """Key -> what people preferred; nothing where the file is not there yet. Raises LabelError with the file and the line."""
    answers: dict[str, Preference] = {}
    for number, line in enumerate(lines_of(path), 1):
        if not line.strip():
            continue
        if (answer := _answer(f"{path}:{number}", line)) is None:
            continue
        key, preferred = answer
        if answers.setdefault(key, preferred) != preferred:
            raise LabelError(
                f"{path}:{number}: this pair was answered {answers[key]!r} further up and is {preferred!r} here; "
                "keep one line of the two"
            )
    return answers


def write_questions(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """Writes the questions; no file where there are none."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    write_whole(path, "".join(json_text(row) + "\n" for row in rows))


def question_row(item: PairItem) -> dict[str, object]:
    """A line of labels_pending.jsonl."""
    return {**question(item), "preferred": None}


def lines_of(path: Path) -> list[str]:
    """The lines of judge.file; none where it is not there yet. Raises LabelError."""
    if not path.exists():
        return []
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:  # a directory, no permission, another encoding
        raise LabelError(f"{path} cannot be read ({error}); wanted a .jsonl file in UTF-8") from error


def _answer(place: str, line: str) -> tuple[str, Preference] | None:
    """None for a rating (driver/judges/people_ratings.py), and for a question that nobody has answered."""
    try:
        row: Any = json_object(line.encode())
        if "scores" in row:
            return None
        key, preferred = row["key"], row["preferred"]
        prompt = tuple(Message(turn["role"], turn["content"]) for turn in row["prompt"])
        asked = PairItem(prompt, {}, row["first"], row["second"])
    except (ValueError, KeyError, TypeError) as error:
        raise LabelError(
            f"{place}: no answer ({type(error).__name__}: {error}); wanted {LINE}: correct or remove the line"
        ) from error
    if preferred is not None and preferred not in PREFERENCES:
        raise LabelError(
            f"{place}: preferred is {preferred!r}; wanted one of {', '.join(PREFERENCES)}, or null: correct the line"
        )
    if asked.key != key:
        raise LabelError(
            f"{place}: the key is not that of this prompt, first and second; an answer belongs to the texts as they were "
            "asked: copy the line from labels_pending.jsonl again and change `preferred` alone"
        )
    return None if preferred is None else (key, preferred)
