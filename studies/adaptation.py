"""Study adaptation: the loop of several iterations, with a round of the reward model at the end of each but the last.

An arm leaves the run on the frozen reward model, which the arms of a seed share (artifacts.frozen_run_of), where its first
candidate is accepted. Options: frozen (no rounds), reset (each further iteration starts from the anchor, as with
iteration.policy_start: reset). The judge of the rounds is gold, for the evidence of every arm and for what arms `labelled` are
fitted on. Called by worker.py.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

from common.config.config import Config
from common.types import ScoredGroup
from driver.judges.label_book import LabelBook, make_judge
from driver.rounds.labelling import earlier_labels
from learner.adaptation.ocrm import pair_weights
from learner.adaptation.worker import RmAdapter, Round, Versions
from learner.worker import LearnerWorker
from studies import artifacts
from studies.evaluation import EVALUATE_EVERY, Evaluation
from studies.lab import Lab, Report, learner_of
from studies.loop import Loop, Rewards
from studies.prompts import held_out_prompts
from studies.study import Unit

Measured = tuple[dict[str, float], dict[str, list[float]]]


class Rounds:
    """The reward model in place, and what each round said of its candidate."""

    def __init__(self, config: Config, learner: LearnerWorker, anchor: Path, rm: Path, directory: Path):
        self._config, self._learner, self._directory = config, learner, directory
        self._files = artifacts.label_files(rm)
        self.served, self.version = directory / "version_0", 0
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
        labels = self._book.buy([*fitted, *proposal.evidence], judge, number)
        earlier = earlier_labels(config, self._book.labels, number, proposal)
        labels |= {label.item.key: label.verdict.preferred for label in earlier}
        target = self._directory / f"version_{number}"
        versions = Versions(str(self.served), None, self.version + 1, str(target))
        chosen = Round(number, proposal, labels, self._weights(), [label.item for label in earlier])
        decision = self._adapter.fit(chosen, versions)
        if decision.accepted:
            self.served, self.version = target, self.version + 1
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
        run = Run(unit, lab, report, Path(directory))
        for iteration in range(1, unit.config.iteration.num):
            run.go_on(iteration)
    return run.points[-1] | run.told, {name: [point[name] for point in run.points] for name in run.points[0]}


class Run:
    """One arm: the frozen run's as long as nothing has changed, since a refused candidate leaves every bit as it was."""

    def __init__(self, unit: Unit, lab: Lab, report: Report, directory: Path):
        self._config, self._options, self._lab, self._report = unit.config, unit.arm.options, lab, report
        self._anchor = artifacts.sft_of(unit.config).directory
        self._rm = artifacts.reward_model_of(unit.config).directory
        self._frozen = artifacts.frozen_run_of(unit.config).directory
        self.points, self.told = artifacts.points(self._frozen), dict[str, float]()
        self._held_out = held_out_prompts(unit.config, self._anchor)
        self._learner = learner_of(unit.config)
        self._rounds = Rounds(unit.config, self._learner, self._anchor, self._rm, directory)
        self._loop: Loop | None = None

    def go_on(self, iteration: int) -> None:
        """A round at the end of the iteration, counted from 1, and the steps of the next one."""
        frozen = artifacts.iteration_in(self._frozen, iteration)
        if self._loop is None:
            self._learner.load_policy(str(self._anchor), str(frozen / "checkpoint"))
            self._groups = artifacts.scored_groups(frozen)
        if "frozen" not in self._options:
            self._report("round", iteration, self._config.iteration.num)
            self.told |= self._rounds.hold(iteration, self._groups)
        if self._loop is None and (self._rounds.version or "reset" in self._options):
            self._leave_frozen_run(iteration)
        if self._loop is not None:
            self._steps(self._loop, iteration)

    def _leave_frozen_run(self, iteration: int) -> None:
        """From here on the arm has its own policy and points."""
        config, last = self._config, iteration * self._config.iteration.steps
        self.points = [point for point in self.points if point["step"] <= last]
        self._lab.start(config, self._anchor)
        judge = config.judge.function
        assert judge is not None, "studies have a judge"
        self._watcher = Evaluation(
            self._lab, self._held_out, self._anchor, self._rm / "model", judge, config.rewarder.max_tokens
        )
        self._loop = Loop(config, self._lab, self._learner, self._anchor, self._rounds.rewards.score)

    def _steps(self, loop: Loop, iteration: int) -> None:
        per, self._groups = self._config.iteration.steps, list[ScoredGroup]()
        if "reset" in self._options:
            self._learner.reset_policy(str(self._anchor))
        self._watcher.watch(self._rounds.served)
        for step in range(iteration * per, (iteration + 1) * per):
            self._lab.publish(self._learner, step, self._held_out)
            self._groups += loop.step(step)
            if (step + 1) % EVALUATE_EVERY == 0:
                self._lab.publish(self._learner, step + 1, self._held_out)
                self.points.append(self._watcher.measure(step + 1, self._config.run.seed))
                self._report("step", step + 1, self._config.iteration.num * per)
