"""learner/adaptation/round.py, lora.py and rm_adapter.py on a tiny model in this process: a fit that helps is accepted, one
that does not is discarded, and what is served is never touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from common.judge import Preference
from common.types import ScoredRecord, SlotDropped
from learner.adaptation.candidates import judged_sets, propose
from learner.adaptation.round import logit_scale
from learner.adaptation.worker import Round
from learner.reward_model.lora import LowRank, add_lora, merge_lora
from learner.reward_model.training import extract_features
from rewarder.model import GatedRewardModel
from rewarder.scoring import pad_conversations, render
from tests.unit.adaptation import (
    OBJECTIVES,
    Stream,
    adapter,
    digests,
    fit,
    labels,
    make_world,
    preference,
    samples,
    served_and_judge,
    versions,
)

QUICK = ("adaptation.fit_pairs=20", "adaptation.evidence_pairs=20", "adaptation.min_pairs=10")

pytestmark = pytest.mark.usefixtures("single_rank")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_world(tmp_path_factory.mktemp("world"))


# ---- a whole round ------------------------------------------------------------------------------------------------------


def test_a_gate_that_learns_the_judges_objective_is_accepted(world: dict[str, Any], tmp_path: Path) -> None:
    before = digests(world["root"] / "version_0")
    made = adapter(world)
    decision = fit(world, made, tmp_path / "candidate")
    assert decision.accepted, decision.reason
    numbers = cast(dict[str, float], decision.numbers)
    assert numbers["candidate_onpolicy_accuracy"] > numbers["onpolicy_accuracy"] + 0.15
    assert (numbers["fit_pairs"], numbers["evidence_pairs"], numbers["ties"]) == (40, 40, 0)
    assert made.progress().what == "gate, labelled" and made.progress().done == 40
    json.dumps(decision.numbers)
    assert digests(world["root"] / "version_0") == before
    served = GatedRewardModel.load(world["root"] / "version_0", "float32").state_dict()
    candidate = GatedRewardModel.load(tmp_path / "candidate", "float32")
    assert candidate.info.rm_version == 1
    assert candidate.info.calibration is not None and candidate.info.calibration.reports[0].nll != 0.5
    changed = {name for name, value in candidate.state_dict().items() if not torch.equal(value, served[name])}
    assert changed and all(name.startswith("gating.") for name in changed)


def test_a_repeated_round_is_the_same_round(world: dict[str, Any], tmp_path: Path) -> None:
    decisions = [fit(world, adapter(world, *QUICK), tmp_path / name) for name in ("one", "two")]
    assert decisions[0] == decisions[1]
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


@pytest.mark.parametrize("method", ["labelled", "literal", "no_restore"])
@pytest.mark.parametrize("tier", ["gate", "heads"])
def test_a_discarded_candidate_leaves_nothing_and_touches_nothing(
    world: dict[str, Any], tmp_path: Path, tier: str, method: str
) -> None:
    before = digests(world["root"])
    small = ("adaptation.steps=10", "adaptation.meta.size=0.05")
    made = adapter(world, *QUICK, f"adaptation.tier={tier}", f"adaptation.method={method}", *small)
    decision = fit(world, made, tmp_path / "candidate", wrong=True)
    assert not decision.accepted and "not shown to be better" in decision.reason
    assert list(tmp_path.iterdir()) == [] and digests(world["root"]) == before


METHODS = ("none", "literal", "joint", "look_ahead", "no_restore", "pseudo_label")
OPEN_DOOR = ("adaptation.level=1", "adaptation.guard_accuracy=1", "adaptation.guard_r2=1", "adaptation.confidence=0.5")
SMALL = (
    "adaptation.steps=5",
    "adaptation.learning_rate=1e-3",
    "adaptation.meta.prompts=6",
    "adaptation.meta.size=0.005",
)


@pytest.mark.parametrize("tier", ["gate", "heads"])
@pytest.mark.parametrize(
    ("method", "second_order"),
    [*((method, "none") for method in METHODS), ("literal", "exact"), ("look_ahead", "exact")],
)
def test_every_method_runs_a_round_and_writes_its_version(
    world: dict[str, Any], tmp_path: Path, method: str, second_order: str, tier: str
) -> None:
    chosen = f"adaptation.method={method}", f"adaptation.meta.second_order={second_order}", f"adaptation.tier={tier}"
    made = adapter(world, *QUICK, *OPEN_DOOR, *SMALL, *chosen)
    decision = fit(world, made, tmp_path / "candidate")
    assert decision.accepted, decision.reason
    numbers = cast(dict[str, float], decision.numbers)
    least, most = 0.375, 0.75  # of J with 4 samples: 2 / 16 for each of 6 pairs, times a sigmoid above 1/2
    assert least <= numbers["difference_loss"] < most and least <= numbers["candidate_difference_loss"] < most
    assert numbers["difference_loss"] != numbers["candidate_difference_loss"]
    assert (numbers["fitted_pairs"] > 0) == (method == "pseudo_label")
    assert made.progress().what == f"{tier}, {method}"
    served = GatedRewardModel.load(world["root"] / "version_0", "float32").state_dict()
    written = GatedRewardModel.load(tmp_path / "candidate", "float32").state_dict()
    changed = {name.split(".")[0] for name, value in written.items() if not torch.equal(value, served[name])}
    assert changed == ({"gating"} if tier == "gate" else {"gating", "regression_layer"})


def test_a_model_that_is_sure_of_nothing_labels_nothing(world: dict[str, Any], tmp_path: Path) -> None:
    made = adapter(world, *QUICK, *OPEN_DOOR, "adaptation.method=pseudo_label", "adaptation.confidence=1")
    decision = fit(world, made, tmp_path / "candidate")
    assert not decision.accepted and decision.reason == "no pair is labelled with a confidence of 1"


def test_too_few_labels_fit_nothing(world: dict[str, Any], tmp_path: Path) -> None:
    made = adapter(world, stream=Stream(list(samples(20))))
    decision = fit(world, made, tmp_path / "candidate")
    assert not decision.accepted and "of evidence, 1 and 20 wanted" in decision.reason
    assert made.progress().what == ""


def test_ties_are_no_evidence(world: dict[str, Any], tmp_path: Path) -> None:
    made = adapter(world)
    proposal = made.propose(0, 0)
    ties: dict[str, Preference] = {item.key: "tie" for item in proposal.items}
    decision = made.fit(Round(0, proposal, ties), versions(world, tmp_path / "candidate"))
    assert not decision.accepted and decision.numbers["ties"] == 80


def test_labelled_pairs_of_earlier_rounds_are_fitted_on_too(world: dict[str, Any], tmp_path: Path) -> None:
    made = adapter(world)
    proposal, newer = made.propose(0, 0), made.propose_from(1, list(samples(200))[:100])
    assert newer.fit and not {item.key for item in newer.fit} & {item.key for item in proposal.fit}
    ties: dict[str, Preference] = {item.key: "tie" for item in newer.fit}
    said = labels(world, proposal) | labels(world, newer) | ties
    alone = made.fit(Round(1, newer, said), versions(world, tmp_path / "alone"))
    assert alone.reason.startswith("0 labelled prompts to fit") and alone.numbers["earlier_pairs"] == 0
    both = made.fit(Round(1, newer, said, None, proposal.fit), versions(world, tmp_path / "both"))
    assert both.accepted, both.reason
    numbers = both.numbers
    assert (numbers["earlier_pairs"], numbers["fit_pairs"]) == (40, 40)
    assert (numbers["judged_pairs"], numbers["ties"]) == (len(newer.items), len(newer.fit)), "of this round alone"


# ---- the tap ------------------------------------------------------------------------------------------------------------


def test_the_tap_reads_what_is_there_of_this_iteration(world: dict[str, Any]) -> None:
    groups = samples(200)
    records: list[ScoredRecord] = [*groups[:150], SlotDropped(150, "too long"), *groups[151:], groups[160]]
    made = adapter(world, stream=Stream(records, trimmed=50))
    prompts = {scored.group.prompt.messages: scored.group.slot for scored in groups}
    slots = {prompts[item.messages] for item in made.propose(0, 100).items}
    assert slots and min(slots) >= 100 and 150 not in slots
    assert made.propose(0, 100) == made.propose(0, 100), "asked again, it answers the same"
    assert made.propose(1, 200).items == []


def test_the_tap_keeps_a_bounded_number_of_groups(world: dict[str, Any]) -> None:
    made = adapter(world, "adaptation.fit_pairs=10", "adaptation.evidence_pairs=10", "adaptation.min_pairs=5")
    made.propose(0, 0)
    assert sorted(made._groups) == list(range(120, 200))


# ---- parts --------------------------------------------------------------------------------------------------------------


def test_low_rank_updates_start_at_nothing_and_merge_into_plain_layers(tmp_path: Path) -> None:
    model, _, tokenizer = served_and_judge(tmp_path)
    batch = pad_conversations([render(tokenizer, samples(1)[0].group.prompt.messages, "w1 w2 w3")])
    before, names = model(*batch).scores, set(model.state_dict())
    parameters = add_lora(model.backbone, 2, seed=0)
    assert torch.equal(model(*batch).scores, before)
    assert len(parameters) == 2 * 4 * 2  # down and up, four projections, two layers
    for parameter in parameters:
        parameter.data.normal_(0, 0.1)
    updated = model(*batch).scores
    assert not torch.allclose(updated, before)
    merge_lora(model.backbone)
    torch.testing.assert_close(model(*batch).scores, updated, atol=1e-5, rtol=1e-5)
    assert set(model.state_dict()) == names and not any(isinstance(m, LowRank) for m in model.modules())


def test_low_rank_updates_of_a_bfloat16_backbone_keep_its_dtype(tmp_path: Path) -> None:
    model, _, tokenizer = served_and_judge(tmp_path)
    model.backbone = cast(Any, model.backbone).to(torch.bfloat16)
    add_lora(model.backbone, 2, seed=0)
    model(*pad_conversations([render(tokenizer, samples(1)[0].group.prompt.messages, "w1")])).scores.sum().backward()
    merge_lora(model.backbone)
    assert {parameter.dtype for parameter in model.backbone.parameters()} == {torch.bfloat16}


def test_a_backbone_without_projections_is_refused() -> None:
    with pytest.raises(ValueError, match="use adaptation.tier: gate"):
        add_lora(torch.nn.Sequential(torch.nn.Linear(2, 2)), 2, seed=0)


@pytest.mark.parametrize("factor", [0.01, 1.0])
def test_the_scale_follows_the_scores(tmp_path: Path, factor: float) -> None:
    """Scores that differ by hundredths, as those of released models, are brought to the same logits."""
    served, _, tokenizer = served_and_judge(tmp_path)
    items = propose(samples(60), 30, 30, 0.1, seed=0).items
    said: dict[str, Preference] = {item.key: preference(served, tokenizer, item) for item in items}
    for item in items[::3]:
        said[item.key] = "first" if said[item.key] == "second" else "second"
    sets = judged_sets(items, said, OBJECTIVES, tokenizer, 50)
    whole = logit_scale(served, extract_features(served, sets, 4096, 0, served.device))
    served.regression_layer.weight.data *= factor
    scaled = logit_scale(served, extract_features(served, sets, 4096, 0, served.device))
    assert whole is not None and scaled == pytest.approx(factor * whole, rel=1e-3)
    served.regression_layer.weight.data *= -1
    assert logit_scale(served, extract_features(served, sets, 4096, 0, served.device)) is None
