"""Off-policy corrected reward modelling: original pairs weighed by how likely the policy of now makes their responses.

    w = exp(strength * (log rho(chosen) + log rho(rejected))),  rho = pi / (mixture * pi + (1 - mixture) * ref)

Called by driver/rounds/reward_models.py (pair_weights) and learner/worker.py (log_ratios). Label-free like MetaRM, and
without new samples. Source: OCRM (2507.15507).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from common.data.data import Demonstration, PreferencePair
from common.types import FloatArray
from learner.policy.sft import demonstration_rows
from learner.ranks.batch import collate, rank_micro_batches
from learner.ranks.engine import num_ranks, reduce_sum
from learner.ranks.logprobs import token_logprobs


def pair_weights(log_ratios: FloatArray, strength: float, mixture: float) -> NDArray[np.float64]:
    """Weights [P] with mean 1 of pairs, of log pi - log ref [P, 2] per sequence. mixture above 0 bounds rho by 1 / mixture."""
    ratios = log_ratios.astype(np.float64)
    with np.errstate(divide="ignore"):  # log 0 = -inf is right for mixture 0 or 1
        log_rho = -np.logaddexp(np.log(mixture), np.log1p(-mixture) - ratios)
    exponent = strength * log_rho.sum(1)
    weights = np.exp(exponent - exponent.max())
    return weights / weights.mean()


def log_ratios(
    policy: Callable[..., Any],
    reference: Callable[..., Any],
    pairs: Sequence[PreferencePair],
    tokenizer: PreTrainedTokenizerBase,
    temperature: float,
    micro_batch_tokens: int,
    rank: int,
    device: torch.device,
) -> FloatArray:
    """log pi - log ref of both responses of each pair, [P, 2], by all ranks together."""
    texts = [Demonstration(pair.messages, text) for pair in pairs for text in (pair.chosen, pair.rejected)]
    rows, ratios = demonstration_rows(texts, tokenizer), torch.zeros(2 * len(pairs))
    for indices in rank_micro_batches([len(row.token_ids) for row in rows], micro_batch_tokens, rank, num_ranks()):
        batch = collate([rows[i] for i in indices]).to(device)
        with torch.no_grad():
            log_probs = [
                token_logprobs(
                    model(input_ids=batch.token_ids, attention_mask=batch.mask, use_cache=False).logits,
                    batch.token_ids,
                    temperature,
                )
                for model in (policy, reference)
            ]
        gap = torch.where(batch.response_mask, log_probs[0] - log_probs[1], 0.0).sum(1)
        ratios[indices] = gap[: len(indices)].cpu()
    return reduce_sum(ratios).reshape(-1, 2).numpy()
