"""learner/adaptation/evidence.py: the test against scipy, the effect it finds, how often it errs, and every guard."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from learner.adaptation.evidence import Decision, Evidence, Rules, Standing, decide, detectable_effect, mcnemar, power

RULES = Rules(level=0.05, min_pairs=64, guard_accuracy=0.03, guard_r2=0.03)
SAME = Standing(0.8, {"safe": 0.5, "polite": 0.7})


def evidence(wins: int, losses: int, both: int, neither: int = 0) -> Evidence:
    served = [False] * wins + [True] * losses + [True] * both + [False] * neither
    candidate = [True] * wins + [False] * losses + [True] * both + [False] * neither
    return Evidence(np.array(served), np.array(candidate))


@pytest.mark.parametrize(
    ("wins", "losses", "by_hand"),
    [
        (0, 0, 1.0),
        (1, 0, 1 / 2),
        (3, 0, 1 / 8),
        (5, 0, 1 / 32),
        (4, 1, 6 / 32),  # (C(5,4) + C(5,5)) / 2^5
        (8, 2, 56 / 1024),  # (45 + 10 + 1) / 2^10
        (0, 5, 1.0),
    ],
)
def test_p_values_by_hand(wins: int, losses: int, by_hand: float) -> None:
    assert mcnemar(wins, losses) == by_hand


@given(st.integers(0, 400), st.integers(0, 400))
def test_p_values_are_the_binomial_tail(wins: int, losses: int) -> None:
    assert mcnemar(wins, losses) == pytest.approx(binom.sf(wins - 1, wins + losses, 0.5), rel=1e-9)


def test_no_overflow_with_many_pairs() -> None:
    assert mcnemar(2600, 2400) == pytest.approx(binom.sf(2599, 5000, 0.5), rel=1e-9)


def exact_power(pairs: int, discordant: float, effect: float, level: float) -> float:
    """By enumeration: the number of discordant pairs is binomial, and so is the number of wins among them."""
    win, power = (discordant + effect) / (2 * discordant), 0.0
    for count in range(pairs + 1):
        wins = np.arange(count + 1)
        rejects = np.array([mcnemar(int(w), count - int(w)) <= level for w in wins])
        power += binom.pmf(count, pairs, discordant) * binom.pmf(wins, count, win)[rejects].sum()
    return float(power)


@pytest.mark.parametrize(("pairs", "discordant", "level"), [(128, 0.2, 0.05), (128, 0.4, 0.05), (40, 0.5, 0.01)])
def test_the_detectable_effect_is_the_smallest_that_is_found_with_the_stated_power(
    pairs: int, discordant: float, level: float
) -> None:
    effect = detectable_effect(pairs, discordant, level)
    assert 0.8 <= exact_power(pairs, discordant, effect, level) < 0.803
    assert exact_power(pairs, discordant, effect - 2e-4, level) < 0.8


@given(st.integers(1, 40), st.floats(0.02, 1), st.floats(0, 1), st.sampled_from([0.01, 0.05, 0.2]))
def test_the_power_is_that_of_the_exact_test(pairs: int, discordant: float, share: float, level: float) -> None:
    effect = share * discordant
    assert power(pairs, discordant, effect, level) == pytest.approx(
        exact_power(pairs, discordant, effect, level), abs=1e-6
    )


def test_no_rise_is_found_where_even_winning_all_is_not_enough() -> None:
    """Four wins of four have p = 1/16, five of five 1/32."""
    assert detectable_effect(4, 1.0, 0.05) == math.inf and detectable_effect(5, 1.0, 0.05) <= 1.0
    assert detectable_effect(0, 0.5, 0.05) == math.inf and detectable_effect(128, 0.0, 0.05) == math.inf
    assert "which find no rise with a power of 80%" in decide(evidence(0, 0, 100), SAME, SAME, RULES).reason


def test_an_objective_without_a_spread_is_named_and_holds_nothing_up() -> None:
    both = Standing(0.8, {"safe": 0.5}, constant=("polite",))
    decision = decide(evidence(40, 5, 100), both, both, RULES)
    assert decision.accepted and "polite has no R2: its held-out ratings are constant" in decision.reason


def test_a_level_of_one_switches_the_test_off_and_leaves_the_guards() -> None:
    open_door = dataclasses.replace(RULES, level=1.0)
    assert decided(wins=0, rules=dataclasses.replace(open_door, min_pairs=1)).accepted
    assert not decided(Standing(0.7, SAME.r2), rules=open_door).accepted


def trials(count: int, pairs: int, help_: float, seed: int, discordant: float = 0.15, base: float = 0.6) -> float:
    """Share of accepted candidates that truly change accuracy on fresh pairs by help_ and nothing on the original ones."""
    rng, accepted = np.random.default_rng(seed), 0
    gains, losses = (discordant + help_) / 2, (discordant - help_) / 2
    for _ in range(count):
        served = rng.random(pairs) < base
        draw = rng.random(pairs)
        candidate = np.where(served, draw >= losses / base, draw < gains / (1 - base))
        accepted += decide(Evidence(served, candidate), SAME, SAME, RULES).accepted
    return accepted / count


@pytest.mark.parametrize("pairs", [64, 128, 512])
def test_a_candidate_that_changes_nothing_is_accepted_at_most_at_the_level(pairs: int) -> None:
    assert trials(1000, pairs, 0.0, seed=pairs) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 1000)


def test_five_points_of_help_are_found_with_512_pairs() -> None:
    """Where the two models disagree on 15 % of the pairs; at 30 % the same help would be found less often."""
    assert trials(400, 512, 0.05, seed=1) >= 0.8


def test_a_harmful_candidate_is_almost_never_accepted() -> None:
    assert trials(1000, 512, -0.05, seed=2) == 0.0
    assert trials(1000, 128, -0.05, seed=3) <= 0.01


def decided(candidate: Standing = SAME, wins: int = 30, rules: Rules = RULES, served: Standing = SAME) -> Decision:
    return decide(evidence(wins=wins, losses=10, both=60, neither=28), served, candidate, rules)


def test_a_good_candidate_is_accepted_with_its_numbers() -> None:
    decision = decided()
    assert decision.accepted
    assert decision.numbers["onpolicy_accuracy"] == 70 / 128
    assert decision.numbers["candidate_onpolicy_accuracy"] == 90 / 128
    assert decision.numbers["p_value"] == pytest.approx(binom.sf(29, 40, 0.5))
    assert "fresh pairs 0.547 -> 0.703" in decision.reason
    assert "on 128 pairs, which find a rise of 0.127 with a power of 80%" in decision.reason


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        (Standing(0.769, SAME.r2), "accuracy on original pairs falls by 0.031"),
        (Standing(float("nan"), SAME.r2), "accuracy on original pairs falls by nan"),
        (Standing(0.9, {"safe": 0.46, "polite": 0.9}), "R2 of safe on held-out ratings falls by 0.040"),
        (Standing(0.9, {"safe": 0.5, "polite": float("nan")}), "R2 of polite on held-out ratings falls by nan"),
    ],
)
def test_each_guard_refuses(candidate: Standing, words: str) -> None:
    decision = decided(candidate)
    assert not decision.accepted and words in decision.reason


def test_a_fall_within_the_guards_is_allowed() -> None:
    assert decided(Standing(0.771, {"safe": 0.471, "polite": 0.671})).accepted


def test_a_chance_result_and_too_few_pairs_are_refused_with_both_reasons() -> None:
    decision = decided(wins=11, rules=dataclasses.replace(RULES, min_pairs=200))
    assert not decision.accepted
    assert "109 pairs of evidence, 200 wanted" in decision.reason and "not shown to be better" in decision.reason


def test_no_evidence_is_refused_and_its_numbers_are_json() -> None:
    nothing = Evidence(np.zeros(0, dtype=bool), np.zeros(0, dtype=bool))
    decision = decide(nothing, SAME, SAME, dataclasses.replace(RULES, min_pairs=1))
    assert not decision.accepted
    assert decision.numbers["onpolicy_accuracy"] is None and decision.numbers["detectable_effect"] is None


def test_evidence_is_about_the_same_pairs() -> None:
    with pytest.raises(ValueError, match="want the same pairs"):
        Evidence(np.zeros(3, dtype=bool), np.zeros(2, dtype=bool))
