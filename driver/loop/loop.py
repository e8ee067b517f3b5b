"""The loop of iterative RLHF: the driver is the only caller, roles meet in records and weights.

    for each iteration: references pass, then for each step

        admit slots (window) -> actors sample -> rewarders score -> learner trains -> weights published and verified

    and after a step, where adaptation.when says so, a round of the reward model (driver/rounds/when.py)

Owned by driver/stages.py (stage iterate). Slots, steps and the window are defined in common/queue/ledger.py. With
max_staleness 0 the parts take turns; with more the actors sample ahead while the rewarders score and the learner trains,
and weights are updated under the responses in flight (docs/async.md).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actors.prompts import shard
from common.config.config import Config
from common.metrics import StepLog
from common.queue.address import QueueAddress
from common.queue.ledger import Ledger, window_end
from common.queue.queue import Queue
from common.types import Prompt
from driver.cluster.calls import RoleError
from driver.cluster.cluster import Cluster
from driver.loop.evaluation import judge_policy
from driver.loop.publish import Publisher
from driver.loop.reference_pass import ReferencePass
from driver.record import checkpoint
from driver.record.loop_state import LoopState, read_loop_state
from driver.record.progress import StepClock, say
from driver.record.step_lines import StepLines
from driver.rounds.drift import DriftWatch
from driver.rounds.reward_models import RewardModels
from driver.rounds.when import RoundTimes

COLLECT_S = 1.0
HEALTH_EVERY_S = 5.0
MAX_DROPPED_SHARE = 0.2


@dataclass(frozen=True)
class Paths:
    """What stage iterate reads and writes."""

    run: Path
    anchor: str
    anchor_directory: Path


class Loop:
    """One run of stage iterate."""

    def __init__(
        self,
        config: Config,
        cluster: Cluster,
        queue: Queue,
        address: QueueAddress,
        paths: Paths,
        prompts: list[Prompt],
        reward_models: RewardModels,
    ):
        self._config, self._cluster, self._queue, self._address, self._paths = config, cluster, queue, address, paths
        self._prompts, self._rm = prompts, reward_models
        self._publisher = Publisher(
            cluster.learners, cluster.actors, paths.anchor_directory, prompts, config.sync_tolerance
        )
        self._references = ReferencePass(
            config, cluster.actors, cluster.rewarders, self._publisher, paths.run, paths.anchor
        )
        self._rounds = RoundTimes(config, reward_models, DriftWatch(config, cluster, queue, paths.run))
        reward_models.on_switch = self._references_again
        self._samples = StepLog(paths.run / "samples.jsonl")
        self._checkpoints = paths.run / "checkpoints"
        self._state, self._admitted, self._tokens = LoopState(), 0, (0.0, 0.0)
        self._sync_difference = 0.0
        self._checkpoint_s = 0.0  # of the checkpoint since the last step line

    def run(self, eval_prompts: Sequence[Prompt]) -> LoopState:
        """Runs from the newest checkpoint, or from the anchor, to the end of the last iteration."""
        self._eval_prompts = eval_prompts
        resumed = self._start()
        config = self._config.iteration
        while self._state.iteration < config.num:
            self._start_iteration(reset=not resumed)
            while self._state.step < (self._state.iteration + 1) * config.steps:
                self._step()
            self._end_iteration()
            resumed = False
        return self._state

    # ---- parts of an iteration ----------------------------------------------------------------------------------------

    def _start(self) -> bool:
        found = checkpoint.newest(self._checkpoints)
        if found is not None:
            self._state = read_loop_state(found)
            self._cluster.disks.share(found)
            self._trim()  # a kill between a checkpoint and its trimming must not show the adapter more than others saw
            say(f"resuming from {found.name}")
        last_step = self._state.step if found else -1
        objectives, tensorboard = self._config.rewarder.objectives, self._config.report.tensorboard
        self._lines = StepLines(self._paths.run, objectives, last_step, self._cluster.gauges, tensorboard)
        self._samples.cut(last_step)
        self._rm.load(self._state.reward_model)
        from_checkpoint = str(found.resolve()) if found else None
        self._cluster.learners.start_policy(self._paths.anchor, self._address, from_checkpoint)
        self._cluster.rewarders.serve(self._address)
        in_flight = self._config.iteration.max_staleness > 0
        self._cluster.actors.connect(self._address, slots_per_actor(self._config), in_flight)
        self._admitted = self._lowest_open_slot()
        return found is not None and self._state.step > self._state.iteration * self._config.iteration.steps

    def _start_iteration(self, reset: bool) -> None:
        state, config = self._state, self._config
        say(f"iteration {state.iteration + 1}/{config.iteration.num}")
        part = shard(self._prompts, state.iteration, config.iteration.num, config.run.seed)[: self._shard_size()]
        self._references.begin(part, self._rm.served)
        self._cluster.actors.set_iteration(part, state.first_slot)
        if reset and state.iteration > 0 and config.iteration.policy_start == "reset":
            self._cluster.learners.reset_policy(self._paths.anchor)
        self._sync_difference = self._publisher.policy(state.step).max_logprob_diff
        if state.step == 0:
            gold = judge_policy(self._cluster.actors, config, self._eval_prompts, 0, self._paths.run / "evaluations")
            measured = {"gold/mean": gold, "sync/max_logprob_diff": self._sync_difference}
            self._lines.write(0, {**self._place(), **measured, "rm/version": self._rm.version})
            _say_gold(0, gold)

    def _step(self) -> None:
        state, clock = self._state, StepClock()
        self._await_batch()
        clock.ends("wait")
        result = self._cluster.learners.train(state.step + 1)
        clock.ends("train")
        state.step += 1
        status = self._cluster.learners.status()
        sync = self._publisher.policy(state.step)
        self._sync_difference, state.dropped = sync.max_logprob_diff, status.dropped
        clock.ends("publish")
        place = self._place()
        if self._config.iteration.max_staleness > 0:
            self._admit()  # sampling goes on beside a round; where the parts take turns, nothing is in flight at its switch
        gold = self._gold() if self._is_last_of_iteration else None
        clock.ends("judge")
        adapted = self._rounds.after_step(state, status.next_slot)
        clock.ends("adapt")
        self._admit()
        measured = {**place, **result.metrics, **adapted, "sync/step_size": sync.step_size, "gold/mean": gold}
        self._log(measured, result.samples, {**clock.parts, "checkpoint": self._checkpoint_s, "step": clock.total})
        self._checkpoint_s = 0.0
        if state.step % self._config.checkpoint.every_steps == 0 and not self._is_last_of_iteration:
            self._checkpoint()  # after the line: a resume removes lines that are ahead, and cannot make one that is missing

    def _references_again(self) -> None:
        """Under a version that is switched to; at the end of an iteration no group is left, and the next one has its own."""
        if not self._is_last_of_iteration:
            self._references.again(self._rm.served)

    @property
    def _is_last_of_iteration(self) -> bool:
        return self._state.step == (self._state.iteration + 1) * self._config.iteration.steps

    def _end_iteration(self) -> None:
        self._state.iteration += 1
        self._state.first_slot = self._lowest_open_slot()
        self._checkpoint()

    # ---- slots --------------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Admits what the window and the iteration's end allow; a dropped slot makes room for one more."""
        state, config = self._state, self._config
        dropped = sum(slot >= state.first_slot for slot in state.dropped)
        steps_before = state.iteration * config.iteration.steps
        last = state.first_slot + config.iteration.steps * config.learner.groups_per_step + dropped
        assert state.step >= steps_before, "an iteration's steps follow those of the one before"
        size = config.learner.groups_per_step
        end = min(window_end(state.step * size, state.dropped, config.iteration.max_staleness, size), last)
        if end > self._admitted:
            self._queue.admit(range(self._admitted, end))
            self._admitted = end

    def _await_batch(self) -> None:
        asked = started = time.monotonic()
        self._admit()
        while True:
            statuses = self._cluster.learners.collect(COLLECT_S)
            if all(status.ready for status in statuses):
                return
            if len(statuses[0].dropped) > len(self._state.dropped):
                self._state.dropped = statuses[0].dropped
                self._check_drops()
                self._admit()
            if time.monotonic() - asked > HEALTH_EVERY_S:
                asked = time.monotonic()
                self._check_health()
                self._check_stall(asked - started)

    def _check_health(self) -> tuple[float, float]:
        self._cluster.rewarders.health()
        answers = self._cluster.actors.health()
        return sum(answer["tokens"] for answer in answers), sum(answer["busy_s"] for answer in answers)

    @property
    def _ended(self) -> int:
        """Slots trained or dropped: each step trains groups_per_step."""
        return self._state.step * self._config.learner.groups_per_step + len(self._state.dropped)

    def _check_drops(self) -> None:
        """A role that drops everything would look like picky filtering: too many drops end the run."""
        dropped = self._state.dropped
        allowed = max(self._config.learner.groups_per_step, MAX_DROPPED_SHARE * self._ended)
        if len(dropped) > allowed:
            reasons = "; ".join(list(dict.fromkeys(dropped.values()))[:3])
            raise RoleError(f"{len(dropped)} of {self._ended} ended slots were dropped. Reasons: {reasons}")

    def _check_stall(self, waited_s: float) -> None:
        if waited_s > (limit := self._config.cluster.call_timeout_s):
            raise RoleError(
                f"step {self._state.step + 1} has had no whole batch for {waited_s:.0f} s (cluster.call_timeout_s {limit:g}); "
                f"entries in the queue: {self._queue.depths()}. Work waits for actors, rollouts for rewarders."
            )

    def _lowest_open_slot(self) -> int:
        return self._cluster.learners.status().next_slot

    def audit(self) -> list[str]:
        """Violations of the ledger's law, in the newest checkpoint; [] when every admitted slot is accounted for."""
        found = checkpoint.newest(self._checkpoints)
        if found is None:
            return ["there is no checkpoint to audit"]
        ledger = Ledger.from_dict(checkpoint.read_json(found / "learner.json")["ledger"])
        return ledger.audit(self._admitted, self._queue.slots_in_flight())

    def summary(self) -> str:
        """Trained and dropped slots, for people."""
        dropped = len(self._state.dropped)
        return f"{self._ended - dropped} trained, {dropped} dropped"

    # ---- records ------------------------------------------------------------------------------------------------------

    def _shard_size(self) -> int:
        """Prompts of one iteration: no more than it has slots."""
        return self._config.iteration.steps * self._config.learner.groups_per_step

    def _gold(self) -> float | None:
        step, directory = self._state.step, self._paths.run / "evaluations"
        gold = judge_policy(self._cluster.actors, self._config, self._eval_prompts, step, directory)
        _say_gold(step, gold)
        return gold

    def _checkpoint(self) -> None:
        started = time.monotonic()

        def write(directory: Path) -> None:
            with self._cluster.disks.writing(directory) as target:
                self._cluster.learners.save(target)

        keep = self._config.checkpoint.keep
        state: dict[str, Any] = asdict(self._state)
        checkpoint.write_checkpoint(self._checkpoints, self._state.step, state, write, keep)
        self._trim()
        self._checkpoint_s = time.monotonic() - started

    def _trim(self) -> None:
        """Deletes the scored records that no kept checkpoint needs."""
        oldest = self._checkpoints / f"step_{checkpoint.steps(self._checkpoints)[0]}"
        cursor = checkpoint.read_json(oldest / "learner.json")["ledger"]["cursor"]
        self._queue.trim_scored(cursor)

    def _log(self, metrics: dict[str, Any], samples: list[dict[str, object]], times: dict[str, float]) -> None:
        tokens, busy = self._check_health()
        speed = (tokens - self._tokens[0]) / max(busy - self._tokens[1], 1e-9)
        self._tokens = (tokens, busy)
        depths = {f"queue/{name}": depth for name, depth in self._queue.depths().items()}
        named = {f"time/{part}_s": seconds for part, seconds in times.items()}
        extra = {"sync/max_logprob_diff": self._sync_difference, "rollout/tokens_per_s": speed}
        self._lines.write(self._state.step, {**metrics, **depths, **extra, **named})
        for sample in samples:
            self._samples.write(self._state.step, sample)
        self._say_step(metrics, times["step"])

    def _place(self) -> dict[str, float]:
        """Where the line belongs: the iteration, the policy, and how the references lie that the step was scored against."""
        coverage = {f"reference/coverage/{term}": share for term, share in self._references.coverage.items()}
        return {"iteration": self._state.iteration + 1, "policy/version": self._state.step, **coverage}

    def _say_step(self, metrics: dict[str, Any], seconds: float) -> None:
        total = self._config.iteration.num * self._config.iteration.steps
        say(
            f"  step {self._state.step}/{total}  reward {metrics['reward/mean']:+.3f}  "
            f"kl {metrics['policy/kl_sequence']:.2f} nats  entropy {metrics['policy/entropy']:.2f}  "
            f"tokens {metrics['rollout/response_tokens']:.1f}  sync {self._sync_difference:.1e}  {seconds:.2f} s"
        )


def slots_per_actor(config: Config) -> int:
    """Slots that an actor holds at once: its share of the window, and no more than twice what fills its engine (the places
    of short responses are free before their group is whole). The share of a step is one closed batch."""
    actors, staleness = config.actors, config.iteration.max_staleness
    share = -(-window_end(0, (), staleness, config.learner.groups_per_step) // actors.num)
    return share if staleness == 0 else min(share, 2 * -(-actors.max_num_seqs // actors.responses_per_prompt))


def _say_gold(step: int, gold: float | None) -> None:
    if gold is not None:
        say(f"  gold after step {step}: {gold:.3f}")
