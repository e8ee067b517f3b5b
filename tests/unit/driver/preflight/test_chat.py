"""What the preflight says of chat templates: what it refuses, and what it notes of a policy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from driver.preflight.chat import note_turns
from driver.preflight.findings import Findings
from tests.unit.common.chat.families import always, never
from tests.unit.preflights import Check, make_model, make_reward_model, only
from tests.unit.templates import CHATML, LLAMA3, tokenizer_of

TWICE = "{% for m in messages %}{{ m['content'] }} {{ m['content'] }} {% endfor %}"


def notes(directory: Path, template: str, **config: object) -> list[str]:
    """The notes on a policy whose tokenizer ends texts with <eot> (token 4), unless its configuration says more."""
    (directory / "config.json").write_text(json.dumps({"eos_token_id": 4}))
    (directory / "generation_config.json").write_text(json.dumps(config))
    findings = Findings()
    note_turns("policy.model", directory, tokenizer_of(template), findings)
    assert findings.problems == []
    return findings.notes


def test_a_usual_policy_has_nothing_to_note(tmp_path: Path) -> None:
    assert notes(tmp_path, LLAMA3) == notes(tmp_path, CHATML) == []


def test_an_end_of_turn_that_ends_no_text_is_noted(tmp_path: Path) -> None:
    other_end = LLAMA3.replace("<eot>", "<stop>")
    (said,) = notes(tmp_path, other_end)
    assert "closes an assistant's turn with '<stop>' (token 3), which is not among the model's EOS tokens [4]" in said
    assert notes(tmp_path, other_end, eos_token_id=[4, 3]) == [], "the model ends on it by itself"
    (said,) = notes(tmp_path, LLAMA3.replace("<eot>", " "))
    assert "with no token of its own" in said


def test_turns_that_open_otherwise_are_noted(tmp_path: Path) -> None:
    assert "never opens the assistant's turn" in notes(tmp_path, never("llama3"))[0]
    assert "opens a turn behind every conversation" in notes(tmp_path, always("chatml"))[0]


@pytest.mark.parametrize("text", ["", "[1]", '{"eos_token_id": '])
def test_a_cut_generation_config_is_a_problem(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    findings = Findings()
    note_turns("policy.model", tmp_path, tokenizer_of(LLAMA3), findings)
    assert "generation_config.json is no JSON object" in findings.problems[0]


@pytest.mark.parametrize("key", ["policy.model", "rewarder.model", "judge.model"])
def test_a_template_that_cannot_be_aligned_is_refused_for_every_role(check: Check, tmp_path: Path, key: str) -> None:
    overrides = [f"{key}=odd"]
    if key == "policy.model":
        make_model(tmp_path / "odd", template=TWICE)
    else:
        make_reward_model(tmp_path / "odd")
        make_model(tmp_path / "other", template=TWICE)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            (tmp_path / "odd" / file).write_bytes((tmp_path / "other" / file).read_bytes())
    if key == "judge.model":
        Path("pairs.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
        overrides += ["adaptation.when=iteration", "data.preferences=pairs.jsonl"]
    problems = check(*overrides).problems
    assert any(
        problem.startswith(f"{key}: the chat template of ") and "writes the response 2 times" in problem
        for problem in problems
    )


def test_what_a_template_refuses_names_the_prompt(check: Check, tmp_path: Path) -> None:
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + LLAMA3.replace(
        "<", "["
    )
    make_model(tmp_path / "gemma", template=template)
    Path("prompts.jsonl").write_text(
        "".join(json.dumps({"id": f"p{n}", "prompt": [{"role": "user", "content": "w"}]}) + "\n" for n in range(4))
        + json.dumps({"id": "odd", "prompt": [{"role": r, "content": "w"} for r in ("system", "user")]})
        + "\n"
    )
    problem = only(check("policy.model=gemma"))
    assert (
        "prompts.jsonl:5" in problem
        and "refuses turn 1 of 2, role system: no system" in problem
        and "first user turn" in problem
    )


@pytest.mark.parametrize("stage", ["evaluate_rm", "explain"])
def test_a_command_on_a_model_that_is_not_there_is_one_line(check: Check, tmp_path: Path, stage: str) -> None:
    Path("pairs.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    looks_at = "evaluate_rm.pairs={x: pairs.jsonl}" if stage == "evaluate_rm" else "explain.file=pairs.jsonl"
    found = check(f"rewarder.model={tmp_path}/none", looks_at, stages=[stage]).problems
    assert [problem.split(";")[0] for problem in found] == [f"rewarder.model: no such directory {tmp_path}/none"]
