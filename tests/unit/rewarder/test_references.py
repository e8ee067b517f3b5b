"""r_ref: T29 test_estimator_error_matches_the_table; T30 test_reference_is_a_pure_function; T31
test_too_few_or_bad_samples_are_refused; T32 test_key_changes_with_every_fact."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rewarder.references import REQUIRED_FACTS, reference_key, reference_value

Q85 = 1.0364334


def test_gaussian_by_hand() -> None:
    samples = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0]])
    want = torch.tensor([2.5 + Q85 * math.sqrt(5 / 3), 0.0])
    torch.testing.assert_close(reference_value(samples, 0.85, "gaussian"), want)


@given(st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=20), st.floats(0.05, 0.95))
def test_empirical_is_the_interpolated_quantile(values: list[float], quantile: float) -> None:
    got = reference_value(torch.tensor(values)[:, None], quantile, "empirical").item()
    assert got == pytest.approx(np.quantile(values, quantile), abs=1e-4)


@pytest.mark.parametrize(
    ("samples", "estimator", "rmse", "bias"),
    [
        (4, "empirical", 0.68, -0.35),
        (16, "empirical", 0.37, -0.11),
        (4, "gaussian", 0.65, -0.09),
        (8, "gaussian", 0.45, -0.03),
        (16, "gaussian", 0.31, -0.02),
    ],
)
def test_estimator_error_matches_the_table(samples: int, estimator: str, rmse: float, bias: float) -> None:
    draws = torch.randn(samples, 20000, generator=torch.Generator().manual_seed(0))
    error = reference_value(draws, 0.85, estimator) - Q85
    assert error.mean().item() == pytest.approx(bias, abs=0.025)
    assert error.square().mean().sqrt().item() == pytest.approx(rmse, abs=0.03)


def test_reference_is_a_pure_function() -> None:
    samples = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    before, copy = reference_value(samples, 0.85, "gaussian"), samples.clone()
    torch.manual_seed(1)
    assert torch.equal(reference_value(samples, 0.85, "gaussian"), before) and torch.equal(samples, copy)


@pytest.mark.parametrize("estimator", ["gaussian", "empirical"])
def test_too_few_or_bad_samples_are_refused(estimator: str) -> None:
    for samples in (torch.zeros(0, 2), torch.zeros(1, 2), torch.zeros(4)):
        with pytest.raises(ValueError, match="N >= 2"):
            reference_value(samples, 0.85, estimator)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="not finite"):
            reference_value(torch.tensor([[1.0], [bad]]), 0.85, estimator)
    with pytest.raises(ValueError, match="estimator"):
        reference_value(torch.zeros(2, 1), 0.85, "median")
    with pytest.raises(ValueError, match="quantile"):
        reference_value(torch.zeros(2, 1), 1.0, estimator)


def facts() -> dict[str, str | int | float | list[str]]:
    return {
        "rm_hash": "r",
        "aggregation": "grouped",
        "anchor_hash": "a",
        "sampling": "K=8 T=1.0",
        "template": "t",
        "prompt_ids": ["p1", "p2"],
        "quantile": 0.85,
    }


@pytest.mark.parametrize("name", [*REQUIRED_FACTS, "quantile"])
def test_key_changes_with_every_fact(name: str) -> None:
    assert reference_key(facts() | {name: "other"}) != reference_key(facts())


def test_key_ignores_the_order_of_facts_but_not_of_prompts() -> None:
    key = reference_key(facts())
    assert len(key) == 64 and key == reference_key(dict(reversed(facts().items())))
    assert reference_key(facts() | {"prompt_ids": ["p2", "p1"]}) != key
    assert reference_key(facts() | {"prompt_ids": ["p1,p2"]}) != key


def test_key_refuses_gaps() -> None:
    with pytest.raises(ValueError, match="anchor_hash"):
        reference_key({name: value for name, value in facts().items() if name != "anchor_hash"})
    with pytest.raises(ValueError):
        reference_key(facts() | {"quantile": math.nan})
