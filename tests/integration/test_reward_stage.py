"""Stage reward_model by gradient, with DeepSpeed: all weights or low-rank updates, with the Bradley-Terry baseline beside the
gated model, on one rank and on two, at ZeRO 0, 1 and 2. One process (or two) does all jobs; what they wrote is compared here.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from learner.ranks.engine import init_process_group
from learner.reward_model.held_out import baseline_report, held_out_report
from learner.reward_model.training import extract_features
from rewarder.bradley_terry import load_classifier, new_scalar_model
from rewarder.model import GatedRewardModel
from tests.integration.planted import accuracy, configured, planted_world, run_stage, sides
from tests.integration.ranks import SAME, relative_difference, start

TRAINING = "learner.reward_model."
RANK = 3
LORA = (f"{TRAINING}lora_rank={RANK}", f"{TRAINING}learning_rate=1e-2")
SWAV = (f"{TRAINING}contrastive.kind=swav", f"{TRAINING}contrastive.prototypes=5", f"{TRAINING}contrastive.dropout=0")
FAST = (f"{TRAINING}learning_rate=2e-3", "learner.autocast=true")
PATIENT = (f"{TRAINING}patience=1", f"{TRAINING}epochs=12", f"{TRAINING}validation_fraction=0.2")
PROJECTIONS = tuple(f"{name}_proj.weight" for name in "qkvo")
# name: (ranks, whether with a baseline, overrides)
JOBS: dict[str, tuple[int, bool, tuple[str, ...]]] = {
    "plain": (1, True, ()),
    "alone": (1, False, ()),
    "rated_otherwise": (1, True, (f"{TRAINING}regression_weight=50", f"{TRAINING}initial_scale=7")),
    "zero_1": (1, True, ("learner.zero_stage=1",)),
    "lora": (1, True, LORA),
    "lora_autocast": (1, True, (*LORA, "learner.autocast=true")),
    "lora_bfloat16": (1, True, (*LORA, "rewarder.dtype=bfloat16", "learner.autocast=true", "learner.zero_stage=2")),
    "swav": (1, True, SWAV),
    "fast": (1, True, FAST),
    "simcse": (1, True, (*FAST, f"{TRAINING}contrastive.kind=simcse")),
    "patient": (1, True, PATIENT),
    "patient_again": (1, False, PATIENT),
    "two_patient": (2, True, (*PATIENT, "learner.zero_stage=2")),
    "two_swav": (2, True, (*SWAV, "learner.zero_stage=2")),
    "two_lora": (2, True, (*LORA, "learner.zero_stage=2")),
    "two_zero_0": (2, True, ()),
    "two_zero_2": (2, True, ("learner.zero_stage=2",)),
}

pytestmark = pytest.mark.timeout(1200)


def work(rank: int, ranks: int, port: int, root: str) -> None:
    """All jobs of so many ranks, in one process group."""
    torch.set_num_threads(1)
    init_process_group(rank, ranks, "127.0.0.1", port, gpus=0)
    for name, (wanted, baseline, overrides) in JOBS.items():
        if wanted == ranks:
            report = run_stage(Path(root), Path(root) / name, configured(*overrides), baseline, rank)
            (Path(root) / f"{name}.{rank}.json").write_text(json.dumps(report))
            (Path(root) / f"{name}.{rank}.read.json").write_text(json.dumps(as_read(Path(root), name, rank)))
    dist.destroy_process_group()


def as_read(root: Path, job: str, rank: int) -> dict[str, float]:
    """The held-out numbers of what the job wrote, loaded again."""
    cpu, unseen, dtype = torch.device("cpu"), sides(root)[1], configured(*JOBS[job][2]).rewarder.dtype
    gated = GatedRewardModel.load(root / job / "version_0", dtype)
    found = held_out_report(gated, extract_features(gated, unseen, 512, rank, cpu), None)
    if (root / job / "baseline").exists():
        plain = load_classifier(root / job / "baseline", dtype)
        found |= baseline_report(plain, extract_features(plain, unseen, 512, rank, cpu))
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Policy, ratings and pairs, and in a directory of its own what each job wrote."""
    root = tmp_path_factory.mktemp("world")
    planted_world(root)
    for ranks in (1, 2):
        start(work, ranks, str(root))
    return root


def report(world: Path, job: str, rank: int = 0) -> dict[str, float]:
    return json.loads((world / f"{job}.{rank}.json").read_text())


def weights(world: Path, job: str, model: str) -> dict[str, torch.Tensor]:
    return load_file(world / job / model / "model.safetensors")


def policy_weights(world: Path) -> dict[str, torch.Tensor]:
    return load_file(world / "policy" / "model.safetensors")


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_the_baseline_learns_the_planted_preference(world: Path) -> None:
    said, unseen = report(world, "plain"), sides(world)[1]
    trained, start = load_classifier(world / "plain" / "baseline", "float32"), new_scalar_model(world / "policy", 0)
    assert accuracy(trained, unseen) == pytest.approx(said["rm/pair_accuracy_baseline"])
    assert 0.6 < said["rm/pair_accuracy_baseline_low"] < said["rm/pair_accuracy_baseline_high"]
    assert accuracy(trained, unseen) > accuracy(start, unseen) + 0.1
    moved = trained.backbone.state_dict()
    assert not any(
        torch.equal(value, moved[name]) for name, value in start.backbone.named_parameters() if "proj" in name
    )


