"""Judged rows through reward models: what is too long is left out, the rest is scored, row by row and scorer by scorer.

Called by driver/evaluate_rm/command.py. All scorers see the same rows: a row with an answer that is too long for one model
(rewarder.max_tokens) is left out for all and counted, since a cut answer would be scored at the wrong token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from common.data.fields import Answer
from common.data.rows import Rows
from common.data.sides import judged_sides
from driver.evaluate_rm.measures import Array, Outcome
from driver.evaluate_rm.sets import EvalSet
from driver.record.progress import Progress
from rewarder.aggregate import debias
from rewarder.fitting import Fitting
from rewarder.model import GatedRewardModel
from rewarder.scoring import score_texts

CHUNK = 256  # answers between two lines of progress
REMEDY = "raise rewarder.max_tokens, or give other rows"


def answers_of(sets: Sequence[EvalSet]) -> list[Answer]:
    """Every answer of every row, in order, the right ones of a row first."""
    return [answer for judged in sets for row in judged.rows for answer in row.answers]


def usable_sets(sets: Sequence[EvalSet], fittings: Sequence[Fitting]) -> list[EvalSet]:
    """The sets without the rows that one of the models cannot use, which are counted. Raises ValueError where a set has none
    left."""
    return [_usable(judged, fittings) for judged in sets]


def _usable(judged: EvalSet, fittings: Sequence[Fitting]) -> EvalSet:
    rows = Rows(judged.name, judged.rows, range(len(judged.rows)), judged.skipped, judged.notes)
    for fitting in fittings:
        rows = fitting.usable(rows, judged_sides)
    if not rows:
        reasons = " or ".join(reason for reason in rows.left_out if reason not in judged.skipped)
        raise ValueError(f"{judged.name}: all {len(judged.rows)} rows are {reasons}; {REMEDY}")
    return replace(judged, rows=rows, skipped=rows.left_out)


def response_tokens(fitting: Fitting, answers: Sequence[Answer]) -> Array:
    """Tokens of each response by the model's template [N]."""
    lengths = [found.response_end - found.prompt_end for found in fitting.rendered(answers)]
    return np.array(lengths, dtype=np.float64)


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
