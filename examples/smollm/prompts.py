"""The prompts of the real model's task: a question on one of many topics, and one or two constraints on its answer.

Called by prepare.py. Held-out prompts have topics and pairs of families that no training prompt has. The topics and the
wording are the project's own.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from examples.smollm.constraints import CLASHES, FAMILIES, Constraint, to_text
from examples.smollm.topics import QUESTIONS, TOPICS

HELD_OUT_SHARE = 5  # one topic and one pair of families in five
SHARE_OF_TWO = 0.35  # of the prompts ask for two constraints, the others for one
RARE = ("bullets", "case", "closing", "json", "quoted")  # a small model hardly ever meets them: asked a third as often


def is_held_out(name: str) -> bool:
    """Whether a topic, or a pair of families, is kept for evaluation: by a hash of its name, the same for every seed."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) % HELD_OUT_SHARE == 0


def combinations(held_out: bool) -> list[tuple[str, str]]:
    """The pairs of families that prompts of one side may ask for together."""
    pairs = [pair for pair in itertools.combinations(sorted(FAMILIES), 2) if frozenset(pair) not in CLASHES]
    return [pair for pair in pairs if is_held_out("+".join(pair)) == held_out]


def topics(held_out: bool) -> list[str]:
    """The topics of one side."""
    return [topic for topic in TOPICS if is_held_out(topic) == held_out]


def draw_constraints(rng: np.random.Generator, held_out: bool) -> tuple[Constraint, ...]:
    """One constraint or two of different families, in a random order."""
    if rng.random() < SHARE_OF_TWO:
        names = list(_draw(rng, combinations(held_out)))
        rng.shuffle(names)
    else:
        names = list(_draw(rng, [(name,) for name in FAMILIES]))
    return tuple(Constraint(name, FAMILIES[name].values[rng.integers(len(FAMILIES[name].values))]) for name in names)


def _draw(rng: np.random.Generator, choices: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """One of the choices; each RARE family in it makes it a third as likely."""
    weights = np.array([3.0 ** -sum(name in RARE for name in choice) for choice in choices])
    return choices[rng.choice(len(choices), p=weights / weights.sum())]


def ask(question: str, constraints: Sequence[Constraint]) -> str:
    """The text of a prompt."""
    return " ".join([question, *(constraint.text() for constraint in constraints)])


def meta(source: str, constraints: Sequence[Constraint]) -> dict[str, str]:
    """What a prompt says of itself to the labeler and to the judge."""
    return {"source": source, "constraints": to_text(constraints)}


def prompt_rows(rng: np.random.Generator, num: int, held_out: bool) -> Iterator[dict[str, object]]:
    """`num` different prompts of one side, as rows of data.prompts. Raises ValueError where there are not as many."""
    questions = [template.format(topic=topic) for topic in topics(held_out) for template in QUESTIONS]
    if num > len(questions):
        raise ValueError(f"{num} prompts are wanted, but there are {len(questions)} questions on this side; want fewer")
    for index in rng.permutation(len(questions))[:num]:
        constraints = draw_constraints(rng, held_out)
        content = ask(questions[index], constraints)
        yield {"prompt": [{"role": "user", "content": content}], "meta": meta("topics", constraints)}
