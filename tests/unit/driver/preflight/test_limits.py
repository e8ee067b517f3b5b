"""Lengths against a model's positions, and limits of the machine, each found before anything starts."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.config.file import BASE, load_config
from driver.preflight import machine
from driver.preflight.findings import Findings
from driver.preflight.limits import check_judges_lengths, check_policy_lengths, check_scoring_lengths

LENGTHS = ("data.max_prompt_tokens=40", "actors.max_response_tokens=100", "rewarder.max_tokens=128")
KIND = "aggregation.kind=final_score"


def found(
    tmp_path: Path, check: Callable[..., None], *overrides: str, stages: tuple[str, ...] = ("iterate",), **model: object
) -> Findings:
    """What a check says of a model of 128 positions, changed by `model`."""
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 128, **model}))
    findings = Findings()
    config = load_config(BASE, [KIND, *LENGTHS, *overrides])
    given = ("judge.model",) if check is check_scoring_lengths else ()
    check(*given, config, stages, tmp_path, findings)
    return findings


@pytest.mark.parametrize(
    ("overrides", "model", "refused"),
    [
        ((), {}, True),
        (("actors.max_response_tokens=88",), {}, False),
        ((), {"max_position_embeddings": None, "n_positions": 139}, True),
        ((), {"max_position_embeddings": None}, False),
        ((), {"rope_scaling": {"rope_type": "linear", "factor": 2}}, False),
        ((), {"rope_parameters": {"rope_type": "llama3", "factor": 8}}, True),
        ((), {"model_max_length": 140}, False),
        ((), {"text_config": {"max_position_embeddings": 139}}, True),
    ],
)
def test_prompt_and_response_fit_the_policy(
    tmp_path: Path, overrides: tuple[str, ...], model: dict[str, Any], refused: bool
) -> None:
    problems = found(tmp_path, check_policy_lengths, *overrides, **model).problems
    assert bool(problems) == refused
    assert not refused or "data.max_prompt_tokens 40 + actors.max_response_tokens 100 are 140" in problems[0]
    assert found(tmp_path, check_policy_lengths, *overrides, stages=("sft",), **model).problems == []


def test_what_is_scored_fits_the_model_that_scores(tmp_path: Path) -> None:
    fits = ("actors.max_response_tokens=80",)
    assert found(tmp_path, check_scoring_lengths, *fits).problems == []
    wide = found(tmp_path, check_scoring_lengths, *fits, "rewarder.max_tokens=500")
    assert wide.problems == [] and "set rewarder.max_tokens: 128 to have such texts left out" in wide.notes[0]
    learned = found(tmp_path, check_scoring_lengths, *fits, "rewarder.max_tokens=500", model_type="gpt2")
    assert (
        "judge.model" in learned.problems[0]
        and "has 128 positions and rewarder.max_tokens is 500" in learned.problems[0]
    )
    sampled = found(tmp_path, check_scoring_lengths, "rewarder.max_tokens=500")
    assert "prompts and responses may have 140 tokens" in sampled.problems[0]


def test_a_judges_positions_are_asked_for_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 128}))
    adapts = (
        "adaptation.when=iteration",
        f"judge.model={tmp_path}",
        "data.preferences=p.jsonl",
        "data.eval_prompts=e.jsonl",
    )
    findings = Findings()
    check_judges_lengths(load_config(BASE, [KIND, *LENGTHS, *adapts]), ["iterate"], findings)
    assert findings.notes == [] and findings.problems == []
    wide = load_config(BASE, [KIND, *LENGTHS, *adapts, "rewarder.max_tokens=500"])
    check_judges_lengths(wide, ["iterate"], findings)
    assert findings.problems[0].startswith(f"judge.model: {tmp_path} has 128 positions")


def test_a_sliding_window_is_noted(tmp_path: Path) -> None:
    fits = ("actors.max_response_tokens=80",)
    assert "a window of 64 tokens" in found(tmp_path, check_policy_lengths, *fits, sliding_window=64).notes[0]
    assert found(tmp_path, check_policy_lengths, *fits, sliding_window=64, use_sliding_window=False).notes == []


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_a_long_temporary_directory_is_named_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    long = tmp_path / ("x" * (110 - len(str(tmp_path)) - 1))
    long.mkdir()
    assert len(str(long)) == 110
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(name, str(long))
    findings = Findings()
    machine.check_machine(findings, local_ray=True, shared_bytes=None)
    assert (
        f"{name} is {long} (110 bytes)" in findings.problems[0]
        and f"set {name} to a directory of at most 39 bytes" in findings.problems[0]
    )
    short = Path("/tmp")
    monkeypatch.setenv(name, str(short))
    findings = Findings()
    machine.check_machine(findings, local_ray=True, shared_bytes=None)
    assert findings.problems == []


def test_the_socket_is_rays_longest() -> None:
    """As Ray names it: a time to the microsecond and a process number of seven digits."""
    assert len("/tmp" + machine.RAY_SOCKET) < machine.SOCKET_BYTES
    assert len(machine.RAY_SOCKET) == len("/ray/session_2026-11-27_09-40-24_123456_4194304/sockets/plasma_store")


def test_room_and_files_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = Findings()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file" / "below"))
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 256))
    machine.check_machine(findings, local_ray=True, shared_bytes=1e18)
    text = "\n".join(findings.problems)
    assert "cannot be written to; set RAY_TMPDIR" in text and "a process may open 256 files" in text
    assert "of weights wait there while engines load them" in text
