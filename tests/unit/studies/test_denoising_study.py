"""Study `denoising`: its pure parts by hand, its labels and strengths on a planted problem, its tables from made-up rows."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.config.config import RewardTrainingConfig
from common.config.file import BASE, load_config
from learner.preferences.strength import Moments
from studies import artifacts, catalog, denoising_tables, noisy_pairs, scorers, strengths, treatments
from studies.denoising import share_of
from studies.noisy_pairs import Pairs, World
from studies.rows import Row
from studies.scorers import Labelled, Scorer, train
from studies.strengths import MEMBERS, auc
from studies.study import Arm
from studies.treatments import CONTRASTS, LABELS, METHODS, Bench, denoised, labelled_pairs, outcomes

COUNT, INPUTS = 400, 6


@pytest.fixture
def settings() -> RewardTrainingConfig:
    return load_config(BASE, ["aggregation.kind=final_score"]).learner.reward_model


@pytest.fixture
def few_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(treatments, "REPEATS", 1)
    monkeypatch.setattr(scorers, "UPDATES", 40)


def planted(seed: int, count: int = COUNT) -> Pairs:
    """Pairs of responses whose first input is their worth; two pairs a prompt."""
    states = torch.randn(2 * count, INPUTS, generator=torch.Generator().manual_seed(seed))
    rows = torch.arange(2 * count).reshape(-1, 2)
    better = states[rows[:, 0], 0] > states[rows[:, 1], 0]
    return Pairs(states, torch.where(better[:, None], rows, rows.flip(1)), np.arange(count) // 2)


def known(pairs: Pairs, turned: np.ndarray) -> Moments:
    """What members would say that know the truth: the label's gain in worth."""
    gain = (pairs.states[pairs.rows[:, 0], 0] - pairs.states[pairs.rows[:, 1], 0]).double().numpy()
    return Moments(np.where(turned, -gain, gain), np.zeros(len(gain)), np.ones(len(gain), np.int64))


# ---- pairs and labels


def test_as_many_labels_are_turned_as_asked_and_more_turn_the_same_ones_too() -> None:
    few, many = (noisy_pairs.flipped(103, share, 1) for share in (0.1, 0.4))
    assert (few.sum(), many.sum(), noisy_pairs.flipped(103, 0.0, 1).sum()) == (10, 41, 0)
    assert not (few & ~many).any()
    assert (noisy_pairs.flipped(103, 0.4, 2) != many).any()


def test_pairs_put_the_better_one_first_and_leave_ties_out() -> None:
    assert noisy_pairs.ordered([0.5, 0.9, 0.51, 0.9]) == [(1, 0), (3, 0), (1, 2), (3, 2)]


def test_pairs_apart_share_no_response_and_no_other_could_join_them() -> None:
    rows = torch.tensor([[0, 1], [0, 2], [1, 2], [3, 4], [4, 5], [6, 7]])
    taken = noisy_pairs.apart(rows, 0)
    used = rows[torch.from_numpy(taken)].flatten().tolist()
    assert len(used) == len(set(used)) and taken.tolist() == sorted(taken)
    assert all(set(pair) & set(used) for pair in rows.tolist())


def test_a_response_as_long_as_may_be_was_cut() -> None:
    assert [noisy_pairs.ending(text, 3) for text in ("a b .", "a .")] == ["length", "stop"]


def test_pooled_states_by_hand() -> None:
    """The prompt ends at 0 and 1; the responses are tokens 1 and 2, and token 2 alone, before padding."""
    hidden = torch.tensor([[[1.0], [2.0], [4.0]], [[1.0], [3.0], [5.0]]])
    found = noisy_pairs.pooled(hidden, torch.tensor([0, 1]), torch.tensor([2, 2]))
    assert found.tolist() == [[1.0, 3.0], [3.0, 5.0]]


# ---- strength


def test_auc_by_hand() -> None:
    """Of 2 x 2 comparisons, two are won, one is lost and one is a tie."""
    assert auc(np.array([3.0, 1.0, 1.0, 2.0]), np.array([True, True, False, False])) == 0.625
    assert auc(np.array([2.0, 1.0]), np.array([True, False])) == 1.0
    assert math.isnan(auc(np.array([2.0, 1.0]), np.array([False, False])))


