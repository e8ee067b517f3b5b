"""Is a policy good in every respect, for every prompt? Measures of gold beyond its mean, against the reference policy.

Called by studies/evaluation.py for arms with the option `breadth`. The reference policy's own samples of each held-out prompt
say what counts as good there: the quantile of each objective's gold that aggregation.quantile names, as r_ref does of
scores. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from examples.sandbox.gold import OBJECTIVES, WEIGHTS

Golds = Sequence[Mapping[str, float]]  # of the responses to one prompt
JUDGED = tuple(name for name in OBJECTIVES if any(row[OBJECTIVES.index(name)] for row in WEIGHTS.values()))
WORST = 0.1  # share of the prompts


class Breadth:
    """Held-out prompts with what the reference policy achieves on each: `kinds` of the prompts, golds of its samples."""

    def __init__(self, kinds: Sequence[str], reference: Sequence[Golds], quantile: float):
        good = [[np.quantile([gold[name] for gold in golds], quantile) for name in JUDGED] for golds in reference]
        self._good = np.array(good)  # [prompts, objectives]
        self._counts = np.array([[WEIGHTS[kind][OBJECTIVES.index(name)] > 0 for name in JUDGED] for kind in kinds])
        self._start = np.array([np.mean([gold["gold"] for gold in golds]) for golds in reference])

    def measure(self, golds: Sequence[Golds]) -> dict[str, float]:
        """all_good: share of responses that reach the reference in every objective that counts for the prompt's kind;
        all_good_of_six: in every objective, counting or not. worst_decile: mean gold of the worst tenth of the prompts.
        gain_spread: standard deviation over prompts of the gold gained on the reference's mean; prompts_worse: share of
        prompts that lost. The last three are of prompt means."""
        values = np.array(
            [[[gold[name] for name in JUDGED] for gold in row] for row in golds]
        )  # [prompts, samples, ..]
        reached = values >= self._good[:, None] - 1e-9
        means = np.array([np.mean([gold["gold"] for gold in row]) for row in golds])
        gains, worst = means - self._start, max(1, round(WORST * len(means)))
        return {
            "all_good": float((reached | ~self._counts[:, None]).all(-1).mean()),
            "all_good_of_six": float(reached.all(-1).mean()),
            "worst_decile": float(np.sort(means)[:worst].mean()),
            "gain_spread": float(gains.std()),
            "prompts_worse": float((gains < 0).mean()),
        }
