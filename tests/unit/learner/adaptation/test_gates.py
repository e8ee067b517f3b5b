"""learner/adaptation/gates.py: what each gate accepts, and that the chances that a decision prints are those of its rule."""

from __future__ import annotations

import numpy as np
import pytest

from learner.adaptation.evidence import Evidence, Rules, Standing, decide
from learner.adaptation.gates import EFFECT, acceptance, mcnemar, passes, power

SAME = Standing(0.8, {})


@pytest.mark.parametrize(
    ("wins", "losses", "accepting"),
    [
        (10, 2, {"strict", "even", "not_worse"}),
        (7, 6, {"even", "not_worse"}),
        (6, 6, {"not_worse"}),
        (6, 7, {"not_worse"}),
        (2, 10, set()),
        (0, 0, {"not_worse"}),
    ],
)
def test_what_each_gate_accepts(wins: int, losses: int, accepting: set[str]) -> None:
    assert {gate for gate in ("strict", "even", "not_worse") if passes(gate, wins, losses, 0.05)} == accepting


def test_at_level_1_strict_asks_for_nothing() -> None:
    assert passes("strict", 0, 9, 1.0)


@pytest.mark.parametrize("gate", ["strict", "even", "not_worse"])
@pytest.mark.parametrize(("pairs", "discordant", "effect"), [(64, 0.3, 0.03), (175, 0.2, 0.035), (175, 0.2, -0.02)])
def test_the_chances_are_those_of_simulated_candidates(gate: str, pairs: int, discordant: float, effect: float) -> None:
    rng, trials = np.random.default_rng(0), 20_000
    better = (discordant + effect) / 2
    counts = rng.multinomial(pairs, [better, discordant - better, 1 - discordant], trials)
    said = np.mean([passes(gate, int(wins), int(losses), 0.05) for wins, losses, _ in counts])
    assert acceptance(gate, pairs, discordant, effect, 0.05) == pytest.approx(said, abs=0.015)  # four standard errors


def test_errors_and_power_of_the_gates() -> None:
    """What docs/adaptation.md says of 175 pairs on which the models disagree on a fifth."""
    for gate, better, equal, worse in (
        ("strict", 0.28, 0.05, 0.01),
        ("even", 0.85, 0.5, 0.25),
        ("not_worse", 1.0, 0.97, 0.9),
    ):
        found = [acceptance(gate, 175, 0.2, effect, 0.05) for effect in (0.035, 0.0, -0.02)]
        assert found == pytest.approx([better, equal, worse], abs=0.08), gate
    assert acceptance("strict", 175, 0.2, 0.0, 0.05) <= 0.05 <= 1 - acceptance("not_worse", 175, 0.2, 0.0, 0.05) + 0.05
    assert acceptance("not_worse", 175, 0.2, 0.0, 0.05) >= 0.95


def test_a_larger_effect_is_accepted_more_often_and_power_is_strict() -> None:
    for gate in ("strict", "even", "not_worse"):
        rising = [acceptance(gate, 100, 0.3, effect, 0.05) for effect in (-0.2, -0.05, 0.0, 0.05, 0.2)]
        assert rising == sorted(rising)
    assert power(100, 0.3, 0.1, 0.05) == acceptance("strict", 100, 0.3, 0.1, 0.05)
    assert acceptance("even", 0, 0.2, 0.1, 0.05) == 0 == power(100, 0.0, 0.0, 0.05)


def evidence(wins: int, losses: int, both: int) -> Evidence:
    served = np.array([False] * wins + [True] * losses + [True] * both)
    candidate = np.array([True] * wins + [False] * losses + [True] * both)
    return Evidence(served, candidate)


@pytest.mark.parametrize(("gate", "accepted"), [("strict", False), ("even", True), ("not_worse", True)])
def test_a_decision_goes_by_its_gate_and_prints_its_chances(gate: str, accepted: bool) -> None:
    decision = decide(evidence(12, 8, 80), SAME, SAME, Rules(0.05, 50, 0.03, 0.03, gate))
    assert decision.accepted == accepted
    numbers = decision.numbers
    chances = [numbers[f"gate_accepts_{what}"] for what in ("better", "equal", "worse")]
    assert chances == [acceptance(gate, 100, 0.2, effect, 0.05) for effect in (EFFECT, 0.0, -EFFECT)]
    assert numbers["p_value"] == pytest.approx(mcnemar(12, 8))
    wanted = "find" if gate == "strict" else f"gate {gate} accepts"
    assert wanted in decision.reason


@pytest.mark.parametrize("gate", ["even", "not_worse"])
def test_guards_and_the_number_of_pairs_hold_with_every_gate(gate: str) -> None:
    won = evidence(20, 0, 80)
    fallen = decide(won, SAME, Standing(0.7, {}), Rules(0.05, 50, 0.03, 0.03, gate))
    assert not fallen.accepted and "the guard is 0.03" in fallen.reason
    few = decide(won, SAME, SAME, Rules(0.05, 101, 0.03, 0.03, gate))
    assert not few.accepted and "100 pairs of evidence, 101 wanted" in few.reason
    lost = decide(evidence(0, 20, 80), SAME, SAME, Rules(0.05, 50, 0.03, 0.03, gate))
    assert not lost.accepted
