"""Chat template, disjoint shards, slot -> prompt and seeds: the laws that make a run repeatable."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.prompts import SEED_LIMIT, SlotPrompts, response_seed, shard, tokenize_prompts
from common.data.data import PromptRow
from common.types import Message, Prompt
from tests.unit.templates import tokenizer_of, tokens

SEEDS = st.integers(0, 2**31)


LETTERS = "{% for m in messages %}{{ m['content'] }}<eot>{% endfor %}{% if add_generation_prompt %}<start>{% endif %}"
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn, please') }}{% endif %}" + LETTERS
)


def row(text: str, role: str = "user") -> PromptRow:
    return PromptRow(f"id-{text}", (Message(role, text),), {"kind": "x"})


def prompts(count: int) -> list[Prompt]:
    return [Prompt(str(index), (), np.array([index], np.int32), {}) for index in range(count)]


def ids(items: Sequence[Prompt]) -> list[str]:
    return [prompt.prompt_id for prompt in items]


def test_tokens_come_from_the_chat_template_with_the_answer_opened() -> None:
    tokenizer = tokenizer_of(LETTERS)
    found, skipped = tokenize_prompts([row("w1 w2")], tokenizer, 4, "refuse")
    assert tokens(tokenizer, found[0].token_ids.tolist()) == ["w1", "w2", "<eot>", "<start>"]
    assert (found[0].token_ids.dtype, skipped) == (np.int32, 0)
    assert found[0].meta == {"kind": "x"} and found[0].messages == (Message("user", "w1 w2"),)


def test_long_prompts_are_refused_or_counted() -> None:
    rows, tokenizer = [row("w1 w2"), row("w1 w2 w3"), row("w1")], tokenizer_of(LETTERS)
    with pytest.raises(ValueError, match=r"prompt id-w1 w2 w3 has 5 tokens.*data.max_prompt_tokens is 4 \(1 of 3"):
        tokenize_prompts(rows, tokenizer, 4, "refuse")
    found, skipped = tokenize_prompts(rows, tokenizer, 4, "skip")
    assert (ids(found), skipped) == (["id-w1 w2", "id-w1"], 1)
    with pytest.raises(ValueError, match="no prompt is left: all 3"):
        tokenize_prompts(rows, tokenizer, 1, "skip")


def test_templates_that_are_absent_or_refuse() -> None:
    with pytest.raises(ValueError, match="no chat template.*chat_template.jinja"):
        tokenize_prompts([row("w1")], tokenizer_of(""), 3, "refuse")
    with pytest.raises(
        ValueError, match="prompt id-w1: the chat template of .* refuses turn 1 of 1, role system: no system"
    ):
        tokenize_prompts([row("w1", "system")], tokenizer_of(NO_SYSTEM), 3, "refuse")


@given(st.integers(1, 60), st.integers(1, 8), SEEDS)
def test_shards_are_disjoint_and_cover_everything(count: int, num_iterations: int, seed: int) -> None:
    everything = prompts(count + num_iterations)
    shards = [shard(everything, iteration, num_iterations, seed) for iteration in range(num_iterations)]
    assert sorted(ids([prompt for part in shards for prompt in part])) == sorted(ids(everything))
    sizes = [len(part) for part in shards]
    assert max(sizes) - min(sizes) <= 1


def test_fewer_prompts_than_iterations_are_refused() -> None:
    with pytest.raises(ValueError, match="has 2 prompts for iteration.num 3 iterations"):
        shard(prompts(2), 0, 3, 0)


@given(st.integers(1, 20), st.integers(0, 1000), SEEDS, st.integers(0, 4))
def test_each_epoch_is_a_permutation_of_the_shard(count: int, first_slot: int, seed: int, epoch: int) -> None:
    slots = SlotPrompts(prompts(count), first_slot, seed)
    start = first_slot + epoch * count
    assert sorted(ids([slots.prompt(start + k) for k in range(count)])) == sorted(ids(prompts(count)))


@given(SEEDS, st.permutations(range(30)))
def test_a_slot_has_its_prompt_whatever_was_asked_before(seed: int, order: list[int]) -> None:
    slots, shard_ = SlotPrompts(prompts(10), 5, seed), prompts(10)
    for slot in order:
        assert slots.prompt(slot + 5).prompt_id == SlotPrompts(shard_, 5, seed).prompt(slot + 5).prompt_id


def test_epochs_and_seeds_change_the_order() -> None:
    slots, other = SlotPrompts(prompts(20), 0, 1), SlotPrompts(prompts(20), 0, 2)
    first = ids([slots.prompt(slot) for slot in range(20)])
    assert first != ids([slots.prompt(slot) for slot in range(20, 40)])
    assert first != ids([other.prompt(slot) for slot in range(20)])


def test_slots_before_the_iteration_and_empty_shards_are_refused() -> None:
    with pytest.raises(ValueError, match="slot 4 comes before the iteration's first slot 5"):
        SlotPrompts(prompts(2), 5, 0).prompt(4)
    with pytest.raises(ValueError, match="empty shard"):
        SlotPrompts([], 0, 0)


@given(SEEDS, st.integers(0, 10**9))
def test_response_seeds_leave_room_for_k(seed: int, slot: int) -> None:
    assert 0 <= response_seed(seed, slot) < SEED_LIMIT
    assert response_seed(seed, slot) == response_seed(seed, slot)


def test_orders_and_seeds_are_the_same_in_every_process_and_version() -> None:
    assert [response_seed(0, slot) for slot in range(3)] == RESPONSE_SEEDS
    assert ids(shard(prompts(6), 0, 2, 0)) == SHARD
    assert ids([SlotPrompts(prompts(5), 0, 0).prompt(slot) for slot in range(5)]) == EPOCH


# Pinned on purpose: a change of these numbers changes every run and belongs in the CHANGELOG
RESPONSE_SEEDS = [2107625483, 689640292, 705539110]
SHARD = ["4", "5", "1"]
EPOCH = ["2", "3", "1", "4", "0"]
