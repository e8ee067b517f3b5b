"""What evaluate_rm measures and prints, from outcomes made by hand; no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.data.judged import Answer, Judged
from common.types import Message
from driver.evaluate_rm.command import extra_tokens
from driver.evaluate_rm.measures import Outcome
from driver.evaluate_rm.overlap import Overlap
from driver.evaluate_rm.page import write_page
from driver.evaluate_rm.results import results
from driver.evaluate_rm.sets import EvalSet
from driver.evaluate_rm.tables import format_results
from rewarder.rewardbench import Sectioned
from tests.unit.pages import EVIL, parse

UNKNOWN = Overlap("not known", {})
PAIR = Judged((Answer((Message("user", "p"),), "y"),), (Answer((Message("user", "p"),), "n"),))


def judged(name: str, slices: Sequence[str | None]) -> EvalSet:
    rows = tuple(
        Judged((Answer((Message("user", f"p{at}"),), "y"),), (Answer((Message("user", f"p{at}"),), "n"),), place)
        for at, place in enumerate(slices)
    )
    return EvalSet(name, rows, {})


def test_the_table_by_hand() -> None:
    wins = [Outcome((1.0,), (0.0,))] * 3 + [Outcome((0.0,), (0.0,))]
    found = results("m", None, UNKNOWN, [judged("s", ["a", "a", "b", "b"])], {"gated": {"s": wins}}, {"s": np.zeros(4)})
    lines = format_results(found).splitlines()
    head = ["reward model: m", "baseline: none (evaluate_rm.baseline)", "training prompts: not known"]
    assert lines[:3] == head and lines[3:5] == ["", "s: 4 rows"]
    del lines[0]
    assert lines[4].split() == ["accuracy", "[95", "%]", "rows", "gated"]
    assert lines[5].startswith("  all                 4  0.750 [0.301, 0.954]")
    assert lines[6].startswith("  a                   2  1.000") and lines[7].startswith(
        "  b                   2  0.500"
    )
    assert lines[8] == "  lost to equal scores: gated 1"
    assert "pairs in a half of the prompts; 20 wanted" in lines[10]


@pytest.mark.parametrize(
    ("slices", "shown"),
    [
        ([None, "a"], {"all": 2, "no slice": 1, "a": 1}),
        (["all", "a"], {"all": 2, "all (slice)": 1, "a": 1}),
        (["all", None], {"all": 2, "all (slice)": 1, "no slice": 1}),
        (["no slice", None, "all"], {"all": 3, "no slice (slice)": 1, "no slice": 1, "all (slice)": 1}),
        (["all", "all (slice)"], {"all": 2, "all (slice) (slice)": 1, "all (slice)": 1}),
        ([None, None], {"all": 2}),
        (["all", "all"], {"all": 2}),
    ],
)
def test_no_slice_takes_the_place_of_a_row_of_ours(slices: list[str | None], shown: dict[str, int]) -> None:
    """Every other row is won, so that a row in the wrong slice would show."""
    wins = [Outcome((1.0,), (0.0,)) if at % 2 else Outcome((0.0,), (1.0,)) for at in range(len(slices))]
    found = results("m", None, UNKNOWN, [judged("s", slices)], {"gated": {"s": wins}}, {}).sets["s"].slices
    assert {name: by["gated"].rows for name, by in found.items()} == shown
    assert found["all"]["gated"].share.mean == pytest.approx(sum(at % 2 for at in range(len(slices))) / len(slices))


def test_calibration_is_of_right_minus_wrong() -> None:
    better = [Outcome((1.0 + at % 7,), (at % 3 * 1.5,)) for at in range(100)]
    worse = [Outcome(outcome.wrong, outcome.right) for outcome in better]
    scored = {"gated": {"s": better}, "baseline": {"s": worse}, "longer answer": {"s": better}}
    found = results(
        "m", "b", UNKNOWN, [judged("s", ["all"] * 100)], scored, {"s": np.arange(100, dtype=np.float64)}
    ).sets["s"]
    assert found.slices["all"]["gated"].share.mean > 0.6 > found.slices["all"]["baseline"].share.mean
    assert found.calibration["gated"].temperature > 0 and found.calibration["gated"].reason == ""
    assert found.calibration["baseline"].reason == "the scores order the pairs no better than chance"
    assert set(found.calibration) == {"gated", "baseline"}  # a length is no logit


def test_extra_tokens_are_those_of_the_right_answer_and_of_pairs_alone() -> None:
    best_of_n = EvalSet("n", (Judged(PAIR.right, PAIR.wrong * 2),), {})
    lengths = {"s": [Outcome((7.0,), (3.0,)), Outcome((2.0,), (5.0,))], "n": [Outcome((1.0,), (1.0, 2.0))]}
    found = extra_tokens([judged("s", ["a", "b"]), best_of_n], lengths)
    assert list(found) == ["s"] and found["s"].tolist() == [4.0, -3.0]


def test_the_overlap_stands_with_each_set_where_it_is_known(tmp_path: Path) -> None:
    wins = {"gated": {name: [Outcome((1.0,), (0.0,))] * 2 for name in "st"}}
    sets = [judged("s", ["all"] * 2), judged("t", ["all"] * 2)]
    found = results("m", None, Overlap("9 prompts", {"s": 1, "t": 0}), sets, wins, {})
    lines = format_results(found).splitlines()
    assert lines[2] == "training prompts: 9 prompts"
    said = [line.strip() for line in lines if "in a row of the prompt" in line]
    assert said == [f"13 words in a row of the prompt are in a training prompt too: {n} of 2 rows" for n in (1, 0)]
    assert found.to_dict()["overlap"] == {"training": "9 prompts", "rows": {"s": 1, "t": 0}}
    page = write_page(tmp_path / "page.html", found).read_text()
    assert said[0] in page and "Training prompts: 9 prompts." in page
    unknown = results("m", None, UNKNOWN, sets, wins, {})
    assert "in a row of the prompt" not in format_results(unknown)


def test_a_tag_planted_in_any_text_of_the_page_stays_text(tmp_path: Path) -> None:
    scored = {EVIL: {"s": [Outcome((1.0,), (0.0,))] * 100}}
    found = results(EVIL, EVIL, Overlap(EVIL, {"s": 1}), [judged("s", [EVIL, "b"] * 50)], scored, {"s": np.ones(100)})
    (plain,) = found.sets.values()
    planted = replace(
        found,
        sets={EVIL: replace(plain, skipped={EVIL: 1})},
        benchmarks={"rewardbench": {EVIL: Sectioned({EVIL: 0.5}, 0.5, 0.5, 0.5, (EVIL,))}},
    )
    page = write_page(tmp_path / "page.html", planted).read_text()
    assert "script" not in parse(page).tags and page.count("&lt;script&gt;") >= 8
