"""What is shown of a run while it works: the names of its metrics, TensorBoard's files, the Grafana dashboard.

The gauges themselves need a Ray: tests/integration/test_cluster.py.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.record_writer import masked_crc32c

from common.config.file import BASE
from common.metrics import read_rows, step_names
from driver.record.series import AT_THE_START, HELP, PREFIX, Series, measured, series_of
from driver.record.step_lines import StepLines
from driver.record.tensorboard import EVENTS, TensorBoard
from driver.rounds.reward_models import METRICS as ROUND_NAMES

OBJECTIVES = ("correct", "safe")


@pytest.mark.parametrize(
    ("name", "metric", "tags"),
    [
        ("step", "iter_rlhf_step", ()),
        ("policy/kl_ref", "iter_rlhf_policy_kl_ref", ()),
        ("reward/mean", "iter_rlhf_reward_mean", ()),
        ("reward/safe", "iter_rlhf_reward_objective", (("objective", "safe"),)),
        ("gate/safe", "iter_rlhf_gate_objective", (("objective", "safe"),)),
        ("reward/term/safety", "iter_rlhf_reward_term", (("term", "safety"),)),
        ("reward/term/safe", "iter_rlhf_reward_term", (("term", "safe"),)),
        ("reward/binding/safe", "iter_rlhf_reward_binding_term", (("term", "safe"),)),
        ("rm/correlation/safe", "iter_rlhf_rm_correlation_objective", (("objective", "safe"),)),
        (
            "rm/candidate_onpolicy_r2/safe",
            "iter_rlhf_rm_candidate_onpolicy_r_squared_objective",
            (("objective", "safe"),),
        ),
        ("reference/coverage/safe", "iter_rlhf_reference_coverage_term", (("term", "safe"),)),
        ("policy/safe", "iter_rlhf_policy_safe", ()),
    ],
)
def test_where_a_value_goes(name: str, metric: str, tags: tuple[tuple[str, str], ...]) -> None:
    assert series_of(name, OBJECTIVES) == Series(metric, tags)


def test_no_two_names_are_one_series_and_each_metric_is_described() -> None:
    names = ("step", *step_names(OBJECTIVES), *AT_THE_START, "reward/term/safety")
    found = {name: series_of(name, OBJECTIVES) for name in names}
    assert len(set(found.values())) == len(found)
    rounds = {series_of(f"rm/{name}", OBJECTIVES) for name in ROUND_NAMES}
    assert {series.metric.removeprefix(PREFIX) for series in (*found.values(), *rounds)} <= set(HELP)
    assert all(re.fullmatch("[a-z_]+", metric) for metric in HELP)


def test_what_was_not_measured_is_not_shown() -> None:
    line = {"a": 1, "b": 0.0, "c": None, "d": math.nan, "e": -math.inf, "f": "text"}
    assert measured(line) == {"a": 1.0, "b": 0.0}


# ---- a step line's three ways ------------------------------------------------------------------------------------------


class Shown:
    """Stands in for the gauges: their last values."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        self.values |= measured({"step": step, **values})


def lines(run: Path, last_step: int, shown: Shown, tensorboard: bool = True) -> StepLines:
    return StepLines(run, OBJECTIVES, last_step, shown, tensorboard)  # pyright: ignore[reportArgumentType]


def test_before_the_first_line_only_what_is_0_is_shown(tmp_path: Path) -> None:
    shown = Shown()
    lines(tmp_path, -1, shown)
    assert shown.values == AT_THE_START
    assert "gold/mean" not in shown.values and "policy/entropy" not in shown.values


def test_a_line_goes_everywhere(tmp_path: Path) -> None:
    shown = Shown()
    lines(tmp_path, -1, shown).write(1, {"reward/mean": 0.25, "gold/mean": None})
    (row,) = read_rows(tmp_path / "metrics.jsonl")
    assert (row["step"], row["reward/mean"], row["gold/mean"]) == (1, 0.25, None)
    assert shown.values == {**AT_THE_START, "step": 1, "reward/mean": 0.25}
    assert curves(tmp_path / "tensorboard") == {"reward/mean": {1: 0.25}}


