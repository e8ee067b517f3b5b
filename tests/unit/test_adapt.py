"""learner/adapt.py, lora.py and rm_adapter.py on a tiny model in this process: a fit that helps is accepted, one that does
not is discarded, and what is served is never touched."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from common.address import QueueAddress
from common.config import Config
from common.config_file import BASE, load_config
from common.judge import Preference
from common.label_sources import LabelFiles
from common.types import ScoredRecord, SlotDropped
from learner.adapt import Method, fit_lora, logit_scale
from learner.candidates import judged_sets, propose
from learner.evidence import Decision
from learner.lora import LowRank, add_lora, merge_lora
from learner.reward_training import extract_features
from learner.rm_adapter import RmAdapter
from rewarder.calibrate import Calibration, CalibrationReport
from rewarder.model import GatedRewardModel
from rewarder.scoring import collate, render
from tests.unit.adaptation import OBJECTIVES, preference, samples, served_and_judge, write_original

SETTINGS = (
    *("adaptation.when=iteration", "judge.function=a:b", "rewarder.objectives=[good,safe]", "rewarder.dtype=float32"),
    *("aggregation.kind=final_score", "learner.reward_model.held_out_fraction=0.3", "adaptation.learning_rate=2e-2"),
    *(
        "adaptation.fit_pairs=40",
        "adaptation.evidence_pairs=40",
        "adaptation.min_pairs=20",
        "adaptation.steps=40",
        "adaptation.lora_rank=4",
    ),
)

QUICK = ("adaptation.fit_pairs=20", "adaptation.evidence_pairs=20", "adaptation.min_pairs=10")


pytestmark = pytest.mark.usefixtures("single_rank")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The served model in a directory, its original data, the judge and 200 groups of samples."""
    root = tmp_path_factory.mktemp("world")
    served, judge, tokenizer = served_and_judge(root / "policy")
    report = CalibrationReport(0.5, 0.69, 0.2, 0.25, 0.01, 100)
    served.info = dataclasses.replace(served.info, calibration=Calibration((1.0,), (report,)))
    served.save(root / "version_0", tokenizer)
    ratings, pairs = write_original(root, served, judge, tokenizer, 100)
    return {"root": root, "judge": judge, "tokenizer": tokenizer, "ratings": ratings, "pairs": pairs}


class Stream:
    """A scored stream of which the first records are trimmed; also the address that opens it."""

    def __init__(self, records: list[ScoredRecord], trimmed: int = 0):
        self.records = [(f"{i + 1:06d}-0", record) for i, record in enumerate(records)][trimmed:]

    def connect(self) -> Stream:
        return self

    def read_scored(self, cursor: str, max_records: int, block_s: float) -> list[tuple[str, ScoredRecord]]:
        assert block_s == 0, "a tap never waits"
        return [(name, record) for name, record in self.records if name > cursor][:max_records]


def adapter(
    world: dict[str, Any], monkeypatch: pytest.MonkeyPatch, *overrides: str, stream: Stream | None = None
) -> RmAdapter:
    monkeypatch.setattr("learner.rm_adapter.init_single_rank", lambda: None)  # the module's fixture has made it
    made = RmAdapter(load_config(BASE, [*SETTINGS, *overrides]))
    address = cast(QueueAddress, stream or Stream(list(samples(200))))
    made.connect(address, LabelFiles(str(world["ratings"]), str(world["pairs"])))
    return made


def labels(world: dict[str, Any], made: RmAdapter, wrong: bool = False) -> dict[str, Preference]:
    """The judge's labels of what the adapter proposes, or their opposites for the evidence."""
    found: dict[str, Preference] = {}
    for item in made.propose(0, 0):
        found[item.key] = preference(world["judge"], world["tokenizer"], item)
        if wrong and item in made._proposal.evidence:
            found[item.key] = "first" if found[item.key] == "second" else "second"
    return found


def fit(world: dict[str, Any], made: RmAdapter, directory: Path, wrong: bool = False) -> Decision:
    return made.fit(labels(world, made, wrong), str(world["root"] / "version_0"), None, 1, str(directory))


def digests(directory: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(directory.iterdir())}


# ---- a whole round ------------------------------------------------------------------------------------------------------


