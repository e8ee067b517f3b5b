"""r_ref, the value that counts as good for a prompt: a quantile of the frozen anchor's scored samples. Pure maths.

Owns the estimator and the key that says which r_ref is still valid. The rewarder's reference stage calls both; the
scorer reads the result. References are debiased and combined exactly like the responses (`aggregate.combined_scores`).

Source: Wang et al. 2402.00742 (r_ref = the 85th percentile of the reference policy's rewards).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Fact = str | int | float | bool | None | Sequence["Fact"] | Mapping[str, "Fact"]

REQUIRED_FACTS = ("rm_hash", "aggregation", "anchor_hash", "sampling", "template", "prompt_ids")
ESTIMATORS = ("order", "gaussian", "empirical")


def reference_value(combined: Tensor, quantile: float, estimator: str) -> Tensor:
    """r_ref [M] from N samples of one prompt, combined [N, M].

    order: between the order statistics around rank q (N + 1), so that a new sample is at or below it with probability q
    whatever the distribution (bounded, skewed or of two modes), and it is never above the best sample; for N < q / (1 - q) it
    is that best one. gaussian: mean + z_q std with ddof = 1, right for Normal samples alone. empirical: the interpolated
    quantile of the samples themselves, too low for few of them. Figures: docs/reward.md.
    Raises ValueError for fewer than 2 samples or a value that is not finite: nothing is ever centred on 0 instead."""
    _check_samples(combined, quantile, estimator)
    values = combined if combined.dtype == torch.float64 else combined.float()
    if estimator == "empirical":
        return torch.quantile(values, quantile, dim=0)
    if estimator == "order":
        return _order_quantile(values, quantile)
    z = torch.special.ndtri(torch.tensor(quantile, dtype=torch.float64)).item()
    return values.mean(0) + z * values.std(0, correction=1)


def _order_quantile(values: Tensor, quantile: float) -> Tensor:
    """[N, M] -> [M]: E F(x_(i)) = i / (N + 1), so rank q (N + 1), in [1, N], has expected coverage q (Weibull 1939; type 6 of
    Hyndman and Fan 1996)."""
    count, ordered = len(values), values.sort(0).values
    rank = min(max(quantile * (count + 1), 1.0), float(count))
    below = min(int(rank), count - 1)
    return torch.lerp(ordered[below - 1], ordered[below], rank - below)


def covers_unseen(combined: Tensor, quantile: float, estimator: str) -> Tensor:
    """Whether each of N samples [N, M] is at or below the r_ref that the others give: [N, M] bool. Its mean estimates the
    coverage of new samples; that of the samples that made r_ref does not (of N = 8, always seven are below it by rank). For
    N < 3, where the others give none, the samples are held against r_ref itself."""
    if len(combined) < 3:
        return combined <= reference_value(combined, quantile, estimator)
    others = [torch.cat([combined[:n], combined[n + 1 :]]) for n in range(len(combined))]
    bars = torch.stack([reference_value(rest, quantile, estimator) for rest in others])
    return combined <= bars


def _check_samples(combined: Tensor, quantile: float, estimator: str) -> None:
    if estimator not in ESTIMATORS:
        raise ValueError(f"aggregation.estimator is {estimator!r}; want one of {ESTIMATORS}")
    if not 0 < quantile < 1:
        raise ValueError(f"aggregation.quantile is {quantile}; want between 0 and 1")
    if combined.ndim != 2 or combined.shape[0] < 2:
        raise ValueError(
            f"references have shape {tuple(combined.shape)}; want [N, M] with N >= 2 samples of the prompt"
        )
    bad = int((~torch.isfinite(combined)).sum())
    if bad:
        raise ValueError(f"references have {bad} values that are not finite; score the anchor's samples again")


def reference_key(facts: Mapping[str, Fact]) -> str:
    """SHA-256 (hex) over everything r_ref depends on: change one fact and the key changes, whatever the order of the
    keys.

    Wants rm_hash (weights, debias matrix included), aggregation (kind, groups, quantile, estimator), anchor_hash,
    sampling (K, temperature, top_p, max tokens, seed), template and prompt_ids; more facts may be added. Raises
    ValueError."""
    missing = [name for name in REQUIRED_FACTS if name not in facts]
    if missing:
        raise ValueError(f"reference_key lacks {missing}; r_ref depends on all of {list(REQUIRED_FACTS)}")
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
