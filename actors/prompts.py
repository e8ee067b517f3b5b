"""Which prompt a slot gets: chat template, disjoint shards of the iterations, slot -> prompt, response seeds.

Called by the driver (to know how long an iteration is) and by the actors (to answer slots). Waits for nothing.
All orders come from (run seed, what they order) alone, so every process computes the same ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.chat.chat import Chat, chat_of
from common.chat.template import RenderError, Tokenizer
from common.data.data import PromptRow
from common.types import IntArray, Prompt

SEED_LIMIT = 2**31 - 10**4  # a response seed plus k < 10^4 still fits in an int32


@dataclass(frozen=True)
class SampleRequest:
    """num_responses samples of one prompt; response k is drawn with seed + k."""

    token_ids: IntArray
    num_responses: int
    seed: int


def tokenize_prompts(
    rows: Sequence[PromptRow], tokenizer: Tokenizer, max_prompt_tokens: int, long_prompts: str
) -> tuple[list[Prompt], int]:
    """The prompts through the chat template with the response opened, in the order of `rows`, and how many were skipped
    for being longer than max_prompt_tokens. With long_prompts "refuse" the first such prompt is a ValueError."""
    chat = chat_of(tokenizer)
    prompts = [_tokenized(row, chat) for row in rows]
    kept = [prompt for prompt in prompts if len(prompt.token_ids) <= max_prompt_tokens]
    skipped = len(prompts) - len(kept)
    if skipped and long_prompts == "refuse":
        raise ValueError(_too_long(prompts, skipped, max_prompt_tokens))
    if not kept:
        raise ValueError(f"no prompt is left: all {skipped} are longer than data.max_prompt_tokens {max_prompt_tokens}")
    return kept, skipped


def shard(prompts: Sequence[Prompt], iteration: int, num_iterations: int, seed: int) -> list[Prompt]:
    """The prompts of iteration 0 .. num_iterations - 1: disjoint parts of one seeded permutation that together cover
    it, their sizes at most one apart. Raises ValueError where an iteration would get none."""
    assert 0 <= iteration < num_iterations, f"iteration {iteration} of {num_iterations}"
    if len(prompts) < num_iterations:
        raise ValueError(
            f"data.prompts has {len(prompts)} prompts for iteration.num {num_iterations} iterations; "
            "each iteration needs at least one: add prompts or lower iteration.num"
        )
    order = _generator("shards", seed).permutation(len(prompts))
    return [prompts[index] for index in order[iteration::num_iterations]]


class SlotPrompts:
    """Slot -> prompt in one iteration, whose first slot is `first_slot`: each pass over the shard is a new seeded
    permutation, so no prompt comes back before every other has been used."""

    def __init__(self, shard: Sequence[Prompt], first_slot: int, seed: int) -> None:
        if not shard:
            raise ValueError("an iteration needs at least one prompt, got an empty shard")
        self._shard = tuple(shard)
        self._first_slot = first_slot
        self._seed = seed
        self._orders: dict[int, list[int]] = {}  # the latest two epochs: slots in flight may straddle a border

    def prompt(self, slot: int) -> Prompt:
        """The prompt of `slot`, which must not come before the iteration's first slot."""
        if slot < self._first_slot:
            raise ValueError(f"slot {slot} comes before the iteration's first slot {self._first_slot}")
        epoch, position = divmod(slot - self._first_slot, len(self._shard))
        return self._shard[self._order(epoch)[position]]

    def _order(self, epoch: int) -> list[int]:
        if epoch not in self._orders:
            self._orders = dict(sorted(self._orders.items())[-1:])
            generator = _generator("epoch", self._seed, self._first_slot, epoch)
            self._orders[epoch] = generator.permutation(len(self._shard)).tolist()
        return self._orders[epoch]


def response_seed(run_seed: int, slot: int) -> int:
    """The sampling seed of response 0 of `slot`, in [0, SEED_LIMIT); response k uses this number plus k."""
    return _hash("responses", run_seed, slot) % SEED_LIMIT


def _tokenized(row: PromptRow, chat: Chat) -> Prompt:
    try:
        ids = chat.prompt(row.messages)
    except RenderError as error:  # the prompt must be named
        raise RenderError(f"prompt {row.prompt_id}: {error}", error.turn, error.role) from error
    return Prompt(row.prompt_id, row.messages, np.asarray(ids, dtype=np.int32), row.meta)


def _too_long(prompts: Sequence[Prompt], count: int, limit: int) -> str:
    first = next(prompt for prompt in prompts if len(prompt.token_ids) > limit)
    return (
        f"prompt {first.prompt_id} has {len(first.token_ids)} tokens, chat template included, and "
        f"data.max_prompt_tokens is {limit} ({count} of {len(prompts)} prompts are longer); "
        "raise it, shorten them, or set data.long_prompts: skip"
    )


def _generator(*key: str | int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(_hash(*key)))


def _hash(*key: str | int) -> int:
    """63 bits of SHA-256 over the key: the same in every process, unlike hash()."""
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
