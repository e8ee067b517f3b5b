"""report.html: what a run did, on one page that needs nothing else.

    title and verdict, gold, curves, objectives, terms, gold of each objective, reward model, samples, ledger, settings

Called by stage report; reads the run's files through driver/report/read.py. The look is driver/report.css, package data
that is copied into the page. No date, no random ids: the same files give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from driver.report.charts import Steps
from driver.report.curves import curves_section
from driver.report.html import interval, number, safe
from driver.report.read import read_run
from driver.report.records import Gold, RunFiles
from driver.report.samples import ledger_section, samples_section, settings_section
from driver.report.sections import (
    gold_objectives_section,
    gold_section,
    objectives_section,
    reward_model_section,
    terms_section,
)

CSS = Path(__file__).with_name("report.css")
POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # the page may load and run nothing, whatever a response says
TREND_STEPS = 5


def write_report(run_dir: Path, objectives: Sequence[str]) -> Path:
    """Writes run_dir/report.html from the run's files and returns its path. Raises FileNotFoundError without
    metrics.jsonl; every other file may be absent, and its section then says so."""
    path = run_dir / "report.html"
    path.write_text(page(read_run(run_dir, objectives)), encoding="utf-8")
    return path


def page(run: RunFiles) -> str:
    """The whole document."""
    steps = Steps(run.steps, run.borders)
    body = "".join(
        (
            _title(run),
            gold_section(run),
            curves_section(run, steps),
            objectives_section(run, steps),
            terms_section(run, steps),
            gold_objectives_section(run),
            reward_model_section(run.reward_model),
            samples_section(run.samples),
            ledger_section(run),
            settings_section(run),
        )
    )
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{safe(run.settings.name)}: report</title><style>\n{CSS.read_text(encoding='utf-8')}</style>"
    )
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}</body></html>\n'


# ---- title and verdict

LINKS = {
    "gold": "Gold",
    "curves": "Curves",
    "objectives": "Objectives",
    "terms": "Terms",
    "gold-objectives": "Gold of each objective",
    "reward-model": "Reward model",
    "samples": "Samples",
    "ledger": "Ledger",
    "settings": "Settings",
}


def _title(run: RunFiles) -> str:
    size, last = run.settings.steps, max(run.steps, default=0)
    length = f"{last} steps" + (f", iterations of {size}" if size else "")
    links = "".join(f'<a href="#{anchor}">{name}</a>' for anchor, name in LINKS.items())
    kicker = f'<p class="kicker">iter-rlhf run \N{MIDDLE DOT} {length}</p>'
    return f'{kicker}<h1>{safe(run.settings.name)}</h1><p class="verdict">{verdict(run)}</p><nav>{links}</nav>\n'


def verdict(run: RunFiles) -> str:
    """One sentence: did the policy get better, by which measure, and how sure is that. HTML."""
    judged = [gold for gold in run.golds if gold.step is not None and math.isfinite(gold.gold.mean)]
    if len(judged) >= 2:
        return _gold_verdict(judged[0], judged[-1], run)
    return _reward_verdict(run)


def _gold_verdict(first: Gold, last: Gold, run: RunFiles) -> str:
    up, down = first.gold.high < last.gold.low, first.gold.low > last.gold.high
    change = "rose" if up else "fell" if down else "did not clearly change"
    sure = "do not overlap" if up or down else "overlap"
    kl = run.last("policy/kl_sequence")
    cost = f", at a KL of {number(kl)} nats from the reference" if math.isfinite(kl) else ""
    return (
        f"Gold {change}: from {interval(first.gold)} ({safe(first.policy)}) to <b>{interval(last.gold)}</b> "
        f"({safe(last.policy)}) in {last.step} steps{cost}; the 95 % intervals {sure}{_peak(run, last)}."
    )


def _peak(run: RunFiles, last: Gold) -> str:
    """Where gold was best, if it has fallen since beyond the intervals; a reward that rose meanwhile was gamed."""
    judged = [gold for gold in run.golds if gold.step is not None and math.isfinite(gold.gold.mean)]
    best = max(judged, key=lambda gold: gold.gold.mean)
    if not best.gold.low > last.gold.high:
        return ""
    since = [value for step, value in zip(run.steps, run.series("reward/mean"), strict=True) if step > (best.step or 0)]
    before, after, _ = _trend(since)
    gamed = " while the reward kept rising: the policy has over-optimised its reward model" if after > before else ""
    return f"; it was best at {interval(best.gold)} ({safe(best.policy)}) and fell from there{gamed}"


def _trend(values: Sequence[float]) -> tuple[float, float, int]:
    """Means of the first and of the last few known values, and how many those are; NaN where there are none."""
    known = [value for value in values if math.isfinite(value)]
    size = min(TREND_STEPS, (len(known) + 1) // 2)
    return (sum(known[:size]) / size, sum(known[-size:]) / size, size) if size else (math.nan, math.nan, 0)


def _reward_verdict(run: RunFiles) -> str:
    known = [value for value in run.series("reward/mean") if math.isfinite(value)]
    first, last, size = _trend(known)
    if len(known) < 2:
        trained = f"The mean reward was <b>{number(last)}</b>; one step shows no trend, and no judge compared policies."
        return trained if known else "No step has been trained yet."
    return (
        f"The reward {'rose' if last >= first else 'fell'} from {number(first)} to <b>{number(last)}</b> (means of "
        f"the first and last {size} of {len(known)} steps); no judge compared policies, so this is the reward "
        "model's own opinion."
    )
