"""Correlation with length: within prompts it is another one than over all (ArmoRM pitfall 18), before and after debiasing."""

from __future__ import annotations

import math

import pytest
import torch

from learner.reward_model.length_bias import GATED, length_bias

# Two prompts: the second has longer answers and better ones; within each the longer answer is the worse one.
TOKENS = torch.tensor([1, 2, 3, 11, 12, 13])
PROMPT_OF = torch.tensor([0, 0, 0, 1, 1, 1])
GOOD = torch.tensor([3.0, 2.0, 1.0, 13.0, 12.0, 11.0])
NAMES = ["good", "verbose"]


def output(good: torch.Tensor, verbose: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scores = torch.stack([good, verbose], 1)
    return scores, torch.tensor([[1.0, 2.0]]).expand_as(scores)


def test_by_hand() -> None:
    matrix = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])  # r' = good - verbose, and 0
    found = length_bias(*output(GOOD, TOKENS.float()), matrix, NAMES, 1, TOKENS, PROMPT_OF)
    before, after = found["good"]["before"], found["good"]["after"]
    # ranks of GOOD 3 2 1 6 5 4 against 1 2 3 4 5 6: sum of squared gaps 16, 1 - 6 * 16 / 210
    assert before["tokens"] == before["verbosity"] == pytest.approx(1 - 96 / 210)
    assert before["tokens_within_prompt"] == before["verbosity_within_prompt"] == pytest.approx(-1.0)
    assert after["tokens_within_prompt"] == pytest.approx(-1.0) and after["tokens"] < before["tokens"]
    assert set(found["verbose"]["after"].values()) == {0.0}, "a column of zeros has no order"
    assert found["verbose"]["before"]["tokens"] == pytest.approx(1.0)
    assert found[GATED]["after"] == found["good"]["after"], "the gate's weight of verbosity is dead after debiasing"
    assert found[GATED]["before"]["tokens"] > before["tokens"]


def test_without_a_verbosity_objective_only_tokens_are_reported() -> None:
    found = length_bias(*output(GOOD, GOOD), torch.eye(2), NAMES, None, TOKENS, PROMPT_OF)
    assert found["good"]["before"] == found["good"]["after"]
    assert set(found["good"]["before"]) == {"tokens", "tokens_within_prompt"}


def test_prompts_with_one_response_say_nothing_within() -> None:
    one_each = length_bias(*output(GOOD, GOOD), torch.eye(2), NAMES, None, TOKENS, torch.arange(6))
    assert math.isnan(one_each["good"]["before"]["tokens_within_prompt"])
    assert one_each["good"]["before"]["tokens"] == pytest.approx(1 - 96 / 210)
    alone = torch.tensor([0, 0, 0, 1, 2, 3])
    found = length_bias(*output(GOOD, GOOD), torch.eye(2), NAMES, None, TOKENS, alone)
    assert found["good"]["before"]["tokens_within_prompt"] == pytest.approx(-1.0)
