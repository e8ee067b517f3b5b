"""Denoising on people's pairs: the folds, who is tested when, and the intervals and tests by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.config.file import BASE, load_config
from common.data.data import PreferencePair, write_jsonl
from common.data.sources import DataError
from common.data.strengths import IN_SAMPLE_MEAN, MEAN
from common.types import Message
from learner.preferences.strength import histogram
from rewarder.scoring import Rendered
from studies import real_pairs, scorers, strength_figure, strengths, treatments
from studies.noisy_pairs import Pairs
from studies.real_pairs import FOLDS, LENGTH
from studies.statistics import clustered_interval
from studies.treatments import WITHOUT_TRUTH, Committees

COUNT = 60


def pair(opening: int, later: bool = False) -> PreferencePair:
    first = Message("user", f"question {opening}")
    turns = (first, Message("assistant", "yes"), Message("user", "and then?")) if later else (first,)
    return PreferencePair(turns, "good", "bad")


@pytest.fixture
def pairs() -> list[PreferencePair]:
    """A conversation and its continuation, COUNT times."""
    return [pair(number, later) for number in range(COUNT) for later in (False, True)]


def every(pairs: Sequence[PreferencePair]) -> Pairs:
    """With the pair's number as the first input of its responses."""
    numbers = torch.arange(len(pairs)).repeat_interleave(2)
    states = torch.stack([numbers, torch.randn(len(numbers), generator=torch.Generator().manual_seed(0))], 1)
    return Pairs(states, torch.arange(len(numbers)).reshape(-1, 2), real_pairs.openings(pairs))


# ---- folds


def test_folds_part_the_pairs_and_keep_what_opens_alike_together(pairs: list[PreferencePair]) -> None:
    fold, groups = real_pairs.folds(pairs), real_pairs.openings(pairs)
    assert sorted(set(fold.tolist())) == list(range(FOLDS)) and len(fold) == len(pairs)
    assert len(set(groups.tolist())) == COUNT
    for part in range(FOLDS):
        assert not set(groups[fold == part]) & set(groups[fold != part])
    assert (real_pairs.folds(pairs[::-1]) == fold[::-1]).all(), "a pair's fold is its own, whatever stands beside it"


def test_an_empty_fold_is_refused() -> None:
    with pytest.raises(DataError, match=r"of 5 folds of 2 pairs by opening, \[.*\] are empty; give more conversations"):
        real_pairs.folds([pair(0), pair(0, True)])


