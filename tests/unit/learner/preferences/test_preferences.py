"""Stage preferences in this process: members on a planted preference, what is kept of them, the page, and what is refused.

Members with a backbone of their own, and the whole stage under Ray: tests/integration/test_preferences.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from common.config.config import Config
from common.data.data import PreferencePair, read_pairs, to_fields, write_jsonl
from common.data.split import is_held_out
from common.data.strengths import IN_SAMPLE_MEAN, MEAN
from common.types import Message
from driver.preferences.page import write_page
from driver.preferences.results import Strength, results, rows
from learner.preferences.folds import left_out
from learner.preferences.members import paired
from learner.preferences.worker import Fitted, PreferenceWorker
from rewarder.bradley_terry import new_scalar_model
from rewarder.model import GatedRewardModel
from rewarder.scoring import pad_conversations, render, score_texts
from tests.integration.planted import configured, planted_world
from tests.unit.preflights import Check, only

KEY = "learner.preferences."
PLANTED = (
    *(f"{KEY}learning_rate=3e-2", f"{KEY}epochs=4", f"{KEY}members=4"),
    "learner.reward_model.held_out_fraction=0.1",
)
FLIPPED = 0.2

pytestmark = pytest.mark.usefixtures("single_rank")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """planted_world, and noisy.jsonl: its pairs with one in five the wrong way round."""
    root = tmp_path_factory.mktemp("world")
    planted_world(root, prompts=500)
    write_jsonl(root / "noisy.jsonl", [to_fields(row) for row in noisy(read_pairs(root / "pairs.jsonl"))])
    return root


def flipped(count: int) -> np.ndarray:
    return np.random.default_rng(1).random(count) < FLIPPED


def noisy(pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    return [
        replace(row, chosen=row.rejected, rejected=row.chosen) if wrong else row
        for row, wrong in zip(pairs, flipped(len(pairs)), strict=True)
    ]


def fit(root: Path, config: Config, source: str = "noisy.jsonl", index: int = 0) -> Fitted:
    return PreferenceWorker(index, config).fit(str(root / "policy"), str(root / source), str(root))


def strengths(root: Path, config: Config, fitted: Fitted, source: str = "noisy.jsonl") -> Strength:
    pairs, settings = read_pairs(root / source), config.learner.preferences
    plan = left_out(pairs, settings, config.learner.reward_model.held_out_fraction, config.run.seed)
    return results(settings, pairs, fitted.differences, plan)


@pytest.fixture(scope="module")
def fitted(world: Path, single_rank: None) -> Fitted:
    return fit(world, configured(*PLANTED))


def test_wrong_labels_are_weak_out_of_fold_and_hidden_in_sample(world: Path, fitted: Fitted) -> None:
    """A wrong label moves the members that train on it towards itself."""
    found = strengths(world, configured(*PLANTED), fitted)
    wrong, training = flipped(len(found.pairs)), ~found.held_out
    out, inside = found.strength.mean, found.in_sample.mean
    assert out[wrong].mean() < 0 < out[~wrong].mean()
    caught = (out < 0)[wrong & training].mean(), (inside < 0)[wrong & training].mean()
    assert caught[0] > 0.6 and caught[0] > caught[1] + 0.02, caught
    assert (inside - out)[wrong & training].mean() > 0
    weakest = np.argsort(out)[: len(out) // 10]
    assert wrong[weakest].mean() > 3 * FLIPPED
    said = found.compared
    assert said["in sample"].accuracy > said["out of fold"].accuracy + 0.02
    assert said["in sample"].share_below_0 < said["out of fold"].share_below_0
    assert found.warnings == []


def test_workers_make_the_members_that_one_makes(world: Path, fitted: Fitted) -> None:
    two = [fit(world, configured(*PLANTED, f"{KEY}workers=2"), index=index) for index in range(2)]
    assert [part.members for part in two] == [(0, 2), (1, 3)] and fitted.members == (0, 1, 2, 3)
    for part in two:
        assert np.array_equal(part.differences, fitted.differences[list(part.members)])
        assert np.array_equal(part.heads, fitted.heads[list(part.members)])


def test_hidden_states_come_from_the_cache_where_there_is_one(world: Path, fitted: Fitted, tmp_path: Path) -> None:
    cached = configured(*PLANTED, f"learner.reward_model.feature_cache={tmp_path}")
    assert np.array_equal(fit(world, cached).differences, fitted.differences)
    (file,) = tmp_path.glob("*.npy")
    np.save(file, 2 * np.load(file))
    doubled = fit(world, cached)
    assert not np.array_equal(doubled.differences, fitted.differences) and list(tmp_path.glob("*.npy")) == [file]


def test_without_training_members_are_the_heads_that_new_models_have(world: Path) -> None:
    config = configured(f"{KEY}learning_rate=0", f"{KEY}members=2", f"{KEY}folds=1", f"{KEY}vary_seed=false")
    found, model = fit(world, config), new_scalar_model(world / "policy", 0)
    tokenizer, row = AutoTokenizer.from_pretrained(world / "policy"), read_pairs(world / "noisy.jsonl")[3]
    assert np.array_equal(found.heads[0], found.heads[1])
    assert np.array_equal(found.heads[0], model.regression_layer.weight.detach()[0].numpy())
    both = pad_conversations([render(tokenizer, row.messages, text) for text in (row.chosen, row.rejected)])
    with torch.no_grad():
        chosen, rejected = model(*both).scores[:, 0].tolist()
    assert found.differences[0, 3] == pytest.approx(chosen - rejected, abs=1e-5)
    varied = fit(world, configured(f"{KEY}learning_rate=0", f"{KEY}members=2", f"{KEY}folds=1"))
    assert not np.array_equal(varied.heads[0], varied.heads[1])


def test_members_differ_by_order_or_draw_alone_where_the_seed_is_shared(world: Path) -> None:
    shared = (*PLANTED, f"{KEY}vary_seed=false", f"{KEY}members=2", f"{KEY}folds=1")
    by_order, by_draw = fit(world, configured(*shared)), fit(world, configured(*shared, f"{KEY}bootstrap=true"))
    for found in (by_order, by_draw):
        assert not np.array_equal(found.differences[0], found.differences[1])
    apart = [float(np.abs(found.heads[0] - found.heads[1]).mean()) for found in (by_order, by_draw)]
    assert apart[0] < apart[1]


def test_differences_follow_the_rows_where_prompts_repeat_and_mix(world: Path, tmp_path: Path) -> None:
    """Several pairs of a prompt, apart from one another and sharing responses."""
    rows_ = read_pairs(world / "pairs.jsonl")[:30]
    mixed = [*rows_, *(replace(row, rejected="w9 w8") for row in rows_[::-1]), replace(rows_[4], chosen="w9 w8")]
    tokenizer = AutoTokenizer.from_pretrained(world / "policy")
    pairs = paired(mixed, tokenizer, 512)
    conversations = [said for prompt in pairs.sets for said in prompt.conversations]
    assert len(conversations) == 90, "each response of a prompt once"
    for row, (chosen, rejected) in zip(mixed, pairs.sides.tolist(), strict=True):
        assert conversations[chosen] == render(tokenizer, row.messages, row.chosen)
        assert conversations[rejected] == render(tokenizer, row.messages, row.rejected)


def test_kept_heads_are_models_that_load_and_score_as_the_members(world: Path, fitted: Fitted, tmp_path: Path) -> None:
    config = configured(*PLANTED)
    worker = PreferenceWorker(0, config)
    worker.write_heads(str(world / "policy"), fitted.heads, str(tmp_path / "average"), str(tmp_path / "ensemble"))
    mean = GatedRewardModel.load(tmp_path / "average", "float32", objectives=["preference"])
    every = GatedRewardModel.load(tmp_path / "ensemble", "float32")
    assert every.objectives == ("member_0", "member_1", "member_2", "member_3") and mean.info.calibration is None
    row = read_pairs(world / "noisy.jsonl")[5]
    texts = [(row.messages, row.chosen), (row.messages, row.rejected)]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ensemble")
    scores, gates = score_texts(every, tokenizer, texts, 512, 512)
    torch.testing.assert_close(scores[0] - scores[1], torch.from_numpy(fitted.differences[:, 5]), atol=1e-5, rtol=1e-5)
    assert gates.tolist() == [[0.25] * 4] * 2, "the gated score is the members' mean"
    average, ones = score_texts(mean, tokenizer, texts, 512, 512)
    torch.testing.assert_close(average[:, 0], scores.mean(1), atol=1e-5, rtol=1e-5)
    assert ones.tolist() == [[1.0], [1.0]]


def test_a_kept_model_has_the_name_of_the_preference_objective(world: Path, fitted: Fitted, tmp_path: Path) -> None:
    named = configured("rewarder.objectives=[liked]", "rewarder.preference=liked")
    PreferenceWorker(0, named).write_heads(
        str(world / "policy"), fitted.heads, str(tmp_path / "average"), str(tmp_path / "ensemble")
    )
    assert GatedRewardModel.load(tmp_path / "average", "float32").objectives == ("liked",)


def test_what_cannot_be_measured_is_refused(world: Path, tmp_path: Path) -> None:
    few = read_pairs(world / "noisy.jsonl")[:9]
    (tmp_path / "policy").symlink_to(world / "policy")
    write_jsonl(tmp_path / "few.jsonl", [to_fields(row) for row in few])
    with pytest.raises(
        ValueError, match=r"has \d pairs to train on for learner.preferences.members 10; wanted at least 20"
    ):
        fit(tmp_path, configured(), "few.jsonl")
    with pytest.raises(ValueError, match="has 0 pairs to train on"):  # every one is too long
        fit(world, configured(*PLANTED, "rewarder.max_tokens=4"))


def test_pairs_that_no_member_can_tell_apart_are_left_out(world: Path, tmp_path: Path) -> None:
    """Responses of unknown words alone are one and the same to the tokenizer."""
    same = [PreferencePair((Message("user", f"w{at}"),), "unheard", "unknown") for at in range(59)]
    (tmp_path / "policy").symlink_to(world / "policy")
    write_jsonl(tmp_path / "same.jsonl", [to_fields(row) for row in same])
    with pytest.raises(ValueError, match="has 0 pairs to train on"):
        fit(tmp_path, configured(*PLANTED), "same.jsonl")


def test_the_page_has_everything_and_escapes_it(world: Path, fitted: Fitted, tmp_path: Path) -> None:
    found = strengths(world, configured(*PLANTED), fitted)
    weakest = int(np.argmin(found.strength.mean))
    evil = "<script>alert('x')</script> \udcff"
    pairs = list(found.pairs)
    turns = (Message("user", evil), Message("assistant", "<b>"), Message("user", "& more"))
    pairs[weakest] = PreferencePair(turns, evil, "</details><img src=x>")
    page = write_page(tmp_path / "page.html", replace(found, pairs=pairs)).read_text()
    assert "<script" not in page and "<img" not in page and "&lt;script&gt;" in page and "&amp; more" in page
    assert page.count('class="sample"') == 20 and page.count("<svg") == 2
    assert f"{found.share_below_0:.1%}" in page and "did not train on its prompt" in page
    again = write_page(tmp_path / "again.html", replace(found, pairs=pairs)).read_text()
    assert page == again, "same results, same bytes"


def test_members_that_know_nothing_are_warned_of(world: Path, tmp_path: Path) -> None:
    pairs, config = read_pairs(world / "pairs.jsonl"), configured(*PLANTED)
    noise = np.random.default_rng(0).normal(0, 1, (4, len(pairs))).astype(np.float32)
    found = strengths(world, config, Fitted((0, 1, 2, 3), noise, np.zeros((4, 1), np.float32), (), ""))
    (warning,) = found.warnings
    assert (
        "not clearly above chance: these strengths are mostly noise; raise learner.preferences.learning_rate" in warning
    )
    assert warning in write_page(tmp_path / "page.html", found).read_text()
    alone = replace(
        found, settings=replace(found.settings, folds=1), compared={"in sample": found.compared["in sample"]}
    )
    assert "wrong labels too" in write_page(tmp_path / "alone.html", alone).read_text()


def test_rows_keep_the_order_and_say_null_where_no_member_trained(world: Path, fitted: Fitted) -> None:
    found = strengths(world, configured(*PLANTED), fitted)
    lines = list(rows(found))
    assert [line["chosen"] for line in lines] == [row.chosen for row in found.pairs]
    for row, line in zip(found.pairs, lines, strict=True):
        assert (line[IN_SAMPLE_MEAN] is None) == is_held_out(row.messages, 0.1) and isinstance(line[MEAN], float)


# ---- before any model is loaded

STAGES = ["preferences"]
GIVEN = ("stages=[preferences]", "data.preferences=p.jsonl", "rewarder.model=null")


def written(path: str, prompts: Sequence[str]) -> None:
    write_jsonl(path, [to_fields(PreferencePair((Message("user", text),), "w1", "w2")) for text in prompts])


def test_preflight_of_pairs(check: Check) -> None:
    assert "stage preferences needs data.preferences (or stage collect), which is not set" in only(
        check("stages=[preferences]", stages=STAGES)
    )
    written("p.jsonl", [f"word {at}" for at in range(60)])
    report = check(*GIVEN, stages=STAGES)
    assert report.problems == [] and any(line.startswith("preference ") for line in report.plan)
    assert not any(line.startswith("learner") for line in report.plan), "no rank is needed"
    written("p.jsonl", [f"word {at}" for at in range(12)])
    assert only(check(*GIVEN, stages=STAGES)).endswith("give more pairs, or fewer members")
    written("p.jsonl", ["word 1"] * 60)
    problem = only(check(*GIVEN, stages=STAGES))
    assert "has 1 different prompts to train on for learner.preferences.folds 2; wanted at least one a fold" in problem
    assert check(*GIVEN, f"{KEY}folds=1", stages=STAGES).problems == []
    assert "over rewarder.max_tokens 3" in only(check(*GIVEN, f"{KEY}folds=1", "rewarder.max_tokens=3", stages=STAGES))


def test_preflight_of_gpus_and_strengths(check: Check, tmp_path: Path) -> None:
    written("p.jsonl", [f"word {at}" for at in range(60)])
    problem = only(check(*GIVEN, f"{KEY}gpus=1", f"{KEY}workers=2", stages=STAGES))
    assert "2 GPUs wanted (preference 2 x 1)" in problem
    labels = ("data.preferences=p.jsonl", "rewarder.objectives=[a,b]")
    named = (*labels, "stages=[reward_model]", "data.strengths=s.jsonl")
    assert "data.strengths: no such file s.jsonl" in only(check(*named, stages=["reward_model"]))
    (tmp_path / "s.jsonl").write_text((tmp_path / "p.jsonl").read_text())
    assert 'data.strengths: s.jsonl:1: "strength_std" is missing' in check(*named, stages=["reward_model"]).problems[0]
    strong = {"strength_mean": 1.0, "strength_std": 0.5}
    write_jsonl("s.jsonl", [to_fields(row) | strong for row in read_pairs("p.jsonl")])
    assert check(*named, stages=["reward_model"]).problems == []
    write_jsonl("s.jsonl", [to_fields(row) | strong for row in read_pairs("p.jsonl")[1:]])
    assert "data.strengths: s.jsonl has the strengths of other pairs" in only(check(*named, stages=["reward_model"]))


def test_disk_counts_what_is_kept(check: Check) -> None:
    written("p.jsonl", [f"word {at}" for at in range(60)])
    kept = (*GIVEN, f"{KEY}keep_models=true", f"{KEY}train=full", f"{KEY}vary_seed=false")
    plain, members = (next(line for line in check(*how, stages=STAGES).plan if "disk" in line) for how in (GIVEN, kept))
    assert plain != members
