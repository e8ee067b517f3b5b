"""Temperatures, by the test numbers that test_aggregate maps: T10
test_scale_moves_the_temperature; T22 test_bad_pairs_are_refused; T25 test_planted_temperature; T26 test_antisymmetry; T27
test_separable_pairs_stay_finite; T28 test_closed_form_band."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rewarder.calibrate import (
    Calibration,
    affine_warning,
    calibration_report,
    calibration_warnings,
    closed_form_temperature,
    fit_temperature,
)


def planted(s: float, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    d = s * 1.5 * torch.randn(n, generator=generator)
    return d, (torch.rand(n, generator=generator) < torch.sigmoid(d / s)).float()


@pytest.mark.parametrize("s", [0.02, 0.3, 5.0])
def test_planted_temperature(s: float) -> None:
    assert fit_temperature(*planted(s, 50_000), prior=1.0) == pytest.approx(s, rel=0.05)


def test_by_hand() -> None:
    # three of four pairs with difference 2 are won: sigmoid(2 a) = 3/4, so s = 2 / ln 3
    d, y = torch.full((4,), 2.0), torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert fit_temperature(d, y, prior=1e-9) == pytest.approx(2 / math.log(3), rel=1e-6)
    assert fit_temperature(d[:1], torch.tensor([0.75]), prior=1e-9) == pytest.approx(2 / math.log(3), rel=1e-6)


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_antisymmetry(seed: int) -> None:
    d, y = planted(0.3, 200, seed)
    flip = torch.rand(200, generator=torch.Generator().manual_seed(seed + 1)) < 0.5
    other = torch.where(flip, -d, d), torch.where(flip, 1 - y, y)
    s = fit_temperature(d, y)
    assert fit_temperature(*other) == pytest.approx(s, rel=1e-6)
    assert calibration_report(*other, s).ece == pytest.approx(calibration_report(d, y, s).ece, abs=1e-9)


@settings(deadline=None)
@given(st.floats(1e-3, 1e3))
def test_scale_moves_the_temperature(scale: float) -> None:
    d, y = planted(1.0, 200)
    assert fit_temperature(scale * d.double(), y) == pytest.approx(scale * fit_temperature(d, y), rel=1e-6)


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=50))
def test_separable_pairs_stay_finite(differences: list[float]) -> None:
    s = fit_temperature(torch.tensor(differences), torch.ones(len(differences)))
    assert math.isfinite(s) and max(differences) / s < 1e6 and s > 0


def test_stationary_point() -> None:
    d, y = planted(0.3, 500)
    d = d.double()
    s, rms = fit_temperature(d, y, prior=2.0), d.square().mean().sqrt()
    t = torch.tensor(math.log(rms / s), dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(t.exp() * d / rms, y.double(), reduction="sum")
    (gradient,) = torch.autograd.grad(loss + t.square(), t)
    assert abs(gradient.item()) < 1e-6


@pytest.mark.parametrize(
    ("d", "y", "message"),
    [
        ([], [], "at least 1"),
        ([1.0], [1.0, 0.0], "same number"),
        ([0.0, 0.0], [1.0, 0.0], "constant"),
        ([1.0, 2.0], [0.0, 0.0], "no better than chance"),
        ([1.0, 2.0], [0.5, 0.5], "no better than chance"),
        ([math.nan], [1.0], "finite"),
        ([1.0], [2.0], r"\[0, 1\]"),
        ([1.0], [math.nan], r"\[0, 1\]"),
    ],
)
def test_bad_pairs_are_refused(d: list[float], y: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_temperature(torch.tensor(d), torch.tensor(y))


@pytest.mark.parametrize(("sd", "simulated"), [(0.1, 0.080), (0.2, 0.166), (0.4, 0.347)])
def test_closed_form_band(sd: float, simulated: float) -> None:
    """Each response's rating is its score + Normal(0, sd): s = sqrt(2) sd / 1.702, and a fit on who won is near it."""
    generator = torch.Generator().manual_seed(0)
    d = 0.6 * torch.randn(40_000, generator=generator)
    rated = d + math.sqrt(2) * sd * torch.randn(40_000, generator=generator)
    closed = closed_form_temperature(d, rated)
    assert closed is not None and closed == pytest.approx(0.831 * sd, rel=0.02)
    assert closed == pytest.approx(simulated, rel=0.06)
    assert 0.5 < fit_temperature(d, (rated > 0).float()) / closed < 2


