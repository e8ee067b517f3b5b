"""Whether a candidate reward model may serve: a paired test on fresh labels, and guards on the original data. Pure maths.

Called by learner/adaptation/worker.py with what both models did on the same pairs. A candidate is accepted only if it orders
freshly judged pairs of the current policy better (exact one-sided McNemar test) and loses at most a guard on the original
held-out pairs and on the held-out ratings of every objective. Everything that is not a number refuses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from learner.adaptation import gates
from learner.adaptation.gates import mcnemar, power

POWER = 0.8
EFFECT_WIDTH = 1e-4  # the detectable effect is known to this


@dataclass(frozen=True)
class Evidence:
    """Which of n judged fresh pairs each model orders as the judge does: served, candidate [n] bool, the same pairs."""

    served: NDArray[np.bool_]
    candidate: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if self.served.shape != self.candidate.shape or self.served.ndim != 1:
            raise ValueError(
                f"evidence has shapes {self.served.shape} and {self.candidate.shape}; want the same pairs [n] for both models"
            )

    @property
    def wins(self) -> int:
        """Pairs that the candidate orders rightly and the served model does not."""
        return int((self.candidate & ~self.served).sum())

    @property
    def losses(self) -> int:
        """The number of pairs that the served version orders rightly and the candidate wrongly."""
        return int((self.served & ~self.candidate).sum())


@dataclass(frozen=True)
class Standing:
    """How a model stands on the original held-out data: pair accuracy, and R2 of the ratings of each objective that the
    candidate could have changed. `constant` names objectives whose held-out ratings are all alike: they have no R2, so that no
    fall of it can be seen, and no guard holds them."""

    accuracy: float
    r2: dict[str, float]
    constant: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rules:
    """level of the test; min_pairs of evidence; guards: the largest fall of accuracy and of any R2; gate: what the evidence
    must say (learner/adaptation/gates.py)."""

    level: float
    min_pairs: int
    guard_accuracy: float
    guard_r2: float
    gate: str = "strict"


@dataclass(frozen=True)
class Decision:
    """Whether the candidate may serve, why, and the numbers behind it (None where there is none)."""

    accepted: bool
    reason: str
    numbers: dict[str, float | None]


@cache
def detectable_effect(pairs: int, discordant: float, level: float) -> float:
    """The rise of accuracy that `pairs` pairs find with a power of at least 80 %, where the models disagree on a share
    `discordant` of pairs: the smallest one, by the power of the exact test; 0 at level 1, inf where not even a candidate that
    wins every discordant pair is found."""
    if level >= 1:
        return 0.0
    if not pairs or power(pairs, discordant, discordant, level) < POWER:
        return math.inf
    low, high = 0.0, discordant
    while high - low > EFFECT_WIDTH:
        middle = (low + high) / 2
        low, high = (low, middle) if power(pairs, discordant, middle, level) >= POWER else (middle, high)
    return high


def decide(evidence: Evidence, served: Standing, candidate: Standing, rules: Rules) -> Decision:
    """Accepts only if the test and every guard hold; the reason names each one that does not."""
    numbers = _numbers(evidence, served, candidate, rules)
    failed = _failures(numbers, served, candidate, rules)
    accuracies = f"fresh pairs {numbers['onpolicy_accuracy']:.3f} -> {numbers['candidate_onpolicy_accuracy']:.3f}"
    original = f"original pairs {served.accuracy:.3f} -> {candidate.accuracy:.3f}"
    test = f"p = {numbers['p_value']:.3g} on {len(evidence.served)} pairs, {_what_it_finds(numbers, rules)}"
    remarks = [*failed, *(f"{name} has no R2: its held-out ratings are constant" for name in served.constant)]
    reason = f"{accuracies} ({test}), {original}" + "".join(f"; {remark}" for remark in remarks)
    finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
    return Decision(not failed, reason, finite)


def _what_it_finds(numbers: dict[str, float], rules: Rules) -> str:
    """How far the gate can be trusted on so much evidence, in words."""
    if rules.gate == "strict":
        effect = numbers["detectable_effect"]
        rise = f"a rise of {effect:.3f}" if math.isfinite(effect) else "no rise"
        return f"which find {rise} with a power of {POWER:.0%}"
    better, equal, worse = (numbers[f"gate_accepts_{what}"] for what in ("better", "equal", "worse"))
    by = f"{gates.EFFECT:g}"
    return (
        f"on which gate {rules.gate} accepts {better:.0%} of candidates that are {by} better, {equal:.0%} of equal ones and "
        f"{worse:.0%} of those {by} worse"
    )


def _numbers(evidence: Evidence, served: Standing, candidate: Standing, rules: Rules) -> dict[str, float]:
    pairs = len(evidence.served)
    discordant = (evidence.wins + evidence.losses) / max(pairs, 1)
    numbers = {
        "evidence_pairs": float(pairs),
        "wins": float(evidence.wins),
        "losses": float(evidence.losses),
        "p_value": mcnemar(evidence.wins, evidence.losses),
        "detectable_effect": detectable_effect(pairs, discordant, rules.level),
        **gates.promises(rules.gate, pairs, discordant, rules.level),
        "onpolicy_accuracy": float(evidence.served.mean()) if pairs else math.nan,
        "candidate_onpolicy_accuracy": float(evidence.candidate.mean()) if pairs else math.nan,
        "pair_accuracy": served.accuracy,
        "candidate_pair_accuracy": candidate.accuracy,
    }
    for name, value in served.r2.items():
        numbers |= {f"r2/{name}": value, f"candidate_r2/{name}": candidate.r2[name]}
    return numbers


def _failures(numbers: dict[str, float], served: Standing, candidate: Standing, rules: Rules) -> list[str]:
    """One line for each condition that does not hold; `not x <= guard` so that a NaN refuses."""
    failed = []
    if numbers["evidence_pairs"] < rules.min_pairs:
        failed.append(f"{numbers['evidence_pairs']:.0f} pairs of evidence, {rules.min_pairs} wanted")
    if not gates.passes(rules.gate, int(numbers["wins"]), int(numbers["losses"]), rules.level):
        failed.append(gates.refusal(rules.gate, rules.level))
    if not (fall := served.accuracy - candidate.accuracy) <= rules.guard_accuracy:
        failed.append(f"the accuracy on original pairs falls by {fall:.3f}, the guard is {rules.guard_accuracy:g}")
    for name, value in served.r2.items():
        if not (fall := value - candidate.r2[name]) <= rules.guard_r2:
            failed.append(f"R2 of {name} on held-out ratings falls by {fall:.3f}, the guard is {rules.guard_r2:g}")
    return failed
