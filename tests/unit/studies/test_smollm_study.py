"""Study smollm on hand-made rows and records: no model, no run but a process that counts."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from examples.smollm import table
from examples.smollm.constraints import FAMILIES
from studies import __main__ as command
from studies import catalog, smollm, smollm_tables
from studies.launches import MARK, Cost, Meter
from studies.rows import Row
from studies.runner import has_row
from studies.study import ROWS, Study, Unit
from studies.tally import Tally, Task
from studies.worlds import REAL_MODEL, SANDBOX, SMOLLM, SMOLLM_PAIRS, SMOLLM_STEP_S, smollm_config

STUDY = catalog.study("smollm")
WITHOUT, WITH = (f"{name}:{REAL_MODEL.version()}" for name in ("smollm", "smollm_pairs"))


def row(arm: str, seed: int, difference: float, world: str = WITH, second: bool = True) -> Row:
    names = [name for name, _ in smollm_tables.MEASURES.values() if second or name != "second/hh"]
    end = {f"{name}/{key}": value for name in names for key, value in numbers(difference).items()}
    return Row(
        "smollm", arm, seed, {**end, "steps": 16, "pairs": 500, "wall_s": 1500, "cpu_s": 2400}, {}, "c", "v", world, 9
    )


def numbers(difference: float) -> dict[str, float]:
    return {"before": 0.25, "after": 0.25 + difference, "difference": difference, "low": -1.0, "high": 1.0}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return replace(STUDY, rows=tmp_path / "rows")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def with_pairs(directory: Path, seed: int) -> None:
    data = directory / "data" / f"smollm-{seed}"
    data.mkdir(parents=True)
    (data / "preferences.jsonl").write_text("{}\n")


def test_a_sandbox_row_is_still_a_row() -> None:
    """One unit of each study; test_studies.py asks for all of them."""
    units = [next(iter(entry.units())) for entry in catalog.STUDIES if entry.world is SANDBOX]
    assert len(units) == len(list(ROWS.glob("*/"))) and all(map(has_row, units))
    assert {Row.read(unit.row_path).world for unit in units} == {unit.world for unit in units} == {SANDBOX.version()}


def test_the_configuration_follows_the_data(elsewhere: Path, study: Study) -> None:
    with_pairs(elsewhere, 1)
    assert (smollm_config(0), smollm_config(1)) == (SMOLLM, SMOLLM_PAIRS)
    without, pairs = (Unit(study, study.arms[0], seed) for seed in (0, 1))
    assert (without.world, pairs.world) == (WITHOUT, WITH)
    assert without.config.rewarder.preference is None and pairs.config.rewarder.preference == "harmless"
    assert pairs.config.data.preferences == "data/smollm-1/preferences.jsonl"


def test_a_row_counts_with_the_data_and_without_and_no_other_does(elsewhere: Path, study: Study) -> None:
    with_pairs(elsewhere, 0)
    unit = Unit(study, study.arms[0], 0)
    measured = replace(row("grouped", 0, 0.1), config_hash=unit.config_hash())
    measured.write(unit.row_path)
    (elsewhere / "data" / "smollm-0" / "preferences.jsonl").unlink()
    again = Unit(study, study.arms[0], 0)
    assert again.config_hash() != unit.config_hash() and has_row(again)
    replace(measured, config_hash="another").write(unit.row_path)
    assert not has_row(again)


def test_rows_of_both_configurations_are_refused(elsewhere: Path, study: Study) -> None:
    first, other = Unit(study, study.arms[0], 0), Unit(study, study.arms[0], 1)
    row("grouped", 0, 0.1).write(first.row_path)
    with pytest.raises(ValueError, match="would run in world smollm:.* but .* has rows of smollm_pairs:"):
        smollm.refuse_mixed(other)
    with_pairs(elsewhere, 1)
    smollm.refuse_mixed(other)
    replace(row("grouped", 0, 0.1), world="smollm:an older version").write(first.row_path)
    smollm.refuse_mixed(other)
    with pytest.raises(ValueError, match="the rows of study smollm are of"):
        smollm_tables.tables({"grouped": [row("grouped", 0, 0.1), row("grouped", 1, 0.1, WITHOUT)]})


def test_arms_run_what_their_names_say(elsewhere: Path, study: Study) -> None:
    with_pairs(elsewhere, 1)
    for seed, people in ((0, 0), (1, 1)):
        grouped, summed, longer = (Unit(study, arm, seed) for arm in study.arms)
        assert (grouped.config.aggregation.kind, summed.config.aggregation.kind) == ("grouped", "weighted_sum")
        assert longer.config.iteration.steps == 4 * grouped.config.iteration.steps
        told = smollm.arguments(summed)
        assert told[:2] == ["--config", str((SMOLLM, SMOLLM_PAIRS)[people])]
        assert f"run.seed={seed}" in told and f"run.name=weighted_sum-seed{seed}" in told
        weights = [text for text in told if text.startswith("aggregation.weights=")][-1]
        assert weights.count(": 1") == len(grouped.config.rewarder.objectives) == 13 + people
        assert ("harmless: 1" in weights) == bool(people)
        assert not any("weights" in text for text in smollm.arguments(grouped))


def test_every_measure_of_the_table_has_a_short_name() -> None:
    meta = [{"source": source} for source in table.SOURCES]
    scores = dict.fromkeys(("gold", "language", "brevity", *FAMILIES), 1.0)
    rows = [{"meta": one, "scores": scores, "token_ids": [1], "finish_reason": "stop"} for one in meta]
    names = {smollm.short_name(item.name) for item in table.judged(rows, rows)}
    assert names == {
        *(f"all/{source}" for source in table.SOURCES),
        *(f"met/{family}" for family in FAMILIES),
        *("program/language", "program/brevity", "tokens", "cut"),
    }
    assert smollm.short_name("second reward model: HH prompts") == "second/hh"
    assert smollm.short_name("KL, nats a response") == "kl"
    assert smollm.short_name("A new one: 3 %") == "a_new_one_3"
    assert set(smollm.SOURCES) == set(table.SOURCES.values())


def test_changes_and_curves_of_a_run() -> None:
    item = {"name": "response tokens", "prompts": 9, "before": 30.0, "after": 24.0, "low": -8.0, "high": -4.0}
    assert smollm.changes({"changes": [item], "second": "none"}) == {
        "tokens/before": 30.0,
        "tokens/after": 24.0,
        "tokens/difference": -6.0,
        "tokens/low": -8.0,
        "tokens/high": -4.0,
    }
    unknown = smollm.changes({"changes": [{**item, "before": None}]})
    assert math.isnan(unknown["tokens/difference"]) and unknown["tokens/after"] == 24.0
    lines = [{"step": step, **dict.fromkeys(smollm.CURVES, value)} for step, value in ((0, None), (1, None), (2, 0.5))]
    found = smollm.curves(lines)
    assert found["step"] == [1.0, 2.0]
    assert math.isnan(found["reward/mean"][0]) and found["reward/mean"][1] == 0.5
    assert set(found) == {"step", *smollm.CURVES}


def test_tables_by_hand() -> None:
    """Differences of .1 and .3 are .2 ± 12.706 x .1; the sum's are smaller by .1 for each seed."""
    arms = {
        name: [row(name, seed, 0.1 + 0.2 * seed - lost) for seed in (0, 1)]
        for name, lost in (("grouped", 0), ("sum", 0.1))
    }
    text = smollm_tables.tables(arms)
    assert "| all met, own topics | before | after | difference |" in text
    assert "| grouped | 0.250 ± 0.000 | 0.450 ± 1.271 | +0.200 ± 1.271 |" in text
    gains = text.split("minus that of grouped, by seed:\n")[1]
    assert "| sum | -0.100 ± 0.000 |" in gains and "| grouped | -" not in gains
    assert "| grouped | 16 | 500 | 25 | 40 |" in text
    assert "second reward model" in text
    without = {"grouped": [row("grouped", 0, 0.1, second=False)]}
    assert "second reward model" not in smollm_tables.tables(without)
    unknown = replace(without["grouped"][0], end={**without["grouped"][0].end, "kl/difference": math.nan})
    assert "KL" not in smollm_tables.tables({"grouped": [unknown]})


