"""How much the members of an ensemble disagree on groups of the policy's samples (drift.signal disagreement), and on pairs of
them (adaptation.select: disagreement).

Called by learner/adaptation/worker.py, which has the samples and the device; the maths is learner/adaptation/drift.py. The
ensemble is a reward model whose objectives are its members; it is loaded for the look and let go.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer

from common.config.config import RewarderConfig
from common.judge import PairItem
from common.types import FloatArray, Message, ScoredGroup
from learner.adaptation.drift import disagreement
from rewarder.model import GatedRewardModel
from rewarder.scoring import score_responses


def of_ensemble(
    groups: Sequence[ScoredGroup], ensemble: str, rewarder: RewarderConfig, device: torch.device
) -> float | None:
    """learner.drift.disagreement of the ensemble's members on all responses of the groups; None without groups. Raises
    ValueError for a model of one objective."""
    texts = [
        (scored.group.prompt.messages, [rollout.response for rollout in scored.group.rollouts]) for scored in groups
    ]
    return next(iter(disagreement(_member_scores(texts, ensemble, rewarder, device))), None)


def of_pairs(
    pairs: Sequence[PairItem], ensemble: str, rewarder: RewarderConfig, device: torch.device
) -> NDArray[np.float64]:
    """The standard deviation among the members of each pair's difference in score, [P]."""
    texts = [(pair.messages, [pair.first, pair.second]) for pair in pairs]
    scores = np.stack(_member_scores(texts, ensemble, rewarder, device)).astype(np.float64)
    return (scores[:, 0] - scores[:, 1]).std(1)


def _member_scores(
    texts: Sequence[tuple[tuple[Message, ...], list[str]]],
    ensemble: str,
    rewarder: RewarderConfig,
    device: torch.device,
) -> list[FloatArray]:
    """The members' scores of the responses to each prompt, [responses, members] each."""
    model = GatedRewardModel.load(ensemble, rewarder.dtype).to(device)
    if len(model.objectives) < 2:
        raise ValueError(
            f"adaptation.ensemble {ensemble} has the one objective {', '.join(model.objectives)}, which has nobody to "
            "disagree with; name a model whose objectives are members (preferences/ensemble of stage preferences)"
        )
    tokenizer, limits = AutoTokenizer.from_pretrained(ensemble), (rewarder.max_tokens, rewarder.batch_tokens)
    return [score_responses(model, tokenizer, prompt, responses, *limits)[0].numpy() for prompt, responses in texts]
