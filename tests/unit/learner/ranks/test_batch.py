"""learner/ranks/batch.py: cutting a batch loses and moves nothing; packed columns line up with their log-probs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.types import Message, Prompt, Reward, Rollout, RolloutGroup, ScoredGroup
from learner.policy.advantages import group_advantages
from learner.policy.step_metrics import check_staleness, explained_sample, group_metrics
from learner.ranks.batch import TokenRow, collate, rank_micro_batches, rows_of
from rewarder.scoring import batches

lengths_of = st.lists(st.integers(2, 40), min_size=1, max_size=50)


def scored(slot: int, rewards: list[float], version: int = 3) -> ScoredGroup:
    prompt = Prompt("p", (Message("user", "hello"),), np.array([7, 8], dtype=np.int32), {})
    rollouts = tuple(
        Rollout(
            f"answer {k}",
            np.arange(10, 11 + k, dtype=np.int32),
            np.full(1 + k, -0.5 - k, dtype=np.float32),
            "length" if k == 1 else "stop",
            ((0, version),),
        )
        for k in range(len(rewards))
    )
    vector = [np.array([value], dtype=np.float32) for value in rewards]
    parts = tuple(Reward(value, np.ones(1, np.float32), value, np.ones(1, np.float32), 0.0) for value in vector)
    return ScoredGroup(RolloutGroup(slot, prompt, rollouts), parts, 0, "ref")


@given(lengths_of, st.integers(1, 100))
def test_micro_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    cut = list(batches(lengths, budget))
    assert sorted(index for batch in cut for index in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget for batch in cut)


@given(lengths_of, st.integers(10, 100), st.integers(1, 5))
def test_ranks_share_the_rows_and_agree_on_the_number_of_passes(lengths: list[int], budget: int, ranks: int) -> None:
    parts = [rank_micro_batches(lengths, budget, rank, ranks) for rank in range(ranks)]
    assert sorted(index for part in parts for batch in part for index in batch) == list(range(len(lengths)))
    assert len({len(part) for part in parts}) == 1


def test_rows_and_columns_line_up() -> None:
    group = scored(0, [1.0, 3.0])
    rows = rows_of([group], group_advantages(torch.tensor([[1.0, 3.0]])))
    batch = collate(rows)
    assert batch.token_ids.tolist() == [[7, 8, 10, 0], [7, 8, 10, 11]]
    assert batch.response_mask.tolist() == [[False, False, True, False], [False, False, True, True]]
    assert batch.mask.tolist() == [[True, True, True, False], [True] * 4]
    assert batch.rollout_logprobs.tolist() == [[0.0, 0.0, -0.5, 0.0], [0.0, 0.0, -1.5, -1.5]]
    assert batch.advantages.tolist() == [[-1.0], [1.0]]


def test_no_rows_make_a_pass_that_teaches_nothing() -> None:
    batch = collate([])
    assert batch.mask.any() and not batch.response_mask.any()


def test_group_metrics_by_hand() -> None:
    metrics = group_metrics([scored(0, [1.0, 3.0], version=3), scored(1, [2.0, 2.0], version=4)], ["good"], ["all"], 4)
    assert metrics["reward/mean"] == 2.0
    assert metrics["reward/group_std"] == 0.5
    assert metrics["reward/mean_se"] == 0.0, "both groups have the same mean"
    assert metrics["reward/no_spread_frac"] == 0.5
    assert metrics["reward/good"] == metrics["reward/term/all"] == 2.0
    assert metrics["gate/good"] == 1.0
    assert metrics["rollout/response_tokens"] == 1.5
    assert metrics["rollout/truncated_frac"] == 0.5
    assert (metrics["staleness/mean"], metrics["staleness/max"]) == (0.5, 1.0)
    assert metrics["rollout/mixed_versions_frac"] == 0.0


def test_the_standard_error_is_over_groups() -> None:
    metrics = group_metrics([scored(0, [1.0, 3.0]), scored(1, [4.0, 6.0]), scored(2, [5.0, 7.0])], ["good"], ["all"], 3)
    assert metrics["reward/mean_se"] == pytest.approx(np.std([2.0, 5.0, 6.0], ddof=1) / np.sqrt(3))
    assert "reward/mean_se" not in group_metrics([scored(0, [1.0, 3.0])], ["good"], ["all"], 3), "null on the step line"


def test_a_step_in_which_the_reward_model_switched_says_so() -> None:
    groups = [scored(slot, [1.0, 3.0]) for slot in range(3)]
    assert group_metrics(groups, ["good"], ["all"], 3)["rm/versions"] == 1.0
    mixed = [groups[0], replace(groups[1], rm_version=groups[1].rm_version + 1), groups[2]]
    metrics = group_metrics(mixed, ["good"], ["all"], 3)
    assert (metrics["rm/version"], metrics["rm/versions"]) == (groups[0].rm_version + 1, 2.0)
    assert metrics["reward/mean"] == 2.0


def spanning(slot: int, *spans: tuple[int, int]) -> ScoredGroup:
    group = scored(slot, [1.0, 3.0])
    mixed = replace(group.group.rollouts[1], version_spans=spans)
    return replace(group, group=replace(group.group, rollouts=(group.group.rollouts[0], mixed)))


def test_a_response_of_two_versions_is_as_old_as_its_oldest_token() -> None:
    metrics = group_metrics([spanning(0, (0, 2), (1, 3))], ["good"], ["all"], 3)
    assert metrics["rollout/mixed_versions_frac"] == 0.5
    assert (metrics["staleness/mean"], metrics["staleness/max"]) == (0.5, 1.0)


@pytest.mark.parametrize(("policy", "bound", "staleness"), [(4, 1, 2), (1, 1, -1)])
def test_a_group_older_than_the_window_allows_is_an_error_that_names_its_slot(
    policy: int, bound: int, staleness: int
) -> None:
    groups = [scored(8, [1.0, 3.0], version=max(policy, 3)), spanning(9, (0, 2), (1, 3))]
    check_staleness(groups[:1], max(policy, 3), 0)
    with pytest.raises(AssertionError, match=f"slot 9 has tokens {staleness} versions older than the policy {policy}"):
        check_staleness(groups[1:], policy, bound)


def test_a_sample_explains_its_reward() -> None:
    sample = explained_sample(5, scored(9, [1.0, 3.0]), 1, ["good"], ["all"])
    assert (sample["step"], sample["slot"], sample["reward"]) == (5, 9, 3.0)
    assert sample["scores"] == {"good": 3.0} and sample["terms"] == {"all": 3.0}
    assert sample["finish_reason"] == "length"


def test_row_keeps_the_sampler_s_logprobs() -> None:
    row = TokenRow(np.array([1, 2, 3], dtype=np.int32), 1, np.array([-0.1, -0.2], dtype=np.float32), 0.5)
    torch.testing.assert_close(collate([row]).rollout_logprobs, torch.tensor([[0.0, -0.1, -0.2]]))
