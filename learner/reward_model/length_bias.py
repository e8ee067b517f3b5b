"""Whether a reward model likes length: rank correlations of its scores, before and after debiasing. Pure maths.

Called by learner/reward_model/stage.py at the end of stage `reward_model`, on held-out responses; the numbers go into the
version's report.json. The debias (rewarder/debias.py) holds only one of them down, the global correlation with predicted
verbosity on the data it was fitted on: length bias can survive it, and within a prompt is where the policy would use it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rewarder.aggregate import debias
from rewarder.debias import spearman

GATED = "gated score"
Correlations = dict[str, dict[str, float]]


def length_bias(
    scores: Tensor,
    gate_weights: Tensor,
    matrix: Tensor,
    objectives: Sequence[str],
    verbosity: int | None,
    num_tokens: Tensor,
    prompt_of: Tensor,
) -> dict[str, Correlations]:
    """{objective or GATED: {"before" or "after": {"tokens", "tokens_within_prompt", "verbosity", "verbosity_within_prompt"}}}.

    scores [N, K] raw and gate_weights [N, K]. Spearman's, with the response's tokens [N] and with the predicted verbosity (only
    where the model names a verbosity objective). Within prompts: of the deviations from the prompt's mean, of prompts with at
    least two responses; NaN for fewer than three such responses."""
    raw, gates = scores.double(), gate_weights.double()
    against = {"tokens": num_tokens.double()} | ({} if verbosity is None else {"verbosity": raw[:, verbosity]})
    correlations: dict[str, Correlations] = {name: {} for name in (*objectives, GATED)}
    for when, values in (("before", raw), ("after", debias(raw, matrix.double()))):
        columns = [*values.unbind(1), (values * gates).sum(1)]
        for name, column in zip(correlations, columns, strict=True):
            correlations[name][when] = _correlations(column, against, prompt_of)
    return correlations


def _correlations(score: Tensor, against: dict[str, Tensor], prompt_of: Tensor) -> dict[str, float]:
    correlations = {}
    for name, other in against.items():
        correlations[name] = spearman(score, other)
        correlations[f"{name}_within_prompt"] = _within(score, other, prompt_of)
    return correlations


def _within(a: Tensor, b: Tensor, prompt_of: Tensor) -> float:
    sizes = torch.bincount(prompt_of)
    kept = sizes[prompt_of] > 1
    if int(kept.sum()) < 3:
        return float("nan")
    return spearman(*((values - _means(values, prompt_of, sizes))[kept] for values in (a, b)))


def _means(values: Tensor, prompt_of: Tensor, sizes: Tensor) -> Tensor:
    """Each response's prompt mean [N]."""
    sums = torch.zeros(len(sizes), dtype=values.dtype).index_add_(0, prompt_of, values)
    return (sums / sizes.clamp_min(1))[prompt_of]
