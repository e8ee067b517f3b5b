"""The report's curves: a card for each thing to watch over the steps, its caption saying what healthy looks like.

Called by driver/report/page.py with a run's records; the template curves.html shows the cards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from markupsafe import Markup

from driver.report.charts import Scale, Steps, coloured, interval_chart, line_chart, stacked_chart, two_line_charts
from driver.report.html import number
from driver.report.records import RunFiles

LOWEST_DRAWN = 1e-8  # float32 resolves about 1e-7; an exact 0 has no place on a log axis


@dataclass(frozen=True, slots=True)
class Curve:
    """A card with one line: the step line's name, its title, unit, caption and colour."""

    name: str
    title: str
    unit: str
    caption: str
    colour: str = "blue"


REWARD = Curve(
    "reward/mean",
    "Reward",
    "transformed",
    "What the policy is trained on. A transformed reward has 0 as its ceiling; dotted: log \N{VULGAR FRACTION ONE HALF}, "
    "as good as the reference policy's better samples. Healthy: rises, then flattens.",
)
PLAIN = (
    Curve(
        "reward/gated_score",
        "Gated score",
        "proxy",
        "The reward model's raw scores weighted by its gate, before the transform. Healthy: gold (next chart) rises "
        "with it; if gold turns down first, the policy is gaming the reward model.",
    ),
    Curve(
        "reward/all_good",
        "All good",
        "probability",
        "The reward model's mean probability that a response is good in every term at once, were the terms independent. "
        "Healthy: rises; the reward can rise without it where one term pays for another.",
    ),
    Curve(
        "reward/saturated_frac",
        "Saturated",
        "share of terms",
        "Terms so far above the reference (z above 3) that the transform hardly pays for more. Healthy: grows from about "
        "0; above 0.8 there is little left to learn from: raise aggregation.quantile, or stop.",
    ),
    Curve(
        "policy/kl_sequence",
        "KL to the reference",
        "nats per response",
        "How far the policy has moved from where it started. Healthy: grows slowly; a jump means instability, and "
        "much KL for little gold means over-optimisation.",
        "purple",
    ),
    Curve(
        "policy/entropy",
        "Entropy",
        "nats per token",
        "How undecided the policy is at each token. Healthy: falls gently; near 0 it says the same thing every time "
        "and can learn no more.",
        "purple",
    ),
    Curve(
        "reward/group_std",
        "Spread in a group",
        "reward SD",
        "How much the responses to one prompt differ in reward: the signal there is to learn from. Healthy: well "
        "above 0.",
    ),
    Curve(
        "policy/grad_norm",
        "Gradient norm",
        "before clipping",
        "The size of the update that the optimizer was asked for. Healthy: level; spikes precede trouble.",
        "purple",
    ),
    Curve(
        "rollout/tokens_per_s",
        "Sampling speed",
        "tokens/s",
        "Tokens sampled by all engines per second that they were busy. Healthy: level, or changing with response "
        "length.",
        "muted",
    ),
)


@dataclass(frozen=True, slots=True)
class Card:
    """What a card shows: title, unit, values, caption, the legend's colours with their names, and its chart, which is None
    where none of the values was measured."""

    title: str
    unit: str
    values: Sequence[float]
    chart: Markup | None
    caption: str
    legend: Sequence[tuple[str, str]]


def curves(run: RunFiles, steps: Steps) -> list[Card]:
    """Every card in the page's order."""
    plain = {curve.name: _plain(run, steps, curve, Scale(smooth=True)) for curve in PLAIN}
    reward = _plain(run, steps, REWARD, Scale(smooth=True, level=run.settings.good))
    cards = [reward, plain["reward/gated_score"], _gold_card(run, steps)]
    cards += [plain["reward/all_good"], plain["reward/saturated_frac"]]
    cards += [plain["policy/kl_sequence"], plain["policy/entropy"], plain["reward/group_std"]]
    cards += [_length_card(run, steps), plain["policy/grad_norm"], _sync_card(run, steps)]
    return [*cards, _staleness_card(run, steps), plain["rollout/tokens_per_s"], _time_card(run, steps)]


