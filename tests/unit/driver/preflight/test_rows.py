"""Every row of every file is tried under every tokenizer that will render it, and the run that follows tries none again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from common.data.data import PreferencePair, read_pairs, to_fields, write_jsonl
from common.data.rows import Rows
from common.data.sides import pair_sides
from common.types import Message
from driver.preflight import kept, rows
from driver.preflight.findings import Findings
from driver.preflight.rows import Use, answers
from tests.unit.preflights import TEMPLATE, Check, make_model, make_reward_model, only

# Gemma's rule, and a template that takes turns only in their order
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TEMPLATE
)
TRAINS = ("rewarder.objectives=[a]", "rewarder.preference=a", "rewarder.model=null", "data.preferences=p.jsonl")
SYSTEM, USER = {"role": "system", "content": "w9"}, {"role": "user", "content": "w1"}


def pairs(path: str, count: int, late: Sequence[Mapping[str, object]] = ()) -> None:
    """`count` good pairs, then others."""
    good = [PreferencePair((Message("user", f"w{n % 50}"),), "w2", f"w3 {'w4 ' * (n % 3)}") for n in range(count)]
    write_jsonl(path, [*map(to_fields, good), *late])


def late(prompt: object) -> dict[str, object]:
    return {"prompt": prompt, "chosen": "w2", "rejected": "w3"}


# ---- what is left out is counted, wherever in the file it stands --------------------------------------------------------


def test_a_late_pair_that_is_too_long_is_left_out_and_counted(check: Check) -> None:
    pairs("p.jsonl", 1200, [{"prompt": "w1", "chosen": "w2 " * 90, "rejected": "w3"}, late("w1")])
    report = check(*TRAINS, "rewarder.max_tokens=40", stages=["reward_model"])
    assert report.problems == []
    (line,) = [line for line in report.rows if line.startswith("data.preferences")]
    assert line.startswith("data.preferences: 1202 rows, 1201 used; 1 left out: longer than rewarder.max_tokens")


def test_pairs_of_equal_tokens_are_left_out_and_counted(check: Check) -> None:
    same = [
        {"prompt": "w1", "chosen": "w2", "rejected": "w2 "},
        {"prompt": "w1", "chosen": "zz", "rejected": "unheard"},
    ]
    pairs("p.jsonl", 30, same)
    (line,) = check(*TRAINS, stages=["reward_model"]).rows
    assert "30 used; 2 left out: a right and a wrong answer of the same tokens" in line


def test_a_file_of_which_nothing_is_left_is_refused(check: Check) -> None:
    write_jsonl("p.jsonl", [{"prompt": "w1", "chosen": "w2 " * 90, "rejected": "w3"}])
    problem = only(check(*TRAINS, "rewarder.max_tokens=40", stages=["reward_model"]))
    assert problem.startswith("data.preferences: p.jsonl: no row is left (1 rows, 0 used; 1 left out: longer than")


# ---- what a template refuses is named before a model is loaded ----------------------------------------------------------


def test_a_late_row_that_the_template_refuses_is_named_with_its_line(check: Check, tmp_path: Path) -> None:
    make_model(tmp_path / "strict", template=NO_SYSTEM)
    pairs("p.jsonl", 1100, [late([SYSTEM, USER]), late([SYSTEM, USER])])
    problem = only(check("policy.model=strict", *TRAINS, stages=["reward_model"]))
    assert problem.startswith(
        "data.preferences: p.jsonl:1101 (and 1 more rows): the reward model's tokenizer: the chat"
    )
    assert "refuses" in problem and "system" in problem and "System role not supported" in problem


def test_prompts_are_tried_under_the_policy_the_reward_model_and_the_judge(check: Check, tmp_path: Path) -> None:
    write_jsonl("prompts.jsonl", [{"prompt": "w1"}] * 5 + [{"prompt": [SYSTEM, USER]}])
    assert check().problems == []
    make_model(tmp_path / "strict", template=NO_SYSTEM)
    policy = only(check("policy.model=strict"))
    assert policy.startswith("data.prompts: prompts.jsonl:6: the policy's tokenizer: the chat template of strict")
    make_model_into_reward_model(tmp_path / "strict_rm")
    served = only(check("rewarder.model=strict_rm"))
    assert served.startswith("data.prompts: prompts.jsonl:6: the reward model's tokenizer: ")
    pairs("p.jsonl", 5)
    adapts = ("adaptation.when=iteration", "data.preferences=p.jsonl", "judge.model=strict_rm")
    assert only(check(*adapts)).startswith("data.prompts: prompts.jsonl:6: judge.model's tokenizer: ")


def make_model_into_reward_model(directory: Path) -> None:
    make_reward_model(directory)
    (directory / "chat_template.jinja").write_text(NO_SYSTEM)


def test_demonstrations_are_tried_under_the_policy(check: Check, tmp_path: Path) -> None:
    make_model(tmp_path / "strict", template=NO_SYSTEM)
    write_jsonl("d.jsonl", [{"prompt": "w1", "response": "w2"}, {"prompt": [SYSTEM, USER], "response": "w2"}])
    given = ("data.demonstrations=d.jsonl", "stages=[sft]")
    assert check(*given, stages=["sft"]).problems == []
    problem = only(check(*given, "policy.model=strict", stages=["sft"]))
    assert problem.startswith("data.demonstrations: d.jsonl:2: the policy's tokenizer: ")


def test_commands_try_their_rows_under_model_and_baseline(check: Check, tmp_path: Path) -> None:
    make_model_into_reward_model(tmp_path / "strict_rm")
    pairs("p.jsonl", 5, [late([SYSTEM, USER])])
    judged = ("evaluate_rm.pairs.mine=p.jsonl", "evaluate_rm.baseline=strict_rm")
    problem = only(check(*judged, stages=["evaluate_rm"]))
    assert problem.startswith("evaluate_rm.pairs.mine: p.jsonl:6: the baseline's tokenizer: ")
    write_jsonl("e.jsonl", [{"prompt": [SYSTEM, USER], "response": "w2"}])
    explained = ("explain.file=e.jsonl", "rewarder.model=strict_rm")
    assert only(check(*explained, stages=["explain"])).startswith(
        "explain.file: e.jsonl:1: the reward model's tokenizer"
    )
    write_jsonl("e.jsonl", [{"prompt": "w1", "response": "w2 " * 90}])
    too_long = only(check("explain.file=e.jsonl", "rewarder.max_tokens=40", stages=["explain"]))
    assert "e.jsonl:1: the reward model's tokenizer: an answer is longer than rewarder.max_tokens" in too_long


# ---- once looked at is enough, until something changes -------------------------------------------------------------------


def test_a_second_look_reads_what_the_first_one_kept(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs("p.jsonl", 20, [{"prompt": "w1", "chosen": "w2 " * 90, "rejected": "w3"}])
    looks = []
    tried = rows._tried
    monkeypatch.setattr(rows, "_tried", lambda *given: looks.append(given[0]) or tried(*given))
    given = (*TRAINS, "rewarder.max_tokens=40")

    def look(*more: str) -> list[str]:
        looks.clear()
        found = check(*given, *more, stages=["reward_model"])
        assert found.problems == [] and "1 left out: longer than rewarder.max_tokens" in found.rows[0]
        return list(looks)

    assert look() == ["data.preferences"] and look() == []
    assert look("rewarder.max_tokens=41") == ["data.preferences"], "another limit"
    content = Path("p.jsonl").read_text()
    Path("p.jsonl").write_text(content.replace("w2", "w5", 1))
    assert look() == ["data.preferences"], "another content of the same length"
    Path("p.jsonl").write_text(content)
    assert look() == []
    Path("policy/chat_template.jinja").write_text("{# another #}" + TEMPLATE)
    assert look() == ["data.preferences"], "another template"
    for file in kept.directory().iterdir():
        file.write_text("{")
    assert look() == ["data.preferences"] and look() == [], "what was cut is made again"


def test_a_cache_that_cannot_be_written_is_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    findings = Findings()
    kept.keep("key", kept.Verdicts({}, {}), findings)
    assert "cannot be kept for the run" in findings.notes[0] and kept.kept("key") is None


def test_rows_of_no_local_file_are_not_kept() -> None:
    assert kept.key_of(Rows("owner/name:train"), None, ()) is None


def test_progress_is_on_stderr(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    make_model(tmp_path / "policy")
    pairs("p.jsonl", 10)
    tokenizer, findings = AutoTokenizer.from_pretrained("policy"), Findings()
    used = rows.walk(
        "data.preferences", read_pairs("p.jsonl"), [Use("x", tokenizer, 40, answers(pair_sides))], findings
    )
    said = capsys.readouterr()
    assert len(used) == 10 and said.out == "" and "data.preferences by x: 10/10 rows" in said.err
    assert json.loads(next(kept.directory().iterdir()).read_text()) == {"left_out": {}, "refused": {}}
