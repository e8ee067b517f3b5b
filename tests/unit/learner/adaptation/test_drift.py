"""learner/adaptation/drift.py by hand, and looks (driver/rounds/drift.py) with a stream in a list: what is measured, when a
look fires, and that nothing is bought twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.config.file import BASE, load_config
from common.judge import JudgeItem
from common.types import Reward, ScoredGroup, ScoredRecord, SlotDropped
from driver.cluster.cluster import Cluster
from driver.record.loop_state import RoundState
from driver.rounds.drift import DriftWatch, _evidence, _newest
from learner.adaptation import drift
from learner.adaptation.candidates import propose, round_seed
from tests.unit.adaptation import group

ASKED: list[str] = []


def gold(item: JudgeItem) -> dict[str, float]:
    """The longer, the better."""
    ASKED.append(item.response)
    return {"gold": float(len(item.response))}


# ---- the maths ------------------------------------------------------------------------------------------------------------


def test_accuracy_leaves_ties_out_and_counts_equal_rewards_as_wrong() -> None:
    rewards = [(-1.0, -2.0), (-1.0, -2.0), (-3.0, -2.0), (-1.0, -1.0), (-5.0, -1.0)]
    assert drift.accuracy(rewards, ["first", "second", "second", "first", "tie"]) == (0.5,)
    assert drift.accuracy([(0.0, 1.0)], ["tie"]) == drift.accuracy([], []) == ()


def test_gap_by_hand() -> None:
    """Reward -2 and 0 (mean -1, std 1), gold 0.2 and 0.6 (mean 0.4, std 0.2); then reward 0 and 1, gold 0.4 and 0.6: the reward
    rose by 1.5 of its standard deviations, gold by 0.5 of its own."""
    before, now = drift.levels([-2.0, 0.0], [0.2, 0.6]), drift.levels([0.0, 1.0], [0.4, 0.6])
    assert before == pytest.approx((-1.0, 1.0, 0.4, 0.2))
    assert drift.value("gap", now, before) == pytest.approx(1.0)
    assert drift.value("gap", before, before) == 0.0 and drift.levels([], []) == ()


def test_variance_by_hand() -> None:
    assert drift.within_prompt([[0.0, 2.0], [1.0, 1.0], [3.0, 9.0]]) == (pytest.approx((1 + 0 + 3) / 3),)
    assert drift.within_prompt([]) == ()


def test_disagreement_is_of_centred_scores() -> None:
    """Members [0, 2] and [5, 5] of one prompt: centred [-1, 1] and [0, 0], so the members are 1 apart at both responses, a
    standard deviation of 0.5; members that differ by a level alone agree."""
    differ, level = np.array([[0.0, 5.0], [2.0, 5.0]]), np.array([[0.0, 7.0], [1.0, 8.0]], np.float32)
    assert drift.disagreement([differ]) == (pytest.approx(0.5),)
    assert drift.disagreement([differ, level]) == (pytest.approx(0.25),)
    assert drift.disagreement([]) == ()


@pytest.mark.parametrize(
    ("signal", "before", "now", "fires"),
    [
        ("accuracy", 0.6, 0.55, True),  # 0.6 - 0.55 is below 0.05 by rounding
        ("accuracy", 0.6, 0.56, False),
        ("accuracy", 0.6, 0.9, False),
        ("gap", 0.0, 0.05, True),
        ("gap", 0.0, -0.5, False),
        ("variance", 0.4, 0.38, True),
        ("variance", 0.4, 0.39, False),
        ("disagreement", 0.4, 0.42, True),
        ("disagreement", 0.4, 0.2, False),
    ],
)
def test_what_counts_as_drift_at_a_change_of_5_points_or_percent(
    signal: str, before: float, now: float, fires: bool
) -> None:
    assert drift.has_drifted(signal, now, before, 0.05) == fires


def test_what_would_be_divided_by_0_is_no_baseline() -> None:
    assert drift.can_be_baseline("accuracy", (0.0,)) and not drift.can_be_baseline("accuracy", ())
    assert not drift.can_be_baseline("variance", (0.0,)) and drift.can_be_baseline("disagreement", (0.1,))
    assert drift.can_be_baseline("gap", (0.0, 1.0, 0.0, 1.0))
    assert not drift.can_be_baseline("gap", (1.0, 1.0, 1.0, 0.0))


# ---- looks ----------------------------------------------------------------------------------------------------------------


class Stream:
    """The scored stream; each record's cursor is its place, from 1."""

    def __init__(self, *records: ScoredRecord):
        self.records: Sequence[ScoredRecord] = records

    def read_scored(self, cursor: str, count: int, block_s: float) -> list[tuple[str, ScoredRecord]]:
        start = int(cursor.partition("-")[0])
        return [(str(n + 1), record) for n, record in enumerate(self.records)][start : start + min(count, 3)]


