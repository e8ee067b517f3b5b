"""Preference strength: the maths by hand, who leaves out what, and what pairs.jsonl is held against."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config.config import PreferencesConfig
from common.config.file import BASE, load_config
from common.data.data import PreferencePair, read_pairs, to_fields, write_jsonl
from common.data.split import is_held_out, opening_key
from common.data.strengths import digest, read_strengths
from common.types import Message
from driver.preferences.results import record, results, rows
from learner.preferences import strength
from learner.preferences.folds import drawn, left_out

SETTINGS: PreferencesConfig = load_config(BASE, ["aggregation.kind=final_score"]).learner.preferences
FRACTION = 0.1
NAN = float("nan")


def pair(prompt: str, at: int = 0, turns: int = 1) -> PreferencePair:
    """One whose conversation opens with `prompt` and has so many turns of the user."""
    more = [Message(role, f"{role} {turn}") for turn in range(turns - 1) for role in ("assistant", "user")]
    return PreferencePair((Message("user", prompt), *more), f"good {at}", f"bad {at}")


# ---- maths

DIFFERENCES = np.array([[1.0, -2.0, 0.5], [3.0, 0.0, -0.5], [5.0, 1.0, 1.5], [7.0, 4.0, 2.5]])
LEFT = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]], bool)


def test_strength_by_hand() -> None:
    found, inside = strength.strength(DIFFERENCES, LEFT), strength.in_sample(DIFFERENCES, LEFT)
    np.testing.assert_allclose(found.mean, [3.0, 2.0, 1.0])
    np.testing.assert_allclose(found.std, [2.0, 2.0, np.sqrt((0.25 + 2.25 + 0.25 + 2.25) / 4)])
    assert found.members.tolist() == [2, 2, 4], "where every member trained on a pair, all count"
    np.testing.assert_allclose(inside.mean, [5.0, -0.5, 1.0])
    np.testing.assert_allclose(inside.std, [2.0, 1.5, np.sqrt(1.25)])


def test_no_member_no_number() -> None:
    inside = strength.in_sample(DIFFERENCES, np.ones_like(LEFT))
    assert inside.members.tolist() == [0, 0, 0] and np.isnan(inside.mean).all() and np.isnan(inside.std).all()


def test_buckets_quantiles_and_the_weakest_by_hand() -> None:
    mean = np.array([4.0, -1.0, 2.0, 0.0, 1.0])
    found = strength.buckets(strength.Moments(mean, mean**2, np.full(5, 2)), 2)
    assert [(b.pairs, b.low, b.high, b.mean) for b in found] == [(3, -1.0, 1.0, 0.0), (2, 2.0, 4.0, 3.0)]
    assert [b.std for b in found] == [pytest.approx(2 / 3), 10.0]
    assert len(strength.buckets(strength.Moments(mean, mean, np.full(5, 2)))) == 5, "no empty part"
    assert strength.quantiles(mean)["0.5"] == 1.0
    assert strength.weakest(mean, 2) == [1, 3]


def test_a_histogram_has_an_edge_at_0_and_every_pair() -> None:
    values = {"a": np.random.default_rng(0).normal(0.3, 1, 500), "b": np.array([-50.0, 0.0, 50.0])}
    found = strength.histogram(values)
    assert [sum(counts) for counts in found.counts.values()] == [500, 3]
    assert min(abs(edge) for edge in found.edges) < 1e-9
    assert max(found.edges) < 5, "two outliers do not stretch it"


def test_accuracy_and_agreement_count_only_what_counts() -> None:
    assert strength.accuracies(DIFFERENCES, LEFT) == [1.0, 0.0, 1.0, 1.0], "a difference of 0 is not right"
    assert np.isnan(strength.accuracies(DIFFERENCES, np.zeros_like(LEFT))).all()
    line = np.linspace(-1, 1, 30)
    values, counted = np.stack([line, np.exp(line), -line]), np.ones((3, 30), bool)
    found = strength.agreement(values, counted)
    assert (found.high, found.low, found.twos) == (pytest.approx(1.0), pytest.approx(-1.0), 3)
    assert found.mean == pytest.approx(-1 / 3)
    counted[2, 5:] = False
    assert strength.agreement(values, counted).twos == 1, "too few pairs are shared with the third"
    assert strength.agreement(values[:1], counted[:1]).twos == 0


def test_a_member_that_says_nothing_is_named() -> None:
    strength.check_differences(np.array([0.0, 1.0]), 3)
    with pytest.raises(
        ValueError, match="^member 3: the score differences of all 4 pairs are 0 .to 1e-05.: it says nothing"
    ):
        strength.check_differences(np.zeros(4), 3)
    with pytest.raises(
        ValueError, match="^member 1: 2 of 3 score differences are not finite; lower learner.preferences.le"
    ):
        strength.check_differences(np.array([0.0, NAN, np.inf]), 1)


# ---- folds


@st.composite
def plans(draw: st.DrawFn) -> tuple[list[PreferencePair], PreferencesConfig, int]:
    """Pairs of some prompts, several turns of one conversation among them, and settings that the checks let pass."""
    folds = draw(st.integers(1, 4))
    members = folds * draw(st.integers(2, 4))
    prompts = draw(st.lists(st.integers(0, 40), min_size=30, max_size=60))
    pairs = [pair(f"prompt {prompt}", at, turns=1 + at % 2) for at, prompt in enumerate(prompts)]
    return pairs, replace(SETTINGS, members=members, folds=folds), draw(st.integers(0, 5))


@given(plans())
def test_every_pair_is_left_out_equally_often_and_no_conversation_is_split(
    case: tuple[list[PreferencePair], PreferencesConfig, int],
) -> None:
    pairs, settings, seed = case
    plan = left_out(pairs, settings, FRACTION, seed)
    held_out = np.array([is_held_out(row.messages, FRACTION) for row in pairs])
    assert plan.shape == (settings.members, len(pairs))
    assert plan[:, held_out].all(), "what is held out trains no member"
    wanted = settings.members // settings.folds if settings.folds > 1 else 0
    assert (plan[:, ~held_out].sum(0) == wanted).all()
    for group in range(0, settings.members, settings.folds):
        once = plan[group : group + settings.folds, ~held_out].sum(0)
        assert (once == (settings.folds > 1)).all(), "once by each group of members"
    sides: dict[str, list[bool]] = {}
    for at, row in enumerate(pairs):
        assert sides.setdefault(opening_key(row.messages), plan[:, at].tolist()) == plan[:, at].tolist()
    assert (left_out(pairs, settings, FRACTION, seed) == plan).all()
    assert (left_out(pairs[::-1], settings, FRACTION, seed)[:, ::-1] == plan).all(), "whatever the rows' order"


def test_folds_are_drawn_anew_and_follow_the_seed() -> None:
    pairs = [pair(f"prompt {at}") for at in range(200)]
    plan = left_out(pairs, replace(SETTINGS, members=4, folds=2), FRACTION, 0)
    assert (plan[0] != plan[2]).any(), "each group of members has parts of its own"
    assert (plan != left_out(pairs, replace(SETTINGS, members=4, folds=2), FRACTION, 1)).any()
    parts = plan[:, ~plan.all(0)].mean(1)
    assert (abs(parts - 0.5) < 0.01).all(), "of equal size"


def test_bootstrap_draws_as_many_with_replacement() -> None:
    trained = np.arange(300) % 3 > 0
    assert drawn(trained, False, 0, 1).tolist() == np.flatnonzero(trained).tolist()
    again = drawn(trained, True, 0, 1)
    assert len(again) == 200 and trained[again].all() and 100 < len(set(again.tolist())) < 150
    assert again.tolist() == drawn(trained, True, 0, 1).tolist() != drawn(trained, True, 0, 2).tolist()


# ---- pairs.jsonl and report.json


def said(folds: int = 2) -> tuple[list[PreferencePair], list[dict[str, object]], Any]:
    """40 pairs, the lines written of them and the report, by members that know a little."""
    pairs, settings = [pair(f"prompt {at}", at) for at in range(40)], replace(SETTINGS, members=4, folds=folds)
    differences = np.random.default_rng(0).normal(0.5, 1, (4, 40)).astype(np.float32)
    found = results(settings, pairs, differences, left_out(pairs, settings, FRACTION, 0))
    return pairs, list(rows(found)), json.loads(json.dumps(record(found, 0, FRACTION), allow_nan=False))


def test_what_is_written_is_read_back_and_is_a_file_of_pairs(tmp_path: Path) -> None:
    pairs, lines, report = said()
    write_jsonl(tmp_path / "pairs.jsonl", lines)
    assert read_pairs(tmp_path / "pairs.jsonl") == pairs
    found = read_strengths(tmp_path / "pairs.jsonl", pairs)
    assert found.mean.tolist() == [line["strength_mean"] for line in lines]
    assert found.std.tolist() == [line["strength_std"] for line in lines]
    held_out = [is_held_out(row.messages, FRACTION) for row in pairs]
    assert [line["members"] for line in lines] == [4 if out else 2 for out in held_out] and any(held_out)
    assert [line["in_sample_mean"] is None for line in lines] == held_out, "no member trained on it"
    assert report["digest"] == digest(pairs) and report["pairs"] == report["prompts"] == 40
    assert report["share_below_0"] == np.mean(found.mean < 0) and len(report["buckets"]) == 20
    assert sum(part["pairs"] for part in report["buckets"]) == 40
    kinds = report["training_pairs"]
    assert set(kinds) == {"out_of_fold", "in_sample"} and kinds["in_sample"]["pairs"] == 40 - sum(held_out)
    assert [member["trained_pairs"] + member["left_out_pairs"] for member in report["members"]] == [40] * 4


def test_without_folds_the_strength_is_in_sample() -> None:
    pairs, lines, report = said(folds=1)
    for row, line in zip(pairs, lines, strict=True):
        if not is_held_out(row.messages, FRACTION):
            assert line["strength_mean"] == line["in_sample_mean"] and line["strength_std"] == line["in_sample_std"]
        assert line["members"] == 4
    assert set(report["training_pairs"]) == {"in_sample"} and report["rank_correlation_out_of_fold_in_sample"] is None


def test_strengths_of_other_pairs_are_refused(tmp_path: Path) -> None:
    pairs, lines, _ = said()
    write_jsonl(path := tmp_path / "pairs.jsonl", lines)
    with pytest.raises(
        ValueError, match=r"40 rows .*, wanted the 39 given ones .*; the first 39 rows are the same; run stage"
    ):
        read_strengths(path, pairs[:-1])
    with pytest.raises(ValueError, match="they first differ in row 1, in its prompt and chosen and rejected"):
        read_strengths(path, pairs[::-1])
    flipped = replace(pairs[7], chosen=pairs[7].rejected, rejected=pairs[7].chosen)
    with pytest.raises(
        ValueError, match="they first differ in row 8, in its chosen and rejected; .* give the pairs that it was"
    ):
        read_strengths(path, [*pairs[:7], flipped, *pairs[8:]])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"strength_mean": None}, ':2: "strength_mean" is missing; got the keys'),
        ({"strength_std": -1.0}, ':2: "strength_std" is -1.0; wanted a number from 0 up'),
        ({"strength_std": True}, ':2: "strength_std" is True; wanted a number'),
    ],
)
def test_lines_without_strengths_are_named(tmp_path: Path, change: dict[str, object], words: str) -> None:
    pairs, lines, _ = said()
    lines[1] |= change
    write_jsonl(path := tmp_path / "pairs.jsonl", lines)
    with pytest.raises(ValueError, match=words):
        read_strengths(path, pairs)


def test_a_plain_file_of_pairs_has_no_strengths(tmp_path: Path) -> None:
    write_jsonl(path := tmp_path / "pairs.jsonl", [to_fields(row) for row in said()[0]])
    with pytest.raises(ValueError, match=':1: "strength_std" is missing; got the keys'):
        read_strengths(path, said()[0])
