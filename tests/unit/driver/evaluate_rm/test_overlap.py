"""Which rows of an evaluation set share 13 words in a row with a training prompt: by hand, by brute force, and in the stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config.config import Config
from common.config.file import BASE, load_config
from common.data.data import PreferencePair, RatedResponse, to_fields, write_jsonl
from common.data.judged import Answer, Judged
from common.data.split import is_held_out
from common.types import Message
from driver.evaluate_rm.command import evaluate_reward_model
from driver.evaluate_rm.overlap import WORDS, grams_of, overlapping
from driver.evaluate_rm.sets import EvalSet
from driver.evaluate_rm.training import training_overlap
from tests.unit.reward_models import jsonl

LONG = "Write a short story about a lighthouse keeper who finds a letter in a bottle."  # 15 words


def ask(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


@pytest.mark.parametrize(
    ("training", "evaluated", "expected"),
    [
        (LONG, LONG, True),
        (LONG, f"Please: {LONG.upper()} Make it sad!", True),  # case and marks do not count
        (LONG, LONG.replace("-", " ").replace("keeper", "guard"), False),  # no 13 words without the changed one
        (LONG, " ".join(LONG.split()[:13]), True),
        (LONG, " ".join(LONG.split()[:12]), False),  # a short prompt must be the same as a whole
        ("What is two and two?", "what is two, and two", True),
        ("What is two and two?", "What is two and two? Think.", False),
        ("", "", False),  # nothing in common with nothing
        ("!?", "...", False),
        ("Größe ÄNDERN bitte", "GRÖSSE ändern BITTE", True),
    ],
)
def test_by_hand(training: str, evaluated: str, expected: bool) -> None:
    assert overlapping([ask(evaluated), ask("another prompt")], [ask("an unseen prompt"), ask(training)]) == [
        expected,
        False,
    ]


def test_only_the_users_turns_count() -> None:
    shared = Message("system", LONG), Message("user", "first"), Message("assistant", LONG)
    assert overlapping([(*shared, Message("user", "second"))], [(*shared, Message("user", "third"))]) == [False]
    assert overlapping([(*shared, Message("user", LONG))], [ask(LONG)]) == [True]
    assert grams_of((*shared, Message("user", "second"))) == {("first", "second")}


WORD = st.sampled_from("abc")
PROMPT = st.lists(WORD, min_size=0, max_size=20)


@given(st.lists(PROMPT, max_size=4), st.lists(PROMPT, max_size=4))
def test_it_is_the_brute_force(evaluated: list[list[str]], training: list[list[str]]) -> None:
    def alike(a: list[str], b: list[str]) -> bool:
        if min(len(a), len(b)) < WORDS:
            return a == b != []
        starts = [(i, j) for i in range(len(a) - WORDS + 1) for j in range(len(b) - WORDS + 1)]
        return any(a[i : i + WORDS] == b[j : j + WORDS] for i, j in starts)

    found = overlapping([ask(" ".join(words)) for words in evaluated], [ask(" ".join(words)) for words in training])
    assert found == [any(alike(mine, theirs) for theirs in training) for mine in evaluated]


def settings(tmp_path: Path, *overrides: str) -> Config:
    given = [f"run.dir={tmp_path}", "aggregation.kind=final_score", "learner.reward_model.held_out_fraction=0.5"]
    return load_config(BASE, [*given, "stages=[reward_model]", *overrides])


def eval_set(name: str, *texts: str) -> EvalSet:
    return EvalSet(name, tuple(Judged((Answer(ask(t), "y"),), (Answer(ask(t), "n"),)) for t in texts), {})


def prompts(held_out: bool, count: int) -> list[str]:
    texts = (f"prompt number {n}" for n in range(1000))
    return [text for text in texts if is_held_out(ask(text), 0.5) == held_out][:count]


def test_what_the_run_trained_on(tmp_path: Path) -> None:
    """Of ratings and pairs the training side, and all that rounds had judged."""
    rated, compared, judged = prompts(False, 3)
    unseen = prompts(True, 1)[0]
    ratings, pairs = tmp_path / "r.jsonl", tmp_path / "p.jsonl"
    write_jsonl(ratings, [to_fields(RatedResponse(ask(text), "r", {"a": 1.0})) for text in (rated, unseen)])
    write_jsonl(pairs, [to_fields(PreferencePair(ask(text), "c", "d")) for text in (compared, rated)])
    sets = [eval_set("s", rated, compared, unseen, judged), eval_set("t", unseen, compared)]
    own = settings(tmp_path, f"data.ratings={ratings}", f"data.preferences={pairs}")
    found = training_overlap(own, sets)
    assert (found.training, found.rows) == ("2 prompts", {"s": 2, "t": 1})
    own.run_dir.mkdir()
    turns = [{"role": "user", "content": judged}]
    jsonl(
        own.run_dir / "labels.jsonl", [{"key": "k", "prompt": turns, "first": "a", "second": "b", "preferred": "tie"}]
    )
    assert training_overlap(own, sets).rows == {"s": 3, "t": 1}
    collects = settings(tmp_path, "stages=[collect,reward_model]", f"data.ratings={ratings}")
    (own.run_dir / "collected").mkdir()
    for name, source in (("ratings", ratings), ("preferences", pairs)):
        (own.run_dir / "collected" / f"{name}.jsonl").write_bytes(source.read_bytes())
    assert training_overlap(collects, sets).rows == {"s": 3, "t": 1}


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    sets, given = [eval_set("s", "a")], f"data.preferences={tmp_path / 'gone.jsonl'}"
    for overrides, words in (
        ((), "not known: no data.preferences, data.ratings or stage collect"),
        ((given, "rewarder.model=ready"), "not known: rewarder.model was trained elsewhere"),
        ((given,), f"not compared: {tmp_path}/gone.jsonl: no such file"),
        (("stages=[collect,reward_model]",), f"not compared: {tmp_path}/run/collected/ratings.jsonl: no such file"),
    ):
        found = training_overlap(settings(tmp_path, *overrides), sets)
        assert found.training.startswith(words) and found.rows == {}


def test_the_stage_counts_rows(tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a reward model that the run made."""
    trained = [f"w{n} w{n + 1}" for n in range(30)]
    rows = [to_fields(PreferencePair(ask(text), "w1", "w2 w3")) for text in trained]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    jsonl(tmp_path / "fresh.jsonl", [{"prompt": f"w{n} w{n}", "chosen": "w1", "rejected": "w2 w3"} for n in range(5)])
    (tmp_path / "run" / "rm").mkdir(parents=True)
    (tmp_path / "run" / "rm" / "version_0").symlink_to(models / "gated")
    sets = [f"evaluate_rm.pairs.{name}={tmp_path / file}.jsonl" for name, file in (("seen", "pairs"), ("new", "fresh"))]
    own = settings(tmp_path, f"data.preferences={tmp_path / 'pairs.jsonl'}", "rewarder.dtype=float32", *sets)
    evaluate_reward_model(own, tmp_path)
    seen = sum(not is_held_out(ask(text), 0.5) for text in trained)
    assert json.loads((tmp_path / "evaluate_rm.json").read_text())["overlap"]["rows"] == {"seen": seen, "new": 0}
    assert f"are in a training prompt too: {seen} of 30 rows" in capsys.readouterr().out and 0 < seen < 30
