"""The truth on held-out prompts: programs say which constraints a response meets. Never a reward.

`judge` is what configs/smollm.yaml names (`judge.function`). Holds no torch.
"""

from __future__ import annotations

from common.judge import JudgeItem
from examples.smollm.constraints import met
from examples.smollm.labels import brevity, constraints, language


def judge(item: JudgeItem) -> dict[str, float]:
    """gold: 1 where all constraints of the prompt are met, else 0; then each family that the prompt asks for, the share of its
    constraints that are met, and the two programs of style."""
    kept = met(constraints(item), item.response)
    return {
        "gold": float(all(kept.values())),
        "met": sum(kept.values()) / len(kept),
        **{family: float(holds) for family, holds in kept.items()},
        "language": language(item.messages, item.response),
        "brevity": brevity(item.messages, item.response),
    }
