"""Where the labels of each objective come from: people's ratings, a program that rates a response, or preference pairs.

Owns what a program is (`rewarder.programs`): a pure function (messages, response) -> number in [0, 1], named as
"package.module:function". Called by the preflight and by the reward-model stage; holds no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from types import MappingProxyType

from common.data.data import RatedResponse
from common.data.sources import short
from common.data.split import is_held_out
from common.judge import load_function
from common.types import Message

Program = Callable[[Sequence[Message], str], float]
NO_PROGRAMS: Mapping[str, Program] = MappingProxyType({})


@dataclass(frozen=True)
class LabelFiles:
    """What a reward model is trained and calibrated on: files (or Hub data sets) of ratings, of pairs, and of the strengths of
    those pairs (common/data/strengths.py); and what stage collect made where people's labels of the same kind are there too.
    The head of rewarder.preference learns from `pairs` alone, the gate from both."""

    ratings: str | None
    pairs: str | None
    strengths: str | None = None
    collected_ratings: str | None = None
    collected_pairs: str | None = None

    def all(self) -> tuple[str | None, ...]:
        """The paths, None where a kind of label is absent."""
        return self.ratings, self.pairs, self.strengths, self.collected_ratings, self.collected_pairs


def label_files(
    ratings: str | None, pairs: str | None, collected: Path | None, strengths: str | None = None
) -> LabelFiles:
    """The labels of a run: what people brought, and the directory of what stage collect made, where it is among the stages."""
    if collected is None:
        return LabelFiles(ratings, pairs, strengths)
    rated, compared = (str(collected / f"{name}.jsonl") for name in ("ratings", "preferences"))
    beside = rated if ratings else None, compared if pairs else None
    return LabelFiles(ratings or rated, pairs or compared, strengths, *beside)


class ProgramError(ValueError):
    """A program of the user's that raised, or whose value is no number in [0, 1]."""


def load_programs(specs: Mapping[str, str]) -> dict[str, Program]:
    """The functions named by rewarder.programs. Raises ValueError for one that is not there."""
    return {objective: load_function(spec) for objective, spec in specs.items()}


def rate(programs: Mapping[str, Program], messages: Sequence[Message], response: str) -> dict[str, float]:
    """What each program says of one response. Raises ProgramError."""
    return {objective: _rate(objective, program, messages, response) for objective, program in programs.items()}


def _rate(objective: str, program: Program, messages: Sequence[Message], response: str) -> float:
    try:
        value = program(messages, response)
    except Exception as error:  # the user's code may raise anything; it is named with the response
        raise ProgramError(
            f"rewarder.programs.{objective} raised {type(error).__name__}: {error}, on the response {short(response)}; "
            "a program must take any response, an empty one too"
        ) from error
    if not isinstance(value, Real) or not 0 <= value <= 1:  # NaN is outside too
        raise ProgramError(
            f"rewarder.programs.{objective} returned {short(value)} for the response {short(response)}; wanted a number "
            "in [0, 1]"
        )
    return float(value)


def rated_objectives(ratings: Iterable[RatedResponse]) -> set[str]:
    """The objectives that at least one response is rated on."""
    return {name for row in ratings for name, score in row.scores.items() if score is not None}


def held_out_alone(ratings: Sequence[RatedResponse], held_out_fraction: float) -> list[str]:
    """A line naming the objectives that are rated on held-out prompts only: nothing would train their heads."""
    trained = rated_objectives(row for row in ratings if not is_held_out(row.messages, held_out_fraction))
    if missing := sorted(rated_objectives(ratings) - trained):
        return [
            f"every rating of {', '.join(missing)} is of a held-out prompt (learner.reward_model.held_out_fraction "
            f"{held_out_fraction:g}), so that nothing would train the head; rate more prompts, or lower the fraction"
        ]
    return []


def untrained_heads(
    objectives: Sequence[str],
    ratings: Sequence[RatedResponse],
    programs: Collection[str],
    preference: str | None,
    num_pairs: int,
    held_out_fraction: float,
) -> list[str]:
    """Why labels leave heads of a new reward model without training: a line an objective without one source of labels, else
    one for those with ratings of held-out prompts alone."""
    found = wrong_sources(objectives, rated_objectives(ratings), programs, preference, num_pairs)
    return found or held_out_alone(ratings, held_out_fraction)


def unknown_objectives(ratings: Iterable[RatedResponse], objectives: Sequence[str]) -> list[str]:
    """A line naming what is rated and is no objective of the reward model."""
    if unknown := sorted(rated_objectives(ratings) - set(objectives)):
        return [f"ratings name objectives {unknown} that rewarder.objectives lacks; add them or drop them"]
    return []


def wrong_sources(
    objectives: Sequence[str], rated: Collection[str], programs: Collection[str], preference: str | None, num_pairs: int
) -> list[str]:
    """One line for each objective that has no source of labels, or more than one, and for a preference without pairs."""
    sources = _sources(objectives, rated, programs, preference)
    found = doubled_sources(objectives, rated, programs, preference)
    if missing := [name for name, given in sources.items() if not given]:
        found.append(
            f"no rating of {', '.join(missing)}: the ratings have {', '.join(sorted(rated)) or 'nothing'}; add ratings, "
            "name a program in rewarder.programs, name the one that pairs train in rewarder.preference, or drop it from "
            "rewarder.objectives"
        )
    if preference is not None and num_pairs == 0:
        found.append(f"rewarder.preference {preference!r} is trained on preference pairs, and there are none")
    return found


def doubled_sources(
    objectives: Sequence[str], rated: Collection[str], programs: Collection[str], preference: str | None
) -> list[str]:
    """One line for each objective that has more than one source of labels."""
    return [
        f"objective {name!r} has {len(given)} sources of labels, {' and '.join(given)}; keep one of them"
        for name, given in _sources(objectives, rated, programs, preference).items()
        if len(given) > 1
    ]


def _sources(
    objectives: Sequence[str], rated: Collection[str], programs: Collection[str], preference: str | None
) -> dict[str, list[str]]:
    """Objective -> where its labels come from, in words."""
    return {
        name: [f"ratings ({name})"] * (name in rated)
        + [f"rewarder.programs.{name}"] * (name in programs)
        + ["rewarder.preference"] * (name == preference)
        for name in objectives
    }
