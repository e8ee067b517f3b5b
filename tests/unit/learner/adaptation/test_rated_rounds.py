"""Rounds on ratings (adaptation.labels), with earlier rounds drawn apart and an end by a held-out loss, on cached states and a
tiny model in this process. The judge's ratings are those of another head on the same hidden states."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from common.ratings import RateItem, Rating
from learner.adaptation.cached_landscape import CachedLandscape, FitFeatures
from learner.adaptation.candidates import Proposal, fresh_groups, is_evidence, judged_sets, propose
from learner.adaptation.evidence import Decision
from learner.adaptation.fit import Method, fit_candidate
from learner.adaptation.worker import RmAdapter, Round
from learner.reward_model.training import Features, extract_features
from rewarder.model import GatedRewardModel
from rewarder.scoring import pad_conversations, render
from tests.unit.adaptation import OBJECTIVES, adapter, config, labels, make_world, samples, versions

HEADS = ("adaptation.tier=heads", "adaptation.level=1", "adaptation.guard_accuracy=1", "adaptation.guard_r2=1")
RATED = (*HEADS, "adaptation.labels=ratings", "adaptation.fit_ratings=160", "adaptation.evidence_ratings=160")

pytestmark = pytest.mark.usefixtures("single_rank")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_world(tmp_path_factory.mktemp("world"))


def ratings_of(world: dict[str, Any], items: list[RateItem]) -> dict[str, Rating]:
    """By a head of another direction, spread over [0, 1]."""
    model = GatedRewardModel.load(world["root"] / "version_0", "float32")
    with torch.no_grad():
        states = torch.cat(
            [
                model(*pad_conversations([render(world["tokenizer"], i.messages, i.response)])).response_state
                for i in items
            ]
        )
    weight = torch.randn(states.shape[1], len(OBJECTIVES), generator=torch.Generator().manual_seed(9))
    raw = states @ weight
    scaled = (0.5 + 0.2 * (raw - raw.mean(0)) / raw.std(0)).clamp(0, 1)
    rows = [dict(zip(OBJECTIVES, row, strict=True)) for row in scaled.tolist()]
    return {item.key: Rating(row) for item, row in zip(items, rows, strict=True)}


def rated_round(world: dict[str, Any], made: RmAdapter, directory: Path) -> tuple[Proposal, Decision]:
    proposal = made.propose(0, 0)
    chosen = Round(0, proposal, labels(world, proposal), ratings=ratings_of(world, proposal.rated))
    return proposal, made.fit(chosen, versions(world, directory))


def test_what_is_rated_is_every_response_of_both_sides_and_no_more_than_asked(world: dict[str, Any]) -> None:
    groups = samples(60)
    all_of_them = propose(groups, 0, 20, 0.3, 0, None, 10**6, 10**6)
    assert all_of_them.fit == () and len(all_of_them.evidence) == 20
    sides = {False: all_of_them.fit_ratings, True: all_of_them.evidence_ratings}
    for side, items in sides.items():
        assert items and all(is_evidence(item.messages, 0.3) is side for item in items)
    texts = {(item.messages, item.response) for items in sides.values() for item in items}
    different = {
        (scored.group.prompt.messages, rollout.response) for scored in groups for rollout in scored.group.rollouts
    }
    assert texts == different and len(texts) == len(all_of_them.rated)
    few = propose(groups, 0, 20, 0.3, 0, None, 7, 5)
    assert (len(few.fit_ratings), len(few.evidence_ratings)) == (7, 5)
    assert len({item.messages for item in few.fit_ratings}) == 7, "one of each of the newest prompts first"


def test_fresh_are_the_groups_of_the_newest_policy_versions() -> None:
    groups = samples(40)  # slot // 4 is the version
    assert [scored.group.slot for scored in fresh_groups(groups, 2)] == list(range(32, 40))
    assert fresh_groups(groups, None) == groups and fresh_groups([], 3) == []


def test_ratings_repair_a_head_and_the_decision_says_which(world: dict[str, Any], tmp_path: Path) -> None:
    made = adapter(world, *RATED, "adaptation.steps=150")
    proposal, decision = rated_round(world, made, tmp_path / "candidate")
    assert proposal.fit == () and len(proposal.fit_ratings) == 160
    numbers = cast(dict[str, float], decision.numbers)
    assert (numbers["rated_responses"], numbers["unrated_responses"], numbers["fit_pairs"]) == (320, 0, 0)
    for name in OBJECTIVES:
        assert numbers[f"candidate_correlation/{name}"] > numbers[f"correlation_high/{name}"], decision.numbers
        assert numbers[f"candidate_onpolicy_r2/{name}"] > numbers[f"onpolicy_r2/{name}"]
        assert numbers[f"correlation_low/{name}"] < numbers[f"correlation/{name}"] < numbers[f"correlation_high/{name}"]


def test_pairs_alone_leave_ratings_out_and_both_have_both(world: dict[str, Any]) -> None:
    alone = adapter(world, *HEADS).propose(0, 0)
    assert alone.rated == [] and alone.fit
    both = adapter(world, *RATED, "adaptation.labels=both").propose(0, 0)
    assert both.fit == alone.fit and len(both.fit_ratings) == 160
    sets = judged_sets([*both.fit], labels(world, both), OBJECTIVES, world["tokenizer"], 50, both.fit_ratings, {})
    assert not any(prompt.is_rated for prompt in sets), "what nobody has rated is left out"


def test_a_fit_ends_by_the_labels_that_are_left_out_and_repeats(world: dict[str, Any], tmp_path: Path) -> None:
    stop = (
        "adaptation.steps=600",
        "adaptation.patience=1",
        "adaptation.check_every=5",
        "adaptation.learning_rate=5e-2",
    )
    made = adapter(world, *RATED, *stop, "adaptation.validation_fraction=0.2")
    _, decision = rated_round(world, made, tmp_path / "one")
    assert 10 <= made.progress().done < 600 and made.progress().done % 5 == 0
    assert 5 < cast(float, decision.numbers["validation_prompts"]) < 40
    again = rated_round(world, adapter(world, *RATED, *stop, "adaptation.validation_fraction=0.2"), tmp_path / "two")[1]
    assert again == decision


def test_no_label_to_look_at_refuses_the_round(world: dict[str, Any], tmp_path: Path) -> None:
    made = adapter(
        world, *HEADS, "adaptation.fit_pairs=1", "adaptation.patience=1", "adaptation.validation_fraction=0.01"
    )
    proposal = made.propose(0, 0)
    decision = made.fit(Round(0, proposal, labels(world, proposal)), versions(world, tmp_path / "candidate"))
    assert not decision.accepted and "adaptation.patience could end it" in decision.reason


# ---- batches ------------------------------------------------------------------------------------------------------------


def states_of(
    world: dict[str, Any], model: GatedRewardModel, first: int, rated: bool = True, pairs: int = 6
) -> Features:
    proposal = propose(samples(60, seed=first), pairs, 0, 0.3, first, None, 12, 0)
    said, ratings = labels(world, proposal), ratings_of(world, proposal.rated) if rated else {}
    sets = judged_sets(proposal.fit, said, OBJECTIVES, world["tokenizer"], 50, proposal.fit_ratings, ratings)
    return extract_features(model, sets, 1000, 0, torch.device("cpu"))


def value(model: GatedRewardModel, sets: FitFeatures, *overrides: str) -> float:
    settings = config("adaptation.tier=heads", "adaptation.replay_weight=0.5", *overrides).adaptation
    made = CachedLandscape(model, sets, Method(settings, 3.0, None, 100, 0), 2.0)
    made.draw()
    return made.gradient("pairs")[0]


def test_older_labels_have_their_share_beside_the_fresh_ones(world: dict[str, Any]) -> None:
    model = GatedRewardModel.load(world["root"] / "version_0", "float32")
    fresh, older, original = (states_of(world, model, seed) for seed in (1, 2, 3))
    shares = ("adaptation.fit_rounds=9", "adaptation.batch_pairs=12", "adaptation.batch_older=4")
    alone = {name: value(model, FitFeatures(part, original, None)) for name, part in (("f", fresh), ("o", older))}
    replay = value(model, FitFeatures(None, original, None))
    found = value(model, FitFeatures(fresh, original, None, older), *shares)
    by_hand = 0.75 * (alone["f"] - 0.5 * replay) + 0.25 * (alone["o"] - 0.5 * replay) + 0.5 * replay
    assert found == pytest.approx(by_hand, rel=1e-5)


def test_ratings_without_pairs_are_a_loss_of_their_own(world: dict[str, Any]) -> None:
    model = GatedRewardModel.load(world["root"] / "version_0", "float32")
    fresh, original = states_of(world, model, 1, pairs=0), states_of(world, model, 3)
    assert len(fresh.pairs) == 0
    settings = config("adaptation.tier=heads", "adaptation.steps=30").adaptation
    sets = FitFeatures(fresh, original, None, None, fresh)
    made = CachedLandscape(model, sets, Method(settings, 3.0, None, 100, 0), 2.0)
    before = made.held_out()
    fit_candidate(made, settings, lambda *_: None)
    assert made.held_out() < before
