"""The held-out report: intervals by hand, length as a baseline, and what is said of a run without a judge."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.metrics import StepLog
from common.types import Message
from driver.report.measures import chance_lines, format_accuracy, summary_without_judge
from learner.reward_model.data import Pair, PromptSet
from learner.reward_model.held_out import _r2, is_constant, length_accuracy, wilson_interval
from rewarder.scoring import Rendered


@pytest.mark.parametrize(
    ("share", "number", "interval"),
    [
        (0.8, 10, (0.4902, 0.9433)),  # Agresti and Coull 1998
        (0.5, 100, (0.4038, 0.5962)),
        (0.0, 10, (0.0, 0.2775)),
        (1.0, 10, (0.7225, 1.0)),
    ],
)
def test_wilson_by_hand(share: float, number: int, interval: tuple[float, float]) -> None:
    assert wilson_interval(share, number) == pytest.approx(interval, abs=1e-4)


def test_wilson_without_a_case_is_not_a_number() -> None:
    assert all(math.isnan(end) for end in wilson_interval(math.nan, 0))


def pair(chosen: int, rejected: int) -> PromptSet:
    """A prompt with one pair of responses of so many tokens."""
    conversations = tuple(Rendered([0] * (2 + n), 0, 1 + n) for n in (chosen, rejected))
    return PromptSet((Message("user", "w"),), conversations, np.full((2, 1), np.nan, np.float32), (Pair(0, 1),))


def test_length_is_followed_in_the_direction_of_training() -> None:
    held_out = [pair(1, 2), pair(1, 3), pair(5, 2), pair(4, 4)]  # shorter wins 2.5 of 4
    assert length_accuracy([pair(1, 2)], held_out) == pytest.approx(2.5 / 4)
    assert length_accuracy([pair(2, 1)], held_out) == pytest.approx(1.5 / 4)
    assert math.isnan(length_accuracy([pair(1, 2)], []))


REPORT = {
    "rm/pair_accuracy": 0.6,
    "rm/pair_accuracy_low": 0.5,
    "rm/pair_accuracy_high": 0.7,
    "rm/pair_accuracy_uniform_gate": 0.55,
    "rm/pair_accuracy_length": 0.52,
    "rm/held_out_pairs": 99.0,
}
SAID = "held-out pair accuracy 0.600 [0.500, 0.700] (uniform gate 0.550, length alone 0.520, chance 0.500; 99 pairs)"


def test_the_accuracy_stands_beside_its_baselines() -> None:
    assert format_accuracy(REPORT) == SAID


def test_a_run_without_a_judge_has_a_summary(tmp_path: Path) -> None:
    assert summary_without_judge(tmp_path) == [] and len(chance_lines(REPORT)) == 3
    (tmp_path / "rm" / "version_0").mkdir(parents=True)
    (tmp_path / "rm" / "version_0" / "report.json").write_text(json.dumps({"report": REPORT}))
    log = StepLog(tmp_path / "metrics.jsonl")
    log.write(0, {"gold/mean": None})
    for step in (1, 2):
        log.write(step, {"reward/mean": -step, "policy/kl_sequence": step / 10, "rollout/response_tokens": 20 + step})
    assert summary_without_judge(tmp_path) == [
        f"reward model: {SAID}",
        *chance_lines(REPORT),  # its interval begins at 0.5
        "reward: -1.000 at step 1, -2.000 at step 2 (log-probability)",
        "KL to the SFT policy: 0.100 at step 1, 0.200 at step 2 (nats per response)",
        "response length: 21.000 at step 1, 22.000 at step 2 (tokens)",
    ]


@given(st.sampled_from([0.0, 1.0, 0.7, -3.3, 4e5]), st.integers(2, 50), st.integers(0, 5))
def test_ratings_that_are_all_alike_have_no_r2(rating: float, known: int, missing: int) -> None:
    """The divisor is their spread, which is nothing but rounding: R2 was -1.8e12."""
    ratings = torch.tensor([rating] * known + [math.nan] * missing)
    predicted = torch.linspace(0, 1, len(ratings))
    assert is_constant(ratings) and math.isnan(_r2(predicted, ratings))


def test_few_or_spread_ratings_are_not_constant() -> None:
    for ratings in ([], [0.5], [math.nan, 0.5]):
        assert not is_constant(torch.tensor(ratings)) and math.isnan(
            _r2(torch.zeros(len(ratings)), torch.tensor(ratings))
        )
    ratings = torch.tensor([0.5, 0.5, 0.51])
    assert not is_constant(ratings) and _r2(ratings, ratings) == 1.0
    assert _r2(torch.full((2,), 0.5), torch.tensor([0.0, 1.0])) == 0.0
