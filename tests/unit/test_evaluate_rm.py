"""Stage evaluate_rm on tiny models: numbers against independent ones, the files it leaves, and every bad input's message."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

import launch
from common.config import Config
from common.config_file import BASE, ConfigError, load_config, save_config
from common.judged import Answer, Judged
from common.types import Message
from driver import preflight, rm_checks
from driver.commands import CommandError, run_evaluate_rm
from driver.findings import Findings
from driver.rm_checks import check_commands
from driver.rm_evaluation import evaluate_reward_model, extra_tokens
from driver.rm_measures import Outcome
from driver.rm_results import results
from driver.rm_scores import without_long_rows
from driver.rm_sets import EvalSet
from driver.rm_tables import format_results
from rewarder.bradley_terry import is_classifier, load_classifier
from rewarder.layout import CheckpointError
from rewarder.model import GatedRewardModel
from rewarder.rewardbench import SUBSETS
from rewarder.scoring import render, score_texts
from tests.integration.models import OBJECTIVES, WORDS, tiny_policy
from tests.unit.preflights import make_model
from tests.unit.test_explain import FakeRun
from tests.unit.test_report import parse

SCORERS = ["gated", "uniform gate", "baseline", "longer answer"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """gated/: a reward model; classifier/: one label on another decoder, with the same tokenizer."""
    directory = tmp_path_factory.mktemp("models")
    tiny_policy(directory / "policy", 0)
    tokenizer = AutoTokenizer.from_pretrained(directory / "policy")
    model = GatedRewardModel.from_policy(directory / "policy", OBJECTIVES, 8, 1, 1.0, 2.0, 0)
    model.regression_layer.weight.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    last = model.gating.layers[-1]
    assert isinstance(last, torch.nn.Linear)
    last.weight.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(2))
    model.reward_transform_matrix.data[2] -= torch.tensor([0.9, 0.5, 1.0])
    model.save(directory / "gated", tokenizer)
    torch.manual_seed(2)
    config = LlamaConfig.from_pretrained(directory / "policy")
    config.num_labels = 1
    LlamaForSequenceClassification(config).save_pretrained(directory / "classifier")
    tokenizer.save_pretrained(directory / "classifier")
    return directory


def sentence(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(WORDS, rng.integers(2, 7)))


def pairs(count: int, seed: int = 0, **columns: Sequence[str]) -> list[dict[str, object]]:
    rng = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    for at in range(count):
        chosen, rejected = sentence(rng), sentence(rng) + " w1"
        extra = {name: values[at % len(values)] for name, values in columns.items()}
        rows.append({"prompt": sentence(rng), "chosen": chosen, "rejected": rejected, **extra})
    return rows


def jsonl(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(tmp_path: Path, models: Path, *overrides: str) -> Config:
    given = [f"run.dir={tmp_path}", "aggregation.kind=final_score", f"rewarder.model={models / 'gated'}"]
    return load_config(BASE, [*given, "rewarder.dtype=float32", *overrides])


def evaluated(tmp_path: Path, settings: Config) -> dict:
    evaluate_reward_model(settings, tmp_path)
    return json.loads((tmp_path / "evaluate_rm.json").read_text())


def test_pairs_beside_their_baselines(tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = pairs(120, source=["a", "b"])
    rows.append({"prompt": "w1", "chosen": "w2", "rejected": "w2", "source": "a"})
    rows.append({"prompt": "w1", "chosen": "w2 " * 90, "rejected": "w2", "source": "b"})
    path = jsonl(tmp_path / "p.jsonl", rows)
    given = [f"evaluate_rm.pairs.mine={path}", "evaluate_rm.slice=source", "rewarder.max_tokens=40"]
    settings = config(tmp_path, models, *given, f"evaluate_rm.baseline={models / 'classifier'}")
    found = evaluated(tmp_path, settings)
    mine = found["sets"]["mine"]
    assert found["scorers"] == SCORERS
    assert mine["rows"] == 120
    assert mine["skipped"] == {
        "a right and a wrong answer of the same text": 1,
        "longer than rewarder.max_tokens": 1,
    }
    assert [(name, by["gated"]["rows"]) for name, by in mine["slices"].items()] == [("all", 120), ("a", 60), ("b", 60)]
    expected = {**model_accuracies(models / "gated", rows[:120]), "longer answer": longer_accuracy(rows[:120])}
    for scorer, share in expected.items():
        assert mine["slices"]["all"][scorer]["share"]["mean"] == pytest.approx(share)
    assert list(mine["calibration"]) == SCORERS[:3]
    said = capsys.readouterr().out
    assert "accuracy [95 %]" in said and "uniform gate" in said and "1 left out: longer than" in said
    page = (tmp_path / "evaluate_rm.html").read_text()
    assert "table" in parse(page).tags
    first = (tmp_path / "evaluate_rm.html").read_bytes(), (tmp_path / "evaluate_rm.json").read_bytes()
    evaluated(tmp_path, settings)
    assert first == ((tmp_path / "evaluate_rm.html").read_bytes(), (tmp_path / "evaluate_rm.json").read_bytes())


def model_accuracies(directory: Path, rows: Sequence[dict]) -> dict[str, float]:
    """Of the gate and of a uniform gate; written from the equations, one conversation at a time."""
    model, tokenizer = GatedRewardModel.load(directory, "float32"), AutoTokenizer.from_pretrained(directory)
    penalties = -model.reward_transform_matrix[2].detach() + torch.tensor([0.0, 0.0, 1.0])  # lambda of each objective

    def score(prompt: str, response: str) -> tuple[float, float]:
        (r,), (g,) = score_texts(model, tokenizer, [([Message("user", prompt)], response)], 64, 64)
        debiased = r - penalties * r[2]
        return float(debiased @ g), float(debiased.sum() / 3)

    won = [
        [a > b for a, b in zip(score(row["prompt"], row["chosen"]), score(row["prompt"], row["rejected"]), strict=True)]
        for row in rows
    ]
    gated, uniform = np.mean(won, axis=0)
    return {"gated": float(gated), "uniform gate": float(uniform)}


def longer_accuracy(rows: Sequence[dict]) -> float:
    return float(np.mean([len(row["chosen"].split()) > len(row["rejected"].split()) for row in rows]))


def test_both_rewardbenches(tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prior = {
        name: jsonl(tmp_path / f"{name}.jsonl", pairs(8, 5))
        for name in ("anthropic_helpful", "anthropic_hhh", "shp", "summarize")
    }
    given = [f"evaluate_rm.prior_sets.{name}={path}" for name, path in prior.items()]
    given += [f"evaluate_rm.rewardbench={jsonl(tmp_path / 'v1.jsonl', pairs(46, 3, subset=SUBSETS))}"]
    given += [f"evaluate_rm.rewardbench2={jsonl(tmp_path / 'v2.jsonl', version_2_rows())}"]
    found = evaluated(tmp_path, config(tmp_path, models, *given))
    assert list(found["sets"]) == ["rewardbench", *(f"prior/{name}" for name in prior), "rewardbench2"]
    for by_section in (found["benchmarks"]["rewardbench"]["gated"], found["benchmarks"]["rewardbench2"]["gated"]):
        known = list(by_section["sections"].values())
        assert by_section["overall"] == pytest.approx(np.mean(known)) and by_section["missing"] == []
    v1 = found["benchmarks"]["rewardbench"]["uniform gate"]
    assert v1["overall_with_prior"] == pytest.approx((2 * sum(v1["sections"].values()) + v1["prior"]) / 9)
    math_slice = found["sets"]["rewardbench2"]["slices"]["Math"]["gated"]
    assert math_slice["share"]["mean"] == found["benchmarks"]["rewardbench2"]["gated"]["sections"]["Math"]
    assert found["sets"]["rewardbench2"]["slices"]["Ties"]["gated"]["share"]["low"] is None  # a score, no share
    assert found["sets"]["rewardbench2"]["calibration"] == {}
    said = capsys.readouterr().out
    assert "RewardBench 2 (x 100)" in said and "mean with prior sets at half weight" in said


def version_2_rows() -> list[dict[str, object]]:
    rng = np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    for name in ("Factuality", "Precise IF", "Math", "Safety", "Focus"):
        for at in range(4):
            texts = [sentence(rng) + f" {word}" for word in WORDS[:4]]
            rows.append(
                {"id": str(at), "prompt": sentence(rng), "chosen": texts[:1], "rejected": texts[1:], "subset": name}
            )
    for kind, right in (("ref", 1), ("tied", 3)):
        for at in range(3):
            texts = [sentence(rng) + f" {word}" for word in WORDS[: right + 2]]
            row = {"prompt": sentence(rng), "chosen": texts[:right], "rejected": texts[right:], "subset": "Ties"}
            rows.append({"id": f"{kind}:{at}", **row})
    return rows


def test_partial_benchmarks_say_so(tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = jsonl(tmp_path / "v1.jsonl", pairs(6, subset=["donotanswer", "math-prm"]))
    found = evaluated(tmp_path, config(tmp_path, models, f"evaluate_rm.rewardbench={path}"))["benchmarks"][
        "rewardbench"
    ]
    assert found["gated"]["overall"] is None and found["gated"]["sections"]["Chat"] is None
    assert "no row of alpacaeval-easy" in capsys.readouterr().out


# ---- the table, without a model


PAIR = Judged((Answer((Message("user", "p"),), "y"),), (Answer((Message("user", "p"),), "n"),))


def judged(name: str, slices: Sequence[str]) -> EvalSet:
    rows = tuple(
        Judged((Answer((Message("user", f"p{at}"),), "y"),), (Answer((Message("user", f"p{at}"),), "n"),), place)
        for at, place in enumerate(slices)
    )
    return EvalSet(name, rows, {})


def test_the_table_by_hand() -> None:
    wins = [Outcome((1.0,), (0.0,))] * 3 + [Outcome((0.0,), (0.0,))]
    found = results("m", None, [judged("s", ["a", "a", "b", "b"])], {"gated": {"s": wins}}, {"s": np.zeros(4)})
    lines = format_results(found).splitlines()
    assert lines[:4] == [
        "reward model: m",
        "baseline: none (evaluate_rm.baseline)",
        "",
        "s: 4 rows",
    ]
    assert lines[4].split() == ["accuracy", "[95", "%]", "rows", "gated"]
    assert lines[5].startswith("  all                 4  0.750 [0.301, 0.954]")
    assert lines[6].startswith("  a                   2  1.000") and lines[7].startswith(
        "  b                   2  0.500"
    )
    assert lines[8] == "  lost to equal scores: gated 1"
    assert "pairs in a half of the prompts; 20 wanted" in lines[10]


def test_calibration_is_of_right_minus_wrong() -> None:
    better = [Outcome((1.0 + at % 7,), (at % 3 * 1.5,)) for at in range(100)]
    worse = [Outcome(outcome.wrong, outcome.right) for outcome in better]
    scored = {"gated": {"s": better}, "baseline": {"s": worse}, "longer answer": {"s": better}}
    found = results("m", "b", [judged("s", ["all"] * 100)], scored, {"s": np.arange(100, dtype=np.float64)}).sets["s"]
    assert found.slices["all"]["gated"].share.mean > 0.6 > found.slices["all"]["baseline"].share.mean
    assert found.calibration["gated"].temperature > 0 and found.calibration["gated"].reason == ""
    assert found.calibration["baseline"].reason == "the scores order the pairs no better than chance"
    assert set(found.calibration) == {"gated", "baseline"}  # a length is no logit


def test_extra_tokens_are_those_of_the_right_answer_and_of_pairs_alone() -> None:
    best_of_n = EvalSet("n", (Judged(PAIR.right, PAIR.wrong * 2),), {})
    lengths = {"s": [Outcome((7.0,), (3.0,)), Outcome((2.0,), (5.0,))], "n": [Outcome((1.0,), (1.0, 2.0))]}
    found = extra_tokens([judged("s", ["a", "b"]), best_of_n], lengths)
    assert list(found) == ["s"] and found["s"].tolist() == [4.0, -3.0]


def test_rows_that_are_too_long_are_left_out_whole() -> None:
    sets = [judged("s", ["a", "b"]), judged("t", ["c"])]
    kept, fits = without_long_rows(sets, np.array([1.0, np.nan, 2.0, 3.0, 4.0, 5.0]))
    assert [len(found.rows) for found in kept] == [1, 1] and fits.tolist() == [False, False, True, True, True, True]
    assert kept[0].skipped == {"longer than rewarder.max_tokens": 1} and kept[1].skipped == {}
    with pytest.raises(ValueError, match="t: all 1 rows are longer than rewarder.max_tokens; raise it"):
        without_long_rows(sets, np.array([1.0, 1.0, 1.0, 1.0, np.nan, 1.0]))


# ---- the frozen Bradley-Terry model


def test_a_classifier_scores_as_transformers_scores_it(models: Path) -> None:
    model, tokenizer = (
        load_classifier(models / "classifier", "float32"),
        AutoTokenizer.from_pretrained(models / "classifier"),
    )
    theirs = LlamaForSequenceClassification.from_pretrained(models / "classifier").eval()
    for response in ("w1", "w2 w3 w4 w5"):
        messages = [Message("user", "w6 w7")]
        scores, gates = score_texts(model, tokenizer, [(messages, response)], 64, 64)
        ids = torch.tensor([render(tokenizer, messages, response).ids])
        with torch.no_grad():
            logit = theirs(ids).logits[0, 0]
        assert gates.tolist() == [[1.0]]
        assert float(scores[0, 0]) == pytest.approx(float(logit), abs=1e-5)


def test_other_models_are_no_baseline(models: Path, tmp_path: Path) -> None:
    assert is_classifier(models / "classifier") and not is_classifier(models / "gated")
    with pytest.raises(CheckpointError, match="no tensor score.weight"):
        load_classifier(models / "gated", "float32")
    config = LlamaConfig.from_pretrained(models / "policy")
    config.num_labels = 3
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "three")
    with pytest.raises(CheckpointError, match="want \\[1, hidden\\]"):
        load_classifier(tmp_path / "three", "float32")


def test_a_gated_model_may_be_the_baseline(tmp_path: Path, models: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", pairs(10))
    given = (f"evaluate_rm.pairs.mine={path}", f"evaluate_rm.baseline={models / 'gated'}")
    mine = evaluated(tmp_path, config(tmp_path, models, *given))["sets"]["mine"]["slices"]["all"]
    assert mine["baseline"] == mine["gated"]


# ---- bad input


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ((), "evaluate_rm has nothing to judge"),
        (("evaluate_rm.pairs.a=none.jsonl",), "evaluate_rm.pairs.a: none.jsonl: no such file"),
        (("evaluate_rm.pairs.a=bad.jsonl",), 'evaluate_rm.pairs.a: bad.jsonl:2: "rejected" is missing'),
        (("evaluate_rm.pairs.rewardbench=p.jsonl",), "evaluate_rm.pairs names a set 'rewardbench', which is taken"),
        (("evaluate_rm.rewardbench=p.jsonl",), "subset 'all' is none of RewardBench's"),
        (("evaluate_rm.rewardbench2=p.jsonl",), "subset 'all' is none of RewardBench 2's"),
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
    make_model(tmp_path / "model")
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


def test_what_cannot_be_scored_ends_with_one_message(tmp_path: Path, models: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", pairs(2))
    settings = config(tmp_path, models, f"evaluate_rm.pairs.a={path}", "rewarder.max_tokens=3")
    with pytest.raises(CommandError, match="evaluate_rm: a: all 2 rows are longer than rewarder.max_tokens"):
        run_evaluate_rm(FakeRun(settings, tmp_path))  # pyright: ignore[reportArgumentType]


# ---- the command line


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
