"""learner/adaptation/candidates.py: which pairs a round judges, and on which side of the evidence they stand."""

from __future__ import annotations

from collections import Counter

import pytest

from common.data.split import is_held_out
from common.judge import Preference
from common.types import ScoredGroup
from learner.adaptation.candidates import Proposal, is_evidence, judged_sets, propose
from tests.unit.adaptation import group, samples


def test_each_side_has_its_pairs_and_no_prompt_is_on_both() -> None:
    proposal = propose(samples(400), 50, 50, 0.1, seed=0)
    assert len(proposal.fit) == len(proposal.evidence) == 50
    fitted, weighed = ({item.messages for item in side} for side in (proposal.fit, proposal.evidence))
    assert len(fitted) == len(weighed) == 50 and not fitted & weighed


def test_held_out_prompts_are_evidence_only() -> None:
    prompts = [scored.group.prompt.messages for scored in samples(400)]
    held_out = [prompt for prompt in prompts if is_held_out(prompt, 0.3)]
    assert 80 < len(held_out) < 160 and all(is_evidence(prompt, 0.3) for prompt in held_out)
    share = sum(is_evidence(prompt, 0.3) for prompt in prompts) / len(prompts)
    assert share == pytest.approx(0.65, abs=0.08)


def test_the_newest_groups_come_first() -> None:
    groups = samples(400)
    proposal = propose(groups, 10, 10, 0.1, seed=0)
    slots = {scored.group.prompt.messages: scored.group.slot for scored in groups}
    assert min(slots[item.messages] for item in proposal.items) > 340
    assert proposal.oldest_version == min(slots[item.messages] for item in proposal.items) // 4
    assert propose(list(reversed(groups)), 10, 10, 0.1, seed=0) == proposal


def test_a_prompt_gives_one_pair_and_its_newest_group_gives_it() -> None:
    old, new = group(3, ["w1", "w2"], prompt="w9 w9"), group(8, ["w3", "w4"], prompt="w9 w9")
    (item,) = propose([old, new], 5, 5, 0.1, seed=0).items
    assert {item.first, item.second} == {"w3", "w4"} and item.meta == {"kind": "plain"}


@pytest.mark.parametrize(
    ("responses", "truncated"),
    [(["w1", "w1", " w1 "], []), (["w1", "w2"], [0]), (["w1", "w2", "w1"], [1]), (["w1"], [])],
)
def test_equal_and_truncated_responses_make_no_pair(responses: list[str], truncated: list[int]) -> None:
    assert propose([group(0, responses, truncated=truncated)], 5, 5, 0.1, seed=0).items == []
    assert propose([], 5, 5, 0.1, seed=0).oldest_version is None


def test_pairs_are_random_by_seed_and_the_same_when_repeated() -> None:
    groups = samples(100, responses=8)
    first, again, other = (propose(groups, 30, 30, 0.1, seed) for seed in (0, 0, 1))
    assert first == again and first != other
    places = {
        i for item in first.items for g in groups for i, r in enumerate(g.group.rollouts) if r.response == item.first
    }
    assert len(places) == 8


def test_labels_turn_pairs_into_chosen_and_rejected_and_ties_go(tmp_path) -> None:
    from transformers import AutoTokenizer

    from tests.integration.models import tiny_policy

    tiny_policy(tmp_path, 0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    groups = [group(i, ["w1", "w2 w3"], prompt=f"w{i + 10}") for i in range(3)]
    items = [item for g in groups for item in propose([g], 1, 1, 0.1, seed=0).items]
    said: dict[str, Preference] = {item.key: "first" if item.first == "w2 w3" else "second" for item in items[:2]}
    said[items[2].key] = "tie"
    sets = judged_sets(items, said, ["good"], tokenizer, 50)
    assert len(sets) == 2 and all(len(judged.conversations) == 2 for judged in sets)
    for judged in sets:
        (pair,) = judged.pairs
        assert len(judged.conversations[pair.chosen].ids) == len(judged.conversations[pair.rejected].ids) + 1


def sides(groups: list[ScoredGroup], fit_pairs: int) -> tuple[Proposal, list[ScoredGroup]]:
    """A proposal, and the groups of prompts that are fitted on."""
    fitted = [scored for scored in groups if not is_evidence(scored.group.prompt.messages, 0.1)]
    return propose(groups, fit_pairs, 400, 0.1, seed=0), fitted


def test_prompts_give_second_pairs_where_more_are_asked_for_than_there_are_prompts() -> None:
    groups = samples(60, responses=6)
    _, fitted = sides(groups, 0)
    proposal, _ = sides(groups, len(fitted) + 5)
    count = Counter(item.messages for item in proposal.fit)
    assert sorted(count.values()) == [1] * (len(fitted) - 5) + [2] * 5
    newest_first = [s.group.prompt.messages for s in sorted(fitted, key=lambda scored: -scored.group.slot)]
    assert [item.messages for item in proposal.fit] == [*newest_first, *newest_first[:5]]
    every, _ = sides(groups, 10_000)
    assert set(Counter(item.messages for item in every.fit).values()) == {3}, "6 responses make 3 pairs"
    assert set(Counter(item.messages for item in every.evidence).values()) == {1}, "evidence has one of each prompt"


def test_pairs_of_a_prompt_share_no_response() -> None:
    proposal, _ = sides(samples(60, responses=7), 10_000)
    used = Counter((item.messages, text) for item in proposal.fit for text in (item.first, item.second))
    assert set(used.values()) == {1}
    assert len({item.key for item in proposal.items}) == len(proposal.items)


def test_unlabelled_samples_are_of_all_prompts_that_give_no_evidence() -> None:
    proposal, fitted = sides(samples(200), 10)
    assert {one.messages for one in proposal.unlabelled} == {scored.group.prompt.messages for scored in fitted}
    assert not any(is_evidence(one.messages, 0.1) for one in proposal.unlabelled)
    assert not {one.messages for one in proposal.unlabelled} & {item.messages for item in proposal.evidence}
    assert {item.messages for item in proposal.fit} <= {one.messages for one in proposal.unlabelled}


def test_unlabelled_samples_are_different_and_whole() -> None:
    prompt = next(
        f"w{i}" for i in range(59) if not is_evidence(group(0, ["w1"], prompt=f"w{i}").group.prompt.messages, 0.1)
    )
    (one,) = propose([group(0, ["w1", "w2", " w1 ", "w3", "w4"], prompt, truncated=[3])], 5, 5, 0.1, seed=0).unlabelled
    assert sorted(text.strip() for text in one.responses) == ["w1", "w2", "w4"]
    assert propose([group(0, ["w1", "w2", "w1"], prompt, truncated=[1])], 5, 5, 0.1, seed=0).unlabelled == ()