def test_the_gated_model_is_bit_for_bit_the_same_without_it(world: Path) -> None:
    assert not (world / "alone" / "baseline").exists()
    assert_equal(weights(world, "alone", "version_0"), weights(world, "plain", "version_0"))
    with_it = report(world, "plain")
    assert report(world, "alone") == {name: value for name, value in with_it.items() if "baseline" not in name}
    assert (world / "alone/version_0/config.json").read_text() == (world / "plain/version_0/config.json").read_text()


def test_what_only_the_gated_model_has_does_not_touch_it(world: Path) -> None:
    """No regression term and no gate: with others of both the baseline is the same, bit for bit."""
    assert_equal(weights(world, "rated_otherwise", "baseline"), weights(world, "plain", "baseline"))
    ours, theirs = (weights(world, job, "version_0") for job in ("rated_otherwise", "plain"))
    assert not any(torch.equal(ours[name], theirs[name]) for name in ours if "proj" in name)


@pytest.mark.parametrize(
    ("job", "same"),
    [
        ("zero_1", "plain"),
        ("two_zero_0", "plain"),
        ("two_zero_2", "plain"),
        ("two_lora", "lora"),
        ("two_swav", "swav"),
        ("two_patient", "patient"),
    ],
)
@pytest.mark.parametrize("model", ["version_0", "baseline"])
def test_ranks_and_zero_stages_make_the_same_models(world: Path, job: str, same: str, model: str) -> None:
    ours, theirs, policy = *(weights(world, name, model) for name in (job, same)), policy_weights(world)
    start = {name: policy.get(name, torch.zeros_like(value)) for name, value in theirs.items()}  # heads have no start
    assert relative_difference(ours, theirs, start) < SAME


@pytest.mark.parametrize("job", ["lora", "lora_autocast", "lora_bfloat16", "two_lora"])
@pytest.mark.parametrize("model", ["version_0", "baseline"])
def test_low_rank_updates_move_the_projections_by_their_rank_and_nothing_else(
    world: Path, job: str, model: str
) -> None:
    dtype = torch.bfloat16 if job == "lora_bfloat16" else torch.float32
    before, after = policy_weights(world), weights(world, job, model)
    backbone = {name for name in after if name.startswith("model.")}
    assert backbone == {name for name in before if name.startswith("model.")}, "a plain directory"
    projections = {name for name in backbone if name.endswith(PROJECTIONS)}
    assert len(projections) == 4 * 2
    assert all(after[name].dtype == dtype for name in backbone)
    assert [name for name in backbone - projections if not torch.equal(after[name], before[name].to(dtype))] == []
    for name in projections:
        moved = (after[name].double() - before[name].to(dtype).double()).abs()
        assert moved.max() > 1e-3, name
        if dtype == torch.float32:  # else rounding fills the matrix
            sizes = torch.linalg.svdvals(after[name].double() - before[name].double())
            assert sizes[RANK] < 1e-4 * sizes[RANK - 1], (name, sizes)


def test_a_fit_that_stops_by_its_held_out_loss_repeats_and_differs_from_one_by_epochs(world: Path) -> None:
    ours = weights(world, "patient", "version_0")
    assert_equal(weights(world, "patient_again", "version_0"), ours)
    assert not any(
        torch.equal(ours[name], weights(world, "plain", "version_0")[name]) for name in ours if "proj" in name
    )
    assert report(world, "patient")["rm/pair_accuracy_low"] > 0.5


def test_low_rank_updates_learn(world: Path) -> None:
    for job in ("lora", "lora_autocast", "lora_bfloat16"):
        said = report(world, job)
        assert said["rm/pair_accuracy_baseline_low"] > 0.5 and said["rm/pair_accuracy_low"] > 0.5, (job, said)


@pytest.mark.parametrize("job", list(JOBS))
def test_what_is_loaded_scores_as_what_was_trained(world: Path, job: str) -> None:
    said, read = report(world, job), json.loads((world / f"{job}.0.read.json").read_text())
    assert set(read) > {"rm/pair_accuracy", "rm/r2/good"}
    assert {name: said[name] for name in read} == read


def test_all_ranks_say_the_same(world: Path) -> None:
    for job in ("two_zero_2", "two_lora"):
        assert report(world, job, 0) == report(world, job, 1)


def test_a_contrastive_term_changes_what_is_learned_and_it_still_learns(world: Path) -> None:
    for job, without in (("swav", "plain"), ("simcse", "fast")):
        said = report(world, job)
        assert said["rm/pair_accuracy_low"] > 0.5 and said["rm/pair_accuracy_baseline_low"] > 0.5, (job, said)
        ours, plain = (weights(world, name, "version_0") for name in (job, without))
        assert not any(torch.equal(ours[name], plain[name]) for name in ours if "proj" in name)
