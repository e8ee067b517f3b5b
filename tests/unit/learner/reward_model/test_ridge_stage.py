"""Stage reward_model with stage_1: ridge, and the cache of hidden states, in this process on a tiny policy.

ArmoRM pitfall 9: test_hidden_states_are_those_that_serve.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from common.config.config import Config
from common.config.file import BASE, load_config
from common.data.data import PreferencePair, RatedResponse, to_fields, write_jsonl
from common.data.label_sources import LabelFiles
from common.data.split import is_held_out
from common.models import with_absolute_sources
from common.types import Message
from learner.reward_model import data as reward_data
from learner.reward_model.heads import fit_heads
from learner.reward_model.training import extract_features
from learner.worker import LearnerWorker
from rewarder.model import GatedRewardModel
from rewarder.scoring import Rendered, pad_conversations, render, score_responses
from tests.integration.models import WORDS, tiny_policy

OBJECTIVES = ["good", "long", "safe"]
CPU = torch.device("cpu")
SETTINGS = (
    *(f"rewarder.objectives={OBJECTIVES}", "rewarder.dtype=float32", "aggregation.kind=final_score"),
    *("learner.reward_model.stage_1=ridge", "learner.reward_model.verbosity=long"),
    *("learner.reward_model.gate_steps=5", "learner.reward_model.gate_hidden=8", "learner.reward_model.gate_layers=1"),
    *("learner.reward_model.held_out_fraction=0.3", "learner.micro_batch_tokens=256"),
)


pytestmark = pytest.mark.usefixtures("single_rank")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy, and ratings that are linear in its hidden states: "good" and "long" on two thirds of the prompts, "safe" on
    the others, and everywhere pairs by what is good."""
    root = tmp_path_factory.mktemp("world")
    tiny_policy(root / "policy", 0)
    tokenizer, generator = AutoTokenizer.from_pretrained(root / "policy"), np.random.default_rng(0)
    prompts = [(Message("user", f"{WORDS[i % 59]} {WORDS[i // 59]}"),) for i in range(150)]
    said = [[" ".join(generator.choice(WORDS, generator.integers(1, 9))) for _ in range(3)] for _ in prompts]
    with torch.no_grad():
        rendered = [render(tokenizer, m, text) for m, texts in zip(prompts, said, strict=True) for text in texts]
        truth = linear_ratings(fresh(root)(*pad_conversations(rendered)).response_state).reshape(150, 3, 3)
    ratings, pairs = [], []
    for i, (messages, texts) in enumerate(zip(prompts, said, strict=True)):
        for text, (good, long, safe) in zip(texts, truth[i].tolist(), strict=True):
            scores = {"good": None, "long": None, "safe": safe} if i % 3 == 0 else {"good": good, "long": long}
            ratings.append(RatedResponse(messages, text, scores))
        best, worst = (texts[int(place(truth[i, :, 0].numpy()))] for place in (np.argmax, np.argmin))
        pairs.append(PreferencePair(messages, best, worst))
    write_jsonl(root / "ratings.jsonl", [to_fields(row) for row in ratings])
    write_jsonl(root / "pairs.jsonl", [to_fields(row) for row in pairs])
    return root


def linear_ratings(states: torch.Tensor) -> torch.Tensor:
    """Three objectives that are exactly linear in hidden states [N, H], without intercept, and stay in [0, 1]: [N, 3]."""
    middle = torch.linalg.lstsq(states, torch.full((len(states), 1), 0.5)).solution
    slopes = torch.randn(states.shape[1], 3, generator=torch.Generator().manual_seed(5))
    ratings = states @ (middle + 0.3 * slopes / (states @ slopes).abs().amax(0))
    assert float(ratings.min()) >= 0 and float(ratings.max()) <= 1, "the hidden states share no direction to speak of"
    return ratings


def fresh(root: Path, dtype: str = "float32") -> GatedRewardModel:
    return GatedRewardModel.from_policy(root / "policy", OBJECTIVES, 8, 1, 10.0, 2.0, 0, dtype=dtype)


def configured(*overrides: str) -> Config:
    return load_config(BASE, [*SETTINGS, *overrides])