def test_a_gate_that_learns_the_judges_objective_is_accepted(
    world: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = digests(world["root"] / "version_0")
    made = adapter(world, monkeypatch)
    decision = fit(world, made, tmp_path / "candidate")
    assert decision.accepted, decision.reason
    numbers = cast(dict[str, float], decision.numbers)
    assert numbers["candidate_onpolicy_accuracy"] > numbers["onpolicy_accuracy"] + 0.15
    assert (numbers["fit_pairs"], numbers["evidence_pairs"], numbers["ties"]) == (40, 40, 0)
    assert made.progress().what == "gate" and made.progress().done == 40
    json.dumps(decision.numbers)
    assert digests(world["root"] / "version_0") == before
    served = GatedRewardModel.load(world["root"] / "version_0", "float32").state_dict()
    candidate = GatedRewardModel.load(tmp_path / "candidate", "float32")
    assert candidate.info.rm_version == 1
    assert candidate.info.calibration is not None and candidate.info.calibration.reports[0].nll != 0.5
    changed = {name for name, value in candidate.state_dict().items() if not torch.equal(value, served[name])}
    assert changed and all(name.startswith("gating.") for name in changed)


def test_a_repeated_round_is_the_same_round(
    world: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    decisions = [fit(world, adapter(world, monkeypatch, *QUICK), tmp_path / name) for name in ("one", "two")]
    assert decisions[0] == decisions[1]
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_a_discarded_candidate_leaves_nothing_and_touches_nothing(
    world: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = digests(world["root"] / "version_0")
    decision = fit(world, adapter(world, monkeypatch, *QUICK), tmp_path / "candidate", wrong=True)
    assert not decision.accepted and "not shown to be better" in decision.reason
    assert not (tmp_path / "candidate").exists()
    assert digests(world["root"] / "version_0") == before


def test_the_lora_tier_is_held_to_the_ratings(
    world: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lora = ("adaptation.tier=lora", "adaptation.steps=5", "adaptation.batch_pairs=16")
    decision = fit(world, adapter(world, monkeypatch, *lora), tmp_path / "held")
    assert {"r2/good", "candidate_r2/good", "r2/safe"} <= set(decision.numbers)
    assert decision.numbers["r2/good"] != decision.numbers["candidate_r2/good"]
    free = (*lora, "adaptation.replay_weight=0", "adaptation.steps=20", "adaptation.level=1")
    decision = fit(world, adapter(world, monkeypatch, *free), tmp_path / "free")
    assert not decision.accepted and "on held-out ratings falls by" in decision.reason


def test_too_few_labels_fit_nothing(world: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = adapter(world, monkeypatch, stream=Stream(list(samples(20))))
    decision = fit(world, made, tmp_path / "candidate")
    assert not decision.accepted and "of evidence, 1 and 20 wanted" in decision.reason
    assert made.progress().what == ""


def test_ties_are_no_evidence(world: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = adapter(world, monkeypatch)
    ties: dict[str, Preference] = {item.key: "tie" for item in made.propose(0, 0)}
    decision = made.fit(ties, str(world["root"] / "version_0"), None, 1, str(tmp_path / "candidate"))
    assert not decision.accepted and decision.numbers["ties"] == 80


# ---- the tap ------------------------------------------------------------------------------------------------------------


def test_the_tap_reads_what_is_there_of_this_iteration(world: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    groups = samples(200)
    records: list[ScoredRecord] = [*groups[:150], SlotDropped(150, "too long"), *groups[151:], groups[160]]
    made = adapter(world, monkeypatch, stream=Stream(records, trimmed=50))
    prompts = {scored.group.prompt.messages: scored.group.slot for scored in groups}
    slots = {prompts[item.messages] for item in made.propose(0, 100)}
    assert slots and min(slots) >= 100 and 150 not in slots
    assert made.propose(0, 100) == made.propose(0, 100), "asked again, it answers the same"
    assert made.propose(1, 200) == []


def test_the_tap_keeps_a_bounded_number_of_groups(world: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    made = adapter(
        world, monkeypatch, "adaptation.fit_pairs=10", "adaptation.evidence_pairs=10", "adaptation.min_pairs=5"
    )
    made.propose(0, 0)
    assert sorted(made._groups) == list(range(120, 200))


# ---- parts --------------------------------------------------------------------------------------------------------------


def test_low_rank_updates_start_at_nothing_and_merge_into_plain_layers(tmp_path: Path) -> None:
    model, _, tokenizer = served_and_judge(tmp_path)
    batch = collate([render(tokenizer, samples(1)[0].group.prompt.messages, "w1 w2 w3")])
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
    model(*collate([render(tokenizer, samples(1)[0].group.prompt.messages, "w1")])).scores.sum().backward()
    merge_lora(model.backbone)
    assert {parameter.dtype for parameter in model.backbone.parameters()} == {torch.bfloat16}


def test_a_backbone_without_projections_is_refused() -> None:
    with pytest.raises(ValueError, match="use adaptation.tier: gate"):
        add_lora(torch.nn.Sequential(torch.nn.Linear(2, 2)), 2, seed=0)


def test_the_lora_fit_lowers_its_loss_and_leaves_the_heads(tmp_path: Path) -> None:
    served, judge, tokenizer = served_and_judge(tmp_path)
    items = propose(samples(60), 30, 30, 0.1, seed=0).items
    sets = judged_sets(
        items, {item.key: preference(judge, tokenizer, item) for item in items}, OBJECTIVES, tokenizer, 50
    )
    model, seen = copy.deepcopy(served), []
    settings = config("adaptation.steps=12", "adaptation.batch_pairs=32").adaptation
    fit_lora(model, sets, sets[:4], Method(settings, 10.0, None, 400, 0), 1.0, lambda *values: seen.append(values[3]))
    assert seen[-1]["preference"] < 0.8 * seen[0]["preference"]
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, served.state_dict()[n])}
    assert all("self_attn" in name or name.startswith("gating.") for name in changed)
    assert any("self_attn.q_proj.weight" in name for name in changed)
    twice = copy.deepcopy(served)
    method = Method(settings, 10.0, None, 400, 0, gradient_checkpointing=True)
    fit_lora(twice, sets, sets[:4], method, 1.0, lambda *_: None)
    assert not twice.backbone.training
    for name, value in twice.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], msg=name, atol=1e-5, rtol=1e-4)


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


def config(*overrides: str) -> Config:
    return load_config(BASE, [*SETTINGS, *overrides])
