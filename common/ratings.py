"""A response to be rated on the objectives, and what a judge said of it. Called as common/judge.py is; holds no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from common.judge import JudgeError, JudgeItem
from common.types import Message


@dataclass(frozen=True, slots=True)
class RateItem:
    """One whole response, to be rated on every objective."""

    messages: tuple[Message, ...]
    meta: dict[str, str]
    response: str

    @property
    def key(self) -> str:
        """SHA-256 over the prompt's messages and the response; a pair of the same texts has another one."""
        turns = [[message.role, message.content] for message in self.messages]
        return hashlib.sha256(json.dumps(["rating", turns, self.response]).encode()).hexdigest()

    @property
    def item(self) -> JudgeItem:
        """The response as a judge sees it."""
        return JudgeItem(self.messages, self.meta, self.response, "stop")


@dataclass(frozen=True, slots=True)
class Rating:
    """What a judge said: objective -> number in [0, 1], of those that it rated. `why` says why there is none, where the judge
    did not mean to leave the response unrated (UNREADABLE or TOO_LONG of common/judge.py). Raises ValueError for a number
    outside."""

    scores: dict[str, float]
    why: str = ""

    def __post_init__(self) -> None:
        for name, value in self.scores.items():
            if not 0 <= value <= 1:  # NaN is outside too
                raise ValueError(f"the rating of {name} is {value}; wanted a number in [0, 1]")


def rating_of(who: str, scores: Mapping[str, float | None], objectives: Iterable[str], item: RateItem) -> Rating:
    """The rating that a function of the user gave. Raises JudgeError, which names `who`, where it rates none of the objectives
    or outside [0, 1]."""
    names = list(objectives)
    if not set(names) & set(scores):
        raise JudgeError(
            f"{who} rates {', '.join(sorted(scores)) or 'nothing'}, none of the objectives {', '.join(names)}, on "
            f"{item.response[:80]!r}; have it rate them, or set adaptation.labels: pairs"
        )
    given = {name: scores[name] for name in names if name in scores}
    try:
        return Rating({name: float(value) for name, value in given.items() if value is not None})
    except (TypeError, ValueError) as error:
        raise JudgeError(f"{who}: {error}, on {item.response[:80]!r}; correct it (docs/adaptation.md)") from error
