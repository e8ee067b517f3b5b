"""A look at the drift signal: what is measured of the policy's newest samples, and whether it asks for a round.

    scored stream --> groups since the last look, scored by the version that serves
      accuracy, gap   the pairs that a round would now have as evidence, in its order --> judge (labels.jsonl, or gold)
      variance        their rewards
      disagreement    the adapter, which scores the newest of them by the ensemble

Called by driver/rounds/when.py; the maths is learner/adaptation/drift.py. Reads the stream from its beginning, outside the
ledger: what a look sees depends on the checkpoints alone, so a resumed run sees the same. Waits for the judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.config.config import Config
from common.judge import JudgeItem, PairItem, ask_judge, load_function
from common.queue.ledger import START
from common.queue.queue import Queue
from common.types import Message, ScoredGroup
from driver.cluster.cluster import Cluster
from driver.judges.judges import judge_of
from driver.judges.label_book import LabelBook
from driver.record.loop_state import RoundState
from driver.record.progress import say
from learner.adaptation import drift
from learner.adaptation.candidates import propose, round_seed
from learner.adaptation.drift import Numbers

READ_RECORDS = 256
Rewards = dict[tuple[tuple[Message, ...], str], float]


@dataclass(frozen=True)
class Look:
    """What the step line says, and whether a round should follow."""

    metrics: dict[str, float | None]
    fires: bool


class DriftWatch:
    """Looks of one run, by adaptation.drift."""

    def __init__(self, config: Config, cluster: Cluster, queue: Queue, run: Path):
        self._config, self._cluster, self._queue = config, cluster, queue
        self._settings, self._labels = config.adaptation.drift, run / "labels.jsonl"

    def look(self, state: RoundState, first_slot: int, version: int) -> Look:
        """At the samples from first_slot on. The first look at a version that measures something takes its baseline, in
        `state`, and asks for nothing."""
        signal = self._settings.signal
        numbers = self._measure(state.num, first_slot, version)
        if state.looked_at != version:
            state.looked_at, state.baseline = version, []
        if not state.baseline and drift.can_be_baseline(signal, numbers):
            state.baseline = list(numbers)
            return self._first(numbers, version)
        if not numbers or not state.baseline:
            say(f"  drift: {signal} cannot be measured yet")
            return Look({f"drift/{signal}": None, "drift/baseline": None}, False)
        return self._later(numbers, tuple(state.baseline), version)

    def _first(self, numbers: Numbers, version: int) -> Look:
        signal, value = self._settings.signal, drift.value(self._settings.signal, numbers, numbers)
        say(f"  drift: {signal} {value:.3f}, the baseline of version {version}")
        return Look({f"drift/{signal}": value, "drift/baseline": value}, False)

    def _later(self, numbers: Numbers, baseline: Numbers, version: int) -> Look:
        signal = self._settings.signal
        now, before = (drift.value(signal, measured, baseline) for measured in (numbers, baseline))
        fires = drift.has_drifted(signal, now, before, self._settings.change)
        outcome = "a round" if fires else "no round"
        say(f"  drift: {signal} {now:.3f}, {before:.3f} when version {version} was first looked at: {outcome}")
        return Look({f"drift/{signal}": now, "drift/baseline": before}, fires)

    def _measure(self, number: int, first_slot: int, version: int) -> Numbers:
        if self._settings.signal == "disagreement":
            found = self._cluster.adapters.disagreement(first_slot)
            return () if found is None else (found,)
        groups = [group for group in _newest(self._queue, first_slot) if group.rm_version == version]
        if self._settings.signal == "variance":
            return drift.within_prompt([[reward.value - reward.penalty for reward in g.rewards] for g in groups])
        return self._judged(_evidence(self._config, groups, number), _rewards(groups), number)

    def _judged(self, pairs: Sequence[PairItem], rewards: Rewards, number: int) -> Numbers:
        """Measures accuracy or gap; labels are bought as of round `number`."""
        of_pairs = [(rewards[pair.messages, pair.first], rewards[pair.messages, pair.second]) for pair in pairs]
        if self._settings.signal == "gap":
            items = [item for pair in pairs for item in pair.items]
            return drift.levels([reward for both in of_pairs for reward in both], self._golds(items))
        book = LabelBook(self._labels, self._config.adaptation.label_budget)
        preferred = book.buy(pairs, judge_of(self._config, self._cluster.judges), number)
        known = [
            place for place, pair in enumerate(pairs) if pair.key in preferred
        ]  # of a budget that is used up, not all
        return drift.accuracy([of_pairs[i] for i in known], [preferred[pairs[i].key] for i in known])

    def _golds(self, items: Sequence[JudgeItem]) -> list[float]:
        assert self._config.judge.function is not None, "the configuration asks for a judge.function"
        judge = load_function(self._config.judge.function)
        return [ask_judge(judge, item)["gold"] for item in items]


def _newest(queue: Queue, first_slot: int) -> list[ScoredGroup]:
    """The groups from first_slot on that the stream still holds, in slot order, each slot once."""
    cursor, found = START, {}
    while records := queue.read_scored(cursor, READ_RECORDS, 0.0):
        cursor = records[-1][0]
        groups = [record for _, record in records if isinstance(record, ScoredGroup)]
        found |= {group.group.slot: group for group in groups if group.group.slot >= first_slot}
    return [found[slot] for slot in sorted(found)]


def _evidence(config: Config, groups: Sequence[ScoredGroup], number: int) -> tuple[PairItem, ...]:
    """The first drift.pairs of the pairs that round `number` would have as evidence."""
    fraction, seed = config.learner.reward_model.held_out_fraction, round_seed(config.run.seed, number)
    return propose(groups, 0, config.adaptation.drift.pairs, fraction, seed).evidence


def _rewards(groups: Sequence[ScoredGroup]) -> Rewards:
    """The reward of each response without its penalty, by prompt and text."""
    return {
        (group.group.prompt.messages, rollout.response): reward.value - reward.penalty
        for group in groups
        for rollout, reward in zip(group.group.rollouts, group.rewards, strict=True)
    }
