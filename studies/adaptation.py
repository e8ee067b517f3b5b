"""Study adaptation: the loop of several iterations, with a round of the reward model at the end of each but the last.

An arm goes on from the end of the first iteration, which the arms of a seed share (artifacts.first_iteration_of). Options:
frozen (no rounds), reset (each further iteration starts from the anchor, as iteration.policy_start: reset). The judge of the
rounds is gold, for the evidence of every arm and for what arms `labelled` are fitted on. Called by worker.py.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

from common.config import Config
from common.types import ScoredGroup
from driver.labels import LabelBook, make_judge
from learner.ocrm import pair_weights
from learner.rm_adapter import RmAdapter, Round, Versions
from learner.worker import LearnerWorker
from studies import artifacts
from studies.evaluation import EVALUATE_EVERY, Evaluation
from studies.lab import Lab, Report, learner_of
from studies.loop import Loop, Rewards
from studies.study import Unit

Measured = tuple[dict[str, float], dict[str, list[float]]]


class Rounds:
    """The reward model in place, and what each round said of its candidate."""

    def __init__(self, config: Config, learner: LearnerWorker, anchor: Path, rm: Path, directory: Path):
        self._config, self._learner, self._files, self._directory = (
            config,
            learner,
            artifacts.label_files(rm),
            directory,
        )
        self.served, self._version = directory / "version_0", 0
        self.rewards = Rewards(config, anchor, rm, self.served)
        self._adapter = RmAdapter(0, config)
        self._adapter.set_original(self._files)
        self._book = LabelBook(directory / "labels.jsonl")

    def hold(self, number: int, groups: list[ScoredGroup]) -> dict[str, float]:
        """One round on the samples of an iteration; its numbers."""
        started, config = time.monotonic(), self._config
        proposal = self._adapter.propose_from(number, groups)
        fitted = proposal.fit if config.adaptation.method == "labelled" else ()
        judge = make_judge(replace(config.judge, labeler=None), config.run.seed)
        labels = self._book.buy([*fitted, *proposal.evidence], judge)
        target = self._directory / f"version_{number}"
        versions = Versions(str(self.served), None, self._version + 1, str(target))
        decision = self._adapter.fit(Round(number, proposal, labels, self._weights()), versions)
        if decision.accepted:
            self.served, self._version = target, self._version + 1
            self.rewards.load(target)
        numbers = {name: value for name, value in decision.numbers.items() if value is not None}
        numbers |= {"accepted": float(decision.accepted), "wall_s": time.monotonic() - started}
        return {f"round{number}/{name}": value for name, value in numbers.items()}

    def _weights(self) -> list[float] | None:
        if self._config.adaptation.method != "ocrm":
            return None
        assert self._files.pairs is not None, "studies have pairs"
        ocrm = self._config.adaptation.ocrm
        return pair_weights(self._learner.pair_log_ratios(self._files.pairs), ocrm.strength, ocrm.mixture).tolist()


def measure(unit: Unit, lab: Lab, report: Report) -> Measured:
    """The curves of Evaluation.measure from the start, by the reward model that serves; end: the last point, and each round's
    numbers as round<N>/<name>."""
    with tempfile.TemporaryDirectory() as directory:
        return _measure(unit, lab, report, Path(directory))


def _measure(unit: Unit, lab: Lab, report: Report, directory: Path) -> Measured:
    config, seed = unit.config, unit.seed
    anchor, rm = artifacts.sft_of(config).directory, artifacts.reward_model_of(config).directory
    first = artifacts.first_iteration_of(config).directory
    learner = learner_of(config)
    learner.load_policy(str(anchor), str(first / "checkpoint"))
    lab.start(config, anchor)
    held_out, per = artifacts.held_out_prompts(config, anchor), config.iteration.steps
    assert config.judge.function is not None, "studies have a judge"
    watcher = Evaluation(lab, held_out, anchor, rm / "model", config.judge.function, config.rewarder.max_tokens)
    rounds = Rounds(config, learner, anchor, rm, directory)
    loop, total = Loop(config, lab, learner, anchor, rounds.rewards.score), config.iteration.num * per
    points, groups, told = artifacts.points(first), artifacts.scored_groups(first), dict[str, float]()
    for step in range(per, total):
        if step % per == 0:
            report("round", step, total)
            if "frozen" not in unit.arm.options:
                told |= rounds.hold(step // per, groups)
                watcher.watch(rounds.served)
            if "reset" in unit.arm.options:
                learner.reset_policy(str(anchor))
            groups = []
        lab.publish(learner, step, held_out)
        groups += loop.step(step)
        if (step + 1) % EVALUATE_EVERY == 0 or step + 1 == total:
            lab.publish(learner, step + 1, held_out)
            points.append(watcher.measure(step + 1, seed))
            report("step", step + 1, total)
    return points[-1] | told, {name: [point[name] for point in points] for name in points[0]}