def _card(
    title: str,
    unit: str,
    values: Sequence[float],
    chart: Callable[[], Markup],
    caption: str,
    legend: Sequence[tuple[str, str]] = (),
) -> Card:
    """A card whose chart is drawn only if one of the values was measured."""
    return Card(title, unit, values, chart() if any(map(math.isfinite, values)) else None, caption, legend)


def _plain(run: RunFiles, steps: Steps, curve: Curve, scale: Scale) -> Card:
    values = run.series(curve.name)
    chart = partial(line_chart, steps, values, curve.colour, scale, f"{curve.title} over steps")
    return _card(curve.title, curve.unit, values, chart, curve.caption)


def _gold_card(run: RunFiles, steps: Steps) -> Card:
    judged = [gold for gold in run.golds if gold.step is not None]
    ideal = next((gold.gold.mean for gold in run.golds if gold.step is None), math.nan)
    at, points = [float(gold.step or 0) for gold in judged], [gold.gold for gold in judged]
    caption = "The judge's mean on held-out prompts, with 95 % intervals. Healthy: rises with the gated score."
    caption += f" Dotted: the scripted ideal, {number(ideal)}." if math.isfinite(ideal) else ""
    chart = partial(interval_chart, steps, at, points, ideal, "Gold over steps")
    return _card("Gold", "judge", [point.mean for point in points], chart, caption)


def _length_card(run: RunFiles, steps: Steps) -> Card:
    tokens, truncated = run.series("rollout/response_tokens"), run.series("rollout/truncated_frac")
    chart = partial(two_line_charts, steps, tokens, truncated, "Response tokens and truncated share over steps")
    known = [value for value in truncated if math.isfinite(value)]
    share = f", {100 * sum(known) / len(known):.2g} % over the run" if known else ""
    legend = [("purple", "mean tokens"), ("orange", f"share truncated{share}")]
    caption = (
        "Length, and the share of responses cut off at the limit. Healthy: no drift that the task does not ask for, "
        "few cut off; steady growth often means that the reward model likes length."
    )
    return _card("Response length", "tokens", tokens, chart, caption, legend)


def _sync_card(run: RunFiles, steps: Steps) -> Card:
    measured, tolerance = run.series("sync/max_logprob_diff"), run.settings.sync_tolerance
    values = [max(value, LOWEST_DRAWN) for value in measured]
    scale = Scale(log=True, level=tolerance)
    chart = partial(line_chart, steps, values, "muted", scale, "Largest log-prob difference after each weight update")
    known = f" Dotted: the tolerance, {number(tolerance)}." if math.isfinite(tolerance) else ""
    caption = (
        "Largest difference between the engines' and the learner's log-probs on a probe, after each weight update: "
        f"proof that the engines have the new weights. Healthy: far below the tolerance.{known}"
    )
    return _card("Weight sync", "nats, log scale", measured, chart, caption)


def _staleness_card(run: RunFiles, steps: Steps) -> Card:
    values, limit = run.series("staleness/mean"), run.settings.max_staleness
    high = 1.2 * max(value for value in (*values, limit, 0.8) if math.isfinite(value))
    scale = Scale(low=-0.06 * high, high=high, level=limit)
    chart = partial(line_chart, steps, values, "muted", scale, "Staleness over steps")
    known = f" Dotted: the limit, {number(limit)}." if math.isfinite(limit) else ""
    caption = (
        "How many versions old the policy was that sampled what the step trained on. Healthy: at most the "
        f"limit.{known}"
    )
    return _card("Staleness", "policy versions, mean", values, chart, caption)


def _time_card(run: RunFiles, steps: Steps) -> Card:
    names = [name for name in run.names("time/") if name != "time/step_s"]
    parts = [run.series(name) for name in names]
    words = [name.removeprefix("time/").removesuffix("_s") for name in names]
    chart = partial(stacked_chart, steps, parts, "Seconds of each step by part")
    caption = (
        "Where a step's seconds go: wait is sampling and scoring, publish the new weights, judge the evaluation at "
        "an iteration's end, checkpoint the one before the step. Healthy: level; the largest part is what to speed up."
    )
    return _card("Time", "s per step", run.series("time/step_s"), chart, caption, coloured(words))
