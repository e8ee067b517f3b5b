"""driver/preflight/judge.py: the preflight of whoever compares pairs in the rounds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.config.file import BASE, load_config, save_config
from common.judge import pair_item
from common.types import Message
from driver.judges.label_book import question
from tests.unit.chat_server import ChatServer, models_of
from tests.unit.preflights import GOOD, Check, make_model, make_reward_model, only

ADAPTS = ("adaptation.when=iteration", "data.preferences=pairs.jsonl")


@pytest.fixture
def check(check: Check) -> Check:
    Path("pairs.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    return lambda *overrides, **more: check(*ADAPTS, *overrides, **more)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    made = ChatServer(lambda _: "A", models_of("one", "two"))
    yield made
    made.close()


def endpoint(server: ChatServer, model: str = "one", *more: str) -> list[str]:
    return [f"judge.endpoint.url={server.url}", f"judge.endpoint.model={model}", *more]


def test_an_endpoint_is_asked_for_its_models_and_for_nothing_else(check: Check, server: ChatServer) -> None:
    assert check(*endpoint(server)).problems == []
    problem = only(check(*endpoint(server, "three")))
    assert "judge.endpoint.model is 'three'" in problem and "has one, two; name one of these" in problem
    assert server.asked == []


def test_an_endpoint_that_does_not_answer(check: Check, server: ChatServer) -> None:
    server.close()
    problem = only(check(*endpoint(server)))
    assert (
        "cannot be reached (" in problem and "start the server, or correct judge.endpoint.url or the network" in problem
    )
    assert "--resume" not in problem
    assert check(*endpoint(server), stages=["export", "report"]).problems == []
    assert check(*endpoint(server), "adaptation.when=never").problems == []


def test_the_key_of_an_endpoint(check: Check, server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    settings = endpoint(server, "one", "judge.endpoint.key_env=JUDGE_KEY")
    assert "judge.endpoint.key_env is JUDGE_KEY and the environment variable is not set" in only(check(*settings))
    monkeypatch.setenv("JUDGE_KEY", "k-0123456789")
    report = check(*settings)
    assert report.problems == [] and "k-0123456789" not in "".join(report.plan)


def test_answers_of_people_are_read(check: Check) -> None:
    assert check("judge.file=answers.jsonl").problems == []  # there are none yet
    row = {**question(pair_item((Message("user", "p"),), {}, "a", "b")), "preferred": "first"}
    Path("answers.jsonl").write_text(json.dumps(row) + "\n")
    assert check("judge.file=answers.jsonl").problems == []
    Path("answers.jsonl").write_text(json.dumps({**row, "preferred": "left"}) + "\n")
    assert "judge.file: answers.jsonl:1: preferred is 'left'" in only(check("judge.file=answers.jsonl"))


def test_a_model_is_checked_and_has_its_place_in_the_plan(check: Check, tmp_path: Path) -> None:
    make_reward_model(tmp_path / "stronger", ["x", "y", "z"])
    report = check("judge.model=stronger", "judge.num=2", "judge.threads=3")
    assert report.problems == []
    (line,) = [line for line in report.plan if line.startswith("judge")]
    assert line.split()[1:4] == ["2", "CPU", "3"] and "compares pairs" in line
    assert not any(line.startswith("judge") for line in check("judge.model=stronger", stages=["export"]).plan)
    assert "judge.model: no such directory" in only(check("judge.model=none/at/all"))
    make_model(tmp_path / "policy_only")
    assert only(check("judge.model=policy_only")).startswith("judge.model: ")


def test_the_gpus_of_a_judge_are_counted(check: Check, tmp_path: Path) -> None:
    make_reward_model(tmp_path / "stronger")
    problem = next(p for p in check("judge.model=stronger", "judge.gpus=1", "judge.num=2").problems if "wanted" in p)
    assert "2 GPUs wanted (judge 2 x 1)" in problem


def test_where_an_endpoint_is_may_change_on_resume_and_who_judges_may_not(check: Check, server: ChatServer) -> None:
    saved = load_config(BASE, [*GOOD, *ADAPTS, "judge.endpoint.url=http://elsewhere/v1", "judge.endpoint.model=one"])
    saved.run_dir.mkdir(parents=True)
    save_config(saved, saved.run_dir / "config.yaml")
    assert check(*endpoint(server), "judge.endpoint.concurrency=1", resume=True).problems == []
    assert "it differs in judge.endpoint.model" in only(check(*endpoint(server, "two"), resume=True))
