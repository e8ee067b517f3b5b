"""From logits to log-probs of the tokens that follow: pure maths.

Alignment (common/types.py): in a row of tokens, logprobs[t] is log p(token t | earlier tokens); column 0 is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_logprobs(logits: Tensor, token_ids: Tensor, temperature: float) -> Tensor:
    """logits [B, T, V] of any float type, token_ids [B, T] -> [B, T] float32 at the sampling temperature."""
    scaled = logits[:, :-1].float() / temperature
    picked = scaled.gather(-1, token_ids[:, 1:, None]).squeeze(-1)
    return torch.nn.functional.pad(picked - scaled.logsumexp(-1), (1, 0))


def token_entropy(logits: Tensor, temperature: float) -> Tensor:
    """Entropy in nats of the distribution that each token was drawn from: logits [B, T, V] -> [B, T] float32, column 0
    is 0. Not differentiable: it is watched, not trained."""
    with torch.no_grad():
        logprobs = torch.log_softmax(logits[:, :-1].float() / temperature, dim=-1)
        return torch.nn.functional.pad(-(logprobs.exp() * logprobs).sum(-1), (1, 0))
