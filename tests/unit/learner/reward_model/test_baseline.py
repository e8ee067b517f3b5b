"""The plain Bradley-Terry model beside the gated one, where no DeepSpeed is needed: its rows, its files, what is shown of it,
and its head beside heads by ridge. Training by gradient: tests/integration/test_reward_stage.py.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig

from common.types import Message
from driver.evaluate_rm.source import baseline as baseline_source
from driver.report import html
from driver.report.measures import format_accuracy
from driver.report.read import read_reward_model
from driver.report.records import RewardModel
from learner.reward_model.baseline import paired
from learner.reward_model.data import Pair, PromptSet
from rewarder.bradley_terry import is_classifier, load_classifier, new_scalar_model, save_classifier, stock_classifier
from rewarder.layout import CheckpointError
from rewarder.model import GatedRewardModel
from rewarder.scoring import Rendered, pad_conversations, render
from tests.integration.planted import accuracy, configured, planted_world, run_stage, sides

RIDGE = (
    *("learner.reward_model.stage_1=ridge", "learner.reward_model.gate_steps=200"),
    "learner.reward_model.gate_learning_rate=1e-2",
)

pytestmark = pytest.mark.usefixtures("single_rank")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    planted_world(root, prompts=500)
    return root


@pytest.fixture(scope="module")
def made(world: Path, tmp_path_factory: pytest.TempPathFactory, single_rank: None) -> tuple[Path, dict[str, float]]:
    """The stage with ridge and its baseline: where it wrote, and its report."""
    out = tmp_path_factory.mktemp("made")
    return out, run_stage(world, out, configured(*RIDGE), baseline=True)


def test_beside_ridge_the_backbone_stays_and_the_head_learns(world: Path, made: tuple[Path, dict[str, float]]) -> None:
    out, report = made
    start, trained = new_scalar_model(world / "policy", 0), load_classifier(out / "baseline", "float32")
    for name, value in start.backbone.state_dict().items():
        assert torch.equal(value, trained.backbone.state_dict()[name]), name
    training, unseen = sides(world)
    assert accuracy(trained, training) > accuracy(start, training) + 0.15
    assert accuracy(trained, unseen) == pytest.approx(report["rm/pair_accuracy_baseline"])
    assert report["rm/held_out_pairs"] == sum(len(prompt.pairs) for prompt in unseen) > 100
    assert 0.5 < report["rm/pair_accuracy_baseline_low"] < report["rm/pair_accuracy_baseline"]
    assert json.loads((out / "version_0" / "report.json").read_text())["report"] == report


def test_the_gated_model_by_ridge_is_the_same_without_it(
    world: Path, made: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    report = run_stage(world, tmp_path, configured(*RIDGE), baseline=False)
    assert not (tmp_path / "baseline").exists()
    assert report == {name: value for name, value in made[1].items() if "baseline" not in name}
    ours, theirs = (load_file(out / "version_0" / "model.safetensors") for out in (tmp_path, made[0]))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


def test_it_is_a_stock_classifier_with_the_same_scores(made: tuple[Path, dict[str, float]]) -> None:
    directory = made[0] / "baseline"
    theirs, found = AutoModelForSequenceClassification.from_pretrained(directory, output_loading_info=True)
    assert not any(found.values()), found
    assert AutoConfig.from_pretrained(directory).num_labels == 1
    ours, tokenizer = load_classifier(directory, "float32"), AutoTokenizer.from_pretrained(directory)
    for response in ("w1 w9", "w2 w8 w7 w6"):
        rendered = render(tokenizer, [Message("user", "w5 w6")], response)
        with torch.no_grad():
            output, logits = ours(*pad_conversations([rendered])), theirs.eval()(torch.tensor([rendered.ids])).logits
        assert output.gate_weights.tolist() == [[1.0]] and logits.shape == (1, 1)
        torch.testing.assert_close(output.scores, logits, atol=1e-5, rtol=1e-5)


def test_what_is_read_is_what_was_written(world: Path, tmp_path: Path) -> None:
    model, tokenizer = new_scalar_model(world / "policy", 3), AutoTokenizer.from_pretrained(world / "policy")
    save_classifier(model, tmp_path, tokenizer, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 and is_classifier(tmp_path)
    batch = pad_conversations([render(tokenizer, [Message("user", "w5")], text) for text in ("w1", "w2 w3")])
    assert torch.equal(load_classifier(tmp_path, "float32")(*batch).scores, model(*batch).scores)
    assert model.backbone.config.num_labels != 1, "the model's own configuration is left alone"
    with pytest.raises(CheckpointError, match="a stock sequence classifier"):
        GatedRewardModel.load(tmp_path, "float32")


def test_a_decoder_without_a_stock_classifier_is_refused(world: Path) -> None:
    model = new_scalar_model(world / "policy", 0)
    assert stock_classifier(model).__name__ == "LlamaForSequenceClassification"

    class Unheard(LlamaConfig):
        model_type = "unheard"

    values = model.backbone.config.to_dict()
    values.pop("model_type")
    model.backbone.config = Unheard(**values)
    with pytest.raises(CheckpointError, match="no sequence classifier .* model_type 'unheard'; set learner.reward_mod"):
        stock_classifier(model)


def test_only_pairs_are_kept_with_their_indices_moved() -> None:
    conversations = tuple(Rendered([0, 1, 2 + i], 0, 2) for i in range(5))
    rated = PromptSet(
        (Message("user", "w"),), conversations, np.ones((5, 3), np.float32), (Pair(3, 1), Pair(1, 4, 0.75, 0.5))
    )
    (kept,) = paired([rated, replace(rated, pairs=())])
    assert kept.conversations == (conversations[1], conversations[3], conversations[4])
    assert kept.pairs == (Pair(1, 0), Pair(0, 2, 0.75, 0.5))
    assert kept.ratings.shape == (3, 1) and np.isnan(kept.ratings).all()


def test_without_training_pairs_it_is_refused_before_anything_is_trained(world: Path, tmp_path: Path) -> None:
    for name in ("policy", "ratings.jsonl"):
        (tmp_path / name).symlink_to(world / name)
    unseen = {prompt.messages[0].content for prompt in sides(world)[1]}
    rows = [json.loads(line) for line in (world / "pairs.jsonl").read_text().splitlines()]
    kept = [row for row in rows if row["prompt"][0]["content"] in unseen]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    with pytest.raises(ValueError, match="none of the 3\\d\\d training prompts has a pair; give more pairs"):
        run_stage(tmp_path, tmp_path / "out", configured(*RIDGE), baseline=True)
    assert not (tmp_path / "out").exists()


def shown(model: RewardModel) -> str:
    """The report's section on a reward model."""
    return html.render("report/templates/reward_model.html", run=SimpleNamespace(reward_model=model))


