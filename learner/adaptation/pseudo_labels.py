"""Pairs of the policy's samples that the served reward model labels itself, where it is sure: the control of self-training.

Called by learner/adaptation/round.py (adaptation.method: pseudo_label). Source: SSRM (2409.06903), which keeps a confidence
above .8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from learner.reward_model.data import Pair, PromptSet


def labelled_by_itself(meta: Sequence[PromptSet], reward: Tensor, confidence: float, seed: int) -> list[PromptSet]:
    """One random pair of each prompt, kept where the model's own probability of its order is at least `confidence`; reward [N]
    in logits, of the prompts' conversations in order."""
    rng, labelled, start = np.random.default_rng([seed, 3]), list[PromptSet](), 0
    for prompt in meta:
        count = len(prompt.conversations)
        a, b = sorted(rng.choice(count, 2, replace=False), key=lambda i: -float(reward[start + i]))
        if float((reward[start + a] - reward[start + b]).sigmoid()) >= confidence:
            labelled.append(replace(prompt, pairs=(Pair(int(a), int(b)),)))
        start += count
    return labelled
