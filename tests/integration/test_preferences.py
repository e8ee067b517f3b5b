"""Stage preferences with the real parts: the command under Ray with two workers, and members that have backbones of their own,
under DeepSpeed, with what is kept of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from transformers import AutoTokenizer

from common.config.config import Config
from common.config.preference_checks import too_few
from common.data.data import PreferencePair, read_pairs
from common.data.strengths import Strengths, read_strengths
from learner.preferences.worker import PreferenceWorker
from rewarder.model import GatedRewardModel
from rewarder.scoring import score_texts
from tests.integration.planted import configured, planted_world
from tests.integration.ranks import start
from tests.launched import Launched

KEY = "learner.preferences."
PROMPTS = 120
TRAINED = (f"{KEY}members=4", f"{KEY}epochs=3", f"{KEY}batch_size=8", "learner.reward_model.held_out_fraction=0.1")
KEPT = (f"{KEY}keep_models=true", f"{KEY}vary_seed=false")
JOBS: dict[str, tuple[str, ...]] = {
    "lora": (
        *TRAINED,
        *KEPT,
        f"{KEY}train=lora",
        f"{KEY}lora_rank=3",
        f"{KEY}learning_rate=1e-2",
        "rewarder.preference=good",
    ),
    "full": (*TRAINED, f"{KEY}train=full", f"{KEY}learning_rate=1e-3", f"{KEY}bootstrap=true", "learner.zero_stage=2"),
}

pytestmark = pytest.mark.timeout(1200)


def job_config(job: str) -> Config:
    return configured(*JOBS[job])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    planted_world(root, prompts=PROMPTS)
    return root


# ---- the command


@pytest.mark.slow
def test_the_stage_under_ray_with_two_workers_and_again(world: Path, tmp_path: Path) -> None:
    given = [f"policy.model={world}/policy", f"data.preferences={world}/pairs.jsonl", "stages=[preferences]"]
    given += ["run.name=strong", "rewarder.dtype=float32", "aggregation.kind=final_score", "cluster.dashboard=false"]
    given += [
        f"{KEY}members=4",
        f"{KEY}workers=2",
        f"{KEY}learning_rate=3e-2",
        f"{KEY}epochs=4",
        f"{KEY}keep_models=true",
    ]
    run = Launched(tmp_path, world, *given, config="configs/base.yaml")
    assert run.wait() == 0, run.log.read_text()[-4000:]
    run.assert_gone()
    out, pairs = tmp_path / "strong" / "preferences", read_pairs(world / "pairs.jsonl")
    assert {path.name for path in out.iterdir()} == {"pairs.jsonl", "report.json", "page.html", "average", "ensemble"}
    found, report = read_strengths(out / "pairs.jsonl", pairs), json.loads((out / "report.json").read_text())
    assert read_pairs(out / "pairs.jsonl") == pairs and report["pairs"] == PROMPTS
    assert report["share_below_0"] == np.mean(found.mean < 0) < 0.5
    assert [member["member"] for member in report["members"]] == [0, 1, 2, 3]
    assert f"{PROMPTS} pairs" in (said := run.log.read_text()) and f"{out}/page.html" in said
    assert_every_member_said_it(out, pairs, found)
    before = {path: path.read_bytes() for path in out.glob("*.*")}
    again = Launched(tmp_path, world, *given, "--resume", config="configs/base.yaml")
    assert again.wait() == 0, again.log.read_text()[-4000:]
    assert "stage preferences: done before, skipped" in again.log.read_text()
    assert before == {path: path.read_bytes() for path in out.glob("*.*")}


def assert_every_member_said_it(out: Path, pairs: Sequence[PreferencePair], found: Strengths) -> None:
    """The strengths of held-out pairs are the means over the kept members' own scores."""
    ensemble = GatedRewardModel.load(out / "ensemble", "float32")
    tokenizer = AutoTokenizer.from_pretrained(out / "ensemble")
    texts = [(row.messages, text) for row in pairs for text in (row.chosen, row.rejected)]
    scores = score_texts(ensemble, tokenizer, texts, 4096, 4096)[0]
    every = (scores[::2] - scores[1::2]).double().numpy()
    held_out = [json.loads(line)["members"] == 4 for line in (out / "pairs.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(every.mean(1)[held_out], found.mean[held_out], atol=1e-4)
    np.testing.assert_allclose(every.std(1)[held_out], found.std[held_out], atol=1e-4)


# ---- backbones


def work(rank: int, ranks: int, port: int, root: str) -> None:
    """Both jobs in one process, each by one worker; what it answered is saved."""
    for at, job in enumerate(JOBS):
        worker = PreferenceWorker(0, job_config(job))
        if at == 0:
            worker.connect()  # a process group can be made once
        fitted = worker.fit(f"{root}/policy", f"{root}/pairs.jsonl", f"{root}/{job}")
        np.save(f"{root}/{job}.npy", fitted.differences)
        if job == "lora":
            worker.write_average([f"{root}/lora/member_{member}" for member in range(4)], f"{root}/lora/average")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def trained(world: Path) -> Path:
    start(work, 1, str(world))
    return world


def scored(directory: Path, root: Path) -> np.ndarray:
    """The pairs' differences by a saved model."""
    pairs, model = read_pairs(root / "pairs.jsonl"), GatedRewardModel.load(directory, "float32")
    texts = [(row.messages, text) for row in pairs for text in (row.chosen, row.rejected)]
    scores = score_texts(model, AutoTokenizer.from_pretrained(directory), texts, 512, 512)[0]
    return (scores[::2, 0] - scores[1::2, 0]).numpy()


def test_members_with_backbones_learn(trained: Path) -> None:
    for job in JOBS:
        differences = np.load(trained / f"{job}.npy")
        assert differences.shape == (4, PROMPTS) and (differences > 0).mean() > 0.65, job
        assert not any(np.array_equal(differences[0], other) for other in differences[1:])
    assert not (trained / "full").exists(), "nothing is kept unless asked for"


def test_what_is_kept_of_them_scores_as_they_did(trained: Path) -> None:
    differences = np.load(trained / "lora.npy")
    for member in range(4):
        directory = trained / "lora" / f"member_{member}"
        np.testing.assert_allclose(scored(directory, trained), differences[member], atol=1e-4)
        assert GatedRewardModel.load(directory, "float32").objectives == ("good",)


def test_the_average_is_the_mean_of_the_weights_and_as_good(trained: Path) -> None:
    ours = load_file(trained / "lora" / "average" / "model.safetensors")
    members = [load_file(trained / "lora" / f"member_{member}" / "model.safetensors") for member in range(4)]
    for name, value in ours.items():
        mean = torch.stack([weights[name].double() for weights in members]).mean(0)
        torch.testing.assert_close(value.double(), mean, atol=1e-6, rtol=1e-5)
    right = [(scored(trained / "lora" / name, trained) > 0).mean() for name in ("average", "member_0", "member_1")]
    assert right[0] >= min(right[1:]) - 0.05


def test_there_are_enough_pairs_for_the_jobs(world: Path) -> None:
    pairs = read_pairs(world / "pairs.jsonl")
    assert all(too_few(pairs, job_config(job).learner.preferences, 0.1) == [] for job in JOBS)
