"""How a unit is measured: functions that an arm names, (unit, lab, report) -> (end metrics, curves).

policy        the synchronous loop from the SFT policy; options: gold (the reward is the gold itself, in logits),
              fitted (aggregation.weights are the fixed weights that fit the training pairs best),
              breadth (adds studies/breadth.py's curves), planted (adds the share of responses with the planted word)
reward_model  the seed's reward model on held-out samples of the SFT policy: what the gate is worth
"""

from __future__ import annotations

from studies import artifacts, reward_quality
from studies.evaluation import EVALUATE_EVERY, Evaluation
from studies.lab import Lab, Report, learner_of
from studies.loop import Loop, gold_reward, reward_of
from studies.prompts import held_out_prompts
from studies.study import Unit, with_aggregation_weights

Measured = tuple[dict[str, float], dict[str, list[float]]]


def policy(unit: Unit, lab: Lab, report: Report) -> Measured:
    """The curves of Evaluation.measure, a point every EVALUATE_EVERY steps and at the last; end: the last point of each."""
    config = unit.config
    anchor, rm = artifacts.sft_of(config).directory, artifacts.reward_model_of(config).directory
    if "fitted" in unit.arm.options:
        config = with_aggregation_weights(config, reward_quality.fixed_weights(config, anchor, rm))
    learner = learner_of(config)
    learner.load_policy(str(anchor), None)
    lab.start(config, anchor)
    held_out = held_out_prompts(config, anchor)
    assert config.judge.function is not None, "studies have a judge"
    model = rm / "model"
    limits = config.judge.function, config.rewarder.max_tokens
    watcher = Evaluation(lab, held_out, anchor, model, *limits, unit.arm.options)
    score = gold_reward(config) if "gold" in unit.arm.options else reward_of(config, anchor, rm)
    loop, total = Loop(config, lab, learner, anchor, score), config.iteration.num * config.iteration.steps
    points: list[dict[str, float]] = []
    for step in range(total + 1):
        lab.publish(learner, step, held_out)
        if step == 0 and "breadth" in unit.arm.options:
            watcher.set_bar(config.run.seed, config.aggregation.quantile)
        if step % EVALUATE_EVERY == 0 or step == total:
            points.append(watcher.measure(step, config.run.seed))
            report("step", step, total)
        if step < total:
            loop.step(step)
    return points[-1], {name: [point[name] for point in points] for name in points[0]}


def reward_model(unit: Unit, lab: Lab, report: Report) -> Measured:
    """Pair accuracy by gold of the gate and of what it must beat; R2 of each objective against its gold program."""
    return reward_quality.measure(unit.config, lab, report), {}