def test_half_of_the_members_leave_out_a_pair_and_its_whole_prompt() -> None:
    prompts = np.repeat(np.arange(20), 3)
    plan = strengths.left_out(prompts, 0)
    assert (plan.sum(0) == MEMBERS // 2).all()
    assert (plan.reshape(MEMBERS, 20, 3) == plan.reshape(MEMBERS, 20, 3)[:, :, :1]).all()
    assert len({tuple(row) for row in plan}) == MEMBERS


def test_parts_grow_from_the_weakest() -> None:
    mean = np.array([5.0, 1.0, 4.0, 2.0, 3.0, 0.0, 9.0, 8.0, 7.0, 6.0])
    ordered = strengths.parts(mean)
    assert [part.tolist() for part in ordered] == [[5], [1], [3], [4], [2], [0], [9], [8], [7], [6]]
    assert [part.tolist() for part in strengths.grown(ordered)][:3] == [[5], [5, 1], [5, 1, 3]]
    assert [part.tolist() for part in strengths.grown(ordered[::-1])][:2] == [[6], [6, 7]]
    assert len(strengths.grown(ordered)) == 9
    assert strengths.agreement(mean < 1, ordered) == [0.0, *[1.0] * 9]


@pytest.mark.usefixtures("few_updates")
def test_members_that_did_not_see_the_labels_find_those_that_are_wrong() -> None:
    pairs = planted(0)
    turned = noisy_pairs.flipped(COUNT, 0.25, 0)
    labelled = labelled_pairs(pairs, turned)
    assert auc(-strengths.out_of_fold(labelled, pairs.prompts, 0).mean, turned) > 0.9
    assert auc(-strengths.in_sample(strengths.everywhere(labelled, 0), labelled).mean, turned) > 0.9


# ---- treatments


def test_labels_of_each_method_where_strength_knows_the_truth(settings: RewardTrainingConfig) -> None:
    pairs, share = planted(0), LABELS["flip"]["flip"]
    turned = noisy_pairs.flipped(COUNT, share, 0)
    labelled, by = labelled_pairs(pairs, turned), known(pairs, turned)
    assert (by.mean < 0).sum() == turned.sum() == COUNT // 10

    def made(**changes: Any) -> Labelled:
        return denoised(labelled, by, replace(settings.denoising, **changes))

    plain = made()
    assert torch.equal(plain.rows, labelled.rows) and bool((plain.targets == 1).all() & (plain.margins == 0).all())
    assert torch.equal(made(**LABELS["flip"]).rows, pairs.rows), "all of them, and no other, are put right"
    assert made(**LABELS["soft"]).targets.tolist() == pytest.approx(np.where(turned, 0.8, 1.0))
    margins = made(**LABELS["flip_margin"])
    assert margins.margins.tolist() == pytest.approx(np.clip(abs(by.mean), 0, 3)), (
        "a turned pair's strength changes sign"
    )
    assert made(**LABELS["ensemble_targets"]).targets.tolist() == pytest.approx(1 / (1 + np.exp(-by.mean)))
    kept = made(**LABELS["select"])
    assert (
        len(kept.rows) == 0.8 * COUNT
        and not (kept.rows[:, None] == labelled.rows[torch.from_numpy(turned)]).all(-1).any()
    )


@pytest.mark.usefixtures("few_updates")
def test_putting_wrong_labels_right_pays_and_every_method_is_tested(settings: RewardTrainingConfig) -> None:
    world = World(planted(0), planted(1), planted(2, 100))
    turned = noisy_pairs.flipped(COUNT, 0.4, 0)
    models = strengths.everywhere(labelled_pairs(world.training, turned), 0)
    by = known(world.training, turned)
    found = outcomes(Bench(world, 0), settings, turned, {"out_of_fold": by, "in_sample": by}, models)
    assert set(found) == {f"{side}/{method}" for side in ("in", "out") for method in METHODS}
    for side in ("in", "out"):
        assert found[f"{side}/flip_known"] == found[f"{side}/oracle"], "strength that knows the truth gives its labels"
        assert found[f"{side}/oracle"] > found[f"{side}/baseline"] + 0.02
        assert found[f"{side}/flip"] == found[f"{side}/flip_in_sample"]


@pytest.mark.usefixtures("few_updates")
@pytest.mark.parametrize("kind", [None, *CONTRASTS])
def test_a_training_repeats_and_leaves_other_randomness_alone(kind: str | None, settings: RewardTrainingConfig) -> None:
    pairs = planted(0, 100)
    labelled, start = labelled_pairs(pairs, np.zeros(100, bool)), Scorer(INPUTS, 0)
    contrastive = None if kind is None else replace(settings.contrastive, **CONTRASTS[kind])
    before = torch.get_rng_state()
    first, again, other = (train(labelled, start, seed, contrastive) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.weight, again.weight) and not torch.equal(first.weight, other.weight)
    assert torch.equal(start.weight, Scorer(INPUTS, 0).weight), "the start stays as it is"


def test_averaged_weights_by_hand() -> None:
    models = [Scorer(2, seed) for seed in (0, 1)]
    mean = scorers.averaged(models)
    torch.testing.assert_close(mean.weight, (models[0].weight + models[1].weight) / 2)
    torch.testing.assert_close(mean.head, (models[0].head + models[1].head) / 2)


# ---- the study


def test_arms_differ_in_the_share_alone_and_need_nothing_that_study_sandbox_has_not_made() -> None:
    units = [unit for unit in catalog.study("denoising").units() if unit.seed == 0]
    assert [share_of(unit.arm) for unit in units] == [0.0, 0.1, 0.25, 0.4]
    assert len({unit.config_hash() for unit in units}) == len(units)
    frozen = next(unit for unit in catalog.study("sandbox").units() if unit.arm.name == "frozen" and unit.seed == 0)
    for kind in ("sft", "reward_model", "shifted"):
        assert {artifacts.KINDS[kind](unit.config) for unit in (*units, frozen)} == {
            artifacts.KINDS[kind](frozen.config)
        }


@pytest.mark.parametrize("options", [(), ("flipped=0.5",), ("flipped=0.1", "flipped=0.2")])
def test_an_arm_without_one_share_is_refused(options: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="arm 'odd' has the options .*want flipped=SHARE once, 0 <= SHARE < 0.5"):
        share_of(Arm("odd", "studies.denoising:measure", options=options))


def made_up(arm: str, seed: int, auc: float) -> Row:
    names = [f"{side}/{method}" for side in ("in", "out") for method in METHODS]
    names += [f"{name}/{n}" for name in ("agreement", "part") for n in range(1, 11)]
    names += [f"{name}/{n}" for name in ("weakest", "strongest") for n in range(10, 100, 10)]
    end = dict.fromkeys(names, 0.5 + 0.1 * seed) | {f"auc/{name}": auc for name in denoising_tables.AUCS}
    return Row("denoising", arm, seed, end | {"in/flip": 0.6 + 0.2 * seed}, {}, "c", "v", "w", 1.0)


def test_tables_and_figure_of_made_up_rows(tmp_path: Path) -> None:
    """Baselines .5 and .6, flip .6 and .8: gains of .1 and .2, their mean .15 ± 12.706205 * .05."""
    arms = {
        "flipped_00": [made_up("flipped_00", seed, math.nan) for seed in (0, 1)],
        "flipped_25": [made_up("flipped_25", seed, 0.75) for seed in (0, 1)],
    }
    lines = denoising_tables.tables(arms).splitlines()
    assert "| out_of_fold | - | 0.750 ± 0.000 |" in lines, "no label is wrong in the first arm"
    assert lines.count("| baseline | 0.550 ± 0.635 | 0.550 ± 0.635 |") == 2
    assert "| flip | +0.150 ± 0.635 | +0.150 ± 0.635 |" in lines
    assert "| oracle | +0.000 ± 0.000 | +0.000 ± 0.000 |" in lines
    for name in ("a.svg", "b.svg"):
        denoising_tables.draw(tmp_path / name, arms)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    for part in ("flipped labels (%)", "soft_margin", "share of right labels", "flipped_25"):
        assert part in (tmp_path / "a.svg").read_text()
