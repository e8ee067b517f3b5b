"""learner/adaptation/pseudo_labels.py: which pairs a model labels itself, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from common.types import Message
from learner.adaptation.pseudo_labels import labelled_by_itself
from learner.reward_model.data import Pair, PromptSet
from rewarder.scoring import Rendered


def prompt(responses: int, name: str = "p") -> PromptSet:
    conversations = tuple(Rendered([1, 2, 3 + i], 1, 2) for i in range(responses))
    ratings = np.full((responses, 2), np.nan, dtype=np.float32)
    return PromptSet((Message("user", name),), conversations, ratings, ())


@pytest.mark.parametrize("seed", range(5))
def test_the_better_one_is_chosen_whichever_comes_first(seed: int) -> None:
    for reward, pair in ((torch.tensor([0.0, 3.0]), Pair(1, 0)), (torch.tensor([3.0, 0.0]), Pair(0, 1))):
        (found,) = labelled_by_itself([prompt(2)], reward, 0.8, seed)
        assert found.pairs == (pair,) and found.messages == prompt(2).messages


def test_confidence_is_the_models_own_probability() -> None:
    """A gap of log 4 is a probability of exactly .8."""
    asked = [prompt(2, "sure"), prompt(2, "unsure")]
    reward = torch.tensor([0.0, math.log(4) + 1e-3, 7.0, 7 + math.log(4) - 1e-3])
    assert [found.messages[0].content for found in labelled_by_itself(asked, reward, 0.8, 0)] == ["sure"]
    assert len(labelled_by_itself(asked, reward, 0.5, 0)) == 2
    assert labelled_by_itself(asked, reward, 0.9, 0) == [] == labelled_by_itself([], torch.zeros(0), 0.5, 0)


def test_rewards_belong_to_prompts_of_any_number_of_responses() -> None:
    """Prompts of 2, 3 and 2 responses; within the middle one every pair has its own order."""
    asked, reward = [prompt(2, "a"), prompt(3, "b"), prompt(2, "c")], torch.tensor([0.0, 9, 5, 30, 15, 9, 0])
    chosen = set()
    for seed in range(30):
        first, middle, last = labelled_by_itself(asked, reward, 0.8, seed)
        assert first.pairs == (Pair(1, 0),) and last.pairs == (Pair(0, 1),)
        (pair,) = middle.pairs
        assert reward[2 + pair.chosen] > reward[2 + pair.rejected]
        chosen.add((pair.chosen, pair.rejected))
    assert chosen == {(1, 0), (2, 0), (1, 2)}, "pairs are drawn by chance"
    assert labelled_by_itself(asked, reward, 0.8, 4) == labelled_by_itself(asked, reward, 0.8, 4)
