"""What the decision promises, kept by candidates as they are: fitted, weighed and decided by the real code. Only the judge is
simulated, because only then is it known what a candidate is truly worth."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaModel

from common.config.config import AdaptationConfig
from learner.adaptation.cached_landscape import CachedLandscape, FitFeatures
from learner.adaptation.evidence import Evidence, Rules, Standing, decide
from learner.adaptation.fit import Method, fit_candidate
from learner.adaptation.round import _right
from learner.reward_model.training import Features
from rewarder.layout import HeadSizes, RewardModelInfo
from rewarder.model import GatedRewardModel
from tests.unit.adaptation import config

LEVEL = 0.05
RULES = Rules(LEVEL, min_pairs=64, guard_accuracy=1.0, guard_r2=1.0)  # guards that never bind
SAME = Standing(0.8, {})
HIDDEN, OBJECTIVES, FIT, EVIDENCE, ORIGINAL = 16, ("good", "safe", "brief"), 64, 512, 32
SETTINGS = config("adaptation.steps=4", "adaptation.learning_rate=0.1", "adaptation.replay_weight=0.5").adaptation
STRONG = config("adaptation.steps=8", "adaptation.learning_rate=0.4", "adaptation.replay_weight=0").adaptation


class World(NamedTuple):
    """The model that serves and its copy that each fit starts anew; pairs of random hidden states to fit on, of evidence, and
    original ones."""

    served: GatedRewardModel
    candidate: GatedRewardModel
    fresh: Features
    evidence: Features
    original: Features


@pytest.fixture(scope="module")
def world() -> World:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    small = LlamaConfig(
        vocab_size=8, hidden_size=HIDDEN, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    backbone = LlamaModel(small)  # nothing here passes through it
    heads = HeadSizes(HIDDEN, len(OBJECTIVES), 8, 1, 1.0)
    served = GatedRewardModel(backbone, heads, RewardModelInfo(OBJECTIVES), 2.0).eval()
    return World(served, copy.deepcopy(served), features(FIT, 1), features(EVIDENCE, 2), features(ORIGINAL, 3))


def features(pairs: int, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randn(pairs, HIDDEN, generator=generator).repeat_interleave(2, 0)
    response = torch.randn(2 * pairs, HIDDEN, generator=generator)
    labels, ratings = torch.tensor([1.0, 0.0, 1.0, 1.0]).repeat(pairs, 1), torch.full((2 * pairs, 3), torch.nan)
    prompt_of = torch.arange(pairs).repeat_interleave(2)
    return Features(prompt, response, torch.arange(2 * pairs).reshape(-1, 2), labels, ratings, prompt_of)


def judged(given: Features, second: NDArray[np.bool_]) -> Features:
    """The pairs by a judge who prefers the second response where `second` says so."""
    return replace(given, pairs=torch.where(torch.from_numpy(second)[:, None], given.pairs.flip(1), given.pairs))


def coins(rng: np.random.Generator, given: Features) -> Features:
    """The pairs by a judge who knows nothing."""
    return judged(given, rng.random(len(given.pairs)) < 0.5)


def fit(world: World, fresh: Features, seed: int, settings: AdaptationConfig = SETTINGS) -> GatedRewardModel:
    """The candidate of tier gate, from the served gate on."""
    world.candidate.gating.load_state_dict(world.served.gating.state_dict())
    method = Method(settings, 1.0, None, 100, seed)
    sets = FitFeatures(fresh, world.original, None)
    fit_candidate(CachedLandscape(world.candidate, sets, method, 1.0), settings, lambda *_: None)
    return world.candidate


def accepted(world: World, candidate: GatedRewardModel, evidence: Features) -> bool:
    seen = Evidence(_right(world.served, evidence), _right(candidate, evidence))
    return decide(seen, SAME, SAME, RULES).accepted


def disagreement(world: World, candidate: GatedRewardModel) -> NDArray[np.bool_]:
    return _right(world.served, world.evidence) != _right(candidate, world.evidence)


def standard_errors(trials: int) -> float:
    return 2 * math.sqrt(LEVEL * (1 - LEVEL) / trials)


def share(trials: int, trial: Callable[[int], bool]) -> float:
    return sum(trial(seed) for seed in range(trials)) / trials


# ---- labels without information ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trials", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_candidate_fitted_on_nothing_passes_at_most_at_the_level(world: World, trials: int) -> None:
    """Each has coin flips of its own, to fit on and as evidence. It must not be that nothing could pass: the candidates
    differ from what serves."""
    shares: list[float] = []

    def trial(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        candidate = fit(world, coins(rng, world.fresh), seed)
        shares.append(float(disagreement(world, candidate).mean()))
        return accepted(world, candidate, coins(rng, world.evidence))

    found = share(trials, trial)
    assert 0.01 < found <= LEVEL + standard_errors(trials), found
    assert min(shares) > 0.03 and 0.1 < float(np.mean(shares)) < 0.2, (min(shares), np.mean(shares))


def test_evidence_that_was_fitted_on_would_break_the_promise(world: World) -> None:
    """So a leak would be seen: coin flips again, with the same pairs on both sides, well fitted."""

    def trial(seed: int) -> bool:
        leaked = coins(np.random.default_rng(seed), world.evidence)
        return accepted(world, fit(world, leaked, seed, STRONG), leaked)

    assert share(20, trial) > 0.5


# ---- candidates that are truly worse or better --------------------------------------------------------------------------


def judge_of(differs: NDArray[np.bool_], effect: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which pairs the candidate orders as the judge does, so that its accuracy is `effect` above the served model's: theirs
    differ where the two disagree alone, and there by 2 p - 1; elsewhere both are right on 6 in 10."""
    p = (1 + effect / differs.mean()) / 2
    return rng.random(len(differs)) < np.where(differs, p, 0.6)


def effects(world: World, effect: float, seed: int, trials: int) -> tuple[float, float]:
    """(share accepted, mean rise of the accuracy) of a fitted candidate, by labels of this true effect, each time new ones."""
    candidate = fit(world, coins(np.random.default_rng(seed), world.fresh), seed)
    differs, first = disagreement(world, candidate), _right(candidate, world.evidence)
    assert 0.1 < differs.mean() < 0.2, differs.mean()  # a rise of 5 points is found less often where they differ more
    rises: list[float] = []

    def trial(number: int) -> bool:
        right = judge_of(differs, effect, np.random.default_rng([number, seed]))
        evidence = judged(world.evidence, first != right)
        rises.append(float(_right(candidate, evidence).mean() - _right(world.served, evidence).mean()))
        return accepted(world, candidate, evidence)

    return share(trials, trial), float(np.mean(rises))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_five_points_of_harm_pass_in_one_percent_at_most(world: World, seed: int) -> None:
    passed, rise = effects(world, -0.05, seed, 300)
    assert rise == pytest.approx(-0.05, abs=0.004) and passed <= 0.01, (rise, passed)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_five_points_of_help_pass_in_four_of_five_at_least(world: World, seed: int) -> None:
    passed, rise = effects(world, 0.05, seed, 300)
    assert rise == pytest.approx(0.05, abs=0.004) and passed >= 0.8, (rise, passed)
