"""Batches of a small fit for tests of the tiers that train the backbone: judged pairs, original pairs with ratings, samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from common.judge import Preference
from learner.adaptation.backbone_landscape import FitSets
from learner.adaptation.candidates import judged_sets, propose, unlabelled_sets
from learner.reward_model.data import PromptSet
from tests.unit.adaptation import OBJECTIVES, samples


def fit_sets(tokenizer: PreTrainedTokenizerBase) -> FitSets:
    """Labels without a meaning; half of the ratings of the original responses are missing."""
    proposal = propose(samples(60), 20, 20, 0.1, seed=0)
    said: dict[str, Preference] = {item.key: "first" for item in proposal.items}
    judged = judged_sets(proposal.items, said, OBJECTIVES, tokenizer, 50)
    original = [_rated(prompt, seed) for seed, prompt in enumerate(judged[20:])]
    return FitSets(judged[:20], original, unlabelled_sets(proposal.unlabelled, OBJECTIVES, tokenizer, 50))


def _rated(prompt: PromptSet, seed: int) -> PromptSet:
    rng = np.random.default_rng(seed)
    ratings = rng.random(prompt.ratings.shape, dtype=np.float32)
    return replace(prompt, ratings=np.where(rng.random(ratings.shape) < 0.5, ratings, np.nan).astype(np.float32))