def test_hours_are_guessed_and_then_corrected_by_what_was_measured(study: Study) -> None:
    tasks = {unit.arm.name: Task("measure", unit, unit.name, ()) for unit in study.units() if unit.seed == 0}
    grouped, longer = tasks["grouped"], tasks["longer"]
    tally = Tally()
    assert tally.expected_s(longer) - tally.expected_s(grouped) == pytest.approx(36 * SMOLLM_STEP_S)
    assert tally.left_s(list(tasks.values())) == pytest.approx(sum(task.guess_s() for task in tasks.values()))
    tally.measured(grouped, 2 * grouped.guess_s())
    assert tally.expected_s(longer) == pytest.approx(2 * longer.guess_s())


def test_the_real_model_is_run_by_name_alone_and_one_unit_at_once() -> None:
    assert STUDY not in command.everything("run") and STUDY in command.everything("render")
    assert (REAL_MODEL.at_once, SANDBOX.at_once) == (1, 2)
    assert all(not unit.arm.needs for unit in STUDY.units())


BUSY = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass\nprint(flush=True)\ntime.sleep(600)"


def test_a_meter_counts_marked_processes_and_goes_on_from_earlier_starts(tmp_path: Path) -> None:
    path = tmp_path / "cost.json"
    Cost(100.0, 50.0).write(path)
    environment = {**os.environ, MARK: str(tmp_path)}
    marked = subprocess.Popen([sys.executable, "-c", BUSY], env=environment, stdout=subprocess.PIPE)
    try:
        assert marked.stdout is not None
        meter, other = Meter(path, str(tmp_path)), Meter(tmp_path / "other.json", "another mark")
        marked.stdout.readline()
        time.sleep(0.01)
        found = meter.look()
        assert other.look().cpu_s == 0.0
    finally:
        marked.kill()
        marked.wait()
    assert found.cpu_s >= 50.15 and found.wall_s > 100.0
    assert Cost.read(path) == found
    assert meter.look().cpu_s == found.cpu_s, "what has ended still counts"