def test_report_by_hand_and_gates() -> None:
    report = calibration_report(torch.tensor([2.0, -2.0]), torch.tensor([1.0, 1.0]), 2.0)
    p = 1 / (1 + math.exp(-1))
    assert report.nll == pytest.approx(-(math.log(p) + math.log(1 - p)) / 2)
    assert report.brier == pytest.approx(((1 - p) ** 2 + p**2) / 2)
    assert report.ece == pytest.approx(p - 0.5) and report.num_pairs == 2
    d, y = planted(0.05, 20_000)
    fitted = calibration_report(d, y, fit_temperature(d, y))
    assert fitted.nll < fitted.nll_at_one and fitted.brier < fitted.brier_at_one and fitted.ece < 0.03


def test_affine_warning_has_numbers() -> None:
    z = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    assert affine_warning(z) is None
    message = affine_warning(0.03 * z)
    assert message is not None and "R2 0.99" in message and "slope 0.499" in message and "sd 0.03" in message
    far = affine_warning(z - 20)
    assert far is not None and "slope 1.0" in far
    assert "no signal" in str(affine_warning(torch.zeros(3)))


def test_calibration_round_trip() -> None:
    d, y = planted(0.3, 100)
    calibration = Calibration((0.3, 0.5), (calibration_report(d, y, 0.3), calibration_report(d, y, 0.5)))
    assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration
    for broken in ({}, {"temperatures": [0.3], "reports": [{"nll": 1.0}]}, {"temperatures": [0.3], "reports": []}):
        with pytest.raises(ValueError, match="calibration"):
            Calibration.from_dict(broken)
    with pytest.raises(ValueError, match="> 0"):
        Calibration((0.0,), (calibration_report(d, y, 1.0),))


def test_what_was_written_before_is_read_and_known_by_number_alone() -> None:
    d, y = planted(0.3, 100)
    row = calibration_report(d, y, 0.3)
    told = Calibration((0.3, 0.5), (row, row), "grouped", ("a + b", "c"))
    assert Calibration.from_dict(json.loads(json.dumps(told.to_dict()))) == told
    assert told.mismatch("grouped", ("a + b", "c")) is None
    assert str(told.mismatch("min", ("a", "c"))).startswith(
        "calibrated for grouped of (a + b), (c), but the aggregation is"
    )
    assert "min of (a + b), (c)" in str(told.mismatch("min", ("a + b", "c")))
    assert "grouped of (a), (c)" in str(told.mismatch("grouped", ("a", "c")))
    older = told.to_dict()
    del older["kind"], older["terms"]
    for report in older["reports"]:  # pyright: ignore[reportGeneralTypeIssues]
        del report["closed_form"]
    unknown = Calibration.from_dict(json.loads(json.dumps(older)))
    assert unknown.temperatures == told.temperatures and unknown.mismatch("min", ("x", "y")) is None
    assert unknown.mismatch("final_score", ("x",)) == "calibrated for 2 terms, but aggregation.final_score has 1"


def test_a_fit_outside_the_band_is_said() -> None:
    """Ratings = score + Normal(0, .2): a fit on who won is inside the band of the closed form; one of a third of it is not."""
    generator = torch.Generator().manual_seed(0)
    score, noise = (scale * torch.randn(2, 20_000, generator=generator) for scale in (0.4, 0.2))
    differences, rated = score[0] - score[1], (score + noise)[0] - (score + noise)[1]
    labels = (rated > 0).float()
    closed = closed_form_temperature(differences, rated)
    assert closed is not None and closed == pytest.approx(0.831 * 0.2, rel=0.02)
    s = fit_temperature(differences, labels)
    report = replace(calibration_report(differences, labels, s), closed_form=closed)
    assert calibration_warnings(s, report) == []
    (warning,) = calibration_warnings(closed / 3, report)
    assert "0.33 times the 0.166" in warning and "within 2x" in warning
    assert closed_form_temperature(differences, differences) is None


def test_a_fit_that_loses_to_no_fit_is_said() -> None:
    report = replace(calibration_report(*planted(1.0, 1000), 1.0), nll=0.9, nll_at_one=0.5)
    (warning,) = calibration_warnings(4.0, report)
    assert "log loss 0.900" in warning and "0.500" in warning
