"""The loop of iterative RLHF: the driver is the only caller, roles meet in records and weights.

    for each iteration: references pass, then for each step

        admit slots (driver/loop/slot_window.py) -> actors sample -> rewarders score -> learner trains
        -> weights published and verified (driver/loop/publish.py)
        -> where adaptation.when says so, a round of the reward model (driver/rounds/when.py)
        -> the step's line (driver/loop/step_record.py) -> a checkpoint (driver/loop/checkpoints.py)

driver/stages.py (stage iterate) owns the loop. With max_staleness 0 the parts take turns; with more the actors sample ahead
while the rewarders score and the learner trains, and weights are updated under the responses in flight (docs/async.md).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.prompts import shard
from common.config.config import Config
from common.queue.address import QueueAddress
from common.queue.queue import Queue
from common.types import Prompt
from driver.cluster.cluster import Cluster
from driver.loop.checkpoints import Checkpoints
from driver.loop.evaluation import judge_policy
from driver.loop.publish import Published, Publisher
from driver.loop.reference_pass import ReferencePass
from driver.loop.slot_window import SlotWindow, slots_per_actor
from driver.loop.step_record import Sampled, StepDone, StepRecord, place_of, say_gold
from driver.record.loop_state import LoopState, read_loop_state
from driver.record.progress import StepClock, say
from driver.rounds.drift import DriftWatch
from driver.rounds.reward_models import RewardModels
from driver.rounds.when import RoundTimes
from learner.worker import StepResult

COLLECT_S = 1.0
HEALTH_EVERY_S = 5.0


@dataclass(frozen=True)
class Inputs:
    """What stage iterate starts from. `run` is the run's directory; the policy is trained on `prompts` and judged on
    `eval_prompts`, which may be empty."""

    run: Path
    anchor: str
    anchor_directory: Path
    prompts: list[Prompt]
    eval_prompts: list[Prompt]


class Loop:
    """One run of stage iterate, from the newest checkpoint, or from the anchor where there is none."""

    def __init__(
        self,
        config: Config,
        cluster: Cluster,
        queue: Queue,
        address: QueueAddress,
        inputs: Inputs,
        reward_models: RewardModels,
    ):
        self._config, self._cluster, self._queue, self._address, self._inputs = config, cluster, queue, address, inputs
        self._checkpoints = Checkpoints(config, cluster, queue, inputs.run)
        self._found = self._checkpoints.newest()
        self._state = read_loop_state(self._found) if self._found else LoopState()
        learners, actors, run = cluster.learners, cluster.actors, inputs.run
        self._window = SlotWindow(config, self._state, queue, learners)
        self._publisher = Publisher(learners, actors, inputs.anchor_directory, inputs.prompts, config.sync_tolerance)
        self._references = ReferencePass(config, actors, cluster.rewarders, self._publisher, run, inputs.anchor)
        self._rm = reward_models
        self._rounds = RoundTimes(config, reward_models, DriftWatch(config, cluster, queue, run))
        self._record = StepRecord(config, run, cluster.gauges, self._state.step if self._found else -1)

    def run(self) -> LoopState:
        """Runs to the end of the last iteration."""
        resumed = self._start()
        config = self._config.iteration
        while self._state.iteration < config.num:
            self._start_iteration(reset=not resumed)
            while self._state.step < (self._state.iteration + 1) * config.steps:
                self._step()
            self._end_iteration()
            resumed = False
        return self._state

    def _start(self) -> bool:
        """Brings every role to where the run is. Returns whether that is in the middle of an iteration."""
        found, config, cluster = self._found, self._config, self._cluster
        if found is not None:
            cluster.disks.share(found)
            # A kill between a checkpoint and its trimming must not show the adapter more than other runs would have shown it.
            self._checkpoints.trim()
            say(f"resuming from {found.name}")
        self._rm.load(self._state.reward_model)
        cluster.learners.start_policy(self._inputs.anchor, self._address, str(found.resolve()) if found else None)
        cluster.rewarders.serve(self._address)
        cluster.actors.connect(self._address, slots_per_actor(config), config.iteration.max_staleness > 0)
        self._window.open()
        return found is not None and self._state.step > self._state.iteration * config.iteration.steps

    def _start_iteration(self, reset: bool) -> None:
        state, config = self._state, self._config
        say(f"iteration {state.iteration + 1}/{config.iteration.num}")
        num_slots = config.iteration.steps * config.learner.groups_per_step
        part = shard(self._inputs.prompts, state.iteration, config.iteration.num, config.run.seed)[:num_slots]
        self._references.begin(part, self._rm.served)
        self._cluster.actors.set_iteration(part, state.first_slot)
        if reset and state.iteration > 0 and config.iteration.policy_start == "reset":
            self._cluster.learners.reset_policy(self._inputs.anchor)
        sync = self._publisher.policy(state.step)
        if state.step == 0:
            place = place_of(state, self._references.coverage)
            self._record.start(place, self._gold(), sync.max_logprob_diff, self._rm.version)

    def _step(self) -> None:
        state, clock = self._state, StepClock()
        result = self._train(clock)
        state.step += 1
        status = self._cluster.learners.status()
        sync = self._publisher.policy(state.step)
        state.dropped = status.dropped
        clock.ends("publish")
        place = place_of(state, self._references.coverage)
        if self._config.iteration.max_staleness > 0:
            # Sampling goes on beside a round. Where the parts take turns, nothing is in flight when a version is switched.
            self._window.admit()
        gold = self._gold() if self._is_last_of_iteration else None
        clock.ends("judge")
        adapted = self._rounds.after_step(state, status.next_slot, self._references_again)
        clock.ends("adapt")
        self._window.admit()
        metrics = {**place, **result.metrics, **adapted, "sync/step_size": sync.step_size, "gold/mean": gold}
        self._write_line(metrics, result.samples, sync, clock)
        if state.step % self._config.checkpoint.every_steps == 0 and not self._is_last_of_iteration:
            # A checkpoint follows its line: a resume removes lines that are ahead, and cannot make one that is missing.
            self._checkpoints.save(state)

    def _train(self, clock: StepClock) -> StepResult:
        """Trains the next step. Groups that the learner refuses are written off, and later slots take their place."""
        while True:
            self._await_batch()
            clock.ends("wait")
            result = self._cluster.learners.train(self._state.step + 1)
            clock.ends("train")
            if not result.refused:
                return result
            self._queue.write_off(result.slots, result.refused)
            say(f"warning: {len(result.slots)} groups are written off: {result.refused}")
            self._window.note_drops(self._cluster.learners.status().dropped)

    def _write_line(
        self, metrics: dict[str, Any], samples: list[dict[str, object]], sync: Published, clock: StepClock
    ) -> None:
        times_s = {**clock.parts, "checkpoint": self._checkpoints.take_saving_s(), "step": clock.total}
        sampled = self._check_health()
        done = StepDone(metrics, samples, sync.max_logprob_diff, self._queue.depths(), times_s)
        self._record.step(self._state.step, done, sampled)

    def _gold(self) -> float | None:
        step, actors, directory = self._state.step, self._cluster.actors, self._inputs.run / "evaluations"
        gold = judge_policy(actors, self._config, self._inputs.eval_prompts, step, directory)
        say_gold(step, gold)
        return gold

    def _references_again(self, reward_model: str) -> None:
        """Brings the references under the version that a round has put in place. At the end of an iteration no group is left,
        and the next iteration has references of its own."""
        if not self._is_last_of_iteration:
            self._references.again(reward_model)

    @property
    def _is_last_of_iteration(self) -> bool:
        return self._state.step == (self._state.iteration + 1) * self._config.iteration.steps

    def _end_iteration(self) -> None:
        self._state.iteration += 1
        self._state.first_slot = self._window.lowest_open()
        self._checkpoints.save(self._state)

    def _await_batch(self) -> None:
        asked = started = time.monotonic()
        self._window.admit()
        while True:
            statuses = self._cluster.learners.collect(COLLECT_S)
            if all(status.ready for status in statuses):
                return
            self._window.note_drops(statuses[0].dropped)
            if time.monotonic() - asked > HEALTH_EVERY_S:
                asked = time.monotonic()
                self._check_health()
                self._window.check_stall(asked - started)

    def _check_health(self) -> Sampled:
        self._cluster.rewarders.health()
        answers = self._cluster.actors.health()
        return Sampled(sum(answer["tokens"] for answer in answers), sum(answer["busy_s"] for answer in answers))

    def audit(self) -> list[str]:
        """Returns violations of the ledger's law; [] when every admitted slot is accounted for."""
        return self._checkpoints.audit(self._window.admitted)

    def summary(self) -> str:
        """Tells people how many slots were trained and dropped."""
        return self._window.summary()
