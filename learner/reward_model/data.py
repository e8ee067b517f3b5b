"""Ratings and pairs as one set of conversations grouped by prompt: what the reward model is trained and calibrated on.

Called by learner/reward_model/stage.py, learner/adaptation/worker.py and learner/adaptation/candidates.py. A response that
is both rated and in a pair is one conversation and costs one forward pass; splits are by prompt, so that no held-out prompt
was ever trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from common.config.config import DenoisingConfig, RewarderConfig, RewardTrainingConfig
from common.data.data import PreferencePair, RatedResponse, merged, read_pairs, read_ratings
from common.data.fields import Answer
from common.data.label_sources import (
    NO_PROGRAMS,
    LabelFiles,
    Program,
    load_programs,
    rate,
    unknown_objectives,
    untrained_heads,
)
from common.data.rows import Rows
from common.data.sides import pair_sides, rating_sides
from common.data.sources import short
from common.data.split import is_held_out, prompt_key
from common.data.strengths import read_strengths
from common.types import Message
from learner.reward_model.denoising import denoised_pairs
from rewarder.fitting import Fitting
from rewarder.scoring import OVERFLOW, Rendered

CHECKED_ROWS = 8192  # at a time: hidden states may be a memory-mapped file


@dataclass(frozen=True, slots=True)
class Pair:
    """Indices of two conversations of a prompt, and the label: `chosen` is better with probability `target`, by `margin`;
    `weight` of its loss; whether it is a label of the objective rewarder.preference (else it trains the gated score alone)."""

    chosen: int
    rejected: int
    target: float = 1.0
    margin: float = 0.0
    weight: float = 1.0
    of_preference: bool = True


@dataclass(frozen=True)
class PromptSet:
    """One prompt's conversations. ratings [n, K] with NaN where nothing rates; pairs of their indices."""

    messages: tuple[Message, ...]
    conversations: tuple[Rendered, ...]
    ratings: NDArray[np.float32]
    pairs: tuple[Pair, ...]

    @property
    def is_rated(self) -> bool:
        """Whether an objective of a response is rated."""
        return bool(np.isfinite(self.ratings).any())


@dataclass(frozen=True)
class Labels:
    """The ratings and pairs that the model can be used on, those that stage collect made beside them, and their conversations,
    rendered once."""

    ratings: Rows[RatedResponse]
    pairs: Rows[PreferencePair]
    fitting: Fitting
    collected_ratings: Rows[RatedResponse]
    collected_pairs: Rows[PreferencePair]

    def counts(self) -> list[str]:
        """What became of the rows of each file: one line a file."""
        files = self.ratings, self.pairs, self.collected_ratings, self.collected_pairs
        return [f"{rows.source}: {rows.counts()}" for rows in files if rows or rows.left_out]

    def all_ratings(self) -> Rows[RatedResponse]:
        """Those of both files; a response that both rate is one row."""
        both = *self.ratings, *self.collected_ratings
        numbers = *self.ratings.numbers, *self.collected_ratings.numbers
        return merged(Rows(self.ratings.source, both, numbers)) if self.collected_ratings else self.ratings


def read_labels(
    files: LabelFiles,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    pair_weights: Sequence[float] | None = None,
) -> Labels:
    """The rows of the files, without those that are too long and pairs of equal tokens, which are counted. pair_weights are of
    the losses of the pairs in files.pairs, in its order."""
    fitting = Fitting(tokenizer, max_tokens)
    rated, more_rated = (
        fitting.usable(read_ratings(file) if file else Rows[RatedResponse](""), rating_sides)
        for file in (files.ratings, files.collected_ratings)
    )
    paired, more_paired = (
        read_pairs(file) if file else Rows[PreferencePair]("") for file in (files.pairs, files.collected_pairs)
    )
    if pair_weights is not None:
        paired[:] = [replace(pair, weight=float(w)) for pair, w in zip(paired, pair_weights, strict=True)]
    more_paired[:] = [replace(pair, of_preference=False) for pair in more_paired]
    paired, more_paired = (fitting.usable(pairs, pair_sides) for pairs in (paired, more_paired))
    return Labels(rated, paired, fitting, more_rated, more_paired)


