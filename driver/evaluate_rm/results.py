"""What stage evaluate_rm finds: each set's accuracies, calibration and length slope by scorer, and RewardBench's numbers.

Called by driver/evaluate_rm/command.py with every scorer's outcomes; drawn by rm_tables and rm_page, written as
evaluate_rm.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from common.data.judged import Judged
from common.data.split import opening_key
from driver.evaluate_rm.measures import Accuracy, Array, Calibrated, Outcome, accuracy, calibrated, pair_accuracy
from driver.evaluate_rm.overlap import Overlap
from driver.evaluate_rm.sets import PRIOR, V1, V2, EvalSet
from driver.report.records import Interval
from rewarder.rewardbench import TIES, Sectioned, credit, margins, split_tie_id, ties_score, version_1, version_2

GATED, UNIFORM, BASELINE, LENGTH = "gated", "uniform gate", "baseline", "longer answer"
WHOLE, NO_SLICE = "all", "no slice"  # rows of a table that no slice of the data can take the place of
Outcomes = Mapping[str, Mapping[str, Sequence[Outcome]]]  # scorer -> set -> one a row


@dataclass(frozen=True)
class SetResult:
    """One set: rows, left out by reason, read in another form by what was done; slice -> scorer -> accuracy ("all" first, where
    it is a share of rows); scorer -> calibration (sets of pairs only)."""

    rows: int
    skipped: Mapping[str, int]
    notes: Mapping[str, int]
    slices: Mapping[str, Mapping[str, Accuracy]]
    calibration: Mapping[str, Calibrated]


@dataclass(frozen=True)
class Results:
    """Everything found. benchmarks: rewardbench and rewardbench2 -> scorer -> sections, where those were asked for."""

    model: str
    baseline: str | None
    overlap: Overlap
    scorers: tuple[str, ...]
    sets: Mapping[str, SetResult]
    benchmarks: Mapping[str, Mapping[str, Sectioned]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: what was not measured is null."""
        return _jsonable(asdict(self))


def results(
    model: str,
    baseline: str | None,
    overlap: Overlap,
    sets: Sequence[EvalSet],
    outcomes: Outcomes,
    extra_tokens: Mapping[str, Array],
) -> Results:
    """Measures every scorer on every set; extra_tokens: set -> tokens(right) - tokens(wrong) of each row of a set of pairs."""
    found = {judged.name: _set_result(judged, outcomes, extra_tokens.get(judged.name)) for judged in sets}
    return Results(model, baseline, overlap, tuple(outcomes), found, _benchmarks(sets, found, outcomes))


def _set_result(judged: EvalSet, outcomes: Outcomes, extra_tokens: Array | None) -> SetResult:
    mine = {scorer: by_set[judged.name] for scorer, by_set in outcomes.items()}
    slices = (_version_2_slices if judged.name == V2 else _pair_slices)(judged.rows, mine)
    calibration = {} if extra_tokens is None else _calibration(judged.rows, mine, extra_tokens)
    return SetResult(len(judged.rows), dict(judged.skipped), dict(judged.notes), slices, calibration)


def _pair_slices(
    rows: Sequence[Judged], outcomes: Mapping[str, Sequence[Outcome]]
) -> dict[str, Mapping[str, Accuracy]]:
    places = _places(rows)
    return {
        name: {scorer: pair_accuracy([mine[i] for i in where]) for scorer, mine in outcomes.items()}
        for name, where in places.items()
    }


def _places(rows: Sequence[Judged]) -> dict[str, list[int]]:
    """Name of a slice -> its rows; all rows first, and alone where there is one slice."""
    places: dict[str | None, list[int]] = {}
    for index, row in enumerate(rows):
        places.setdefault(row.slice, []).append(index)
    if len(places) == 1:
        return {WHOLE: list(range(len(rows)))}
    names = _names(list(places))
    return {WHOLE: list(range(len(rows))), **{names[name]: where for name, where in places.items()}}


def _names(slices: Sequence[str | None]) -> dict[str | None, str]:
    """What each slice is called in a table: its name, but for one that a row of ours has, which gets (slice) behind it."""
    taken, names = {WHOLE, NO_SLICE, *slices}, {}
    for name in slices:
        shown = NO_SLICE if name is None else name
        while name is not None and (shown in (WHOLE, NO_SLICE) or (shown != name and shown in taken)):
            shown += " (slice)"
        taken.add(shown)
        names[name] = shown
    return names