def test_it_is_said_and_shown_beside_the_gated_model(made: tuple[Path, dict[str, float]]) -> None:
    out, report = made
    assert f"Bradley-Terry baseline {report['rm/pair_accuracy_baseline']:.3f} [" in format_accuracy(report)
    model = read_reward_model(out / "version_0" / "report.json", ["final_score"])
    assert model is not None and model.baseline_accuracy.mean == report["rm/pair_accuracy_baseline"]
    assert "of a plain Bradley-Terry model" in shown(model)
    without = replace(model, baseline_accuracy=replace(model.baseline_accuracy, mean=float("nan")))
    assert "Bradley-Terry" not in shown(without)


def test_evaluate_rm_takes_the_runs_own_unless_another_is_named(tmp_path: Path) -> None:
    config = configured(f"run.dir={tmp_path}")
    own = tmp_path / "run" / "rm" / "baseline"
    own.mkdir(parents=True)
    assert baseline_source(config) is None, "not whole: the configuration is written last"
    (own / "config.json").write_text("{}")
    found = baseline_source(config)
    assert found is not None and (found.name, found.origin) == (str(own.resolve()), "the run's rm/baseline")
    named = baseline_source(configured(f"run.dir={tmp_path}", "evaluate_rm.baseline=owner/name"))
    assert named is not None and named.name == "owner/name"
