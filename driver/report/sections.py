"""The report's sections on what was learned: gold, objectives, terms, gold of each objective, and the reward model.

Called by driver/report/page.py with a run's records; each public function returns the HTML of its section.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from driver.report.charts import Scale, Steps, interval_spark, spark
from driver.report.html import absent, bar, first_to_last, fixed, interval, number, row, safe, section, table
from driver.report.records import Gold, Interval, RewardModel, RunFiles


def gold_section(run: RunFiles) -> str:
    intro = (
        "Gold is what the judge says of the policy's answers to held-out prompts. The reward model never sees it, "
        "so it tells whether a higher reward is a better answer. Healthy: each bar lies right of the one above it."
    )
    return section("gold", "Gold", intro, _gold_body(run))


def _gold_body(run: RunFiles) -> str:
    if not run.golds:
        nothing = '<p class="absent">Nothing was judged: set judge.function and data.eval_prompts.</p>'
        return nothing if run.evaluated else absent("evaluation.json", "stage evaluate") + nothing
    names = list(dict.fromkeys(name for gold in run.golds for name in gold.objectives))
    head = ["policy", "step", "mean gold", "", "95 % interval", "prompts", *map(safe, names)]
    rows = [_gold_row(gold, names, _span(run.golds)) for gold in run.golds]
    note = "" if run.evaluated else absent("evaluation.json (the rows below are the loop's)", "stage evaluate")
    return note + table(head, rows)


def _span(golds: Sequence[Gold]) -> tuple[float, float]:
    """The range that all intervals lie in, a little widened."""
    ends = [end for gold in golds for end in (gold.gold.low, gold.gold.mean, gold.gold.high) if math.isfinite(end)]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    pad = 0.04 * (high - low) or 0.5
    return low - pad, high + pad


def _gold_row(gold: Gold, names: Sequence[str], span: tuple[float, float]) -> str:
    def place(value: float) -> float:
        return 100 * (value - span[0]) / (span[1] - span[0])

    value, graphic = gold.gold, ""
    if math.isfinite(value.mean):
        low, high = (place(end) if math.isfinite(end) else place(value.mean) for end in (value.low, value.high))
        bar = f'<i style="left:{low:.1f}%;width:{high - low:.1f}%"></i><b style="left:{place(value.mean):.1f}%"></b>'
        graphic = f'<span class="range">{bar}</span>'
    ends = f"{fixed(value.low)} to {fixed(value.high)}"
    step = "\N{EN DASH}" if gold.step is None else str(gold.step)
    objectives = [fixed(gold.objectives[name].mean) if name in gold.objectives else "" for name in names]
    cells = [safe(gold.policy), step, f"<b>{fixed(value.mean)}</b>", graphic, ends, str(gold.prompts), *objectives]
    return row(cells, "ideal" if gold.step is None else "")


# ---- small multiples


def objectives_section(run: RunFiles, steps: Steps) -> str:
    intro = (
        "What the reward model says of each objective (blue: mean raw score) and how much the gate lets it count "
        "(orange: mean gate weight), over the steps. All blue charts span the same range, so slopes compare; orange "
        "ones start at 0. Healthy: objectives with weight rise, the others at least hold, and the weights stay "
        "about level, since they depend on the prompts alone."
    )
    scores = {name: run.series(f"reward/{name}") for name in run.objectives}
    gates = {name: run.series(f"gate/{name}") for name in run.objectives}
    known = [value for values in gates.values() for value in values if math.isfinite(value)]
    top = max(known, default=1.0) or 1.0
    scales, gate = same_span(list(scores.values())), Scale(low=-0.04 * top, high=1.1 * top)
    cells = [
        _cell(
            name,
            _moved("score", scores[name]),
            spark(steps, scores[name], "blue", scale, f"score of {name}"),
            _moved("gate", gates[name]),
            spark(steps, gates[name], "orange", gate, f"gate weight of {name}"),
        )
        for name, scale in zip(run.objectives, scales, strict=True)
    ]
    return section("objectives", "Objectives", intro, _sparks(cells, "objectives", "rewarder.objectives"))


def terms_section(run: RunFiles, steps: Steps) -> str:
    intro = (
        "The parts that are weighted and summed into the reward. Transformed, each is a log-probability: 0 is the ceiling, "
        "and the dotted line, log \N{VULGAR FRACTION ONE HALF} = \N{MINUS SIGN}0.69, is as good as the frozen reference "
        "policy's better samples. Healthy: every term rises; one that falls is being traded away. Binding: the share of "
        "responses in which raising this term would raise the reward most."
    )
    names = [name.removeprefix("reward/term/") for name in run.names("reward/term/")]
    series = [run.series(f"reward/term/{name}") for name in names]
    good = run.settings.good
    scales = same_span([[*values, good] for values in series])
    cells = [
        _cell(
            name,
            _moved("mean", values),
            spark(steps, values, "blue", replace(scale, level=good), f"term {name}"),
            _moved("binding", run.series(f"reward/binding/{name}")),
        )
        for name, values, scale in zip(names, series, scales, strict=True)
    ]
    return section("terms", "Reward terms", intro, _sparks(cells, "reward/term/* in metrics.jsonl", "stage iterate"))


def gold_objectives_section(run: RunFiles) -> str:
    intro = (
        "The judge's mean for each objective after each iteration, with 95 % intervals. All charts span the same "
        "range. Healthy: points rise or hold; compare with the reward model's scores above to see what it gets "
        "wrong."
    )
    judged = [gold for gold in run.golds if gold.step is not None]
    names = list(dict.fromkeys(name for gold in judged for name in gold.objectives))
    points = [[gold.objectives.get(name, Interval(math.nan)) for gold in judged] for name in names]
    scales = same_span([[end for p in column for end in (p.low, p.mean, p.high)] for column in points])
    at = [float(gold.step or 0) for gold in judged]
    cells = [
        _cell(name, _moved("gold", [p.mean for p in column]), interval_spark(at, column, scale, f"gold of {name}"))
        for name, column, scale in zip(names, points, scales, strict=True)
    ]
    body = _sparks(cells, "evaluation.json", "stage evaluate")
    return section("gold-objectives", "Gold of each objective", intro, body)


def same_span(series: Sequence[Sequence[float]]) -> list[Scale]:
    """One scale a series: each around its own middle, all as wide as the widest."""
    known = [[value for value in values if math.isfinite(value)] or [0.0] for values in series]
    widest = max((max(values) - min(values) for values in known), default=0.0) * 1.2 or 1.0
    middles = [(max(values) + min(values)) / 2 for values in known]
    return [Scale(low=middle - widest / 2, high=middle + widest / 2) for middle in middles]


def _sparks(cells: Sequence[str], what: str, stage: str) -> str:
    return f'<div class="sparks">{"".join(cells)}</div>' if cells else absent(what, stage)


def _cell(name: str, *parts: str) -> str:
    return f"<figure><h3>{safe(name)}</h3>{''.join(parts)}</figure>"


def _moved(what: str, values: Sequence[float]) -> str:
    return f'<div class="pair"><span>{what}</span><b>{first_to_last(values, 2)}</b></div>'


# ---- reward model


def reward_model_section(model: RewardModel | None) -> str:
    intro = (
        "The reward model on prompts that it was not trained on. Accuracy is the share of preference pairs that it "
        "orders as the labels do (0.5 is chance; noisy labels keep it well below 1), R\N{SUPERSCRIPT TWO} the share "
        "of a rating's variance that it explains. A temperature makes a term's differences probabilities: ECE near "
        "0 is healthy."
    )
    body = absent("rm/version_0/report.json", "stage reward_model") if model is None else _reward_model(model)
    return section("reward-model", "Reward model", intro, body)


def _reward_model(model: RewardModel) -> str:
    pairs = [("with a uniform gate", model.uniform_accuracy), ("by length alone", model.length_accuracy)]
    pairs += [("held-out pairs", model.pairs), ("held-out prompts", model.prompts)]
    facts = f"<div><b>{interval(model.accuracy)}</b>held-out pair accuracy</div>"
    if math.isfinite(model.baseline_accuracy.mean):
        facts += f"<div><b>{interval(model.baseline_accuracy)}</b>of a plain Bradley-Terry model</div>"
    facts += "".join(f"<div><b>{number(value)}</b>{name}</div>" for name, value in pairs)
    fits = [_fit_row(fit.term, fit.temperature, fit.report) for fit in model.fits]
    r2 = [row([safe(name), bar(value, 1.0), fixed(value)]) for name, value in model.r2.items()]
    columns = ["term", "temperature", "closed form", "log loss", "untempered", "Brier", "ECE", "pairs"]
    tables = table(["objective", "", "R\N{SUPERSCRIPT TWO}"], r2) + table(columns, fits)
    return f'<div class="facts">{facts}</div><div class="columns">{tables}</div>'


def _fit_row(term: str, temperature: float, report: Mapping[str, float]) -> str:
    names = ("closed_form", "nll", "nll_at_one", "brier", "ece", "num_pairs")
    return row([safe(term), number(temperature), *(number(report.get(name, math.nan)) for name in names)])