def test_each_pair_is_tested_once_by_models_that_saw_nothing_of_its_opening(
    pairs: list[PreferencePair], monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, fold, trained_on, tested = real_pairs.openings(pairs), real_pairs.folds(pairs), [], []

    def methods(training: Pairs, *_: Any) -> Iterator[tuple[str, Committees]]:
        trained_on.append(set(training.prompts))
        yield from ((name, []) for name in WITHOUT_TRUTH)

    def share_right(_: Committees, rest: Pairs) -> np.ndarray:
        assert not trained_on[-1] & set(rest.prompts)
        tested.append(rest.rows[:, 0] // 2)
        return np.full(len(rest.rows), 0.5)

    monkeypatch.setattr(real_pairs, "methods", methods)
    monkeypatch.setattr(real_pairs, "share_right", share_right)
    settings = load_config(BASE, ["aggregation.kind=final_score"]).learner.reward_model
    found = real_pairs.cross_validated(every(pairs), fold, settings, 0)
    assert set(found) == set(WITHOUT_TRUTH) and all((values == 0.5).all() for values in found.values())
    count = np.bincount(torch.cat(tested).numpy(), minlength=len(pairs))
    assert (count == len(WITHOUT_TRUTH)).all(), "each pair once for each method"
    assert all(seen < set(groups.tolist()) for seen in trained_on)


def test_states_are_standard_on_the_training_side(pairs: list[PreferencePair]) -> None:
    training, rest = real_pairs.sides(every(pairs), real_pairs.folds(pairs) == 0)
    seen = training.states[training.rows.flatten()]
    assert seen.mean(0).tolist() == pytest.approx([0.0, 0.0], abs=1e-5)
    assert seen.std(0).tolist() == pytest.approx([1.0, 1.0], rel=1e-5)
    assert rest.states is training.states and len(training.rows) + len(rest.rows) == len(pairs)


def test_every_method_is_trained_and_learns_what_can_be_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in ((treatments, "REPEATS", 1), (scorers, "UPDATES", 20), (strengths, "MEMBERS", 2)):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(treatments, "MEMBERS", 2)
    monkeypatch.setattr(real_pairs, "FOLDS", 2)
    states = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(400).reshape(-1, 2)
    better = states[rows[:, 0], 0] > states[rows[:, 1], 0]
    known = Pairs(states, torch.where(better[:, None], rows, rows.flip(1)), np.arange(200))
    settings = load_config(BASE, ["aggregation.kind=final_score"]).learner.reward_model
    found = real_pairs.cross_validated(known, np.arange(200) % 2, settings, 0)
    assert {name: values.mean() > 0.7 for name, values in found.items()} == dict.fromkeys(WITHOUT_TRUTH, True)


# ---- what needs no model


def test_length_picks_what_wins_in_the_other_folds() -> None:
    """Longer wins wherever it is trained, but in fold 0's own pair; equal lengths count half."""
    tokens = np.array([[1, 2], [3, 1], [4, 4], [5, 1], [6, 2]])
    assert real_pairs.by_length(tokens, np.arange(5)).tolist() == [0.0, 1.0, 0.5, 1.0, 1.0]
    assert real_pairs.by_length(tokens[:, ::-1], np.arange(5)).tolist() == [0.0, 1.0, 0.5, 1.0, 1.0]


def test_a_pair_longer_than_the_policy_reads_is_named() -> None:
    rendered = [Rendered([0] * length, 0, length - 1) for length in (3, 4, 9, 2)]
    real_pairs.check_positions(rendered, 9)
    with pytest.raises(DataError, match="pair 2 has 9 tokens, the policy 8 positions; leave long pairs out"):
        real_pairs.check_positions(rendered, 8)


def test_clustered_interval_by_hand() -> None:
    """Mean .25; the deviations from it sum to 1.5 in the first cluster, to -1.5 in the other."""
    found = clustered_interval([1.0, 1.0, 0.0, 0.0, 0.0, -0.5], [4, 4, 7, 7, 7, 7])
    half = 1.959964 * math.sqrt(2 / 1 * (1.5**2 + 1.5**2)) / 6
    assert (found.mean, found.n) == (0.25, 2)
    assert (found.low, found.high) == pytest.approx((0.25 - half, 0.25 + half))


def test_clustered_interval_of_clusters_of_one_is_the_normal_one() -> None:
    values = [1.0, 0.0, 0.0, -1.0, 1.0]
    half = 1.959964 * float(np.std(values, ddof=1)) / math.sqrt(5)
    assert clustered_interval(values, range(5)).high == pytest.approx(0.2 + half)
    with pytest.raises(ValueError, match="at least 2 clusters; all 2 values are of one"):
        clustered_interval([1.0, 0.0], [3, 3])


def test_sign_test_by_hand() -> None:
    """Openings: +1, +1, +2/3, -1, and one whose gains cancel: 3 of 4, twice (4 + 1) / 16."""
    gains, groups = np.array([1, 1, 1 / 3, 1 / 3, -1, 1, -1]), np.array([0, 1, 2, 2, 3, 4, 4])
    assert real_pairs.sign_test(gains, groups) == pytest.approx(0.625)
    assert real_pairs.sign_test(np.zeros(3), np.arange(3)) == 1.0


def test_the_table_and_the_record() -> None:
    tested = {LENGTH: np.array([1.0, 0, 1, 1]), "baseline": np.array([1.0, 0, 0, 1 / 3])}
    found = real_pairs.outcomes(tested, np.arange(4), np.array([True, True, True, False]))
    assert (found[LENGTH].accuracy, found[LENGTH].held_out) == (0.75, pytest.approx(2 / 3))
    assert found[LENGTH].gain.mean == pytest.approx(5 / 12) and found[LENGTH].p == 0.5
    lines = real_pairs.table(found, 4, 3).splitlines()
    assert lines[0] == "| method | accuracy, 4 pairs | gain | p | 3 pairs new to the policy | gain there |"
    assert lines[2] == "| length | 0.750 [0.301, 0.954] | +0.417 ± 0.490 | 0.5 | 0.667 | +0.333 ± 0.653 |"
    assert lines[3].startswith("| baseline | 0.333 [") and lines[3].endswith("] |  |  | 0.333 |  |")
    assert real_pairs.record(found, tested, 7)["right"] == {
        LENGTH: [1.0, 0.0, 1.0, 1.0],
        "baseline": [1.0, 0.0, 0.0, 0.3333],
    }


# ---- the figure of strengths


def test_the_figure_is_of_training_pairs_and_repeats(tmp_path: Path) -> None:
    rows = [{MEAN: value, IN_SAMPLE_MEAN: value / 2 if value else None} for value in (-1.0, 0.0, 2.0)]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    found = strength_figure.strengths_of(tmp_path / "pairs.jsonl")
    assert {name: values.tolist() for name, values in found.items()} == {
        strength_figure.OUT_OF_FOLD: [-1.0, 2.0],
        strength_figure.IN_SAMPLE: [-0.5, 1.0],
    }
    for name in ("a.svg", "b.svg"):
        strength_figure.draw(tmp_path / name, histogram(found), 2)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "preference strength of 2 training pairs" in (tmp_path / "a.svg").read_text()


def test_pairs_without_strengths_are_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "pairs.jsonl", [{"chosen": "a"}])
    with pytest.raises(DataError, match="no strength_mean; give the pairs.jsonl that stage"):
        strength_figure.strengths_of(tmp_path / "pairs.jsonl")
