"""What a run shows of itself without a judge: how well the reward model orders held-out pairs, and how the policy moved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from common.chance import CHANCE, chance_warnings
from common.metrics import read_rows
from driver.record.checkpoint import read_json
from driver.report.records import number

RULE = "  " + "!" * 100
CURVES = {  # what is said of a step line, and its unit
    "reward/mean": ("reward", "log-probability"),
    "policy/kl_sequence": ("KL to the SFT policy", "nats per response"),
    "rollout/response_tokens": ("response length", "tokens"),
}


def format_accuracy(report: Mapping[str, float]) -> str:
    """Held-out pair accuracy with its interval, beside the Bradley-Terry baseline (where there is one), a uniform gate, length
    alone and chance; `report` is that of rm/version_N/report.json."""
    baseline = "rm/pair_accuracy_baseline"
    beside = f"Bradley-Terry baseline {_with_interval(report, baseline)}, " if baseline in report else ""
    return (
        f"held-out pair accuracy {_with_interval(report, 'rm/pair_accuracy')} ({beside}uniform gate "
        f"{report['rm/pair_accuracy_uniform_gate']:.3f}, length alone {report['rm/pair_accuracy_length']:.3f}, chance "
        f"{CHANCE:.3f}; {report['rm/held_out_pairs']:.0f} pairs)"
    )


def _with_interval(report: Mapping[str, float], name: str) -> str:
    return f"{report[name]:.3f} [{report[f'{name}_low']:.3f}, {report[f'{name}_high']:.3f}]"


def chance_lines(report: Mapping[str, float | None]) -> list[str]:
    """What the terminal says, loudly, of a reward model that may be no better than chance; nothing of another."""
    found = [f"  !!! WARNING: {line}" for line in chance_warnings(report)]
    return [RULE, *found, RULE] if found else []


def summary_without_judge(directory: Path) -> list[str]:
    """A line for the reward model that the run trained, and one for each curve from the first to the last step."""
    lines, report = [], directory / "rm" / "version_0" / "report.json"
    if report.is_file():
        said = {name: number(value) for name, value in read_json(report)["report"].items()}
        lines += [f"reward model: {format_accuracy(said)}", *chance_lines(said)]
    metrics = directory / "metrics.jsonl"
    steps = [row for row in read_rows(metrics) if row["step"] > 0] if metrics.is_file() else []
    for key, (name, unit) in CURVES.items():
        if steps:
            first, last = number(steps[0][key]), number(steps[-1][key])
            lines.append(
                f"{name}: {first:.3f} at step {steps[0]['step']}, {last:.3f} at step {steps[-1]['step']} ({unit})"
            )
    return lines
