"""What a response is worth against its siblings: pure maths."""

from __future__ import annotations

from torch import Tensor


def group_advantages(rewards: Tensor) -> Tensor:
    """reward - mean of its group: rewards [N, G] -> [N, G].

    There is no division by the group's standard deviation: it would undo the log-sigmoid transform, whose point is that a
    group that is good already has a small spread and so a small say (docs/reward.md; Dr.GRPO, 2503.20783, for the bias).
    """
    return rewards - rewards.mean(dim=-1, keepdim=True)
