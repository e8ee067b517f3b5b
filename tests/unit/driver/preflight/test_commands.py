"""Commands evaluate_rm and explain: what is named before a model is loaded, and what their sections may change."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

import launch
from common.config.file import BASE, ConfigError, load_config, save_config
from driver.preflight import commands as rm_checks
from driver.preflight import preflight
from driver.preflight.commands import check_commands
from driver.preflight.findings import Findings
from tests.unit.preflights import make_reward_model
from tests.unit.reward_models import jsonl


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ((), "evaluate_rm has nothing to judge"),
        (("evaluate_rm.pairs.a=none.jsonl",), "evaluate_rm.pairs.a: none.jsonl: no such file"),
        (("evaluate_rm.pairs.a=bad.jsonl",), 'evaluate_rm.pairs.a: bad.jsonl:2: "rejected" is missing'),
        (("evaluate_rm.pairs.rewardbench=p.jsonl",), "evaluate_rm.pairs names a set 'rewardbench', which is taken"),
        (("evaluate_rm.rewardbench=p.jsonl",), "a row without a subset is none of RewardBench's"),
        (("evaluate_rm.rewardbench2=p.jsonl",), "a row without a subset is none of RewardBench 2's"),
        (("evaluate_rm.rewardbench=four.jsonl",), "RewardBench v1 has one chosen and one rejected answer a row"),
        (("evaluate_rm.rewardbench2=two.jsonl",), "a row of Math has 2 chosen answers; wanted 1"),
        (("evaluate_rm.rewardbench2=ties.jsonl",), 'the id of a row of Ties is \'7\'; want "ref:n" or "tied:n"'),
        (("evaluate_rm.rewardbench2=alone.jsonl",), "no row of Ties has a partner"),
        (
            ("evaluate_rm.prior_sets.pku=p.jsonl", "evaluate_rm.rewardbench=v1.jsonl"),
            "prior_sets names 'pku'; it must be",
        ),
        (("evaluate_rm.prior_sets.shp=p.jsonl",), "prior_sets is set without evaluate_rm.rewardbench"),
        (
            ("evaluate_rm.pairs.a=p.jsonl", "evaluate_rm.baseline=no/such/model"),
            "evaluate_rm.baseline: no such directory",
        ),
        (("evaluate_rm.pairs.a=p.jsonl", "evaluate_rm.baseline_revision=x"), "is set without evaluate_rm.baseline"),
        (("evaluate_rm.pairs.a=p.jsonl", "rewarder.model=null"), "no reward model: runs/run has no rm/version_0"),
        (("evaluate_rm.pairs.a=p.jsonl", "rewarder.gpus=1"), "this machine shows no GPU"),
    ],
)
def test_bad_input_is_named_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], words: str
) -> None:
    write_bad_input(tmp_path, monkeypatch)
    settings = load_config(BASE, ["aggregation.kind=final_score", "rewarder.model=model", *overrides])
    findings = Findings()
    check_commands(settings, ["evaluate_rm"], findings)
    assert len(findings.problems) == 1 and words in findings.problems[0], findings.problems


def write_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rm_checks, "visible_gpus", list)
    make_reward_model(tmp_path / "model")
    good, best = (
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "p", "chosen": ["a"], "rejected": ["b", "c"]},
    )
    jsonl(tmp_path / "p.jsonl", [good])
    jsonl(tmp_path / "v1.jsonl", [{**good, "subset": "math-prm"}])
    jsonl(tmp_path / "bad.jsonl", [good, {"prompt": "p", "chosen": "a"}])
    jsonl(tmp_path / "four.jsonl", [{**best, "subset": "math-prm"}])
    jsonl(tmp_path / "two.jsonl", [{**best, "chosen": ["a", "d"], "subset": "Math"}])
    jsonl(tmp_path / "ties.jsonl", [{**best, "subset": "Ties", "id": 7}])
    jsonl(
        tmp_path / "alone.jsonl",
        [{**best, "subset": "Ties", "id": "tied:1"}, {**best, "subset": "Ties", "id": "ref:2"}],
    )


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ((), "explain has nothing to explain"),
        (("explain.prompt=hi",), "explain.responses is empty"),
        (("explain.prompt=' '", "explain.responses=[a]"), "explain.prompt is empty"),
        (("explain.responses=[a]",), "explain.prompt is empty"),
        (("explain.file=p.jsonl", "explain.prompt=hi"), "set one or the other"),
        (("explain.file=bad.jsonl",), 'explain.file: bad.jsonl:2: "rejected" is missing'),
        (("explain.file=none.jsonl",), "explain.file: none.jsonl: no such file"),
    ],
)
def test_bad_input_of_explain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], words: str
) -> None:
    write_bad_input(tmp_path, monkeypatch)
    settings = load_config(BASE, ["aggregation.kind=final_score", "rewarder.model=model", *overrides])
    findings = Findings()
    check_commands(settings, ["explain"], findings)
    assert len(findings.problems) == 1 and words in findings.problems[0], findings.problems


@pytest.mark.parametrize("override", ["explain.rows=0", "evaluate_rm.batch_tokens=0"])
def test_ranges(override: str) -> None:
    with pytest.raises(ConfigError, match="it must be between 1 and"):
        load_config(BASE, ["aggregation.kind=final_score", override])


def test_commands_are_accepted_by_stages_and_are_no_stage_of_a_run(tmp_path: Path) -> None:
    arguments = argparse.Namespace(
        config=str(BASE), stages="explain,evaluate_rm", overrides=["aggregation.kind=final_score"]
    )
    settings, stages = launch.read(arguments)
    assert stages == ["evaluate_rm", "explain"] and not {"evaluate_rm", "explain"} & set(settings.stages)
    with pytest.raises(ConfigError, match="'explain', which is a command; take it out, and run it by --stages explain"):
        load_config(BASE, ["aggregation.kind=final_score", "stages=[explain]"])


def test_a_run_may_be_looked_at_in_another_way_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--resume: what a command looks at is free to change, also for a run that is older than the commands."""
    write_bad_input(tmp_path, monkeypatch)
    monkeypatch.setattr(preflight, "visible_gpus", list)
    base = ["aggregation.kind=final_score", "rewarder.model=model"]
    Path("runs/run").mkdir(parents=True)
    save_config(load_config(BASE, base), Path("runs/run/config.yaml"))
    asks = load_config(BASE, [*base, "evaluate_rm.pairs.a=p.jsonl", "explain.prompt=hi", "explain.responses=[a]"])
    assert preflight.check(asks, ["evaluate_rm", "explain"], resume=True).problems == []
    saved = Path("runs/run/config.yaml").read_text()
    Path("runs/run/config.yaml").write_text(saved[: saved.index("evaluate_rm:")])
    assert preflight.check(asks, ["evaluate_rm", "explain"], resume=True).problems == []