def scored(slot: int, values: list[float], version: int = 0) -> ScoredGroup:
    """Responses of 1, 2, .. letters with these rewards; the last one was cut and has a penalty of -9 on top."""
    made = group(slot, ["x" * (n + 1) for n in range(len(values))], truncated=[len(values) - 1])
    one = np.ones(1, np.float32)
    penalties = [0.0] * (len(values) - 1) + [-9.0]
    rewards = [Reward(one, one, np.array([v], np.float32), one, p) for v, p in zip(values, penalties, strict=True)]
    return replace(made, rewards=tuple(rewards), rm_version=version)


def watch(run: Path, stream: Stream, signal: str, *overrides: str) -> DriftWatch:
    settings = ["aggregation.kind=final_score", "adaptation.when=drift", f"adaptation.drift.signal={signal}"]
    config = load_config(BASE, [*settings, f"judge.function={__name__}:gold", *overrides])
    return DriftWatch(config, Cluster(config), stream, run)  # pyright: ignore[reportArgumentType]


def test_the_stream_is_read_whole_and_each_slot_counts_once() -> None:
    again = scored(5, [3.0, 4.0])
    stream = Stream(scored(5, [1.0, 2.0]), scored(4, [0.0, 0.0]), SlotDropped(6, "long"), scored(8, [1.0, 1.0]), again)
    found = _newest(stream, 5)  # pyright: ignore[reportArgumentType]
    assert [one.group.slot for one in found] == [5, 8] and found[0] is again


def test_the_first_look_at_a_version_is_its_baseline_and_never_fires(tmp_path: Path) -> None:
    """Variance: penalties do not count, nor do groups of another version and earlier slots."""
    stream, state = (
        Stream(scored(0, [0.0, 99.0]), scored(1, [0.0, 2.0]), scored(2, [0.0, 50.0], version=1)),
        RoundState(),
    )
    made = watch(tmp_path, stream, "variance")
    first = made.look(state, 1, 0)
    assert first.metrics == {"drift/variance": 1.0, "drift/baseline": 1.0} and not first.fires
    assert (state.baseline, state.looked_at) == ([1.0], 0)
    stream.records = [scored(3, [0.0, 1.92])]
    assert not made.look(state, 3, 0).fires
    stream.records = [scored(4, [0.0, 1.8])]
    second = made.look(state, 3, 0)
    assert second.fires and second.metrics == {"drift/variance": pytest.approx(0.9), "drift/baseline": 1.0}
    stream.records = [scored(5, [0.0, 0.2], version=1)]
    other = made.look(state, 3, 1)
    assert not other.fires and (state.looked_at, state.baseline) == (1, [pytest.approx(0.1)])


def test_a_look_that_sees_nothing_takes_no_baseline_and_asks_for_nothing(tmp_path: Path) -> None:
    state = RoundState()
    look = watch(tmp_path, Stream(), "variance").look(state, 0, 0)
    assert not look.fires and look.metrics == {"drift/variance": None, "drift/baseline": None} and not state.baseline


def test_accuracy_is_bought_once_and_is_part_of_the_evidence_of_the_round_that_follows(tmp_path: Path) -> None:
    """Rewards that rise with length agree with gold; the judged pairs are the first of the round's evidence, by its seed."""
    ASKED.clear()
    groups = [scored(slot, [1.0, 2.0, 3.0, 0.0]) for slot in range(40)]
    made = watch(tmp_path, Stream(*groups), "accuracy", "adaptation.drift.pairs=8")
    state = RoundState(num=3)
    look = made.look(state, 0, 0)
    assert look.metrics["drift/accuracy"] == 1.0 and len(ASKED) == 16
    repeated = watch(tmp_path, Stream(*groups), "accuracy", "adaptation.drift.pairs=8").look(RoundState(num=3), 0, 0)
    assert repeated == look and len(ASKED) == 16, "a resumed run finds the labels"
    config = made._config
    evidence = propose(groups, 40, 20, config.learner.reward_model.held_out_fraction, round_seed(0, 3)).evidence
    assert _evidence(config, groups, 3) == evidence[:8] and len(evidence) > 8
    worse = [scored(slot, [3.0, 2.0, 1.0, 0.0]) for slot in range(40, 80)]
    found = watch(tmp_path, Stream(*worse), "accuracy", "adaptation.drift.pairs=8").look(state, 40, 0)
    assert found.fires and found.metrics == {"drift/accuracy": 0.0, "drift/baseline": 1.0}


def test_gap_fires_where_the_reward_rises_and_gold_does_not(tmp_path: Path) -> None:
    state, before = RoundState(), Stream(*(scored(slot, [1.0, 2.0, 3.0, 0.0]) for slot in range(40)))
    first = watch(tmp_path, before, "gap").look(state, 0, 0)
    assert first.metrics == {"drift/gap": 0.0, "drift/baseline": 0.0} and len(state.baseline) == 4
    after = Stream(*(scored(slot, [2.0, 3.0, 4.0, 0.0]) for slot in range(40)))
    look = watch(tmp_path, after, "gap").look(state, 0, 0)
    assert look.fires and look.metrics["drift/gap"] == pytest.approx(1 / state.baseline[1])
    assert not (tmp_path / "labels.jsonl").exists(), "gold is a number of each response, not a label of a pair"
