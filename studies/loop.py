"""The synchronous loop of a study, step by step: the slots' prompts are sampled, rewarded and trained on.

Owns which prompts a step has and what rewards its samples; whoever steps it publishes the weights before. Called by
measures.py, which measures the policy along the way, and by making.py, which wants the policy that comes out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from actors.prompts import SampleRequest, SlotPrompts, response_seed
from common.config.aggregations import AGGREGATIONS
from common.config.config import Config
from common.judge import JudgeItem, load_function
from common.types import Reward, RolloutGroup, ScoredGroup
from examples.sandbox.labels import PAIR_SHARPNESS
from learner.worker import LearnerWorker
from rewarder.worker import ReferenceSamples, RewarderWorker
from studies import artifacts
from studies.lab import Lab, learner_of
from studies.prompts import shards

Score = Callable[[RolloutGroup], ScoredGroup]


class Loop:
    """The steps of all iterations of a configuration, for a learner that starts from the anchor."""

    def __init__(self, config: Config, lab: Lab, learner: LearnerWorker, anchor: Path, score: Score):
        self._config, self._lab, self._learner, self._score = config, lab, learner, score
        self._size, self._per_iteration = config.learner.groups_per_step, config.iteration.steps
        parts, slots = shards(config, anchor), config.iteration.steps * config.learner.groups_per_step
        self._orders = [SlotPrompts(part, i * slots, config.run.seed) for i, part in enumerate(parts)]

    def step(self, step: int) -> list[ScoredGroup]:
        """Samples from the weights in the engine, which must be those of `step`, and trains to those of step + 1; what it
        trained on."""
        order = self._orders[step // self._per_iteration]
        groups = _sample(self._config, self._lab, order, range(step * self._size, (step + 1) * self._size))
        scored = [self._score(group) for group in groups]
        self._learner.train_groups(step + 1, scored)
        return scored


class Rewards:
    """The rewarder on the seed's reward model, calibrated for this configuration's aggregation in `directory`, with the
    references of all iterations' prompts; another version may take its place."""

    def __init__(self, config: Config, anchor: Path, rm: Path, directory: Path):
        self._rewarder = RewarderWorker("study", config.rewarder, config.aggregation, "cpu")
        given = replace(config, rewarder=replace(config.rewarder, model=str(rm / "model")))
        learner_of(given).reward_model(str(anchor), artifacts.label_files(rm), str(directory))
        self._samples: list[ReferenceSamples] = []
        if AGGREGATIONS[config.aggregation.kind].centred:
            responses = artifacts.reference_responses(rm)
            prompts = [prompt for part in shards(config, anchor) for prompt in part]
            self._samples = [ReferenceSamples(p.prompt_id, p.messages, responses[p.prompt_id]) for p in prompts]
        self.load(directory)

    def load(self, directory: Path) -> None:
        """Puts a version in place, and the references under it."""
        self._rewarder.load(str(directory), None)
        scored = self._rewarder.score_references(self._samples)
        self._rewarder.set_references({name: reference.value for name, reference in scored.items()}, "anchor")

    def score(self, group: RolloutGroup) -> ScoredGroup:
        """The group with its rewards."""
        return self._rewarder.score(group)


def reward_of(config: Config, anchor: Path, rm: Path) -> Score:
    """By the seed's reward model, which stays."""
    with tempfile.TemporaryDirectory() as calibrated:
        return Rewards(config, anchor, rm, Path(calibrated)).score


def gold_reward(config: Config) -> Score:
    """Rewards that know the truth: gold on the scale of the labels, Bernoulli(sigmoid(PAIR_SHARPNESS x difference))."""
    assert config.judge.function is not None, "studies have a judge"
    judge, objectives = load_function(config.judge.function), config.rewarder.objectives
    one = np.ones(1, dtype=np.float32)
    gate = np.full(len(objectives), 1 / len(objectives), dtype=np.float32)

    def score(group: RolloutGroup) -> ScoredGroup:
        rewards = []
        for rollout in group.rollouts:
            item = JudgeItem(group.prompt.messages, group.prompt.meta, rollout.response, rollout.finish_reason)
            gold = judge(item)
            scores = np.array([gold[name] for name in objectives], dtype=np.float32)
            term = np.array([PAIR_SHARPNESS * gold["gold"]], dtype=np.float32)
            rewards.append(Reward(scores, gate, term, one, 0.0))
        return ScoredGroup(group, tuple(rewards), 0, "none")

    return score


def _sample(config: Config, lab: Lab, order: SlotPrompts, slots: Sequence[int]) -> list[RolloutGroup]:
    prompts = [order.prompt(slot) for slot in slots]
    count, seed = config.actors.responses_per_prompt, config.run.seed
    requests = [SampleRequest(p.token_ids, count, response_seed(seed, s)) for p, s in zip(prompts, slots, strict=True)]
    sampled = lab.sample_requests(requests)
    return [RolloutGroup(s, p, tuple(r)) for s, p, r in zip(slots, prompts, sampled, strict=True)]
