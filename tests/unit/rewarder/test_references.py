"""r_ref: T29 test_estimator_error_matches_the_table; T30 test_reference_is_a_pure_function; T31
test_too_few_or_bad_samples_are_refused; T32 test_key_changes_with_every_fact."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rewarder.references import ESTIMATORS, REQUIRED_FACTS, covers_unseen, reference_key, reference_value

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
        (8, "order", 0.55, 0.20),
        (16, "order", 0.38, 0.08),
    ],
)
def test_estimator_error_matches_the_table(samples: int, estimator: str, rmse: float, bias: float) -> None:
    draws = torch.randn(samples, 20000, generator=torch.Generator().manual_seed(0))
    error = reference_value(draws, 0.85, estimator) - Q85
    assert error.mean().item() == pytest.approx(bias, abs=0.025)
    assert error.square().mean().sqrt().item() == pytest.approx(rmse, abs=0.03)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_reference_is_a_pure_function(estimator: str) -> None:
    samples = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    before, copy = reference_value(samples, 0.85, estimator), samples.clone()
    torch.manual_seed(1)
    assert torch.equal(reference_value(samples, 0.85, estimator), before) and torch.equal(samples, copy)


@given(st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=20), st.floats(0.05, 0.95))
def test_order_is_the_quantile_by_expected_rank(values: list[float], quantile: float) -> None:
    got = reference_value(torch.tensor(values)[:, None], quantile, "order").item()
    assert got == pytest.approx(np.quantile(values, quantile, method="weibull"), abs=1e-4)
    assert min(values) <= got <= max(values)


def shapes(count: int) -> dict[str, Callable[[tuple[int, int]], Tensor]]:
    """Distributions of scores: bounded and skewed ones, and such of two modes, as rewards of a real policy are."""
    generator = torch.Generator().manual_seed(count)
    uniform = lambda size: torch.rand(size, generator=generator)  # noqa: E731
    normal = lambda size: torch.randn(size, generator=generator)  # noqa: E731
    modes = lambda good: lambda size: torch.where(uniform(size) < good, 0.9, 0.2) + 0.03 * normal(size)  # noqa: E731
    return {
        "normal": normal,
        "near its upper bound": lambda size: uniform(size) ** 0.2,
        "skewed to the left": lambda size: uniform(size).log(),
        "skewed to the right": lambda size: -uniform(size).log(),
        "a third are good": modes(0.3),
        "half are good": modes(0.5),
        "most are good": modes(0.85),
    }


@pytest.mark.parametrize("count", [8, 16, 32, 64])
def test_order_keeps_its_promise_whatever_the_distribution(count: int) -> None:
    """A new sample is at or below r_ref with probability .85, within .02 and three standard errors, and r_ref is never above
    the best sample. The Gaussian's is, for most prompts, where most responses are good."""
    for name, draw in shapes(count).items():
        samples, fresh = draw((count, 4000)), draw((40, 4000))
        hit = (fresh <= reference_value(samples, 0.85, "order")).float().mean(0)
        error = float(hit.std()) / 4000**0.5
        assert abs(float(hit.mean()) - 0.85) < 0.02 + 3 * error, (name, hit.mean())
        assert bool((reference_value(samples, 0.85, "order") <= samples.amax(0)).all())
    samples = shapes(count)["most are good"]((count, 4000))
    gaussian = reference_value(samples, 0.85, "gaussian")
    assert float((gaussian > samples.amax(0)).float().mean()) > 0.5


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_coverage_is_of_samples_that_were_left_out(estimator: str) -> None:
    """Its mean is that of new samples against r_ref of one sample less; the samples' own share is not."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randn(600, 9, 1, generator=generator)
    left_out = torch.stack([covers_unseen(samples, 0.85, estimator) for samples in prompts]).float().mean()
    fresh = torch.randn(600, 50, 1, generator=generator)
    bars = torch.stack([reference_value(samples[:8], 0.85, estimator) for samples in prompts])
    assert float(left_out) == pytest.approx(float((fresh <= bars[:, None]).float().mean()), abs=0.03)
    two = torch.tensor([[0.0], [1.0]])
    assert covers_unseen(two, 0.85, estimator).tolist() == [[True], [estimator != "empirical"]]


@pytest.mark.parametrize("estimator", ESTIMATORS)
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
