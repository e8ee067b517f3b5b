"""The records that roles exchange: what flows through the queue, and nothing else.

Owned by nobody, imported by everybody; holds no torch. Each record is a frozen, slotted dataclass that checks its own
lengths when it is built, so a misaligned record dies where it is made (or decoded) with a message that names it.

Letters: P prompt tokens, R response tokens, G responses per prompt, K objectives, M reward terms.
Alignment, stated once: `rollout_logprobs[i]` belongs to response token i, i = 0 included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]
FinishReason = Literal["stop", "length"]


class RecordError(ValueError):
    """A record whose parts disagree; the message names the record, what it has and what it should have."""


def _check_length(record: str, name: str, got: int, per: str, want: int) -> None:
    if got != want:
        raise RecordError(f"{record}: {name} has {got} values for {want} {per}")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation: role is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the policy responds to. token_ids [P] int32 is `messages` through the policy's chat template, response opened."""

    prompt_id: str
    messages: tuple[Message, ...]
    token_ids: IntArray
    meta: dict[str, str]

    def __post_init__(self) -> None:
        if self.token_ids.ndim != 1 or self.token_ids.size == 0:
            raise RecordError(f"prompt {self.prompt_id}: token_ids must be a non-empty vector")


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled response. token_ids [R] int32 with its end token where finish_reason is "stop";
    rollout_logprobs [R] float32 at sampling; version_spans ((first token index, policy_version), ...)."""

    response: str
    token_ids: IntArray
    rollout_logprobs: FloatArray
    finish_reason: FinishReason
    version_spans: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        _check_length("rollout", "rollout_logprobs", len(self.rollout_logprobs), "token_ids", len(self.token_ids))
        starts = [start for start, _ in self.version_spans]
        if starts[:1] != [0] or starts != sorted(set(starts)) or starts[-1] >= max(len(self.token_ids), 1):
            raise RecordError(
                f"rollout: version_spans must start at token 0 and ascend within {len(self.token_ids)} tokens, "
                f"got {self.version_spans[:8]}"
            )

    @property
    def oldest_version(self) -> int:
        """The oldest policy version that sampled one of the tokens."""
        return min(version for _, version in self.version_spans)


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """The G responses to the prompt of one slot; group_id is (run, slot)."""

    slot: int
    prompt: Prompt
    rollouts: tuple[Rollout, ...]

    def __post_init__(self) -> None:
        if self.slot < 0 or not self.rollouts:
            raise RecordError(f"slot {self.slot}: a group needs slot >= 0 and at least one rollout")


@dataclass(frozen=True, slots=True)
class Reward:
    """One response's reward, kept open: scores [K] raw, gate_weights [K], terms [M] after debias, centring,
    calibration and transform, weights [M]; `value` = weights . terms + penalty."""

    scores: FloatArray
    gate_weights: FloatArray
    terms: FloatArray
    weights: FloatArray
    penalty: float

    def __post_init__(self) -> None:
        _check_length("reward", "gate_weights", len(self.gate_weights), "scores", len(self.scores))
        _check_length("reward", "weights", len(self.weights), "terms", len(self.terms))

    @property
    def value(self) -> float:
        """The reward: weights . terms and the penalty."""
        return float(np.dot(self.weights, self.terms)) + self.penalty


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """A group with its G rewards, all by one rm_version and one reference_version."""

    group: RolloutGroup
    rewards: tuple[Reward, ...]
    rm_version: int
    reference_version: str

    def __post_init__(self) -> None:
        _check_length(f"slot {self.group.slot}", "rewards", len(self.rewards), "rollouts", len(self.group.rollouts))


@dataclass(frozen=True, slots=True)
class SlotDropped:
    """A slot that ends without being trained: in the scored stream it takes the place of its ScoredGroup."""

    slot: int
    reason: str


ScoredRecord = ScoredGroup | SlotDropped
