"""Ratings and pairs as one set of conversations grouped by prompt: what the reward model is trained and calibrated on.

Called by learner/reward_training.py and learner/calibration.py. A response that is both rated and in a pair is one
conversation and costs one forward pass; splits are by prompt, so that no held-out prompt was ever trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from common.data import PreferencePair, RatedResponse
from common.types import Message
from rewarder.scoring import Rendered, check_length, render


@dataclass(frozen=True)
class PromptSet:
    """One prompt's conversations. ratings [n, K] with NaN where nobody rated; pairs (chosen index, rejected index)."""

    conversations: tuple[Rendered, ...]
    ratings: NDArray[np.float32]
    pairs: tuple[tuple[int, int], ...]


def prompt_sets(
    ratings: Sequence[RatedResponse],
    pairs: Sequence[PreferencePair],
    objectives: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
) -> dict[str, PromptSet]:
    """Prompt key -> its set, in the order of first appearance. Raises ValueError for ratings of an unknown objective or an
    objective that nobody rated while others are."""
    _check_objectives(ratings, objectives)
    responses: dict[str, dict[str, dict[str, float | None]]] = {}
    messages: dict[str, tuple[Message, ...]] = {}
    chosen: dict[str, list[tuple[str, str]]] = {}
    for row in (*ratings, *pairs):
        messages.setdefault(_key(row.messages), row.messages)
    for row in ratings:
        responses.setdefault(_key(row.messages), {})[row.response] = row.scores
    for pair in pairs:
        known = responses.setdefault(_key(pair.messages), {})
        known.setdefault(pair.chosen, {})
        known.setdefault(pair.rejected, {})
        chosen.setdefault(_key(pair.messages), []).append((pair.chosen, pair.rejected))
    return {
        key: _prompt_set(messages[key], known, chosen.get(key, []), objectives, tokenizer, max_tokens)
        for key, known in responses.items()
    }


def split(sets: dict[str, PromptSet], held_out_fraction: float) -> tuple[list[PromptSet], list[PromptSet]]:
    """(training, held out), by a hash of the prompt: the same prompt falls on the same side in every run."""
    bound = int(held_out_fraction * 2**32)
    sides: tuple[list[PromptSet], list[PromptSet]] = ([], [])
    for key, value in sets.items():
        sides[int(key[:8], 16) < bound].append(value)
    if not sides[0] or not sides[1]:
        raise ValueError(
            f"{len(sets)} prompts split into {len(sides[0])} for training and {len(sides[1])} held out; give more prompts "
            "or change learner.reward_model.held_out_fraction"
        )
    return sides


def _prompt_set(
    messages: tuple[Message, ...],
    known: dict[str, dict[str, float | None]],
    chosen: Sequence[tuple[str, str]],
    objectives: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
) -> PromptSet:
    index = {response: i for i, response in enumerate(known)}
    values = [[np.nan if (v := scores.get(name)) is None else v for name in objectives] for scores in known.values()]
    return PromptSet(
        tuple(check_length(render(tokenizer, messages, response), max_tokens) for response in known),
        np.array(values, dtype=np.float32).reshape(len(known), len(objectives)),
        tuple((index[a], index[b]) for a, b in chosen),
    )


def _check_objectives(ratings: Sequence[RatedResponse], objectives: Sequence[str]) -> None:
    seen = {name for row in ratings for name, value in row.scores.items() if value is not None}
    if unknown := sorted(seen - set(objectives)):
        raise ValueError(f"ratings name objectives {unknown} that rewarder.objectives lacks; add them or drop them")
    if ratings and (missing := [name for name in objectives if name not in seen]):
        raise ValueError(f"no rating of objectives {missing} in {len(ratings)} rated responses; rate them or drop them")


def _key(messages: Sequence[Message]) -> str:
    text = "\x1e".join(f"{message.role}\x1f{message.content}" for message in messages)
    return hashlib.sha256(text.encode()).hexdigest()
