"""What the evidence must say of a candidate, and how often each gate is right. Pure maths.

    strict      P(so many wins or more | a fair coin) <= level: shown to be better        (McNemar, one-sided, exact)
    even        more wins than losses
    not_worse   P(so many losses or more | a fair coin) > level: not shown to be worse

A win is a pair that the candidate orders as the judge does and the served model does not. What suits depends on what is known
of the method (docs/adaptation.md): strict accepts few useless candidates and few good ones; not_worse nearly all of both.
Called by learner/adaptation/evidence.py, whose guards hold with each of them.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

EFFECT = 0.03  # of accuracy: the candidates whose chances a decision prints are so much better, and so much worse
STANDARD_DEVIATIONS = 8  # of the number of discordant pairs, beyond which it is not counted


def passes(gate: str, wins: int, losses: int, level: float) -> bool:
    """Whether the evidence speaks for the candidate as `gate` asks; at level 1 strict asks nothing."""
    if gate == "strict":
        return mcnemar(wins, losses) <= level
    return wins > losses if gate == "even" else mcnemar(losses, wins) > level


def refusal(gate: str, level: float) -> str:
    """Why a candidate did not pass."""
    if gate == "strict":
        return f"not shown to be better at level {level:g}"
    return "it wins no more pairs than it loses" if gate == "even" else f"shown to be worse at level {level:g}"


def promises(gate: str, pairs: int, discordant: float, level: float) -> dict[str, float]:
    """How often the gate accepts on so much evidence: candidates EFFECT better, equal ones, and those EFFECT worse."""
    effects = {"better": EFFECT, "equal": 0.0, "worse": -EFFECT}
    return {
        f"gate_accepts_{name}": acceptance(gate, pairs, discordant, value, level) for name, value in effects.items()
    }


@cache
def acceptance(gate: str, pairs: int, discordant: float, effect: float, level: float) -> float:
    """The probability that `gate` accepts a candidate whose accuracy is `effect` above the served model's, where they disagree
    on a share `discordant` of pairs (raised to |effect|, which needs as many): the number of discordant pairs is binomial, and
    so is the number of wins among them. 0 without pairs, which min_pairs refuses."""
    discordant = max(discordant, abs(effect))
    if not pairs or discordant <= 0:
        return 0.0
    spread = STANDARD_DEVIATIONS * math.sqrt(pairs * discordant * (1 - discordant)) + 1
    counts = np.arange(max(0, int(pairs * discordant - spread)), min(pairs, math.ceil(pairs * discordant + spread)) + 1)
    wins = np.arange(counts[-1] + 1)[None]
    accepted = _accepted(gate, counts[:, None], wins, level)
    found = (_binomial(counts[:, None], wins, (discordant + effect) / (2 * discordant)) * accepted).sum(1)
    return float(np.dot(_binomial(np.array(pairs), counts, discordant), found))


def power(pairs: int, discordant: float, effect: float, level: float) -> float:
    """The probability that the strict gate finds a rise of `effect`."""
    return acceptance("strict", pairs, discordant, effect, level) if discordant > 0 else 0.0


def mcnemar(wins: int, losses: int) -> float:
    """P(at least `wins` of wins + losses | each is a fair coin): the exact one-sided McNemar p-value; 1 without any.

    Pairs on which both models agree say nothing about which is better and do not enter."""
    discordant = wins + losses
    tail = sum(math.comb(discordant, k) for k in range(wins, discordant + 1))
    return tail / 2**discordant


def _accepted(gate: str, counts: NDArray[np.intp], wins: NDArray[np.intp], level: float) -> NDArray[np.bool_]:
    """Which numbers of wins among so many discordant pairs the gate takes; counts [C, 1], wins [1, W]."""
    if gate == "even":
        return (2 * wins > counts) & (wins <= counts)
    chances = _binomial(counts, wins, 0.5)
    if gate == "strict":
        return np.cumsum(chances[:, ::-1], axis=1)[:, ::-1] <= level
    return (np.cumsum(chances, axis=1) > level) & (wins <= counts)


def _binomial(trials: NDArray[np.intp], successes: NDArray[np.intp], chance: float) -> NDArray[np.float64]:
    """The probability of so many successes; 0 of more than there are trials. The arrays broadcast."""
    failures = trials - successes
    if chance >= 1 or chance <= 0:
        certain = failures if chance >= 1 else successes
        return ((certain == 0) & (failures >= 0)).astype(np.float64)
    factorials = np.cumsum(np.log(np.maximum(np.arange(int(trials.max()) + 1), 1)))
    ways = factorials[trials] - factorials[np.minimum(successes, trials)] - factorials[np.maximum(failures, 0)]
    chances = np.exp(ways + successes * math.log(chance) + failures * math.log1p(-chance))
    return np.where(failures >= 0, chances, 0.0)