def test_tensorboard_is_optional(tmp_path: Path) -> None:
    lines(tmp_path, -1, Shown(), tensorboard=False).write(1, {"reward/mean": 0.25})
    assert not (tmp_path / "tensorboard").exists()


def test_a_resumed_run_shows_its_last_values_and_draws_no_step_twice(tmp_path: Path) -> None:
    before = lines(tmp_path, -1, Shown())
    for step in range(6):
        before.write(step, {"reward/mean": -step, "gold/mean": 0.5 if step == 2 else None})
    shown = Shown()
    after = lines(tmp_path, 3, shown)
    assert shown.values == {**AT_THE_START, "step": 3, "reward/mean": -3, "gold/mean": 0.5}
    after.write(4, {"reward/mean": 44})
    assert [row["reward/mean"] for row in read_rows(tmp_path / "metrics.jsonl")] == [0, -1, -2, -3, 44]
    assert curves(tmp_path / "tensorboard") == {
        "reward/mean": {0: 0, 1: -1, 2: -2, 3: -3, 4: 44},
        "gold/mean": {2: 0.5},
    }


# ---- TensorBoard --------------------------------------------------------------------------------------------------------


def records(path: Path) -> Iterator[Any]:
    """The events of a file, their checksums verified."""
    data, at = path.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        content = data[at + 12 : at + 12 + length]
        sums = struct.unpack_from("<I", data, at + 8) + struct.unpack_from("<I", data, at + 12 + length)
        assert sums == (masked_crc32c(data[at : at + 8]), masked_crc32c(content))
        yield EVENTS.Event.FromString(content)
        at += 16 + length


def curves(directory: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard draws: files by name, and a START drops what came before it from its step on."""
    found: dict[str, dict[int, float]] = {}
    for path in sorted(directory.iterdir()):
        for event in records(path):
            if event.session_log.status == EVENTS.SessionLog.START:
                found = {tag: {s: v for s, v in curve.items() if s < event.step} for tag, curve in found.items()}
            for value in event.summary.value:
                curve = found.setdefault(value.tag, {})
                assert event.step not in curve, f"{value.tag} has step {event.step} twice"
                curve[event.step] = value.simple_value
    return found


def test_tensorboard_has_the_names_and_values_of_the_line(tmp_path: Path) -> None:
    line = {name: 0.5 + index for index, name in enumerate(step_names(OBJECTIVES))}
    board = TensorBoard(tmp_path, 0)
    board.write(7, {**line, "policy/loss": math.nan})
    assert curves(tmp_path) == {name: {7: value} for name, value in line.items()}


def test_a_line_is_on_disk_when_it_is_written(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, 0)
    board.write(1, {"reward/mean": 1})
    (path,) = tmp_path.iterdir()
    version, start, line = records(path)
    assert version.file_version == "brain.Event:2" and start.step == 0 and line.step == 1
    board.write(2, {"reward/mean": 2})
    assert len(list(records(path))) == 4


# ---- Grafana --------------------------------------------------------------------------------------------------------------

DASHBOARD = json.loads((BASE.parent / "grafana.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def test_every_metric_is_on_a_panel_and_every_panel_shows_metrics_that_exist() -> None:
    queries = [target["expr"] for panel in PANELS for target in panel["targets"]]
    drawn = {name for query in queries for name in re.findall(r"ray_\w+", query)}
    assert drawn == {f"ray_{PREFIX}{metric}" for metric in HELP}


def test_every_query_is_of_the_chosen_runs_and_keeps_the_tags_of_its_legend() -> None:
    for target in (target for panel in PANELS for target in panel["targets"]):
        shape = re.fullmatch(r'max by \(([\w, ]+)\) \(ray_\w+\{run=~"\$run"\}\)', target["expr"])
        assert shape, target["expr"]
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) == set(shape[1].split(", "))


def test_the_dashboard_is_well_formed() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "run"]
    cells = [(x, y) for panel in DASHBOARD["panels"] for x, y in covered(panel["gridPos"])]
    assert len(set(cells)) == len(cells), "two panels overlap"
    assert max(x for x, _ in cells) < 24


def covered(at: dict[str, int]) -> list[tuple[int, int]]:
    return [(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])]
