"""Stage evaluate_rm on tiny models: its numbers against independent ones, and the files that it leaves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from common.config.config import Config
from common.config.file import BASE, load_config
from common.types import Message
from driver.commands import CommandError, run_evaluate_rm
from driver.evaluate_rm.command import evaluate_reward_model
from rewarder.model import GatedRewardModel
from rewarder.rewardbench import SUBSETS
from rewarder.scoring import score_texts
from tests.integration.models import WORDS
from tests.unit.driver.explain.test_explain import FakeRun
from tests.unit.driver.report.test_report import parse
from tests.unit.reward_models import jsonl, pairs, sentence

SCORERS = ["gated", "uniform gate", "baseline", "longer answer"]


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


def test_a_gated_model_may_be_the_baseline(tmp_path: Path, models: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", pairs(10))
    given = (f"evaluate_rm.pairs.mine={path}", f"evaluate_rm.baseline={models / 'gated'}")
    mine = evaluated(tmp_path, config(tmp_path, models, *given))["sets"]["mine"]["slices"]["all"]
    assert mine["baseline"] == mine["gated"]


def test_what_cannot_be_scored_ends_with_one_message(tmp_path: Path, models: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", pairs(2))
    settings = config(tmp_path, models, f"evaluate_rm.pairs.a={path}", "rewarder.max_tokens=3")
    with pytest.raises(CommandError, match="evaluate_rm: a: all 2 rows are longer than rewarder.max_tokens"):
        run_evaluate_rm(FakeRun(settings, tmp_path))  # pyright: ignore[reportArgumentType]