def _calibration(
    rows: Sequence[Judged], outcomes: Mapping[str, Sequence[Outcome]], extra_tokens: Array
) -> dict[str, Calibrated]:
    """Calibrates every scorer but the length itself. Which half a row is in follows from its prompt, so that no prompt is
    in both."""
    half = np.array([int(opening_key(row.right[0].messages)[:8], 16) % 2 == 0 for row in rows])
    differences = {
        scorer: np.array([outcome.right[0] - outcome.wrong[0] for outcome in mine])
        for scorer, mine in outcomes.items()
        if scorer != LENGTH
    }
    return {scorer: calibrated(values, half, extra_tokens) for scorer, values in differences.items()}


def _version_2_slices(
    rows: Sequence[Judged], outcomes: Mapping[str, Sequence[Outcome]]
) -> dict[str, Mapping[str, Accuracy]]:
    """Subset -> scorer -> score: mean credit with its interval; of Ties the published score, which has none."""
    names = _slices(rows)
    return {
        name: {
            scorer: _subset_2(name, *zip(*_of_slice(rows, mine, name), strict=True))
            for scorer, mine in outcomes.items()
        }
        for name in names
    }


def _slices(rows: Sequence[Judged]) -> list[str]:
    """The subsets of a benchmark in their order; its reader refuses rows without one."""
    return list(dict.fromkeys(row.slice for row in rows if row.slice is not None))


def _of_slice(rows: Sequence[Judged], outcomes: Sequence[Outcome], name: str) -> list[tuple[Judged, Outcome]]:
    return [(row, outcome) for row, outcome in zip(rows, outcomes, strict=True) if row.slice == name]


def _subset_2(name: str, rows: Sequence[Judged], outcomes: Sequence[Outcome]) -> Accuracy:
    tied = sum(outcome.tied for outcome in outcomes)
    if name != TIES:
        return accuracy([credit(outcome.right[0], outcome.wrong) for outcome in outcomes], tied)
    stats: dict[str, dict[str, Any]] = {"ref": {}, "tied": {}}
    for row, outcome in zip(rows, outcomes, strict=True):
        kind, number = split_tie_id(row.row_id)
        stats[kind][number] = margins(outcome.right, outcome.wrong)
    return Accuracy(Interval(ties_score(stats["ref"], stats["tied"])), len(rows), tied)


def _benchmarks(
    sets: Sequence[EvalSet], found: Mapping[str, SetResult], outcomes: Outcomes
) -> dict[str, dict[str, Sectioned]]:
    names, benchmarks = [judged.name for judged in sets], {}
    if V1 in names:
        by_subset = _pair_slices_of_subsets(sets, outcomes)
        prior = {name.removeprefix(PRIOR): found[name].slices[WHOLE] for name in names if name.startswith(PRIOR)}
        benchmarks[V1] = {scorer: version_1(_shares(by_subset, scorer), _shares(prior, scorer)) for scorer in outcomes}
    if V2 in names:
        benchmarks[V2] = {scorer: version_2(_shares(found[V2].slices, scorer)) for scorer in outcomes}
    return benchmarks


def _pair_slices_of_subsets(sets: Sequence[EvalSet], outcomes: Outcomes) -> dict[str, dict[str, Accuracy]]:
    """Subset of RewardBench -> scorer -> accuracy, also where the file has a single subset."""
    (judged,) = [judged for judged in sets if judged.name == V1]
    subsets = _slices(judged.rows)
    return {
        name: {
            scorer: pair_accuracy([outcome for _, outcome in _of_slice(judged.rows, by_set[V1], name)])
            for scorer, by_set in outcomes.items()
        }
        for name in subsets
    }


def _shares(slices: Mapping[str, Mapping[str, Accuracy]], scorer: str) -> dict[str, float]:
    return {name: by_scorer[scorer].share.mean for name, by_scorer in slices.items()}


def _jsonable(value: Any) -> Any:
    """Plain data with null for NaN."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