def read_sides(
    files: LabelFiles,
    objectives: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    rewarder: RewarderConfig,
    training: RewardTrainingConfig,
    pair_weights: Sequence[float] | None = None,
) -> tuple[list[PromptSet], list[PromptSet]]:
    """sides_of what read_labels finds."""
    labels = read_labels(files, tokenizer, rewarder.max_tokens, pair_weights)
    return sides_of(labels, files.strengths, objectives, rewarder, training)


def sides_of(
    labels: Labels,
    strengths: str | None,
    objectives: Sequence[str],
    rewarder: RewarderConfig,
    training: RewardTrainingConfig,
) -> tuple[list[PromptSet], list[PromptSet]]:
    """(training, held out) of the labels and the configured programs; training pairs are denoised, held-out ones as they came,
    and so are those that stage collect made beside people's. Raises ValueError where a model that is to be trained (no
    rewarder.model) has an objective without a source of labels, or with ratings of held-out prompts alone; and for strengths of
    other pairs."""
    fraction, paired = training.held_out_fraction, list(labels.pairs)
    ratings = labels.all_ratings()
    sources = ratings, rewarder.programs, rewarder.preference, len(paired)
    if rewarder.model is None and (problems := untrained_heads(objectives, *sources, fraction)):
        raise ValueError("\n".join(problems))
    programs = load_programs(rewarder.programs)
    if paired and not training.denoising.is_neutral:
        paired = _denoised(paired, strengths, training.denoising, fraction)
    fitting, most = labels.fitting, rewarder.max_tokens
    paired += labels.collected_pairs
    sets = prompt_sets(ratings, paired, objectives, fitting.tokenizer, most, programs, fitting)
    return split(sets, fraction)


def _denoised(
    pairs: Sequence[PreferencePair], strengths: str | None, denoising: DenoisingConfig, fraction: float
) -> list[PreferencePair]:
    """The training pairs denoised, then the held-out ones as they are."""
    held_out = np.array([is_held_out(pair.messages, fraction) for pair in pairs])
    if denoising.needs_strength:
        assert strengths is not None, "the configuration asks for a source of strengths"
        strength = read_strengths(strengths, pairs)
        mean, std = strength.mean[~held_out], strength.std[~held_out]
    else:
        mean = std = np.zeros(int((~held_out).sum()))
    kept, unseen = ([pairs[index] for index in np.flatnonzero(side)] for side in (~held_out, held_out))
    return [*denoised_pairs(kept, mean, std, denoising), *unseen]


def prompt_sets(
    ratings: Sequence[RatedResponse],
    pairs: Sequence[PreferencePair],
    objectives: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    programs: Mapping[str, Program] = NO_PROGRAMS,
    fitting: Fitting | None = None,
) -> dict[str, PromptSet]:
    """Prompt key -> its set, in the order of first appearance; `programs` rate every response; `fitting` has conversations that
    are rendered already. Raises ValueError for ratings of an unknown objective, ProgramError and ConversationTooLong."""
    fitting = fitting or Fitting(tokenizer, max_tokens)
    if problems := unknown_objectives(ratings, objectives):
        raise ValueError("\n".join(problems))
    responses: dict[str, dict[str, dict[str, float | None]]] = {}
    messages: dict[str, tuple[Message, ...]] = {}
    compared: dict[str, list[PreferencePair]] = {}
    for row in (*ratings, *pairs):
        messages.setdefault(prompt_key(row.messages), row.messages)
    for row in ratings:
        responses.setdefault(prompt_key(row.messages), {})[row.response] = row.scores
    for pair in pairs:
        known = responses.setdefault(prompt_key(pair.messages), {})
        known.setdefault(pair.chosen, {})
        known.setdefault(pair.rejected, {})
        compared.setdefault(prompt_key(pair.messages), []).append(pair)
    return {
        key: _prompt_set(
            messages[key], _rated(programs, messages[key], known), compared.get(key, []), objectives, fitting
        )
        for key, known in responses.items()
    }


