"""What a policy's name stands for beside its weights: its pinned revision and its tokenizer.

Called by learner/worker.py and learner/reward_model/stage.py.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer

from common.config.config import PolicyConfig


def revision_of(model: str, policy: PolicyConfig) -> str | None:
    """The pinned revision of policy.model; none for a model that the run made."""
    return policy.revision if model == policy.model else None


def tokenizer_of(model: str, policy: PolicyConfig) -> Any:
    """The tokenizer beside a policy: a directory or Hub id."""
    remote = policy.trust_remote_code
    return AutoTokenizer.from_pretrained(model, revision=revision_of(model, policy), trust_remote_code=remote)
