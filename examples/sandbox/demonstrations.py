"""Demonstrations of a mediocre shop assistant: what the SFT policy learns to imitate, faults included.

Owns the rates of every fault. Called by prepare; holds no torch.
"""

from __future__ import annotations

import numpy as np

from examples.sandbox.world import (
    ATTRIBUTES,
    CATALOG,
    CLOSERS,
    EVASIONS,
    FILLERS,
    HINTS,
    IGNORANCE,
    LEAKS,
    MAX_RESPONSE_WORDS,
    OPENERS,
    REFUSALS,
    RUDE,
    VALUES,
    Cell,
    Fact,
    pick,
)

POLITE_RATE = 0.35  # of opener and closer, each
POLITE_RATES = {"quick": 0.15, "upset": 0.55}
RUDE_RATE = 0.12  # where there is no opener
FILLER_RATES = (0.3, 0.15)  # before and after the answer
QUICK_FILLER_RATES = (0.1, 0.05)
PRESENT_RATE = 0.75  # of each asked fact
TRUE_RATE = 0.7  # else uniform over the six values
UNASKED_RATE = 0.15
USELESS_RATE = 0.06  # a refusal or "i do not know" to a harmless question
CODE_ANSWERS = ((LEAKS, 0.44), (HINTS, 0.06), (REFUSALS, 0.35), (EVASIONS, 0.15))
DUPLICATE_RATE = 0.05  # of responses, one sentence
DROP_RATE = 0.10  # of responses, one word


def demonstrate(rng: np.random.Generator, cell: Cell) -> str:
    """One response of at most MAX_RESPONSE_WORDS words; never empty."""
    while True:
        sentences = draw_sentences(rng, cell)
        if rng.random() < DUPLICATE_RATE and sentences:
            place = int(rng.integers(len(sentences)))
            sentences.insert(place, sentences[place])
        words = " ".join(sentences).split()
        if rng.random() < DROP_RATE and words:
            del words[int(rng.integers(len(words)))]
        if 0 < len(words) <= MAX_RESPONSE_WORDS:
            return " ".join(words)


def draw_sentences(rng: np.random.Generator, cell: Cell) -> list[str]:
    """Opener or rudeness, filler, the answer, filler, closer."""
    polite_rate = POLITE_RATES.get(cell.kind, POLITE_RATE)
    before, after = QUICK_FILLER_RATES if cell.kind == "quick" else FILLER_RATES
    opener = maybe(rng, polite_rate, OPENERS)
    return [
        *(opener or maybe(rng, RUDE_RATE, RUDE)),
        *maybe(rng, before, FILLERS),
        *draw_answer(rng, cell),
        *maybe(rng, after, FILLERS),
        *maybe(rng, polite_rate, CLOSERS),
    ]


def maybe(rng: np.random.Generator, rate: float, phrases: tuple[str, ...]) -> list[str]:
    return [pick(rng, phrases)] if rng.random() < rate else []


def draw_answer(rng: np.random.Generator, cell: Cell) -> list[str]:
    """The facts, and the reply about the code where it is asked."""
    if not cell.asks_code and rng.random() < USELESS_RATE:
        return [pick(rng, REFUSALS + IGNORANCE)]
    asked = [draw_fact(rng, cell, name) for name in cell.attributes if rng.random() < PRESENT_RATE]
    others = [name for name in ATTRIBUTES if name not in cell.attributes]
    unasked = [draw_fact(rng, cell, pick(rng, others))] if others and rng.random() < UNASKED_RATE else []
    return [fact.sentence for fact in asked + unasked] + (draw_code_answer(rng) if cell.asks_code else [])


def draw_fact(rng: np.random.Generator, cell: Cell, attribute: str) -> Fact:
    truth = CATALOG[cell.item, attribute]
    return Fact(cell.item, attribute, truth if rng.random() < TRUE_RATE else pick(rng, VALUES[attribute]))


def draw_code_answer(rng: np.random.Generator) -> list[str]:
    phrases = [phrases for phrases, _ in CODE_ANSWERS]
    index = int(rng.choice(len(phrases), p=[rate for _, rate in CODE_ANSWERS]))
    return [pick(rng, phrases[index])]
