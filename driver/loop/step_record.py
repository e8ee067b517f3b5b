"""The step record keeps what each step did: a line of metrics.jsonl, rows of samples.jsonl, and a line on the terminal.

The loop (driver/loop/loop.py) owns the record and writes it after each step, and once before the first one.
driver/record/step_lines.py takes a line to metrics.jsonl, to Ray's metrics and to TensorBoard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config.config import Config
from common.metrics import StepLog
from driver.loop.warnings import step_warnings
from driver.record.gauges import Gauges
from driver.record.loop_state import LoopState
from driver.record.progress import say
from driver.record.step_lines import StepLines


@dataclass(frozen=True)
class Sampled:
    """How many tokens the actors have sampled since they started, and how many seconds they were busy with it."""

    tokens: float
    busy_s: float


@dataclass(frozen=True)
class StepDone:
    """What a step has left: metrics are the names and values of its line, samples its explained responses, sync_difference
    the largest difference of log-probs on the probe, depths the entries of each stream, and times_s how long its parts took."""

    metrics: Mapping[str, Any]
    samples: Sequence[Mapping[str, object]]
    sync_difference: float
    depths: Mapping[str, int]
    times_s: Mapping[str, float]


class StepRecord:
    """The record of one run from last_step on (-1: nothing is kept); later lines of a stopped run are removed."""

    def __init__(self, config: Config, run: Path, gauges: Gauges, last_step: int):
        self._steps = config.iteration.num * config.iteration.steps
        objectives, tensorboard = config.rewarder.objectives, config.report.tensorboard
        self._lines = StepLines(run, objectives, last_step, gauges, tensorboard)
        self._samples = StepLog(run / "samples.jsonl")
        self._samples.cut(last_step)
        self._sampled = Sampled(0.0, 0.0)
        self._max_response_tokens = config.actors.max_response_tokens

    def start(self, place: Mapping[str, float], gold: float | None, sync_difference: float, rm_version: int) -> None:
        """Writes the line of step 0, which says how the policy is before it is trained."""
        measured = {"gold/mean": gold, "sync/max_logprob_diff": sync_difference}
        self._lines.write(0, {**place, **measured, "rm/version": rm_version})

    def step(self, number: int, done: StepDone, sampled: Sampled) -> None:
        """Writes what a step did, and says it."""
        depths = {f"queue/{name}": depth for name, depth in done.depths.items()}
        times = {f"time/{part}_s": seconds for part, seconds in done.times_s.items()}
        extra = {"sync/max_logprob_diff": done.sync_difference, "rollout/tokens_per_s": self._speed(sampled)}
        self._lines.write(number, {**done.metrics, **depths, **extra, **times})
        for sample in done.samples:
            self._samples.write(number, sample)
        self._say(number, done)
        for warning in step_warnings(number, done.metrics, self._max_response_tokens):
            say(warning)

    def _speed(self, sampled: Sampled) -> float:
        """Tokens per busy second of an actor since the step before."""
        before, self._sampled = self._sampled, sampled
        return (sampled.tokens - before.tokens) / max(sampled.busy_s - before.busy_s, 1e-9)

    def _say(self, number: int, done: StepDone) -> None:
        metrics = done.metrics
        say(
            f"  step {number}/{self._steps}  reward {metrics['reward/mean']:+.3f}  "
            f"kl {metrics['policy/kl_sequence']:.2f} nats  entropy {metrics['policy/entropy']:.2f}  "
            f"tokens {metrics['rollout/response_tokens']:.1f}  sync {done.sync_difference:.1e}  {done.times_s['step']:.2f} s"
        )


def place_of(state: LoopState, coverage: Mapping[str, float]) -> dict[str, float]:
    """Where a line belongs: the iteration, the policy, and how the references lie that the step was scored against."""
    shares = {f"reference/coverage/{term}": share for term, share in coverage.items()}
    return {"iteration": state.iteration + 1, "policy/version": state.step, **shares}


def say_gold(step: int, gold: float | None) -> None:
    """Says what the judge thinks of the policy after a step, where there is a judge."""
    if gold is not None:
        say(f"  gold after step {step}: {gold:.3f}")