def train(root: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> dict[str, float]:
    """The whole stage; the report."""
    monkeypatch.setattr("learner.worker.init_process_group", lambda *_: CPU)  # the module's fixture has made it
    worker = LearnerWorker(0, configured(*overrides))
    worker.connect("", 0)
    files = LabelFiles(str(root / "ratings.jsonl"), str(root / "pairs.jsonl"))
    return worker.reward_model(str(root / "policy"), files, str(out))


def training_sets(root: Path) -> list[reward_data.PromptSet]:
    files, config = LabelFiles(str(root / "ratings.jsonl"), str(root / "pairs.jsonl")), configured()
    tokenizer = AutoTokenizer.from_pretrained(root / "policy")
    return reward_data.read_sides(files, OBJECTIVES, tokenizer, config.rewarder, config.learner.reward_model)[0]


def test_the_heads_are_fitted_and_the_backbone_stays(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = train(world, tmp_path / "rm", monkeypatch)
    assert all(report[f"rm/r2/{name}"] > 0.99 for name in OBJECTIVES), "ratings are linear in the hidden states"
    assert all(report[f"rm/ridge_alpha/{name}"] <= 1 for name in OBJECTIVES)
    record = json.loads((tmp_path / "rm" / "report.json").read_text())
    assert record["report"] == report
    assert set(record["length_bias"]) == {*OBJECTIVES, "gated score"}
    assert record["length_bias"]["long"]["after"]["verbosity"] == 0
    made = GatedRewardModel.load(tmp_path / "rm", "float32")
    before = fresh(world)
    for name, value in before.backbone.state_dict().items():
        assert torch.equal(value, made.backbone.state_dict()[name]), name
    sets = training_sets(world)
    fit = fit_heads(before, extract_features(before, sets, 256, 0, CPU), sets, range(3))
    assert torch.equal(made.regression_layer.weight, fit.weight) and torch.equal(
        before.regression_layer.weight, fit.weight
    )
    rated = np.concatenate([prompt.ratings for prompt in sets])
    assert fit.num_ratings == tuple(np.isfinite(rated).sum(0))
    assert made.reward_transform_matrix[1, 1] == 0, "debias comes after the heads"
    assert not torch.equal(made.gating.logit_scale, before.gating.logit_scale), "and the gate after that"


def test_a_second_run_reads_the_cache_and_makes_the_same_model(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = f"learner.reward_model.feature_cache={tmp_path / 'cache'}"
    plain = train(world, tmp_path / "plain", monkeypatch)
    first = train(world, tmp_path / "first", monkeypatch, cached)
    files = sorted((tmp_path / "cache").iterdir())
    assert len(files) == 2 and all(file.suffix == ".npy" and not file.name.startswith(".") for file in files)

    def no_pass(*_: object) -> None:
        raise AssertionError("the backbone ran")

    monkeypatch.setattr(GatedRewardModel, "forward", no_pass)
    second = train(world, tmp_path / "second", monkeypatch, cached)
    assert plain == first == second
    models = [load_file(tmp_path / name / "model.safetensors") for name in ("plain", "first", "second")]
    assert all(torch.equal(models[0][name], model[name]) for model in models[1:] for name in models[0])
    assert sorted((tmp_path / "cache").iterdir()) == files


def test_whatever_changes_the_states_misses_the_cache(world: Path, tmp_path: Path) -> None:
    sets, cache = training_sets(world)[:4], tmp_path / "cache"

    def files_after(model: GatedRewardModel, sets: list[reward_data.PromptSet], tokens: int = 256) -> int:
        extract_features(model, sets, tokens, 0, CPU, str(cache))
        return len(list(cache.iterdir()))

    model = fresh(world)
    assert [files_after(model, sets) for _ in range(2)] == [1, 1]
    model.regression_layer.weight.data.zero_()
    assert files_after(model, sets) == 1, "heads do not count"
    assert files_after(model, sets[:3]) == 2, "rows do"
    assert files_after(model, sets[::-1]) == 3, "and their order"
    ids, prompt_end, response_end = sets[0].conversations[0]
    moved = dataclasses.replace(sets[0], conversations=(Rendered(ids, prompt_end - 1, response_end),))
    assert files_after(model, [moved]) == 4
    assert files_after(model, [dataclasses.replace(moved, conversations=sets[0].conversations[:1])]) == 5
    assert files_after(model, sets, tokens=128) == 6, "rounding follows the batches"
    assert files_after(fresh(world, "bfloat16"), sets) == 7
    next(iter(model.backbone.parameters())).data[7, 3] += 1e-6
    assert files_after(model, sets) == 8, "one weight"
    model.backbone.config.rms_norm_eps *= 2
    assert files_after(model, sets) == 9


def test_another_template_misses_the_cache(world: Path, tmp_path: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(world / "policy"), fresh(world)
    rated = [RatedResponse((Message("user", "w1"),), "w2", {"good": 1.0})]
    for expected in (1, 2):
        sets = list(reward_data.prompt_sets(rated, [], OBJECTIVES, tokenizer, 50).values())
        extract_features(model, sets, 256, 0, CPU, str(tmp_path / "cache"))
        assert len(list((tmp_path / "cache").iterdir())) == expected
        tokenizer.chat_template = tokenizer.chat_template.replace("<bos>", "<bos> w9 ")


def test_states_are_mapped_and_the_file_is_never_written(world: Path, tmp_path: Path) -> None:
    sets, model = training_sets(world)[:4], fresh(world)
    plain = extract_features(model, sets, 256, 0, CPU)
    features = extract_features(model, sets, 256, 0, CPU, str(tmp_path))
    assert torch.equal(plain.prompt, features.prompt) and torch.equal(plain.response, features.response)
    (file,) = tmp_path.iterdir()
    stored = file.read_bytes()
    features.response.zero_()
    assert file.read_bytes() == stored
    file.write_bytes(stored[:-4])
    with pytest.raises(ValueError, match=r"has 6268 bytes, want 6272 for float32 \[2, 12, 64\]; delete the file"):
        extract_features(model, sets, 256, 0, CPU, str(tmp_path))


def test_a_failed_pass_leaves_no_file(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GatedRewardModel, "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        extract_features(fresh(world), training_sets(world)[:4], 256, 0, CPU, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_hidden_states_are_those_that_serve(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """The heads are fitted on states of the dtype that the rewarder loads: its scores are the predictions of the fit."""
    train(world, tmp_path / "rm", monkeypatch, f"rewarder.dtype={dtype}")
    stored = load_file(tmp_path / "rm" / "model.safetensors")
    assert {v.dtype for n, v in stored.items() if n.startswith("model.")} == {getattr(torch, dtype)}
    served, sets = GatedRewardModel.load(tmp_path / "rm", dtype), training_sets(world)[:10]
    fitted_on = extract_features(fresh(world, dtype), sets, 256, 0, CPU).response
    served_by = extract_features(served, sets, 256, 0, CPU).response
    assert torch.equal(fitted_on, served_by)


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_the_fit_is_what_is_served(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, atol: float
) -> None:
    """What the rewarder says of a response is what the fit predicted from the states it saw, whatever the batch; bfloat16
    rounds differently with its shape."""
    train(world, tmp_path / "rm", monkeypatch, f"rewarder.dtype={dtype}")
    rows = [json.loads(line) for line in (world / "ratings.jsonl").read_text().splitlines()][:12]
    said = [([Message(**turn) for turn in row["prompt"]], row["response"]) for row in rows]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "rm")
    sets = list(
        reward_data.prompt_sets(
            [RatedResponse(tuple(m), r, {}) for m, r in said], [], OBJECTIVES, tokenizer, 50
        ).values()
    )
    fitted = extract_features(fresh(world, dtype), sets, 256, 0, CPU).response
    weight = load_file(tmp_path / "rm" / "model.safetensors")["regression_layer.weight"]
    served = GatedRewardModel.load(tmp_path / "rm", dtype)
    scores = torch.cat([score_responses(served, tokenizer, messages, [response], 50)[0] for messages, response in said])
    torch.testing.assert_close(scores, fitted @ weight.T, atol=atol, rtol=0)


def test_an_objective_without_training_ratings_is_named(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = tmp_path / "ratings.jsonl"
    rows = [json.loads(line) for line in (world / "ratings.jsonl").read_text().splitlines()]
    kept = [row for row in rows if row["scores"].get("safe") is None]
    rated = [row for row in rows if row["scores"].get("safe") is not None]
    one = next(row for row in rated if is_held_out([Message(**turn) for turn in row["prompt"]], 0.3))
    write_jsonl(few, [*kept, one])
    monkeypatch.setattr("learner.worker.init_process_group", lambda *_: CPU)
    worker = LearnerWorker(0, configured())
    worker.connect("", 0)
    with pytest.raises(ValueError, match="every rating of safe is of a held-out"):
        files = LabelFiles(str(few), str(world / "pairs.jsonl"))
        worker.reward_model(str(world / "policy"), files, str(tmp_path / "rm"))


def test_the_cache_is_named_from_the_drivers_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = with_absolute_sources(configured("learner.reward_model.feature_cache=features"))
    assert config.learner.reward_model.feature_cache == str(tmp_path / "features")
    assert with_absolute_sources(configured()).learner.reward_model.feature_cache is None
