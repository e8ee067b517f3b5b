"""driver/rounds/reward_models.py with fake roles: what a round writes, what serves after it, and a round that is done
again. The real roles are in tests/e2e/test_adaptation.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.config.file import BASE, load_config
from common.data.label_sources import LabelFiles
from common.judge import JudgeItem, PairItem, pair_item
from common.types import Message
from driver.cluster.cluster import Cluster
from driver.cluster.doors import Adapters, Rewarders
from driver.record import checkpoint
from driver.record.loop_state import LoopState, RoundState, read_loop_state
from driver.rounds.reward_models import RewardModels, served_model
from learner.adaptation.candidates import Proposal
from learner.adaptation.evidence import Decision
from learner.adaptation.worker import Round, Versions
from tests.unit.driver.fake_groups import group_of, without_references

ASKED: list[str] = []
NUMBERS: dict[str, float | None] = {"onpolicy_accuracy": 0.5, "candidate_onpolicy_accuracy": 0.7, "p_value": 0.01}
YES, NO = Decision(True, "better", NUMBERS), Decision(False, "not shown to be better", NUMBERS)


def gold(item: JudgeItem) -> dict[str, float]:
    ASKED.append(item.response)
    return {"gold": float(len(item.response))}


class FakeRewarders(Rewarders):
    """One rewarder, whose versions are counted from `version` on; `verbs` is what it was asked, in order."""

    def __init__(self, verbs: list[str], version: int):
        super().__init__(group_of(1))
        self.verbs, self.loaded, self._version = verbs, list[tuple[str, str | None]](), version

    def load(self, directory: str, revision: str | None) -> int:
        self.verbs.append("load")
        self.loaded.append((directory, revision))
        name = Path(directory).name
        return int(name.removeprefix("version_")) if name.startswith("version_") else self._version

    def pause(self) -> None:
        self.verbs.append("pause")

    def resume(self) -> None:
        self.verbs.append("resume")


class FakeAdapters(Adapters):
    """One adapter that decides as told, or none where nothing is decided."""

    def __init__(self, decisions: Sequence[Decision]):
        super().__init__(group_of(1 if decisions else 0))
        self.decisions, self.fits = list(decisions), list[Versions]()

    def propose(self, number: int, first_slot: int) -> Proposal:
        return Proposal((), tuple(pair(f"prompt {n} of {number}") for n in range(3)), 0)

    def fit(self, chosen: Round, versions: Versions) -> Decision:
        self.fits.append(versions)
        decision = self.decisions.pop(0)
        if decision.accepted:
            Path(versions.directory).mkdir(parents=True)
            (Path(versions.directory) / "config.json").write_text(f'{{"rm_version": {versions.version}}}')
        return decision


class Roles:
    """A rewarder and, if the reward model is adapted, an adapter that decides as told."""

    def __init__(self, *decisions: Decision, version: int = 0):
        self.verbs = list[str]()
        self.rewarders, self.adapters = FakeRewarders(self.verbs, version), FakeAdapters(decisions)


def pair(text: str) -> PairItem:
    return pair_item((Message("user", text),), {}, "short", "longer")


def models(run: Path, roles: Roles, first: str = "first", *overrides: str) -> RewardModels:
    settings = ["aggregation.kind=final_score", "adaptation.when=iteration", f"judge.function={__name__}:gold"]
    config = load_config(BASE, [*settings, *overrides])
    cluster = Cluster(config)
    cluster.rewarders, cluster.adapters = roles.rewarders, roles.adapters
    made = RewardModels(config, cluster, run, first, LabelFiles(None, None))
    made.load("")
    return made


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_an_accepted_candidate_becomes_a_version_and_serves(tmp_path: Path) -> None:
    roles = Roles(YES)
    rm = models(tmp_path, roles)
    metrics = rm.round(0, 0, without_references)
    version = tmp_path / "rm" / "version_1"
    assert sorted(file.name for file in version.iterdir()) == ["config.json", "decision.json"]
    record = read(version / "decision.json")
    assert record["accepted"] and (record["served_version"], record["candidate_version"]) == (0, 1)
    assert record["adaptation"]["level"] == 0.05 and record["round"] == 1
    assert (rm.adapted, rm.version, rm.served) == ("rm/version_1", 1, str(version.resolve()))
    assert [arguments[0] for arguments in roles.rewarders.loaded] == ["first", str(version.resolve())]
    assert (
        metrics["rm/accepted"] == 1.0 and metrics["rm/onpolicy_accuracy"] == 0.5 and metrics["rm/pair_accuracy"] is None
    )
    assert not (tmp_path / "rm" / "candidate").exists()


def test_a_switch_brings_the_references_while_no_group_is_scored(tmp_path: Path) -> None:
    roles = Roles(YES, NO)
    rm = models(tmp_path, roles)
    note = lambda model: roles.verbs.append(f"references under {Path(model).name}")  # noqa: E731
    roles.verbs.clear()
    rm.round(0, 0, note)
    assert roles.verbs == ["pause", "load", "references under version_1", "resume"]
    rm.round(1, 0, note)
    assert len(roles.verbs) == 4, "a discarded candidate disturbs nothing"


def test_a_discarded_candidate_changes_nothing_and_says_why(tmp_path: Path) -> None:
    roles = Roles(NO)
    rm = models(tmp_path, roles)
    metrics = rm.round(1, 0, without_references)
    assert metrics["rm/accepted"] == 0.0
    assert (rm.adapted, rm.version, len(roles.rewarders.loaded)) == ("", 0, 1)
    assert [file.name for file in (tmp_path / "rm").iterdir()] == ["rejected_round_2.json"]
    assert read(tmp_path / "rm" / "rejected_round_2.json")["reason"] == "not shown to be better"


def test_versions_build_on_one_another(tmp_path: Path) -> None:
    roles = Roles(YES, NO, YES)
    rm = models(tmp_path, roles)
    for iteration in range(3):
        rm.round(iteration, 0, without_references)
    assert [(Path(fit.served).name, fit.version) for fit in roles.adapters.fits] == [
        ("first", 1),
        ("version_1", 2),
        ("version_1", 2),
    ]
    assert rm.adapted == "rm/version_2"


def test_a_given_model_counts_on_from_its_own_version(tmp_path: Path) -> None:
    rm = models(tmp_path, Roles(YES, version=7))
    rm.round(0, 0, without_references)
    assert rm.adapted == "rm/version_8"


def test_a_round_that_was_killed_is_repeated_with_the_same_labels(tmp_path: Path) -> None:
    ASKED.clear()
    models(tmp_path, Roles(YES)).round(0, 0, without_references)
    assert len(ASKED) == 6
    (tmp_path / "rm" / "version_1" / "config.json").write_text("of the killed round")
    again = models(tmp_path, Roles(YES))  # its checkpoint still names the first model
    again.round(0, 0, without_references)
    assert len(ASKED) == 6 and len((tmp_path / "labels.jsonl").read_text().splitlines()) == 3
    assert read(tmp_path / "rm" / "version_1" / "config.json") == {"rm_version": 1}


def test_a_repeated_round_may_end_otherwise_and_leaves_one_record(tmp_path: Path) -> None:
    models(tmp_path, Roles(YES)).round(0, 0, without_references)
    models(tmp_path, Roles(NO)).round(0, 0, without_references)
    assert [file.name for file in (tmp_path / "rm").iterdir()] == ["rejected_round_1.json"]
    models(tmp_path, Roles(YES)).round(0, 0, without_references)
    assert [file.name for file in (tmp_path / "rm").iterdir()] == ["version_1"]


def test_what_a_killed_fit_left_aside_is_removed(tmp_path: Path) -> None:
    (tmp_path / "rm" / "candidate").mkdir(parents=True)
    (tmp_path / "rm" / "candidate" / "model.safetensors").write_text("half")
    models(tmp_path, Roles(YES)).round(0, 0, without_references)
    assert not (tmp_path / "rm" / "version_1" / "model.safetensors").exists()


def test_without_an_adapter_there_is_no_round(tmp_path: Path) -> None:
    assert models(tmp_path, Roles()).round(0, 0, without_references) == {}
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_loop_serves_the_version_of_its_checkpoint(tmp_path: Path) -> None:
    state = {"step": 3, "iteration": 1, "first_slot": 9, "dropped": {"4": "long"}}
    for step, more in ((3, {}), (6, {"reward_model": "rm/version_1"})):
        checkpoint.write_checkpoint(tmp_path / "checkpoints", step, state | more, lambda _: None, 2)
    older, newer = (read_loop_state(tmp_path / "checkpoints" / f"step_{step}") for step in (3, 6))
    assert older == LoopState(3, 1, 9, {4: "long"}) and newer.reward_model == "rm/version_1"
    state = LoopState(7, 1, 9, {}, "rm/version_1", RoundState(2, 20, [0.5], 1))
    found = checkpoint.write_checkpoint(tmp_path / "checkpoints", 7, asdict(state), lambda _: None, 2)
    assert read_loop_state(found) == state
    roles = Roles(NO)
    rm = models(tmp_path, roles)
    rm.load(newer.reward_model)
    assert roles.rewarders.loaded[-1][0] == str((tmp_path / "rm" / "version_1").resolve()) and rm.version == 1


def test_a_revision_belongs_to_a_hub_id_alone(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    given, hub = Roles(NO), Roles(YES)
    models(tmp_path, given, str(tmp_path / "given"), "rewarder.revision=abc")
    rm = models(tmp_path, hub, "owner/name", "rewarder.revision=abc")
    rm.round(0, 0, without_references)
    assert [arguments[1] for arguments in (*given.rewarders.loaded, *hub.rewarders.loaded)] == [None, "abc", None]


def test_a_commit_replaces_what_was_there(tmp_path: Path) -> None:
    for content in ("one", "two"):
        (tmp_path / "aside").mkdir()
        (tmp_path / "aside" / content).write_text(content)
        checkpoint.commit(tmp_path / "aside", tmp_path / "final")
    assert [path.name for path in (tmp_path / "final").iterdir()] == ["two"]


def test_what_serves_is_the_version_that_the_checkpoint_names(tmp_path: Path) -> None:
    assert served_model(tmp_path, "owner/name", "") == "owner/name"
    assert served_model(tmp_path, "owner/name", "rm/version_2") == str(tmp_path / "rm" / "version_2")
