"""Judged rows through reward models: what is too long is left out, the rest is scored, row by row and scorer by scorer.

Called by driver/evaluate_rm/command.py. All scorers see the same rows: a row with an answer that is too long for one model
(rewarder.max_tokens) is left out for all and counted, since a cut answer would be scored at the wrong token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from common.data.judged import Answer
from driver.evaluate_rm.measures import Array, Outcome
from driver.evaluate_rm.sets import EvalSet
from driver.record.progress import Progress
from rewarder.aggregate import debias
from rewarder.model import GatedRewardModel
from rewarder.scoring import render, score_texts

CHUNK = 256  # answers between two lines of progress
TOO_LONG = "longer than rewarder.max_tokens"


def answers_of(sets: Sequence[EvalSet]) -> list[Answer]:
    """Every answer of every row, in order, the right ones of a row first."""
    return [answer for judged in sets for row in judged.rows for answer in row.answers]


def response_tokens(tokenizer: PreTrainedTokenizerBase, answers: Sequence[Answer], max_tokens: int) -> Array:
    """Tokens of each response by the model's template [N]; NaN where prompt and response are above max_tokens."""
    rendered = [render(tokenizer, answer.messages, answer.response) for answer in answers]
    lengths = [r.response_end - r.prompt_end if len(r.ids) <= max_tokens else np.nan for r in rendered]
    return np.array(lengths, dtype=np.float64)


def without_long_rows(sets: Sequence[EvalSet], tokens: Array) -> tuple[list[EvalSet], NDArray[np.bool_]]:
    """The sets without the rows that have an answer of NaN tokens, counted, and which answers [N] are left. Raises ValueError
    where a set has none left."""
    kept, fits, start = [], np.zeros(len(tokens), bool), 0
    for judged in sets:
        rows = []
        for row in judged.rows:
            place = slice(start, start := start + len(row.answers))
            fits[place] = np.isfinite(tokens[place]).all()
            rows += [row] if fits[place].all() else []
        if not rows:
            raise ValueError(f"{judged.name}: all {len(judged.rows)} rows are {TOO_LONG}; raise it")
        left_out = len(judged.rows) - len(rows)
        skipped = {**judged.skipped, **({TOO_LONG: left_out} if left_out else {})}
        kept.append(replace(judged, rows=tuple(rows), skipped=skipped))
    return kept, fits


def gated_and_uniform(
    model: GatedRewardModel,
    tokenizer: PreTrainedTokenizerBase,
    answers: Sequence[Answer],
    max_tokens: int,
    batch_tokens: int,
    what: str,
) -> tuple[Array, Array]:
    """Score of each answer [N] by the gate, sum_k g_k (r T)_k, and by a uniform gate, the mean of (r T)_k. Raises ValueError
    for a score that is not finite."""
    gated, uniform = np.empty(len(answers)), np.empty(len(answers))
    order = np.argsort([len(answer.response) for answer in answers], kind="stable")  # like with like: less padding
    progress, matrix = Progress(what, len(answers), "answers"), model.reward_transform_matrix.detach().cpu()
    for start in range(0, len(order), CHUNK):
        chunk = order[start : start + CHUNK]
        texts = [(answers[i].messages, answers[i].response) for i in chunk]
        scores, gates = score_texts(model, tokenizer, texts, max_tokens, batch_tokens)
        debiased = debias(scores, matrix)
        gated[chunk], uniform[chunk] = (debiased * gates).sum(-1).numpy(), debiased.mean(-1).numpy()
        progress.advance(len(chunk))
    if not np.isfinite(gated).all():
        raise ValueError(
            f"{int((~np.isfinite(gated)).sum())} gated scores are not finite; is the gate of {what} whole?"
        )
    return gated, uniform


def outcomes(sets: Sequence[EvalSet], scores: Array) -> dict[str, list[Outcome]]:
    """Set name -> one scorer's outcome of each row; scores [N] in the order of answers_of."""
    found: dict[str, list[Outcome]] = {}
    at = iter(scores.tolist())
    for judged in sets:
        found[judged.name] = [
            Outcome(tuple(next(at) for _ in row.right), tuple(next(at) for _ in row.wrong)) for row in judged.rows
        ]
    return found
