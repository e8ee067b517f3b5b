"""How a unit is measured: functions that an arm names, (unit, lab, report) -> (end metrics, curves).

policy        the synchronous loop from the SFT policy; options: gold (the reward is the gold itself, in logits),
              fitted (aggregation.weights are the fixed weights that fit the training pairs best),
              breadth (adds studies/breadth.py's curves), planted (adds the share of responses with the planted word)
reward_model  the seed's reward model on held-out samples of the SFT policy: what the gate is worth
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from actors.prompts import SampleRequest, SlotPrompts, response_seed
from common.config import UNCENTRED, Config
from common.judge import JudgeItem, load_function
from common.types import Reward, RolloutGroup, ScoredGroup
from examples.sandbox.labels import PAIR_SHARPNESS
from rewarder.worker import ReferenceSamples, RewarderWorker
from studies import artifacts, reward_quality
from studies.evaluation import Evaluation
from studies.lab import Lab, Report, learner_of
from studies.study import Unit, with_aggregation_weights

Measured = tuple[dict[str, float], dict[str, list[float]]]
EVALUATE_EVERY = 5  # steps


def policy(unit: Unit, lab: Lab, report: Report) -> Measured:
    """The curves of Evaluation.measure, a point every EVALUATE_EVERY steps and at the last; end: the last point of each."""
    config = unit.config
    anchor, rm = artifacts.sft_of(config).directory, artifacts.reward_model_of(config).directory
    if "fitted" in unit.arm.options:
        config = with_aggregation_weights(config, reward_quality.fixed_weights(config, anchor, rm))
    learner = learner_of(config)
    learner.load_policy(str(anchor), None)
    lab.start(config, anchor)
    held_out = artifacts.held_out_prompts(config, anchor)
    assert config.judge.function is not None, "studies have a judge"
    model = rm / "model"
    limits = config.judge.function, config.rewarder.max_tokens
    watcher = Evaluation(lab, held_out, anchor, model, *limits, unit.arm.options)
    score = _gold_scorer(config) if "gold" in unit.arm.options else _scorer(config, anchor, rm)
    points: list[dict[str, float]] = []
    total, size = config.iteration.num * config.iteration.steps, config.learner.groups_per_step
    parts = artifacts.shards(config, anchor)
    orders = [SlotPrompts(part, i * config.iteration.steps * size, config.run.seed) for i, part in enumerate(parts)]
    for step in range(total + 1):
        lab.publish(learner, step, held_out)
        if step == 0 and "breadth" in unit.arm.options:
            watcher.set_bar(config.run.seed, config.aggregation.quantile)
        if step % EVALUATE_EVERY == 0 or step == total:
            points.append(watcher.measure(step, config.run.seed))
            report("step", step, total)
        if step < total:
            order = orders[step // config.iteration.steps]
            groups = _sample(config, lab, order, range(step * size, (step + 1) * size))
            learner.train_groups(step + 1, [score(group) for group in groups])
    return points[-1], {name: [point[name] for point in points] for name in points[0]}


def _sample(config: Config, lab: Lab, order: SlotPrompts, slots: Sequence[int]) -> list[RolloutGroup]:
    prompts = [order.prompt(slot) for slot in slots]
    count, seed = config.actors.responses_per_prompt, config.run.seed
    requests = [SampleRequest(p.token_ids, count, response_seed(seed, s)) for p, s in zip(prompts, slots, strict=True)]
    sampled = lab.sample_requests(requests)
    return [RolloutGroup(s, p, tuple(r)) for s, p, r in zip(slots, prompts, sampled, strict=True)]


def _scorer(config: Config, anchor: Path, rm: Path) -> Callable[[RolloutGroup], ScoredGroup]:
    """The rewarder on the seed's reward model, calibrated for this configuration's aggregation, with its references."""
    rewarder = RewarderWorker("study", config.rewarder, config.aggregation, "cpu")
    with tempfile.TemporaryDirectory() as calibrated:
        given = replace(config, rewarder=replace(config.rewarder, model=str(rm / "model")))
        learner_of(given).reward_model(str(anchor), artifacts.label_files(rm), calibrated)
        rewarder.load(calibrated, None)
    if config.aggregation.kind not in UNCENTRED:
        responses = artifacts.reference_responses(rm)
        prompts = [prompt for part in artifacts.shards(config, anchor) for prompt in part]
        samples = [ReferenceSamples(p.prompt_id, p.messages, responses[p.prompt_id]) for p in prompts]
        scored = rewarder.score_references(samples)
        rewarder.set_references({name: reference.value for name, reference in scored.items()}, "anchor")
    return rewarder.score


def _gold_scorer(config: Config) -> Callable[[RolloutGroup], ScoredGroup]:
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


def reward_model(unit: Unit, lab: Lab, report: Report) -> Measured:
    """Pair accuracy by gold of the gate and of what it must beat; R2 of each objective against its gold program."""
    return reward_quality.measure(unit.config, lab, report), {}