def split(sets: dict[str, PromptSet], held_out_fraction: float) -> tuple[list[PromptSet], list[PromptSet]]:
    """(training, held out), by a hash of the prompt's opening: the same prompt falls on the same side in every run."""
    sides: tuple[list[PromptSet], list[PromptSet]] = ([], [])
    for value in sets.values():
        sides[is_held_out(value.messages, held_out_fraction)].append(value)
    if not sides[0] or not sides[1]:
        raise ValueError(
            f"{len(sets)} prompts split into {len(sides[0])} for training and {len(sides[1])} held out; give more prompts "
            "or change learner.reward_model.held_out_fraction"
        )
    return sides


def flatten(sets: Sequence[PromptSet]) -> tuple[list[Rendered], Tensor, Tensor, Tensor, Tensor]:
    """All conversations in one list, with ratings [N, K], pairs [P, 2] in its indices, their labels [P, 4] (target, margin,
    weight, and 1 where the pair is of_preference) and prompt_of [N]."""
    rendered = [conversation for prompt in sets for conversation in prompt.conversations]
    starts = np.cumsum([0, *(len(prompt.conversations) for prompt in sets)])
    pairs = [(start + p.chosen, start + p.rejected) for start, s in zip(starts, sets, strict=False) for p in s.pairs]
    labels = [(p.target, p.margin, p.weight, float(p.of_preference)) for prompt in sets for p in prompt.pairs]
    prompt_of = np.repeat(np.arange(len(sets)), [len(prompt.conversations) for prompt in sets])
    ratings = torch.from_numpy(np.concatenate([prompt.ratings for prompt in sets]))
    indices, labels = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2), torch.tensor(labels).reshape(-1, 4)
    return rendered, ratings, indices, labels, torch.from_numpy(prompt_of)


def check_finite_rows(what: str, values: Sequence[Tensor], sets: Sequence[PromptSet]) -> None:
    """ValueError naming the first conversation's prompt where a value is not finite; values [N, ...] each, of the N
    conversations of these sets in order."""
    prompts = [prompt for prompt in sets for _ in prompt.conversations]
    for start in range(0, len(prompts), CHECKED_ROWS):
        parts = [value[start : start + CHECKED_ROWS].flatten(1) for value in values]
        wrong = ~torch.stack([part.isfinite().all(1) for part in parts]).all(0)
        if bool(wrong.any()):
            row = start + int(wrong.nonzero()[0])
            raise ValueError(
                f"{what} of conversation {row} of {len(prompts)} are not finite; its prompt is "
                f"{short(prompts[row].messages[-1].content)}; {OVERFLOW}"
            )


def _prompt_set(
    messages: tuple[Message, ...],
    known: dict[str, dict[str, float | None]],
    compared: Sequence[PreferencePair],
    objectives: Sequence[str],
    fitting: Fitting,
) -> PromptSet:
    index = {response: i for i, response in enumerate(known)}
    values = [[np.nan if (v := scores.get(name)) is None else v for name in objectives] for scores in known.values()]
    return PromptSet(
        messages,
        tuple(fitting.whole(Answer(messages, response) for response in known)),
        np.array(values, dtype=np.float32).reshape(len(known), len(objectives)),
        tuple(
            Pair(index[p.chosen], index[p.rejected], p.target, p.margin, p.weight, p.of_preference) for p in compared
        ),
    )


def _rated(
    programs: Mapping[str, Program], messages: tuple[Message, ...], known: dict[str, dict[str, float | None]]
) -> dict[str, dict[str, float | None]]:
    """response -> its scores, with those of the programs."""
    return {response: {**scores, **rate(programs, messages, response)} for response, scores in known.items()}
