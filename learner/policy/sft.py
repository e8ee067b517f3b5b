"""Supervised fine-tuning on demonstrations: the policy that the loop starts from, and its frozen anchor.

Called by learner/worker.py for stage `sft`; learns the response tokens alone, token mean over the global batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from common.chat.chat import chat_of
from common.config.config import SftConfig
from common.data.data import Demonstration
from learner.ranks.batch import TokenRow, collate, rank_micro_batches
from learner.ranks.engine import Engine, num_ranks, reduce_sum
from learner.ranks.logprobs import token_logprobs
from learner.ranks.losses import masked_mean
from learner.ranks.progress import Report
from learner.ranks.schedule import cosine


def demonstration_rows(demonstrations: Sequence[Demonstration], tokenizer: PreTrainedTokenizerBase) -> list[TokenRow]:
    """Each demonstration through the chat template; the response starts where the generation prompt ends."""
    return [_row(demonstration, tokenizer) for demonstration in demonstrations]


def _row(demonstration: Demonstration, tokenizer: PreTrainedTokenizerBase) -> TokenRow:
    whole, start = chat_of(tokenizer).demonstration(demonstration.messages, demonstration.response)
    ids = np.array(whole, dtype=np.int32)
    return TokenRow(ids, start, np.zeros(len(ids) - start, dtype=np.float32), 0.0)


def train_sft(
    engine: Engine,
    rows: Sequence[TokenRow],
    config: SftConfig,
    micro_batch_tokens: int,
    seed: int,
    rank: int,
    device: torch.device,
    progress: Report,
) -> dict[str, float]:
    """Trains for config.epochs over all rows; returns the mean loss (nats per token) of the first and last tenth."""
    total = config.epochs * -(-len(rows) // config.batch_size)
    losses: list[float] = []
    for epoch in range(config.epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(rows))
        for start in range(0, len(rows), config.batch_size):
            part = [rows[index] for index in order[start : start + config.batch_size]]
            losses.append(_accumulate(engine, part, micro_batch_tokens, rank, device))
            engine.step(cosine(len(losses) - 1, total, config.warmup_fraction))
            progress("sft", len(losses), total, {"loss": losses[-1]})
    tenth = max(1, len(losses) // 10)
    return {"sft/first_loss": float(np.mean(losses[:tenth])), "sft/last_loss": float(np.mean(losses[-tenth:]))}


def _accumulate(
    engine: Engine, rows: Sequence[TokenRow], micro_batch_tokens: int, rank: int, device: torch.device
) -> float:
    num_tokens = sum(len(row.token_ids) - row.response_start for row in rows)
    total = torch.zeros(1, dtype=torch.float64)
    lengths = [len(row.token_ids) for row in rows]
    for indices in rank_micro_batches(lengths, micro_batch_tokens, rank, num_ranks()):
        batch = collate([rows[index] for index in indices]).to(device)
        with engine.precision():
            logits = engine.module(input_ids=batch.token_ids, attention_mask=batch.mask, use_cache=False).logits
        loss = masked_mean(-token_logprobs(logits, batch.token_ids, 1.0), batch.response_mask, num_tokens)
        engine.backward(loss * num_ranks())
        total += loss.detach().double().cpu()
    return float(reduce_sum(total))
