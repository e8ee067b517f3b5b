"""What the preflight says of a reward model's labels, heads and template, before any model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.data.data import RatedResponse
from common.data.label_sources import held_out_alone
from common.data.split import is_held_out
from common.types import Message
from tests.unit.preflights import Check, make_model, make_reward_model, only


def test_reward_model_inputs(check: Check) -> None:
    stages = ["reward_model"]
    found = check(stages=stages).problems
    assert ["data.ratings or data.preferences" in found[0], "rewarder.objectives" in found[1]] == [True, True]
    Path("r.jsonl").write_text('{"prompt": "p", "response": "r", "scores": {"a": 1, "b": null}}\n')
    given = ("data.ratings=r.jsonl", "rewarder.objectives=[a,b]")
    assert check(*given, stages=stages).problems == [], "a given model is only calibrated"
    given = (*given, "rewarder.model=null")
    assert "no rating of b: the ratings have a; add ratings" in only(check(*given, stages=stages))
    assert check(*given, "rewarder.programs={b: 'rewarder.programs:brevity'}", stages=stages).problems == []
    assert "r.jsonl:1" in only(check(*given, "data.preferences=r.jsonl", "rewarder.objectives=[a]", stages=stages))


def test_objectives_from_pairs_alone(check: Check) -> None:
    Path("p.jsonl").write_text('{"prompt": "p", "chosen": "a b", "rejected": ""}\n')

    def found(*overrides: str) -> list[str]:
        given = ("data.preferences=p.jsonl", "rewarder.objectives=[a,b]", "rewarder.model=null")
        return check(*given, *overrides, stages=["reward_model"]).problems

    preferred = "rewarder.preference=a"
    assert found(preferred, "rewarder.programs={b: 'rewarder.programs:brevity'}") == []
    assert "no rating of b: the ratings have nothing" in found(preferred)[0]
    missing = found(preferred, "rewarder.programs={b: 'rewarder.programs:none'}")
    assert len(missing) == 1 and "rewarder.programs.b: function 'rewarder.programs:none'" in missing[0]
    wrong = found(preferred, "rewarder.programs={b: 'tests.unit.common.data.test_label_sources:two'}")
    assert len(wrong) == 1 and "rewarder.programs.b returned 2.0 for the response 'a b'; wanted a number" in wrong[0]


def test_peoples_labels_beside_those_of_stage_collect_are_read_too(check: Check) -> None:
    collecting = (
        "judge.labeler=math:sqrt",
        "rewarder.model=null",
        "rewarder.objectives=[a,b]",
        "rewarder.preference=b",
    )
    stages = ["collect", "reward_model"]
    Path("p.jsonl").write_text('{"prompt": "p", "chosen": "a b"}\n')
    problem = only(check(*collecting, "data.preferences=p.jsonl", f"stages=[{','.join(stages)}]", stages=stages))
    assert 'p.jsonl:1: "rejected" is missing' in problem
    Path("p.jsonl").write_text('{"prompt": "p", "chosen": "a b", "rejected": ""}\n')
    given = (*collecting, "data.preferences=p.jsonl", f"stages=[{','.join(stages)}]")
    assert check(*given, stages=stages).problems == [], "what stage collect will rate is not known yet"
    Path("r.jsonl").write_text('{"prompt": "p", "response": "r", "scores": {"b": 1}}\n')
    assert "objective 'b' has 2 sources of labels" in only(check(*given, "data.ratings=r.jsonl", stages=stages))


def rated(path: str, rows: list[dict[str, float | None]], prompts: list[str] | None = None) -> None:
    named = prompts or [f"p{n}" for n in range(len(rows))]
    lines = zip(named, rows, strict=True)
    Path(path).write_text(
        "".join(json.dumps({"prompt": name, "response": "r", "scores": scores}) + "\n" for name, scores in lines)
    )


TRAINS = ("data.ratings=r.jsonl", "rewarder.objectives=[a,b]", "rewarder.model=null")


@pytest.mark.parametrize("rating", [7, 1.0001, -0.1])
def test_a_rating_outside_its_range_is_named(check: Check, rating: float) -> None:
    rated("r.jsonl", [{"a": 0.5, "b": 1.0}, {"a": 0.0, "b": rating}])
    assert only(check(*TRAINS, stages=["reward_model"])) == (
        f'data.ratings: r.jsonl:2: the score of "b" is {rating}; wanted a number in [0, 1], or null where there is no '
        "rating (how to map another scale: docs/data.md)"
    )


def test_a_rated_objective_that_the_model_lacks_is_named(check: Check) -> None:
    rated("r.jsonl", [{"a": 0.5, "b": 1.0, "c": None}, {"a": 0.5, "fast": 1.0}])
    problem = only(check(*TRAINS, stages=["reward_model"]))
    assert problem == "ratings name objectives ['fast'] that rewarder.objectives lacks; add them or drop them"


def test_an_objective_rated_on_held_out_prompts_alone_is_named(check: Check) -> None:
    prompts = [f"p{n}" for n in range(40)]
    sides = [is_held_out((Message("user", prompt),), 0.1) for prompt in prompts]
    assert 0 < sum(sides) < 40
    rows: list[dict[str, float | None]] = [{"a": 0.5, "b": 0.5 if held_out else None} for held_out in sides]
    rated("r.jsonl", rows, prompts)
    given = (*TRAINS, "learner.reward_model.held_out_fraction=0.1")
    assert only(check(*given, stages=["reward_model"])) == (
        "every rating of b is of a held-out prompt (learner.reward_model.held_out_fraction 0.1), so that nothing would train "
        "the head; rate more prompts, or lower the fraction"
    )
    rows[sides.index(False)]["b"] = 0.1
    rated("r.jsonl", rows, prompts)
    assert check(*given, stages=["reward_model"]).problems == []


def test_only_what_is_rated_can_be_held_out() -> None:
    assert held_out_alone([RatedResponse((Message("user", "p"),), "r", {"a": None})], 0.9) == []


def test_heads_are_counted_before_they_are_loaded(check: Check, tmp_path: Path) -> None:
    assert only(check("rewarder.objectives=[a,b,c]")) == (
        "rewarder.model: rewarder.objectives has 3 names but the checkpoint has 2 objectives; list all 2 in order, or omit "
        "the key."
    )
    assert "rewarder.objectives is ['b', 'a'] but the checkpoint has ['a', 'b']" in only(
        check("rewarder.objectives=[b,a]")
    )
    make_reward_model(tmp_path / "three", ("a", "b", "c"))
    path = tmp_path / "three" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_objectives": 2, "objectives": ["a", "b"]}))
    assert "heads do not fit config.json" in (found := only(check("rewarder.model=three")))
    assert "regression_layer.weight (3, 8) (want (2, 8))" in found


def test_what_is_no_reward_model_is_refused_before_it_is_loaded(check: Check, tmp_path: Path) -> None:
    assert "rewarder.model: policy cannot be read: SafetensorError" in only(check("rewarder.model=policy"))
    stock = make_reward_model(tmp_path / "stock") / "model.safetensors"
    save_file(load_file(stock) | {"score.weight": torch.zeros(1, 8)}, stock)
    assert "score.weight (1, 8) (want None)" in only(check("rewarder.model=stock"))
    save_file({"score.weight": torch.zeros(1, 8)}, stock)
    assert "stock is a stock sequence classifier: it lacks ['regression_layer.weight'" in only(
        check("rewarder.model=stock")
    )


# The template closes the user's turn only where it is the last one: alone, the prompt ends in a token that its conversation
# does not have there.
UNCLOSED = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% if loop.last %}user {% endif %}{% endfor %}"
FORGETFUL = "{% for m in messages[-3:] %}{{ m['content'] }} {% endfor %}"


def test_a_template_without_a_prompts_end_is_found_before_a_model_is_loaded(check: Check, tmp_path: Path) -> None:
    make_model(tmp_path / "unclosed", template=UNCLOSED)
    rated("r.jsonl", [{"a": 0.5, "b": 1.0}] * 40, [f"p{n}" for n in range(40)])
    problem = only(check("policy.model=unclosed", *TRAINS, stages=["reward_model"]))
    assert problem.startswith("policy.model: the chat template of unclosed ends a prompt with ")
    assert "so that the end of the prompt cannot be told" in problem


def test_the_template_is_tried_on_the_labelled_rows(check: Check, tmp_path: Path) -> None:
    make_model(tmp_path / "forgetful", template=FORGETFUL)
    given = ("policy.model=forgetful", *TRAINS, "learner.reward_model.held_out_fraction=0.1")
    rated("r.jsonl", [{"a": 0.5, "b": 1.0}] * 40)
    assert check(*given, stages=["reward_model"]).problems == []
    turns = [{"role": role, "content": f"{role} w{n}"} for n, role in enumerate(["user", "assistant", "user"])]
    with Path("r.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": turns, "response": "r", "scores": {"a": 1.0}}) + "\n")
    assert "not a proper prefix of its conversation" in only(check(*given, stages=["reward_model"]))
    assert "over rewarder.max_tokens 3; raise it" in only(
        check(*TRAINS, "rewarder.max_tokens=3", stages=["reward_model"])
    )
