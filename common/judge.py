"""What a judge sees and says: the item to be judged, labels for training, and how a function is named in a config.

Owns the records between the project and a user's judge or labeler (`judge.function`, `judge.labeler`), and the only
place that resolves "package.module:function". Called by the driver, the stages that buy labels (driver/judges/label_book.py
keeps those of pairs) and the reward model's adapter; holds no torch.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any, Literal

from common.errors import RunError
from common.types import Message, Prompt, Rollout

LABEL_SEEDS = 1_000_003  # more than there are prompts, so that no two runs share a labeler's seed


@dataclass(frozen=True, slots=True)
class JudgeItem:
    """One response to be judged: the prompt's messages and meta, the text, and why it ended ("stop" or "length")."""

    messages: tuple[Message, ...]
    meta: dict[str, str]
    response: str
    finish_reason: str


class JudgeError(RunError):
    """The user's judge failed."""


Preference = Literal["first", "second", "tie"]
PREFERENCES: tuple[Preference, ...] = ("first", "second", "tie")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge said of a pair; `why` says of a tie that the judge did not mean what made it one (empty else)."""

    preferred: Preference
    why: str = ""


# Why a pair is a tie though nobody found both equally good
ORDERS = "orders disagree"  # another answer when the responses changed places
UNREADABLE = "unreadable"  # no A, B or C, twice
TOO_LONG = "too long"  # for the judge


@dataclass(frozen=True, slots=True)
class PairItem:
    """Two different responses to one prompt, to be compared. Made by `pair_item`, which fixes their order by content."""

    messages: tuple[Message, ...]
    meta: dict[str, str]
    first: str
    second: str

    @property
    def key(self) -> str:
        """SHA-256 over the prompt's messages and both responses: a label belongs to content, not to when it was asked."""
        turns = [[message.role, message.content] for message in self.messages]
        return hashlib.sha256(json.dumps([turns, self.first, self.second]).encode()).hexdigest()

    @property
    def items(self) -> list[JudgeItem]:
        """Both responses as a judge sees them."""
        return [JudgeItem(self.messages, self.meta, response, "stop") for response in (self.first, self.second)]


def pair_item(messages: tuple[Message, ...], meta: dict[str, str], response: str, other: str) -> PairItem:
    """The pair in the order of its responses' hashes: the same whichever comes first, and a judge's liking for the first
    place favours no kind of text. Raises ValueError where the responses are the same."""
    if response == other:
        raise ValueError(f"a pair needs two different responses, got twice {response[:80]!r}")
    first, second = sorted((response, other), key=lambda text: hashlib.sha256(text.encode()).digest())
    return PairItem(messages, meta, first, second)


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels of the responses to one prompt. ratings[i]: {objective: rating in [0, 1], or None where not rated};
    pairs: (index of the chosen response, index of the rejected one), ...."""

    ratings: list[dict[str, float | None]]
    pairs: list[tuple[int, int]]

    def __post_init__(self) -> None:
        for index, ratings in enumerate(self.ratings):
            for name, value in ratings.items():
                if value is not None and not 0 <= value <= 1:  # NaN is outside too
                    raise ValueError(
                        f"labels: response {index} has {name} {value}; a rating is a number in [0, 1], or None where there "
                        "is none; correct the labeler (how to map another scale: docs/data.md)."
                    )
        count = len(self.ratings)
        for chosen, rejected in self.pairs:
            if chosen == rejected or not (0 <= chosen < count and 0 <= rejected < count):
                raise ValueError(
                    f"labels: pair ({chosen}, {rejected}) of {count} responses; "
                    f"a pair must name two different indices in [0, {count}); correct the labeler."
                )


def label_samples(
    label: Callable[[list[JudgeItem], int], Labels],
    prompts: Sequence[Prompt],
    samples: Sequence[Sequence[Rollout]],
    seed: int,
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Asks the labeler about each prompt's samples; rows of data.ratings and of data.preferences. Raises JudgeError where it
    raises or does not rate each sample once."""
    ratings: list[dict[str, object]] = []
    pairs: list[dict[str, object]] = []
    for index, (prompt, rollouts) in enumerate(zip(prompts, samples, strict=True)):
        items = [JudgeItem(prompt.messages, prompt.meta, r.response, r.finish_reason) for r in rollouts]
        labels = _ask_labeler(label, items, seed * LABEL_SEEDS + index)
        turns = [asdict(message) for message in prompt.messages]
        rated = zip(items, labels.ratings, strict=True)
        ratings += [{"prompt": turns, "response": item.response, "scores": scores} for item, scores in rated]
        pairs += [
            {"prompt": turns, "chosen": items[a].response, "rejected": items[b].response} for a, b in labels.pairs
        ]
    return ratings, pairs


def _ask_labeler(label: Callable[[list[JudgeItem], int], Labels], items: list[JudgeItem], seed: int) -> Labels:
    try:
        labels = label(items, seed)
    except Exception as error:  # the user's code may raise anything; the run ends with its name
        raise JudgeError(
            f"judge.labeler raised {type(error).__name__}: {error}, on {items[0].response[:80]!r}"
        ) from error
    if len(labels.ratings) != len(items):
        raise JudgeError(
            f"judge.labeler returned {len(labels.ratings)} ratings for {len(items)} responses; want one dict a response, {{}} "
            "where nothing is rated"
        )
    return labels


def without_equal_texts(pairs: Sequence[dict[str, object]]) -> tuple[list[dict[str, object]], int]:
    """The pairs of two different texts, and how many others there were: samples of one prompt may be alike, and a preference
    between equal texts says nothing."""
    kept = [pair for pair in pairs if pair["chosen"] != pair["rejected"]]
    return kept, len(pairs) - len(kept)


def ask_judge(judge: Callable[[JudgeItem], dict[str, float]], item: JudgeItem) -> dict[str, float]:
    """What judge.function says of one response. Raises JudgeError where it raises or gives no finite gold."""
    try:
        scores = judge(item)
    except Exception as error:  # the user's code may raise anything; the run ends with its name
        raise JudgeError(f"judge.function raised {type(error).__name__}: {error}, on {item.response[:80]!r}") from error
    if "gold" not in scores:
        raise JudgeError(f"judge.function returned {sorted(scores)}; wanted a mapping with the key 'gold'")
    if not math.isfinite(scores["gold"]):
        raise JudgeError(
            f"judge.function returned gold {scores['gold']} on {item.response[:80]!r}; wanted a finite number"
        )
    return scores


def load_function(spec: str) -> Callable[..., Any]:
    """The function that "package.module:function" names. Raises ValueError when there is none; an error inside the
    module's own imports is raised as it is."""
    module_name, colon, name = spec.partition(":")
    if not colon or not all(part.isidentifier() for part in [*module_name.split("."), name]):
        raise ValueError(f'function {spec!r} is malformed; write it as "package.module:function".')
    found = vars(_import(module_name, spec))
    if name not in found:
        raise ValueError(
            f"function {spec!r}: module {module_name} has no {name!r}; define it there or correct the name."
        )
    if not callable(found[name]):
        raise ValueError(f"function {spec!r} is a {type(found[name]).__name__}, not callable; name a function.")
    return found[name]


def _import(module_name: str, spec: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module exists; something that it imports does not
        raise ValueError(
            f"function {spec!r}: no module named {error.name!r}; run from the directory that holds it, "
            "put that directory on PYTHONPATH, or install the package."
        ) from error
