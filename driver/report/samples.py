"""The report's sections to look things up in: samples, ledger, environment and configuration.

Called by driver/report/page.py with a run's records; each public function returns the HTML of its section.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from driver.report.html import absent, bar, cut, number, row, safe, section, table
from driver.report.records import LedgerCounts, RunFiles, Sample

SAMPLES = 12


def samples_section(samples: Sequence[Sample]) -> str:
    intro = (
        "Responses spread over the run; click one for everything its reward was made of. A full bar is the largest "
        "score or gate weight of this list. Healthy: later responses read better, not only score better."
    )
    if not samples:
        return section("samples", "Samples", intro, absent("samples.jsonl", "stage iterate"))
    shown = spread(samples, SAMPLES)
    score, gate = _largest([sample.scores for sample in shown]), _largest([sample.gate for sample in shown])
    names = '<span>step</span><span class="prompt">prompt</span><span>response</span><span>reward</span>'
    body = f'<div class="heads">{names}</div>' + "".join(_sample(sample, score, gate) for sample in shown)
    return section("samples", "Samples", intro, body)


def spread(samples: Sequence[Sample], most: int) -> list[Sample]:
    """Up to `most` samples at even distances, the first and the last among them."""
    if len(samples) <= most:
        return list(samples)
    return [samples[round(at * (len(samples) - 1) / (most - 1))] for at in range(most)]


def _largest(parts: Sequence[Mapping[str, float]]) -> float:
    """The size that a full bar stands for."""
    return max((abs(value) for part in parts for value in part.values() if math.isfinite(value)), default=1.0)


def _sample(sample: Sample, top_score: float, top_gate: float) -> str:
    line = (
        f'<span>{sample.step}</span><span class="text prompt">{safe(sample.prompt[:300])}</span>'
        f'<span class="text">{safe(sample.response[:300])}</span><span class="reward">{number(sample.reward)}</span>'
    )
    made = (
        f"slot {sample.slot}, policy version {number(sample.versions[0])}, reward model version "
        f"{number(sample.versions[1])}, finished by {safe(sample.finish_reason)}"
    )
    shown = (("Prompt", sample.prompt), ("Response", sample.response))
    texts = "".join(f'<h3>{title}</h3><div class="full">{cut(text)}</div>' for title, text in shown)
    tables = _objective_table(sample, top_score, top_gate) + _term_table(sample)
    body = f'{texts}<div class="columns">{tables}</div><p class="note">{made}</p>'
    return f'<details class="sample"><summary>{line}</summary><div class="body">{body}</div></details>\n'


def _objective_table(sample: Sample, top_score: float, top_gate: float) -> str:
    rows = []
    for name, score in sample.scores.items():
        gate = sample.gate.get(name, math.nan)
        cells = [safe(name), bar(score, top_score), number(score), bar(gate, top_gate, " gate"), number(gate)]
        rows.append(row(cells))
    return table(["objective", "", "score", "", "gate weight"], rows)


def _term_table(sample: Sample) -> str:
    rows = []
    for name, value in sample.terms.items():
        weight = sample.weights.get(name, math.nan)
        rows.append(row([safe(name), number(value), number(weight), number(value * weight)]))
    rows.append(row(["truncation penalty", "", "", number(sample.penalty)]))
    rows.append(row(["<b>reward</b>", "", "", f"<b>{number(sample.reward)}</b>"]))
    return table(["term", "value", "weight", "product"], rows)


# ---- accounts and settings


def ledger_section(run: RunFiles) -> str:
    intro = "A slot is one prompt with its responses. Each slot ends once: trained, or dropped for a stated reason."
    ledger = absent("checkpoints/step_N/learner.json", "stage iterate") if run.ledger is None else _ledger(run.ledger)
    queue = run.last("queue/dead")
    known = f"; the dead stream held {number(queue)} at the last step" if math.isfinite(queue) else ""
    dead = f'<p class="note">dead_letters.jsonl is absent (stage iterate makes it){known}.</p>'
    if run.dead is not None:
        dead = f"<p>{sum(count for _, count in run.dead):,} dead-lettered{_reasons(run.dead)}.</p>"
    return section("ledger", "Ledger", intro, ledger + dead)


def _ledger(ledger: LedgerCounts) -> str:
    dropped = sorted(ledger.dropped.items(), key=lambda reason: (-reason[1], reason[0]))
    count = sum(ledger.dropped.values())
    return f"<p><b>{ledger.trained:,} trained, {count:,} dropped</b>{_reasons(dropped)}, as of step {ledger.step}.</p>"


def _reasons(reasons: Sequence[tuple[str, int]]) -> str:
    each = ", ".join(f"{count:,} \N{MULTIPLICATION SIGN} {safe(why)}" for why, count in reasons)
    return f" ({each})" if reasons else ""


def settings_section(run: RunFiles) -> str:
    files = (("Environment", run.environment, "environment.json"), ("Configuration", run.config, "config.yaml"))
    body = "".join(_folded(title, text, name) for title, text, name in files)
    return section("settings", "Environment and configuration", "", body)


def _folded(title: str, text: str | None, name: str) -> str:
    if text is None:
        return absent(name, "launch.py")
    return f"<details><summary>{title} <span class='unit'>{name}</span></summary><pre>{safe(text)}</pre></details>"
