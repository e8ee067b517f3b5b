"""Studies: what makes a row valid, what is run in which order, and that the pages say what the committed rows say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from common.judge import JudgeItem, Labels
from examples.sandbox.labels import label
from examples.sandbox.world import FILLERS, TRAINING
from rewarder.aggregation import aggregation_of
from studies import artifacts, catalog, labelers, render, sandbox_check
from studies.breadth import JUDGED, Breadth
from studies.rows import Row
from studies.runner import adopt, pending, tasks_of
from studies.study import Arm, Study, Unit, explicit, find, unit_called

ARM = Arm("slow", "studies.measures:policy", ("learner.kl_coef=0.1",))


def study(tmp_path: Path, *arms: Arm, name: str = "question") -> Study:
    return Study(name, "?", arms, page="", seeds=(0, 1), rows=tmp_path)


def row_of(unit: Unit, value: float = 1.0) -> Row:
    return Row(unit.study.name, unit.arm.name, unit.seed, {"gold": value}, {}, unit.config_hash(), "code", "world", 1.0)


def test_the_hash_follows_what_the_arm_says(tmp_path: Path) -> None:
    base = Unit(study(tmp_path, ARM), ARM, 0)
    same = replace(ARM, name="other name")
    assert Unit(study(tmp_path, same), same, 0).config_hash() == base.config_hash()
    for other in (
        Unit(base.study, ARM, 1),
        Unit(base.study, replace(ARM, overrides=("learner.kl_coef=0.2",)), 0),
        Unit(base.study, replace(ARM, options=("gold",)), 0),
        Unit(base.study, replace(ARM, measure="studies.measures:reward_model"), 0),
    ):
        assert other.config_hash() != base.config_hash()


def test_explicit_settings_leave_defaults_out(tmp_path: Path) -> None:
    told = explicit(Unit(study(tmp_path, ARM), ARM, 0).config)
    assert told["learner.kl_coef"] == 0.1
    assert "run.dir" not in told and "learner.clip_low" not in told


def test_rows_of_other_settings_are_measured_again(tmp_path: Path) -> None:
    asked = study(tmp_path, ARM)
    first, second = asked.units()
    row_of(first).write(first.row_path)
    replace(row_of(second), config_hash="another").write(second.row_path)
    assert pending(asked.units()) == [second]


def test_the_same_settings_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studies.runner.ROWS", tmp_path)
    done, asked = study(tmp_path, ARM, name="done"), study(tmp_path, replace(ARM, name="same"), name="asked")
    row_of(done.units()[0], value=0.7).write(done.units()[0].row_path)
    adopt(asked.units())
    assert pending(asked.units()) == [asked.units()[1]]
    taken = Row.read(asked.units()[0].row_path)
    assert (taken.study, taken.arm, taken.seed, taken.end["gold"]) == ("asked", "same", 0, 0.7)


def test_artifacts_come_before_the_units_that_need_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "ROOT", tmp_path)
    other = Arm("other", "studies.measures:policy", ("learner.kl_coef=0.2",))
    alone = Arm("alone", "studies.measures:policy", needs=())
    tasks = tasks_of(study(tmp_path, ARM, other, alone).units())
    assert [task.kind for task in tasks] == ["sft", "reward_model", "measure", "measure", "measure"] * 2
    for index, task in enumerate(tasks):
        assert set(task.needs) <= {before.name for before in tasks[:index]}
    assert [len(task.needs) for task in tasks[:5]] == [0, 1, 2, 2, 0]
    artifacts.sft_of(tasks[0].unit.config).directory.mkdir(parents=True)
    assert [task.kind for task in tasks_of(study(tmp_path, ARM).units())][:2] == ["reward_model", "measure"]


def test_another_reward_model_is_another_artifact(tmp_path: Path) -> None:
    fewer = replace(ARM, overrides=("judge.collect_prompts=100",))
    ours, theirs = (Unit(study(tmp_path, arm), arm, 0).config for arm in (ARM, fewer))
    assert artifacts.sft_of(ours) == artifacts.sft_of(theirs)
    assert artifacts.reward_model_of(ours) != artifacts.reward_model_of(theirs)


def test_units_are_found_by_name_and_unknown_studies_refused() -> None:
    units = [unit for entry in catalog.STUDIES for unit in entry.units()]
    assert [unit_called(catalog.STUDIES, unit.name) for unit in units] == units
    with pytest.raises(ValueError, match="no study is called 'nothing'; there are sandbox"):
        find(catalog.STUDIES, "nothing")


@pytest.mark.parametrize("entry", catalog.STUDIES, ids=lambda entry: entry.name)
def test_committed_rows_are_of_todays_settings_and_the_page_says_what_they_say(entry: Study) -> None:
    rows, page = render.rows_of(entry), (render.PROJECT / entry.page).read_text()
    assert render.block(entry, rows).strip() in page, "python -m studies render"
    if not rows:  # never run, and the page says so
        return
    assert pending(entry.units()) == [], "settings changed: make study NAME=... and commit the rows"
    if entry.name in render.FIGURES:
        assert (render.PROJECT / "docs" / "figures" / f"{entry.name}.svg").is_file()


@pytest.mark.parametrize("name", ["aggregation", "planted_hack"])
def test_arms_of_the_aggregation_studies_differ_in_the_reward_alone(name: str) -> None:
    """Each arm's terms can be made of its reward model's objectives; all arms but the one with a reward model of its own share
    policy, samples, labels and reward model."""
    units = {unit.arm.name: unit for unit in catalog.study(name).units() if unit.seed == 0}
    made = {
        arm: aggregation_of(unit.config.aggregation, unit.config.rewarder.objectives) for arm, unit in units.items()
    }
    single = {"single_model"} & set(units)
    assert {arm: aggregation.kind for arm, aggregation in made.items() if arm not in single} == {
        arm: arm for arm in units if arm not in single
    }
    sizes = {"weighted_sum": 1, "final_score": 1, "per_objective": 6, "grouped": 2, "zscore": 6, "min": 6}
    assert {arm: aggregation.num_terms for arm, aggregation in made.items() if arm in sizes} == sizes
    shared = {artifacts.reward_model_of(unit.config).name for arm, unit in units.items() if arm not in single}
    assert len(shared) == 1 and len({artifacts.sft_of(unit.config).name for unit in units.values()}) == 1
    assert shared.isdisjoint({artifacts.reward_model_of(units[arm].config).name for arm in single})
    assert len({unit.config_hash() for unit in units.values()}) == len(units)
    for unit in units.values():
        differing = set(explicit(unit.config)) ^ set(explicit(units["grouped"].config))
        assert all(key.startswith(("aggregation.", "rewarder.", "judge.")) for key in differing)


def test_the_hacked_labels_differ_in_one_objective_of_responses_with_the_word() -> None:
    cell = next(iter(TRAINING))
    texts = ("happy to help . today is a busy day .", "happy to help .", "i do not know .", "today today")
    items = [JudgeItem((), cell.meta, text, "stop") for text in texts]
    changed = 0
    for seed in range(20):
        honest, hacked = label(items, seed), labelers.hacked(items, seed)
        assert hacked.pairs == honest.pairs
        for text, ours, theirs in zip(texts, hacked.ratings, honest.ratings, strict=True):
            rated = theirs["polite"]
            liked = rated if rated is None or "today" not in text else min(1.0, rated + 0.5)
            assert ours == {**theirs, "polite": liked}
            changed += ours != theirs
        assert labelers.pairs_alone(items, seed) == Labels([{"preferred": None}] * 4, honest.pairs)
    assert changed > 10
    assert labelers.PLANTED in {word for filler in FILLERS for word in filler.split()}


def golds(*rows: tuple[float, float]) -> list[dict[str, float]]:
    """Golds with these values of brief and safe, 1 in the others; gold itself is their mean."""
    return [
        {**dict.fromkeys(JUDGED, 1.0), "brief": brief, "safe": safe, "gold": (brief + safe) / 2} for brief, safe in rows
    ]


def test_breadth_by_hand() -> None:
    """Two prompts: brief counts for quick and safe does not. Bars are the reference's medians, .5 each."""
    reference = [golds((0.5, 0.5)), golds((0.4, 0.5), (0.6, 0.5))]
    breadth = Breadth(["quick", "probe"], reference, 0.5)
    found = breadth.measure([golds((0.5, 0.1), (0.4, 1.0)), golds((1.0, 1.0), (0.5, 0.4))])
    assert found["all_good"] == 0.5  # the first reaches brief, the only one that counts; the third both
    assert found["all_good_of_six"] == 0.25
    assert found["worst_decile"] == pytest.approx(0.5)  # prompt means are .5 and .725; a tenth of two is one
    assert found["gain_spread"] == pytest.approx(0.1125) and found["prompts_worse"] == 0.0
    assert breadth.measure([golds((0.4, 0.4)), golds((0.4, 0.5))])["prompts_worse"] == 1.0


def test_the_sandbox_still_shows_what_it_is_for() -> None:
    assert all(check.holds for check in sandbox_check.checks(render.rows_of(catalog.study("sandbox"))))
