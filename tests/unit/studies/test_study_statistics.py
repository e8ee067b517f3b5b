"""The studies' numbers: intervals and matched KL, by hand and by law."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studies.rows import Row
from studies.statistics import (
    Interval,
    at_kl,
    bootstrap_interval,
    largest_kl,
    matched_kl,
    paired_interval,
    t_interval,
)

NAN = math.nan
VALUES = st.floats(min_value=-100, max_value=100)
CURVES = st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=12)
RISING, GOLD = [0.0, 4.0, 8.0], [0.5, 0.7, 0.9]


def row(arm: str, seed: int, kl: Sequence[float] = RISING, gold: Sequence[float] = GOLD) -> Row:
    curves = {"kl": list(kl), "gold": list(gold), "proxy": [value + 0.05 for value in gold]}
    return Row("made up", arm, seed, {}, curves, "c", "v", "w", 1.0)


# ---- intervals


def test_t_interval_by_hand() -> None:
    """Mean 2, standard deviation 1, t(2 degrees, 97.5 %) = 4.302653: the half width is 4.302653 / sqrt(3) = 2.484138."""
    interval = t_interval([1.0, 2.0, 3.0])
    assert (interval.mean, interval.n) == (2.0, 3)
    assert interval.high - 2 == 2 - interval.low == pytest.approx(2.484138, abs=1e-6)
    assert t_interval([1.0, 2.0, 3.0], level=0.5).high - 2 == pytest.approx(0.816497 / math.sqrt(3), abs=1e-6)


def test_one_value_has_no_interval() -> None:
    for interval in (t_interval([0.5]), bootstrap_interval([0.5])):
        assert (interval.mean, interval.n) == (0.5, 1) and math.isnan(interval.low) and math.isnan(interval.high)
        assert interval.format() == "0.500 (n = 1)"


def test_formats() -> None:
    assert Interval(0.7441, 0.7311, 0.7571, 5).format() == "0.744 ± 0.013"
    assert Interval(0.7441, 0.7311, 0.7571, 5).format(digits=1, signed=True) == "+0.7 ± 0.0"
    assert Interval(-0.0001, -0.0301, 0.0299, 5).format() == "0.000 ± 0.030"
    assert Interval(-0.2, -0.3, -0.1, 5).format(2, signed=True) == "-0.20 ± 0.10"
    assert Interval(0.7, 0.65, 0.71, 5).format() == "0.700 [0.650, 0.710]"


@pytest.mark.parametrize("values", [[], [1.0, NAN], [math.inf]])
def test_values_that_have_no_mean_are_refused(values: list[float]) -> None:
    for interval in (t_interval, bootstrap_interval):
        with pytest.raises(ValueError, match="needs finite values, at least one; got"):
            interval(values)


def test_levels_and_sample_counts_are_checked() -> None:
    with pytest.raises(ValueError, match="between 0 and 1; got 95"):
        t_interval([1.0, 2.0], level=95)
    with pytest.raises(ValueError, match="num_samples must be at least 1; got 0"):
        bootstrap_interval([1.0, 2.0], num_samples=0)


def test_paired_interval_by_hand() -> None:
    """Seeds 1 and 2 are shared; differences 1 and 3: mean 2, half width t(1) * sqrt(2) / sqrt(2) = 12.706205."""
    interval = paired_interval({0: 9.0, 1: 2.0, 2: 4.0}, {1: 1.0, 2: 1.0, 3: 7.0})
    assert (interval.mean, interval.n) == (2.0, 2)
    assert interval.high == pytest.approx(14.706205, abs=1e-6)


def test_a_pair_needs_two_common_seeds() -> None:
    with pytest.raises(ValueError, match=r"at least 2 seeds that both arms have; got \[1\] of \[0, 1\] and \[1, 2\]"):
        paired_interval({0: 1.0, 1: 1.0}, {1: 1.0, 2: 1.0})


@given(st.dictionaries(st.integers(0, 20), VALUES, min_size=2, max_size=8), VALUES)
def test_a_constant_difference_has_no_width(second: dict[int, float], gain: float) -> None:
    interval = paired_interval({seed: value + gain for seed, value in second.items()}, second)
    assert [interval.mean, interval.low, interval.high] == pytest.approx([gain] * 3, abs=1e-9)


@given(st.lists(VALUES, min_size=2, max_size=8), VALUES)
def test_a_t_interval_moves_with_its_values(values: list[float], shift: float) -> None:
    moved, here = t_interval([value + shift for value in values]), t_interval(values)
    assert [moved.low, moved.high] == pytest.approx([here.low + shift, here.high + shift], abs=1e-7)


@settings(max_examples=30, deadline=None)
@given(st.lists(VALUES, min_size=2, max_size=8), st.integers(0, 100))
def test_a_bootstrap_interval_lies_in_the_values_and_repeats(values: list[float], seed: int) -> None:
    interval = bootstrap_interval(values, num_samples=50, seed=seed)
    assert min(values) - 1e-9 <= interval.low <= interval.high <= max(values) + 1e-9
    assert interval == bootstrap_interval(values, num_samples=50, seed=seed)


def test_the_bootstrap_of_many_values_agrees_with_t() -> None:
    values = [math.sin(index) for index in range(400)]
    bootstrap, student = bootstrap_interval(values, num_samples=4000), t_interval(values)
    assert bootstrap.mean == student.mean
    assert [bootstrap.low, bootstrap.high] == pytest.approx([student.low, student.high], abs=0.005)


# ---- matched KL


def test_at_kl_by_hand() -> None:
    assert at_kl(RISING, GOLD, 2.0) == pytest.approx(0.6)
    assert at_kl(RISING, GOLD, 5.0) == pytest.approx(0.75)
    assert at_kl(RISING, GOLD, 8.0) == 0.9
    assert at_kl(RISING, GOLD, 8.1) is None
    assert at_kl(RISING, GOLD, -1.0) == 0.5
    assert at_kl([], [], 1.0) is None


def test_at_kl_takes_the_first_time_that_a_noisy_run_gets_there() -> None:
    assert at_kl([-0.1, 3.0, 1.0, 4.0], [0.0, 0.3, 0.6, 0.9], 2.0) == pytest.approx(0.3 * 2.1 / 3.1)


def test_at_kl_leaves_out_what_was_not_measured() -> None:
    assert at_kl([0.0, 1.0, NAN, 3.0], [0.0, NAN, 0.5, 0.9], 2.0) == pytest.approx(0.6)
    assert at_kl([0.0, 3.0], [0.0, NAN], 2.0) is None


def test_at_kl_needs_a_kl_for_each_value() -> None:
    with pytest.raises(ValueError, match="got 2 KLs for 1 values"):
        at_kl([0.0, 1.0], [0.0], 1.0)


@given(CURVES, VALUES)
def test_at_kl_lies_between_the_two_points_and_reaches_up_to_the_largest_kl(
    points: list[tuple[float, float]], level: float
) -> None:
    kl, values = [kl for kl, _ in points], [value for _, value in points]
    found = at_kl(kl, values, level)
    assert (found is None) == (level > max(kl)) == (level > largest_kl(row("raw", 0, kl, values)))
    if found is not None:
        index = next(index for index, at in enumerate(kl) if at >= level)
        around = values[max(index - 1, 0) : index + 1]
        assert min(around) - 1e-9 <= found <= max(around) + 1e-9


@given(st.lists(st.floats(0.01, 5), min_size=1, max_size=10), st.floats(0, 1))
def test_on_a_straight_rising_run_gold_is_the_line(rises: list[float], share: float) -> None:
    kl = [sum(rises[:index]) for index in range(len(rises) + 1)]
    assert at_kl(kl, [0.5 + 0.1 * at for at in kl], share * kl[-1]) == pytest.approx(0.5 + 0.1 * share * kl[-1])


def test_matched_kl_has_the_seeds_that_got_there() -> None:
    rows = [row("raw", 3), row("raw", 7, kl=[0.0, 1.0, 4.0])]
    matched = matched_kl(rows, levels=(2, 5, 10))
    assert matched[2] == {3: pytest.approx(0.6), 7: pytest.approx(0.7 + 0.2 / 3)}
    assert matched[5] == {3: pytest.approx(0.75)} and matched[10] == {}
    assert matched_kl(rows, (4,), "proxy") == {4: {3: pytest.approx(0.75), 7: pytest.approx(0.95)}}


@pytest.mark.parametrize("other", [row("log", 1), row("raw", 0)])
def test_matched_kl_is_of_one_arm_with_one_row_a_seed(other: Row) -> None:
    with pytest.raises(ValueError, match="one arm with one row a seed; got .*arm 'raw', seed 0"):
        matched_kl([row("raw", 0), other])
