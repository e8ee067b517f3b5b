"""Makes what units of one seed share (artifacts.py): trains the SFT policy and the reward model, samples labels and references,
and trains the policy whose samples are out of distribution.

Called by worker.py, for a task that the runner put before the units that need it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from common.config.config import Config
from common.data.data import write_jsonl
from common.judge import label_samples, load_function
from common.queue.codec import encode
from common.types import Prompt, Rollout, ScoredGroup
from learner.worker import LearnerWorker
from studies import artifacts
from studies.evaluation import EVALUATE_EVERY, Evaluation
from studies.lab import Lab, Report, learner_of
from studies.loop import Loop, reward_of
from studies.prompts import held_out_prompts, shards, training_prompts

PROBE_PROMPTS = 64


def make(artifact: artifacts.Artifact, config: Config, lab: Lab, report: Report) -> None:
    """Makes the artifact aside and renames it into place."""
    aside = artifact.directory.with_name(f".{artifact.directory.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    MAKERS[artifact.kind](config, lab, aside, report)
    aside.rename(artifact.directory)


def make_sft(config: Config, lab: Lab, directory: Path, report: Report) -> None:
    """Makes the fine-tuned policy of a configuration."""
    assert config.policy.model is not None, "studies start from a model"
    report("sft", 0, 1)
    learner_of(config).sft(config.policy.model, str(directory))


def make_reward_model(config: Config, lab: Lab, directory: Path, report: Report) -> None:
    """Collects labels and trains the reward model of a configuration."""
    anchor = artifacts.sft_of(config).directory
    learner = learner_of(config)
    learner.load_anchor(str(anchor))
    lab.start(config, anchor)
    lab.publish_anchor(learner, anchor, training_prompts(config, anchor, PROBE_PROMPTS))
    report("collect", 0, 3)
    _collect(config, lab, anchor, directory)
    report("references", 1, 3)
    _references(config, lab, anchor, directory)
    report("reward model", 2, 3)
    plain = str(directory / "baseline") if config.learner.reward_model.baseline else None
    learner.reward_model(str(anchor), artifacts.label_files(directory), str(directory / "model"), plain)


def make_shifted(config: Config, lab: Lab, directory: Path, report: Report) -> None:
    """Trains a policy against the frozen reward model and keeps its answers to held-out prompts."""
    anchor, rm = artifacts.sft_of(config).directory, artifacts.reward_model_of(config).directory
    learner = learner_of(config)
    learner.load_policy(str(anchor), None)
    lab.start(config, anchor)
    held_out = held_out_prompts(config, anchor, artifacts.SHIFTED_PROMPTS)
    loop, steps = Loop(config, lab, learner, anchor, reward_of(config, anchor, rm)), config.iteration.steps
    for step in range(steps):
        report("step", step, steps)
        lab.publish(learner, step, held_out)
        loop.step(step)
    lab.publish(learner, steps, held_out)
    sampled = lab.sample(held_out, artifacts.SHIFTED_SAMPLES, config.run.seed, "shifted")
    answers = [(p, rollout) for p, rollouts in zip(held_out, sampled, strict=True) for rollout in rollouts]
    write_jsonl(directory / artifacts.SHIFTED_FILE, [_sample_row(prompt, rollout) for prompt, rollout in answers])


def make_frozen_run(config: Config, lab: Lab, directory: Path, report: Report) -> None:
    """Points of Evaluation.measure; checkpoint and groups at the ends of iterations, where studies/adaptation.py goes on."""
    anchor, rm = artifacts.sft_of(config).directory, artifacts.reward_model_of(config).directory
    learner = learner_of(config)
    learner.load_policy(str(anchor), None)
    lab.start(config, anchor)
    held_out, per = held_out_prompts(config, anchor), config.iteration.steps
    assert config.judge.function is not None, "studies have a judge"
    watcher = Evaluation(lab, held_out, anchor, rm / "model", config.judge.function, config.rewarder.max_tokens)
    loop, total = Loop(config, lab, learner, anchor, reward_of(config, anchor, rm)), config.iteration.num * per
    points, groups = list[dict[str, float]](), list[ScoredGroup]()
    for step in range(total + 1):
        if step % per == 0 and 0 < step < total:
            _keep_iteration(artifacts.iteration_in(directory, step // per), learner, groups)
            groups = []
        report("step", step, total)
        lab.publish(learner, step, held_out)
        if step % EVALUATE_EVERY == 0 or step == total:
            points.append(watcher.measure(step, config.run.seed))
        if step < total:
            groups += loop.step(step)
    write_jsonl(directory / artifacts.POINTS_FILE, points)


def _keep_iteration(directory: Path, learner: LearnerWorker, groups: Sequence[ScoredGroup]) -> None:
    directory.mkdir(parents=True)
    learner.save(str(directory / "checkpoint"))
    (directory / artifacts.GROUPS_FILE).write_bytes(b"".join(_framed(encode(group)) for group in groups))


def _framed(record: bytes) -> bytes:
    return len(record).to_bytes(4, "little") + record


MAKERS: dict[str, Callable[[Config, Lab, Path, Report], None]] = {
    "sft": make_sft,
    "reward_model": make_reward_model,
    "shifted": make_shifted,
    "frozen_run": make_frozen_run,
}


def _collect(config: Config, lab: Lab, anchor: Path, directory: Path) -> None:
    judge, seed = config.judge, config.run.seed
    assert judge.labeler is not None, "studies have a labeler"
    prompts = training_prompts(config, anchor, judge.collect_prompts)
    sampled = lab.sample(prompts, judge.collect_responses, seed, "collect")
    ratings, pairs = label_samples(load_function(judge.labeler), prompts, sampled, seed)
    write_jsonl(directory / "ratings.jsonl", ratings)
    write_jsonl(directory / "preferences.jsonl", pairs)


def _references(config: Config, lab: Lab, anchor: Path, directory: Path) -> None:
    prompts = [prompt for part in shards(config, anchor) for prompt in part]
    sampled = lab.sample(prompts, config.aggregation.references_per_prompt, config.run.seed, "references")
    rows = zip(prompts, sampled, strict=True)
    write_jsonl(
        directory / "references.jsonl",
        [{"prompt_id": prompt.prompt_id, "responses": [r.response for r in rollouts]} for prompt, rollouts in rows],
    )


def _sample_row(prompt: Prompt, rollout: Rollout) -> dict[str, object]:
    turns = [asdict(message) for message in prompt.messages]
    said = {"response": rollout.response, "finish_reason": rollout.finish_reason}
    return {"prompt_id": prompt.prompt_id, "prompt": turns, "meta": prompt.meta, **said}
