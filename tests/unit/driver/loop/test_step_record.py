"""driver/loop/step_record.py: what a step leaves in metrics.jsonl, in samples.jsonl and on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from common.config.file import BASE, load_config
from common.metrics import STEP_NAMES, read_rows
from driver.loop.step_record import Sampled, StepDone, StepRecord, place_of, say_gold
from driver.record.gauges import Gauges
from driver.record.loop_state import LoopState

METRICS = {
    "reward/mean": 0.25,
    "reward/no_spread_frac": 0.0,
    "policy/kl_sequence": 1.5,
    "policy/entropy": 2.0,
    "rollout/response_tokens": 12.0,
    "rollout/truncated_frac": 0.25,
}
NAMES = (
    "aggregation.kind=final_score",
    "rewarder.objectives=[clear]",
    "iteration.num=2",
    "iteration.steps=3",
    "report.tensorboard=false",
)


class SilentGauges(Gauges):
    """Gauges that export nothing, so that no Ray is needed."""

    def __init__(self) -> None:
        super().__init__("run", ["clear"])

    def write(self, step: int, values: Mapping[str, Any]) -> None: ...


def record(run: Path, last_step: int = -1) -> StepRecord:
    return StepRecord(load_config(BASE, list(NAMES)), run, SilentGauges(), last_step)


def done(**metrics: float | None) -> StepDone:
    times_s = {"wait": 0.5, "train": 1.0, "checkpoint": 0.0, "step": 1.5}
    return StepDone({**METRICS, **metrics}, [{"response": "yes"}, {"response": "no"}], 2e-5, {"work": 7}, times_s)


def test_the_first_line_says_how_the_policy_is_before_it_is_trained(tmp_path: Path) -> None:
    record(tmp_path).start(place_of(LoopState(), {"clear": 0.75}), 0.5, 1e-5, 3)
    (row,) = read_rows(tmp_path / "metrics.jsonl")
    assert (row["step"], row["iteration"], row["policy/version"], row["reference/coverage/clear"]) == (0, 1, 0, 0.75)
    assert (row["gold/mean"], row["sync/max_logprob_diff"], row["rm/version"]) == (0.5, 1e-5, 3)
    assert row["reward/mean"] is None and set(STEP_NAMES) <= set(row)


def test_a_step_leaves_its_line_and_its_samples(tmp_path: Path) -> None:
    record(tmp_path).step(2, done(), Sampled(100.0, 4.0))
    (row,) = read_rows(tmp_path / "metrics.jsonl")
    assert (row["step"], row["reward/mean"], row["queue/work"], row["sync/max_logprob_diff"]) == (2, 0.25, 7, 2e-5)
    assert {name: row[f"time/{name}_s"] for name in done().times_s} == dict(done().times_s)
    samples = read_rows(tmp_path / "samples.jsonl")
    assert samples == [{"step": 2, "response": "yes"}, {"step": 2, "response": "no"}]


def test_speed_counts_what_the_actors_sampled_since_the_step_before(tmp_path: Path) -> None:
    kept = record(tmp_path)
    for number, sampled in enumerate((Sampled(100.0, 4.0), Sampled(160.0, 5.0), Sampled(160.0, 5.0)), 1):
        kept.step(number, done(), sampled)
    assert [row["rollout/tokens_per_s"] for row in read_rows(tmp_path / "metrics.jsonl")] == [25.0, 60.0, 0.0]


def test_a_resumed_run_removes_what_the_stopped_one_wrote_after_its_checkpoint(tmp_path: Path) -> None:
    first = record(tmp_path)
    for number in (1, 2, 3):
        first.step(number, done(), Sampled(float(number), float(number)))
    record(tmp_path, last_step=2)
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2]
    assert [row["step"] for row in read_rows(tmp_path / "samples.jsonl")] == [1, 1, 2, 2]


def test_a_step_is_said_on_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path).step(4, done(), Sampled(1.0, 1.0))
    said = "  step 4/6  reward +0.250  kl 1.50 nats  entropy 2.00  tokens 12.0  sync 2.0e-05  1.50 s\n"
    assert capsys.readouterr().out == said


def test_gold_is_said_where_there_is_a_judge(capsys: pytest.CaptureFixture[str]) -> None:
    say_gold(3, None)
    say_gold(4, 0.5)
    assert capsys.readouterr().out == "  gold after step 4: 0.500\n"


def test_a_step_that_teaches_nothing_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = record(tmp_path)
    written.step(1, done(), Sampled(1.0, 1.0))
    assert "WARNING" not in capsys.readouterr().out
    written.step(2, done(**{"rollout/truncated_frac": 1.0, "reward/no_spread_frac": 1.0}), Sampled(2.0, 2.0))
    said = capsys.readouterr().out
    assert "WARNING: every response of step 2 was cut" in said and "WARNING: in step 2 all responses" in said
