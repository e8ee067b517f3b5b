"""What a judge sees and says: the item to be judged, labels for training, and how a function is named in a config.

Owns the records between the project and a user's judge or labeler (`judge.function`, `judge.labeler`), and the only
place that resolves "package.module:function". Called by the driver and the stages that buy labels; holds no torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

from common.types import Message, Prompt, Rollout

LABEL_SEEDS = 1_000_003  # more than there are prompts, so that no two runs share a labeler's seed


@dataclass(frozen=True, slots=True)
class JudgeItem:
    """One response to be judged: the prompt's messages and meta, the text, and why it ended ("stop" or "length")."""

    messages: tuple[Message, ...]
    meta: dict[str, str]
    response: str
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels of the responses to one prompt. ratings[i]: {objective: rating in [0, 1], or None where not rated};
    pairs: (index of the chosen response, index of the rejected one), ...."""

    ratings: list[dict[str, float | None]]
    pairs: list[tuple[int, int]]

    def __post_init__(self) -> None:
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
    """Asks the labeler about each prompt's samples; rows of data.ratings and of data.preferences."""
    ratings: list[dict[str, object]] = []
    pairs: list[dict[str, object]] = []
    for index, (prompt, rollouts) in enumerate(zip(prompts, samples, strict=True)):
        items = [JudgeItem(prompt.messages, prompt.meta, r.response, r.finish_reason) for r in rollouts]
        labels = label(items, seed * LABEL_SEEDS + index)
        turns = [asdict(message) for message in prompt.messages]
        rated = zip(items, labels.ratings, strict=True)
        ratings += [{"prompt": turns, "response": item.response, "scores": scores} for item, scores in rated]
        pairs += [
            {"prompt": turns, "chosen": items[a].response, "rejected": items[b].response} for a, b in labels.pairs
        ]
    return ratings, pairs


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
