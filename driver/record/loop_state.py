"""Where the loop is: the driver's part of every checkpoint, so that a resume goes on from one consistent cut."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from driver.record import checkpoint


@dataclass
class RoundState:
    """Rounds of the reward model so far; the first slot that the last round or look did not see; what the first look at the
    version `looked_at` measured (learner/adaptation/drift.py), which later ones are held against."""

    num: int = 0
    first_slot: int = 0
    baseline: list[float] = field(default_factory=list)
    looked_at: int = 0


@dataclass
class LoopState:
    """first_slot is the current iteration's; reward_model the adapted version that serves, relative to the run's directory,
    empty while it is the one that the loop began with."""

    step: int = 0
    iteration: int = 0
    first_slot: int = 0
    dropped: dict[int, str] = field(default_factory=dict)
    reward_model: str = ""
    rounds: RoundState = field(default_factory=RoundState)


def read_loop_state(found: Path) -> LoopState:
    """The state in a verified checkpoint."""
    saved = checkpoint.read_state(found)
    dropped = {int(slot): reason for slot, reason in saved["dropped"].items()}
    return LoopState(**{**saved, "dropped": dropped, "rounds": RoundState(**saved.get("rounds", {}))})
