"""Groups to tensors: right-padded micro-batches of similar lengths under a budget of tokens.

Called by learner/policy/train.py and the supervised stages. Every rank cuts the same whole batch by the same rule and takes its
own part, so the ranks agree on the number of micro-batches without talking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.types import ScoredGroup
from rewarder.scoring import batches


@dataclass(frozen=True)
class Sequences:
    """B rows of at most T tokens. token_ids [B, T] int64; mask [B, T] True on real tokens; response_mask [B, T] True on
    response tokens; rollout_logprobs [B, T] of the sampler; advantages [B, 1]."""

    token_ids: Tensor
    mask: Tensor
    response_mask: Tensor
    rollout_logprobs: Tensor
    advantages: Tensor

    def to(self, device: torch.device) -> Sequences:
        """Moves the sequences to a device."""
        return Sequences(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class TokenRow:
    """One prompt and response: token_ids [T], where the response starts, the sampler's log-probs and the advantage."""

    token_ids: np.ndarray
    response_start: int
    rollout_logprobs: np.ndarray
    advantage: float


def rows_of(groups: Sequence[ScoredGroup], advantages: Tensor) -> list[TokenRow]:
    """One row for each response, in slot order; advantages [N, G]."""
    rows = []
    for group, values in zip(groups, advantages.tolist(), strict=True):
        prompt = group.group.prompt.token_ids
        for rollout, advantage in zip(group.group.rollouts, values, strict=True):
            ids = np.concatenate([prompt, rollout.token_ids])
            rows.append(TokenRow(ids, len(prompt), rollout.rollout_logprobs, advantage))
    return rows


def rank_micro_batches(lengths: Sequence[int], token_budget: int, rank: int, ranks: int) -> list[list[int]]:
    """This rank's micro-batches: rank r has rows r, r + ranks, ...; all ranks return the same number of them (ZeRO-3 runs
    collectives in every pass), empty ones at the end where a rank has fewer."""
    parts = [list(range(start, len(lengths), ranks)) for start in range(ranks)]
    cuts = [[[part[i] for i in cut] for cut in batches([lengths[j] for j in part], token_budget)] for part in parts]
    longest = max(len(cut) for cut in cuts)
    return cuts[rank] + [[] for _ in range(longest - len(cuts[rank]))]


def collate(rows: Sequence[TokenRow]) -> Sequences:
    """Right-padded tensors of the rows; no rows give one masked row, whose loss is 0 (a pass that ZeRO-3 waits for)."""
    width = max((len(row.token_ids) for row in rows), default=2)
    size = max(len(rows), 1)
    token_ids = torch.zeros(size, width, dtype=torch.long)
    mask, response_mask = torch.zeros(size, width, dtype=torch.bool), torch.zeros(size, width, dtype=torch.bool)
    sampled, advantages = torch.zeros(size, width), torch.zeros(size, 1)
    for index, row in enumerate(rows):
        length = len(row.token_ids)
        token_ids[index, :length] = torch.from_numpy(row.token_ids.astype(np.int64))
        mask[index, :length] = True
        response_mask[index, row.response_start : length] = True
        sampled[index, row.response_start : length] = torch.from_numpy(row.rollout_logprobs.copy())
        advantages[index, 0] = row.advantage
    if not rows:
        mask[0, 0] = True
    return Sequences(token_ids, mask, response_mask, sampled, advantages)
