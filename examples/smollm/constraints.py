"""Instructions that a program can check: how each family asks, and whether a response does what was asked.

Called by prompts.py (which asks), labels.py (which rates training samples) and gold.py (which judges held-out ones). Pure
functions of text; no torch. In the manner of IFEval (2311.07911); the families, their wording and their checks are our own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

# One value a family: a head of the reward model then learns one property of a response, and the gate when it is asked for. More
# values of a family (other words, other numbers) are one more entry each in its head's data, and need as much more of it.
SENTENCES, WORDS, POINTS = ("1",), ("20",), ("2",)
KEYWORDS, AVOIDED = ("people",), ("the",)
CLOSINGS, OPENINGS = ("That is all.",), ("The",)
CASES = ("lower",)

WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
SENTENCE_END = re.compile(r"[.!?]+[\"'\u201d\u2019)\]]*(?=\s|$)")
BULLET = re.compile(r"^\s*[-*•]\s+\S")
NUMBER_NAMES = MappingProxyType({"1": "one", "2": "two", "3": "three"})


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of constraint: the values that it can take ("" where it has none), how it is put in words, and its check, which
    takes the value and a response that is not empty."""

    values: tuple[str, ...]
    asks: Callable[[str], str]
    holds: Callable[[str, str], bool]


@dataclass(frozen=True, slots=True)
class Constraint:
    """One thing that a prompt asks for: the name of its family and its value."""

    family: str
    value: str

    def text(self) -> str:
        """The sentence that the prompt says."""
        return FAMILIES[self.family].asks(self.value)

    def met(self, response: str) -> bool:
        """Whether a response does it. An empty response does nothing that was asked."""
        return bool(response.strip()) and FAMILIES[self.family].holds(self.value, response.strip())


def words(text: str) -> list[str]:
    """The words of a text in lower case; a word with an apostrophe is one."""
    return [word.lower() for word in WORD.findall(text)]


def num_sentences(text: str) -> int:
    """The sentences of a text; words that follow the last full stop count as one more."""
    ends = list(SENTENCE_END.finditer(text))
    rest = text[ends[-1].end() :] if ends else text
    return len(ends) + bool(words(rest))


def _points(text: str) -> int:
    """The number of bullet points where every line that is not empty is one, else 0."""
    lines = [line for line in text.splitlines() if line.strip()]
    return len(lines) if all(BULLET.match(line) for line in lines) else 0


def _is_case(value: str, text: str) -> bool:
    letters = [letter for letter in text if letter.isalpha()]
    right = str.islower if value == "lower" else str.isupper
    return bool(letters) and all(right(letter) for letter in letters if letter.lower() != letter.upper())


def _is_answer_object(_: str, text: str) -> bool:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and list(found) == ["answer"] and bool(str(found["answer"]).strip())


def _is_quoted(_: str, text: str) -> bool:
    inner = text[1:-1]
    return len(text) > 2 and text[0] == text[-1] == '"' and '"' not in inner and bool(inner.strip())


def _plural(value: str, noun: str) -> str:
    return f"exactly {NUMBER_NAMES[value]} {noun}{'' if value == '1' else 's'}"


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "sentences": Family(
            SENTENCES,
            lambda value: f"Answer in {_plural(value, 'sentence')}.",
            lambda value, text: num_sentences(text) == int(value),
        ),
        "words": Family(
            WORDS,
            lambda value: f"Use at most {value} words.",
            lambda value, text: 0 < len(words(text)) <= int(value),
        ),
        "bullets": Family(
            POINTS,
            lambda value: f'Write {_plural(value, "bullet point")} that start with "- ", and nothing else.',
            lambda value, text: _points(text) == int(value),
        ),
        "keyword": Family(
            KEYWORDS,
            lambda value: f'Use the word "{value}".',
            lambda value, text: value in words(text),
        ),
        "avoid": Family(
            AVOIDED,
            lambda value: f'Do not use the word "{value}".',
            lambda value, text: bool(words(text)) and value not in words(text),
        ),
        "case": Family(
            CASES,
            lambda value: f"Write in {value} case letters only.",
            _is_case,
        ),
        "closing": Family(
            CLOSINGS,
            lambda value: f'End with exactly these words: "{value}"',
            lambda value, text: text.endswith(value) and text != value,
        ),
        "opening": Family(
            OPENINGS,
            lambda value: f'Begin with the word "{value}".',
            lambda value, text: words(text)[:1] == [value.lower()] and text.startswith(value),
        ),
        "json": Family(
            ("",),
            lambda _: 'Answer with a JSON object that has one key, "answer".',
            _is_answer_object,
        ),
        "commas": Family(
            ("",),
            lambda _: "Do not use any commas.",
            lambda _, text: bool(words(text)) and "," not in text,
        ),
        "quoted": Family(
            ("",),
            lambda _: "Put the whole answer in double quotation marks.",
            _is_quoted,
        ),
    }
)

# Families that no text can satisfy together, or hardly: they are never asked in one prompt.
CLASHES = frozenset(
    frozenset(pair)
    for pair in (
        ("json", "bullets"),
        ("json", "closing"),
        ("json", "opening"),
        ("json", "quoted"),
        ("json", "case"),
        ("quoted", "bullets"),
        ("quoted", "closing"),
        ("quoted", "opening"),
        ("bullets", "sentences"),
        ("bullets", "opening"),
        ("bullets", "closing"),
        ("case", "opening"),
        ("case", "closing"),
        ("json", "sentences"),
        ("avoid", "opening"),
        ("closing", "sentences"),
    )
)


def met(constraints: Sequence[Constraint], response: str) -> dict[str, bool]:
    """{family: whether its constraint is met}, for each constraint of a prompt."""
    return {constraint.family: constraint.met(response) for constraint in constraints}


def to_text(constraints: Sequence[Constraint]) -> str:
    """The constraints as they stand in a prompt's meta, whose values are texts."""
    return json.dumps([[constraint.family, constraint.value] for constraint in constraints])


def from_text(text: str) -> tuple[Constraint, ...]:
    """What to_text wrote. Raises ValueError for another text, or for a family that does not exist."""
    try:
        found = tuple(Constraint(family, value) for family, value in json.loads(text))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"constraints: {text[:80]!r} is not a list of [family, value]; write it with to_text"
        ) from error
    if unknown := sorted({constraint.family for constraint in found} - set(FAMILIES)):
        raise ValueError(f"constraints: no family {unknown[0]!r}; the families are {', '.join(FAMILIES)}")
    return found
