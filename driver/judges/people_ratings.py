"""Ratings that people give, in the same two files as their comparisons (driver/judges/people.py).

    <run>/labels_pending.jsonl  a line a response: key, prompt, response, scores: {objective: null, ..}
    judge.file                  the same lines with numbers from 0 to 1; null where somebody leaves an objective out, and all
                                null where nobody has rated yet

Called by driver/judges/raters.py and driver/rounds/labelling.py. Waits for nobody: what is not rated stays a question.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.data.sources import json_object
from common.ratings import RateItem, Rating
from common.types import Message
from driver.judges.label_book import KeepRating, LabelError, Rater, rating_question
from driver.judges.people import lines_of

LINE = "a JSON object with the key, prompt and response of its question, and scores"


def people_who_rate(path: Path, objectives: Sequence[str]) -> Rater:
    """Answers what judge.file has, and leaves out the rest."""

    def rate(items: Sequence[RateItem], keep: KeepRating) -> None:
        answers = read_ratings(path, objectives)
        for item in items:
            if item.key in answers:
                keep(item, answers[item.key])

    return rate


def question_row(item: RateItem, objectives: Sequence[str]) -> dict[str, object]:
    """A line of labels_pending.jsonl."""
    return {**rating_question(item), "scores": dict.fromkeys(objectives)}


def read_ratings(path: Path, objectives: Sequence[str]) -> dict[str, Rating]:
    """Key -> rating of the lines that have `scores`; nothing where the file is not there yet. Raises LabelError with the file
    and the line."""
    answers: dict[str, Rating] = {}
    for number, line in enumerate(lines_of(path), 1):
        if line.strip() and (answer := _answer(f"{path}:{number}", line, objectives)):
            key, rating = answer
            if answers.setdefault(key, rating) != rating:
                raise LabelError(
                    f"{path}:{number}: this response was rated otherwise further up; keep one line of the two"
                )
    return answers


def _answer(place: str, line: str, objectives: Sequence[str]) -> tuple[str, Rating] | None:
    """None for a comparison, and for a question that nobody has answered."""
    try:
        row: Any = json_object(line.encode())
        if "scores" not in row:
            return None
        item = RateItem(tuple(Message(t["role"], t["content"]) for t in row["prompt"]), {}, row["response"])
        scores = {name: float(value) for name, value in row["scores"].items() if value is not None}
        rating = Rating(scores)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LabelError(
            f"{place}: no rating ({type(error).__name__}: {error}); wanted {LINE}, a number from 0 to 1 or null for each "
            "objective: correct or remove the line"
        ) from error
    if unknown := sorted(set(row["scores"]) - set(objectives)):
        raise LabelError(f"{place}: scores has {unknown[0]!r}; the objectives are {', '.join(objectives)}: correct it")
    if item.key != row["key"]:
        raise LabelError(
            f"{place}: the key is not that of this prompt and response; a rating belongs to the texts as they were asked: copy "
            "the line from labels_pending.jsonl again and change `scores` alone"
        )
    return (item.key, rating) if scores else None
