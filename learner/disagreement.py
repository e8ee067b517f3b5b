"""How much the members of an ensemble disagree on groups of the policy's samples (drift.signal disagreement).

Called by learner/rm_adapter.py, which has the samples and the device; the maths is learner/drift.py. The ensemble is a reward
model whose objectives are its members; it is loaded for the look and let go.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import AutoTokenizer

from common.config import RewarderConfig
from common.types import ScoredGroup
from learner.drift import disagreement
from rewarder.model import GatedRewardModel
from rewarder.scoring import score_responses


def of_ensemble(
    groups: Sequence[ScoredGroup], ensemble: str, rewarder: RewarderConfig, device: torch.device
) -> float | None:
    """learner.drift.disagreement of the ensemble's members on all responses of the groups; None without groups. Raises
    ValueError for a model of one objective."""
    model = GatedRewardModel.load(ensemble, rewarder.dtype).to(device)
    if len(model.objectives) < 2:
        raise ValueError(
            f"adaptation.ensemble {ensemble} has the one objective {', '.join(model.objectives)}, which has nobody to "
            "disagree with; name a model whose objectives are members (preferences/ensemble of stage preferences)"
        )
    tokenizer, limits = AutoTokenizer.from_pretrained(ensemble), (rewarder.max_tokens, rewarder.batch_tokens)
    scores = []
    for scored in groups:
        responses = [rollout.response for rollout in scored.group.rollouts]
        scores.append(score_responses(model, tokenizer, scored.group.prompt.messages, responses, *limits)[0].numpy())
    return next(iter(disagreement(scores)), None)
