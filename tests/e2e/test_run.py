"""The whole command with real parts: what a run writes, that it repeats, resumes and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from actors.engine import Engine
from common.config.checks import CHOICES
from common.config.file import load_config
from common.metrics import read_rows, step_names
from common.types import FloatArray
from driver.record.series import HELP, PREFIX, series_of
from driver.rounds.reward_models import METRICS as ROUND_NAMES
from learner.ranks.logprobs import token_logprobs
from rewarder.model import GatedRewardModel
from tests.e2e.conftest import Launched, ready_made
from tests.scrape import scrape_until

Launch = Callable[..., Launched]
OBJECTIVES = ["correct", "cover", "polite", "brief", "safe", "fluent", "verbose"]
STEPS = 6


def timeless(path: Path) -> list[dict[str, Any]]:
    """The step lines without what a clock measured, and without the queue's depths, which depend on how soon a busy machine
    acknowledges."""
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "queue/")) and not k.endswith("_per_s")}
        for row in read_rows(path / "metrics.jsonl")
    ]


def test_every_step_line_has_every_name(first: Path) -> None:
    rows = read_rows(first / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(STEPS + 1))
    for row in rows:
        assert set(step_names(OBJECTIVES)) <= set(row)
    for row in rows[1:]:
        assert all(isinstance(row[name], float | int) for name in step_names(OBJECTIVES) if name != "gold/mean")
    assert [row["step"] for row in rows if row["gold/mean"] is not None] == [0, 3, 6]


def test_every_version_was_proven_on_the_engines(first: Path) -> None:
    differences = [row["sync/max_logprob_diff"] for row in read_rows(first / "metrics.jsonl")]
    assert len(differences) == STEPS + 1
    assert all(0 <= difference <= 1e-4 for difference in differences)


def test_the_run_directory_is_whole(first: Path) -> None:
    table = json.loads((first / "evaluation.json").read_text())
    assert [row["policy"] for row in table] == ["SFT policy", "iteration 1", "iteration 2", "ideal answer"]
    assert table[-1]["gold"] > 0.95
    names = ["config.yaml", "environment.json", "samples.jsonl", "report.html"]
    names += [
        f"export/{model}/{name}" for model in ("policy", "reward_model") for name in ("model.safetensors", "README.md")
    ]
    for name in names:
        assert (first / name).is_file(), name
    card = (first / "export" / "policy" / "README.md").read_text()
    assert f"| iteration 2 (this model) | {table[2]['gold']:.3f} |" in card and str(first.parent) not in card
    saved = load_config(first / "config.yaml")
    assert saved.run.name == "first"


def test_the_exported_policy_loads_and_speaks(first: Path) -> None:
    from transformers import AutoTokenizer, LlamaForCausalLM

    model: Any = LlamaForCausalLM.from_pretrained(first / "export" / "policy")
    tokenizer = AutoTokenizer.from_pretrained(first / "export" / "policy")
    prompt = json.loads((first / "evaluations" / "step_0.jsonl").read_text().splitlines()[0])["prompt"]
    turns = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    answer = model.generate(ids, max_new_tokens=20, do_sample=False)
    assert len(tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True).split()) > 2


def test_the_exported_policy_has_in_vllm_the_logprobs_of_transformers(first: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, LlamaForCausalLM

    path = first / "export" / "policy"
    row = json.loads((first / "evaluations" / "step_6.jsonl").read_text().splitlines()[0])
    turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
    ids = AutoTokenizer.from_pretrained(path).apply_chat_template(turns, return_tensors="pt", return_dict=False)
    model: Any = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        want = token_logprobs(model(ids).logits, ids, 1.0)[0, 1:].numpy()
    config = load_config(first / "config.yaml")

    async def probe() -> FloatArray:
        engine = Engine(str(path), config.policy, config.actors, config.data.max_prompt_tokens, tmp_path)
        found = await engine.probe(ids[0].numpy().astype(np.int32))
        engine.shutdown()
        return found

    np.testing.assert_allclose(asyncio.run(probe()), want, atol=1e-4)


def test_the_exported_reward_model_is_the_one_that_served(first: Path) -> None:
    """Bit for bit, and through the loader."""
    exported, served = first / "export" / "reward_model", first / "rm" / "version_0"
    for file in served.iterdir():
        assert (exported / file.name).read_bytes() == file.read_bytes()
    assert GatedRewardModel.load(exported, "float32").objectives == tuple(OBJECTIVES)


def test_the_stage_export_alone_writes_the_same_policy_from_the_checkpoint(
    first: Path, launch: Launch, runs: Path
) -> None:
    shutil.copytree(first, runs / "again")
    shutil.rmtree(runs / "again" / "export")
    copied = yaml.safe_load((runs / "again" / "config.yaml").read_text())
    (runs / "again" / "config.yaml").write_text(yaml.safe_dump({**copied, "run": {**copied["run"], "name": "again"}}))
    run = launch("run.name=again", "--resume", "--stages", "export")
    assert run.wait() == 0, run.log.read_text()[-4000:]
    name = "export/policy/model.safetensors"
    assert (runs / "again" / name).read_bytes() == (first / name).read_bytes()
    run.assert_gone()


def test_a_second_run_is_bit_identical(first: Path, launch: Launch, runs: Path) -> None:
    run = launch("run.name=second")
    assert run.wait() == 0, run.log.read_text()[-4000:]
    assert timeless(runs / "second") == timeless(first)
    assert (runs / "second" / "samples.jsonl").read_bytes() == (first / "samples.jsonl").read_bytes()


def test_every_value_of_a_step_line_is_scraped_while_the_run_works(first: Path, launch: Launch, runs: Path) -> None:
    run = launch("run.name=watched", *ready_made(first), "iteration.num=1", "iteration.steps=60")
    run.wait_for("step 1/60")
    url = re.findall(r"^Ray metrics: (\S+)$", run.log.read_text(), re.M)[0]
    assert f"TensorBoard: tensorboard --logdir {runs}/watched/tensorboard" in run.log.read_text()
    names = {"step", *step_names(OBJECTIVES)}
    found = scrape_until(url, "watched", lambda found: found.keys() >= {series_of(n, OBJECTIVES) for n in names})
    run.kill(signal.SIGTERM)
    rows = read_rows(runs / "watched" / "metrics.jsonl")
    series = {series_of(name, OBJECTIVES): [row.get(name) for row in rows] for row in rows for name in row}
    assert all(value in series[key] for key, value in found.items())
    rounds = {series_of(f"rm/{name}", ()) for name in (*ROUND_NAMES, "accepted")}
    rounds |= {series_of(f"drift/{name}", ()) for name in (*CHOICES["adaptation.drift.signal"], "baseline")}
    assert {key.metric.removeprefix(PREFIX) for key in series.keys() | rounds} == set(HELP), (
        "describe a new name, draw it in grafana.json"
    )
    run.assert_gone()


def test_killed_and_resumed_is_bit_identical_and_nothing_survives_the_kill(
    first: Path, launch: Launch, runs: Path
) -> None:
    run = launch("run.name=killed", *ready_made(first))
    run.wait_for("step 5/6")  # after the checkpoint of step 4: one step is lost and done again
    run.kill(signal.SIGKILL)
    run.assert_gone()
    resumed = launch("run.name=killed", *ready_made(first), "--resume")
    assert resumed.wait() == 0, resumed.log.read_text()[-4000:]
    assert "resuming from step_4" in resumed.log.read_text()
    assert timeless(runs / "killed") == timeless(first)
    resumed.assert_gone()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_everything_cleanly(number: signal.Signals, launch: Launch) -> None:
    run = launch(f"run.name=stopped-{number.name.lower()}")
    run.wait_for("stage sft")
    run.kill(number)
    assert run.process.returncode == 128 + number
    assert "stopping" in run.log.read_text()
    run.assert_gone()


def test_nothing_survives_a_kill_while_engines_start(launch: Launch) -> None:
    run = launch("run.name=killed-early")
    run.wait_for("stage sft")
    run.kill(signal.SIGKILL)
    run.assert_gone()


def test_overlap_of_two_of_each_role_keeps_the_bound_also_after_a_kill(first: Path, launch: Launch, runs: Path) -> None:
    """Two actors updated in flight, two rewarders, two ranks; final_score with a reward model that is only calibrated, and
    rounds of it whose evidence is too little."""
    settings = ["iteration.max_staleness=3", "iteration.num=2", "iteration.steps=5", "aggregation.kind=final_score"]
    settings += [
        "adaptation.when=iteration",
        "adaptation.fit_pairs=6",
        "adaptation.evidence_pairs=6",
        "adaptation.min_pairs=6",
    ]
    settings += ["actors.num=2", "rewarder.num=2", "learner.ranks=2", "learner.zero_stage=2"]
    settings += ["run.name=overlap", *ready_made(first), "stages=[reward_model,iterate,evaluate,report]"]
    run = launch(*settings)
    run.wait_for("step 4/10")
    run.kill(signal.SIGKILL)
    run.assert_gone()
    resumed = launch(*settings, "--resume")
    assert resumed.wait() == 0, resumed.log.read_text()[-4000:]
    rows = read_rows(runs / "overlap" / "metrics.jsonl")[1:]
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert all(0 <= row["staleness/mean"] <= row["staleness/max"] <= 3 for row in rows)
    assert max(row["staleness/max"] for row in rows) == 3
    assert all(row["sync/max_logprob_diff"] <= 1e-4 for row in rows)
    assert all(0.9 < row["policy/importance_weight_mean"] < 1.1 for row in rows)
    assert all("reward/term/final_score" in row for row in rows)
    calibrated = json.loads((runs / "overlap" / "rm" / "version_0" / "report.json").read_text())
    assert len(calibrated["calibration"]["temperatures"]) == 1
    record = json.loads((runs / "overlap" / "rm" / "rejected_round_1.json").read_text())
    assert not record["accepted"] and record["reason"] and "discarded, version 0 stays" in resumed.log.read_text()
    assert {row["rm/version"] for row in rows} == {0} and rows[4]["rm/accepted"] == 0.0
    resumed.assert_gone()
