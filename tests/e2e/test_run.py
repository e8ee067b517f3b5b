"""The whole command with real parts: what a run of every stage writes, and that one which is stopped, killed and resumed twice
is the same run, bit for bit, and leaves nothing behind. Two runs, four launches."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from common.config.file import load_config
from common.metrics import read_rows, step_names
from rewarder.model import GatedRewardModel
from tests.e2e.conftest import FIRST, Launch
from tests.finished_run import problems_of
from tests.launched import timeless

OBJECTIVES = ["correct", "cover", "polite", "brief", "safe", "fluent", "verbose"]
STEPS = 6
SAME_BYTES = (
    "labels.jsonl",
    "samples.jsonl",
    "rm/version_0/model.safetensors",
    "rm/version_1/model.safetensors",
    "export/policy/model.safetensors",
)

pytestmark = pytest.mark.timeout(2400)


def test_every_step_line_has_every_name(first: Path) -> None:
    rows = read_rows(first / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(STEPS + 1))
    for row in rows:
        assert set(step_names(OBJECTIVES)) <= set(row)
    for row in rows[1:]:
        assert all(isinstance(row[name], float | int) for name in step_names(OBJECTIVES) if name != "gold/mean")
    assert [row["step"] for row in rows if row["gold/mean"] is not None] == [0, 3, 6]


def test_the_reward_model_is_adapted_between_the_iterations(first: Path) -> None:
    """Every round accepts, because its test is switched off; a round that is discarded: test_overlap.py."""
    rows = read_rows(first / "metrics.jsonl")
    assert [row["rm/version"] for row in rows] == [0, 0, 0, 0, 1, 1, 1]
    assert [row["step"] for row in rows if "rm/accepted" in row] == [3]
    keys = [json.loads(line)["key"] for line in (first / "labels.jsonl").read_text().splitlines()]
    assert 0 < len(keys) <= 12 and len(set(keys)) == len(keys), "no pair is judged twice"


def test_every_version_was_proven_on_the_engines(first: Path) -> None:
    differences = [row["sync/max_logprob_diff"] for row in read_rows(first / "metrics.jsonl")]
    assert len(differences) == STEPS + 1
    assert all(0 <= difference <= 1e-4 for difference in differences)


def test_the_run_directory_is_whole(first: Path) -> None:
    table = json.loads((first / "evaluation.json").read_text())
    assert [row["policy"] for row in table] == ["SFT policy", "iteration 1", "iteration 2", "ideal answer"]
    assert table[-1]["gold"] > 0.95
    assert problems_of(first) == [], "every JSON file of the run is JSON"
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


def test_the_exported_reward_model_is_the_one_that_served(first: Path) -> None:
    """The files are equal bit for bit, and the loader reads them."""
    exported, served = first / "export" / "reward_model", first / "rm" / "version_1"
    for file in served.iterdir():
        assert (exported / file.name).read_bytes() == file.read_bytes()
    assert GatedRewardModel.load(exported, "float32").objectives == tuple(OBJECTIVES)


def test_stopped_killed_and_resumed_is_bit_identical_and_nothing_survives(
    first: Path, launch: Launch, runs: Path
) -> None:
    settings = ("run.name=killed", *FIRST)
    stopped = launch(*settings)
    stopped.wait_for("stage sft")
    stopped.kill(signal.SIGTERM)
    assert stopped.process.returncode == 128 + signal.SIGTERM
    assert "stopping" in stopped.log.read_text()
    stopped.assert_gone()
    killed = launch(*settings, "--resume")
    killed.wait_for("step 5/6")  # two steps after the newest checkpoint: they are lost and done again
    killed.kill(signal.SIGKILL)
    killed.assert_gone()
    resumed = launch(*settings, "--resume")
    resumed.assert_ends_well()
    assert "resuming from step_3" in resumed.log.read_text()
    assert timeless(runs / "killed") == timeless(first)
    for name in SAME_BYTES:
        assert (runs / "killed" / name).read_bytes() == (first / name).read_bytes(), name
