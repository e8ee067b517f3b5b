"""What a step line says that a person must not overlook: a step that teaches nothing, though nothing has failed.

Called by driver/loop/step_record.py after each step. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def step_warnings(step: int, metrics: Mapping[str, Any], max_response_tokens: int) -> list[str]:
    """One line for each; none for a step that is as it should be."""
    found: list[str] = []
    if metrics["rollout/truncated_frac"] >= 1:
        found.append(
            f"every response of step {step} was cut at actors.max_response_tokens {max_response_tokens}: the policy "
            "does not end its turns. Raise that limit, train longer in stage sft, or see docs/data.md, chat templates"
        )
    if metrics["reward/no_spread_frac"] >= 1:
        found.append(
            f"in step {step} all responses of every group have the same reward, so that the policy learns nothing from "
            "them. Look at samples.jsonl: the responses may be equal, or the reward at its floor (docs/reward.md)"
        )
    return [f"WARNING: {line}" for line in found]
