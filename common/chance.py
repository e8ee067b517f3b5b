"""Whether a reward model's held-out accuracy could be chance: what is said aloud before a policy is trained on it.

Called by stage reward_model (learner/reward_model/stage.py), by the driver before the loop, and by the report. Holds no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

CHANCE = 0.5
ACCURACIES = {  # name in the report: whose it is, and where its number of pairs is
    "rm/pair_accuracy": ("the gated score", "rm/held_out_pairs"),
    "rm/pair_accuracy_preference_head": ("the head of rewarder.preference", "rm/held_out_preference_pairs"),
}


def chance_warnings(report: Mapping[str, float | None]) -> list[str]:
    """A line for each accuracy of held-out pairs whose 95 % interval is not above chance; `report` is that of
    rm/version_N/report.json. What was not measured is not warned of: there are no pairs then."""
    return [
        f"{whose} orders {report[name]:.3f} [{low:.3f}, {high:.3f}] of {report[counted]:.0f} held-out pairs as their labels "
        f"do, and {_what(high)}: a policy that is trained on it may follow noise. Bring more pairs or a stronger backbone; "
        "hold out more prompts (learner.reward_model.held_out_fraction) to know better"
        for name, (whose, counted) in ACCURACIES.items()
        if (low := _end(report, f"{name}_low")) <= CHANCE
        for high in (_end(report, f"{name}_high"),)
    ]


def _what(high: float) -> str:
    if high < CHANCE:
        return f"that is below chance ({CHANCE})"
    return f"the 95 % interval contains chance ({CHANCE})"


def _end(report: Mapping[str, float | None], name: str) -> float:
    value = report.get(name)
    return math.nan if value is None else value
