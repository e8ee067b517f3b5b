"""Steps that teach nothing say so."""

from __future__ import annotations

from driver.loop.warnings import step_warnings

FINE = {"rollout/truncated_frac": 0.99, "reward/no_spread_frac": 0.5}


def test_a_step_as_it_should_be_has_no_warning() -> None:
    assert step_warnings(3, FINE, 40) == []


def test_a_step_whose_responses_are_all_cut_is_named() -> None:
    (line,) = step_warnings(3, {**FINE, "rollout/truncated_frac": 1.0}, 40)
    assert line.startswith("WARNING: every response of step 3 was cut at actors.max_response_tokens 40")


def test_a_step_without_spread_is_named() -> None:
    (line,) = step_warnings(3, {**FINE, "reward/no_spread_frac": 1.0}, 40)
    assert line.startswith("WARNING: in step 3 all responses of every group have the same reward")
