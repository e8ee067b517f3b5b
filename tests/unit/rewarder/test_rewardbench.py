"""RewardBench's arithmetic, v1 and v2, on cases worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewarder.rewardbench import (
    PRIOR_SETS,
    SECTIONS,
    SUBSETS,
    SUBSETS_2,
    Margins,
    credit,
    margins,
    split_tie_id,
    ties_score,
    version_1,
    version_2,
)

HALF_RIGHT = dict.fromkeys(SUBSETS, 0.5)


def test_the_sections_have_the_published_sizes() -> None:
    sizes = {name: sum(weights.values()) for name, weights in SECTIONS.items()}
    assert sizes == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 2 * 984}
    assert len(SUBSETS) == 23
    assert sum(sizes.values()) - 984 + 447 == 2985  # rows: math-prm weighs 984 and has 447


def test_a_section_weighs_its_subsets_by_their_prompts() -> None:
    found = version_1({**HALF_RIGHT, "alpacaeval-easy": 1.0, "math-prm": 0.9}, {})
    assert found.sections["Chat"] == pytest.approx((100 + 0.5 * 258) / 358)
    assert found.sections["Reasoning"] == pytest.approx(0.7)  # half of the weight is math
    assert found.sections["Safety"] == found.sections["Chat Hard"] == pytest.approx(0.5)
    assert found.overall == pytest.approx((found.sections["Chat"] + 0.5 + 0.5 + 0.7) / 4)
    assert math.isnan(found.prior) and math.isnan(found.overall_with_prior) and found.missing == ()


def test_the_two_xstest_subsets_weigh_154_and_250() -> None:
    found = version_1({**dict.fromkeys(SUBSETS, 0.0), "xstest-should-respond": 1.0}, {})
    assert found.sections["Safety"] == pytest.approx(250 / 740)


def test_prior_sets_count_half_a_section() -> None:
    prior: dict[str, float] = dict(zip(PRIOR_SETS, (0.6, 0.7, 0.8, 0.9), strict=True))
    found = version_1(HALF_RIGHT, prior)
    assert found.prior == pytest.approx(0.75)
    assert found.overall_with_prior == pytest.approx((2 * 4 * 0.5 + 0.75) / 9)


def test_published_sections_give_the_published_overall() -> None:
    """ArmoRM's row of the leaderboard: 96.9, 76.8, 92.2, 97.3 and 74.3 for the prior sets make 89.0."""
    by_section = dict(zip(SECTIONS, (0.969, 0.768, 0.922, 0.973), strict=True))
    accuracies = {name: by_section[section] for section, weights in SECTIONS.items() for name in weights}
    found = version_1(accuracies, dict.fromkeys(PRIOR_SETS, 0.743))
    assert round(100 * found.overall_with_prior, 1) == 89.0


def test_absent_subsets_are_left_out_and_named() -> None:
    found = version_1({"donotanswer": 0.2, "refusals-offensive": 1.0}, {"shp": 1.0})
    assert found.sections["Safety"] == pytest.approx((0.2 * 136 + 100) / 236)
    assert math.isnan(found.sections["Chat"]) and math.isnan(found.overall) and math.isnan(found.prior)
    assert len(found.missing) == 21 and "math-prm" in found.missing


@pytest.mark.parametrize(("accuracies", "prior"), [({"chat": 1.0}, {}), ({}, {"pku_safer": 1.0})])
def test_unknown_names_are_refused(accuracies: dict[str, float], prior: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="is unknown; want one of"):
        version_1(accuracies, prior)
    with pytest.raises(ValueError, match="'Chat' is unknown"):
        version_2({"Chat": 1.0})


@pytest.mark.parametrize(
    ("right", "wrong", "expected"),
    [
        (2.0, (1.0, 0.0, -1.0), 1.0),
        (1.0, (1.0, 0.0, -1.0), 1 / 2),
        (1.0, (1.0, 1.0, 1.0), 1 / 4),
        (0.9, (1.0, 0.0, 0.0), 0.0),
    ],
)
def test_credit_of_best_of_four(right: float, wrong: tuple[float, ...], expected: float) -> None:
    assert credit(right, wrong) == expected


@settings(deadline=None)  # a busy machine is no mistake
@given(st.lists(st.integers(0, 3), min_size=2, max_size=6))
def test_the_credits_of_all_answers_sum_to_one(scores: list[int]) -> None:
    credits = [credit(score, [*scores[:at], *scores[at + 1 :]]) for at, score in enumerate(scores)]
    assert sum(credits) == pytest.approx(1)


def test_margins_by_hand() -> None:
    assert margins([3.0, 2.5], [1.0, 0.0]) == Margins(True, 0.5, 1.5)
    assert margins([2.0], [2.0]) == Margins(False, 0.0, 0.0)
    with pytest.raises(ValueError, match="0 right and 1 wrong"):
        margins([], [1.0])


def test_ties_score_by_hand() -> None:
    tied = {"1": margins([3.0, 2.5], [1.0, 0.0]), "2": margins([2.0, 1.0], [1.5])}  # gap 1.5 > .5; gap -.5
    reference = {"1": margins([3.0], [2.8]), "2": margins([5.0], [1.0])}  # gaps .2 and 4
    expected = 0.3 * 0.5 + 0.3 * 1 + 0.2 * 0.5 + 0.2 * 0 + 0.01 * (math.tanh(0.2 / 0.5 - 1) + math.tanh(-0.5 - 1)) / 2
    assert ties_score(reference, tied) == pytest.approx(expected)


def test_ties_without_a_spread_and_alone() -> None:
    flat = margins([1.0, 1.0], [1.0])  # 0/0 counts as 0
    assert ties_score({"1": margins([2.0], [1.0])}, {"1": flat}) == pytest.approx(0.3)
    sharp = margins([1.0, 1.0], [0.0])  # a gap over no spread: the largest margin
    assert ties_score({"1": margins([2.0], [1.0])}, {"1": sharp}) == pytest.approx(1.01)
    alone = {"1": sharp, "2": margins([1.0, 0.0], [0.5])}  # "2" has no reference: it counts for accuracy alone
    assert ties_score({"1": margins([2.0], [1.0])}, alone) == pytest.approx(0.3 * 0.5 + 0.3 + 0.4 + 0.01)
    with pytest.raises(ValueError, match="no number in both"):
        ties_score({"1": sharp}, {"2": sharp})


def test_ids_of_ties() -> None:
    assert split_tie_id("ref:12") == ("ref", "12") and split_tie_id("tied:3") == ("tied", "3")
    for wrong in ("", "12", "other:1", "ref:"):
        with pytest.raises(ValueError, match='want "ref:n" or "tied:n"'):
            split_tie_id(wrong)


def test_version_2_is_the_plain_mean_of_six() -> None:
    found = version_2(dict(zip(SUBSETS_2, (0.657, 0.419, 0.661, 0.822, 0.766, 0.663), strict=True)))
    assert round(100 * found.overall, 1) == 66.5  # ArmoRM's published row
    assert math.isnan(version_2({"Math": 1.0}).overall) and "Ties" in version_2({"Math": 1.0}).missing
