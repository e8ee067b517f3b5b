"""What both model cards are made of: the run's facts, Markdown, and names that may be shown (of the Hub, no paths).

Used by driver/export/card_policy.py and driver/export/card_reward_model.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from common.config.aggregations import AGGREGATIONS
from common.config.config import AggregationConfig, Config
from common.data.sources import is_hub_name
from driver.export.hub import repositories
from driver.preflight.inputs import is_path
from driver.report.read import read_run
from driver.report.records import RunFiles

TAGS = ["iter-rlhf", "rlhf"]
LICENCE = "No licence is given here: those of the base model and of the data hold."


@dataclass(frozen=True)
class Facts:
    """What a card is made of: the resolved configuration and the run's files up to the exported step."""

    config: Config
    files: RunFiles
    environment: Mapping[str, object]
    step: int


def read_facts(config: Config, step: int) -> Facts:
    """Reads the run's files."""
    files = read_run(config.run_dir, config.rewarder.objectives)
    files = replace(files, rows=[row for row in files.rows if int(row["step"]) <= step])
    return Facts(config, files, json.loads(files.environment) if files.environment else {}, step)


def card(head: ModelCardData, parts: Sequence[str]) -> str:
    """A card's text: the YAML head, then the parts."""
    return f"---\n{head.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def repo_name(config: Config, which: int, local: str) -> str:
    """What a reader loads: the policy's (0) or the reward model's (1) repository, or the directory inside the run's."""
    return repositories(config.export.push_to_hub)[which] if config.export.push_to_hub else local


def versions(facts: Facts) -> str:
    """The section with the versions of packages and of the code."""
    found = facts.environment
    packages = found.get("versions")
    rows = list(packages.items()) if isinstance(packages, dict) else []
    rows += [("python", found["python"])] if "python" in found else []
    changed = " and changes" if found.get("git_modified") else ""
    rows += [("iter-rlhf commit", f"{found['git_commit']}{changed}")] if found.get("git_commit") else []
    return "## Versions\n\n" + (table(["package", "version"], rows) if rows else "The run has no environment.json.")


def aggregation_settings(config: Config) -> list[tuple[str, object]]:
    """The card's rows on how a reward is made."""
    aggregation, kind = config.aggregation, AGGREGATIONS[config.aggregation.kind]
    reward = _summary(aggregation, config.rewarder.objectives)
    if not kind.centred:
        return [("reward", f"{reward}, calibrated" if kind.transformed else reward)]
    canned = "".join(f"; of {name}: a canned response" for name in aggregation.canned)
    return [
        ("reward", f"{reward}, centred on the frozen reference and calibrated"),
        ("references", f"{aggregation.references_per_prompt} per prompt, quantile {aggregation.quantile:g}{canned}"),
    ]


def _summary(aggregation: AggregationConfig, objectives: Sequence[str]) -> str:
    return AGGREGATIONS[aggregation.kind].summary.format(
        groups="; ".join(f"{name}: {', '.join(members)}" for name, members in aggregation.groups.items()),
        objectives=", ".join(aggregation.objectives or objectives),
        thresholds=", ".join(f"{name} {value:g}" for name, value in aggregation.thresholds.items()),
        weights=", ".join(f"{name} {weight:g}" for name, weight in aggregation.weights.items()),
        penalty=f"{aggregation.uncertainty_penalty:g}",
    )


def hub_id(name: str | None) -> str | None:
    """owner/name of a model or data set on the Hub (without its split); None for a path of this machine."""
    if name is None or is_path(name) or Path(name).exists() or not is_hub_name(name):
        return None
    repo = name.partition(":")[0]
    try:
        validate_repo_id(repo)
    except HFValidationError:
        return None
    return repo


def source(name: str | None) -> str:
    """Where data came from, for readers elsewhere."""
    if name is None:
        return "none"
    return hub_id(name) or "a file of the run's owner"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; cells keep to one line and one column whatever they hold."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell(value) for value in line) + " |" for line in lines)


def cell(value: object) -> str:
    """Text that fits into one cell of a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def bullets(lines: Iterable[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {cell(line)}" for line in lines)


def code(text: str) -> str:
    """A Markdown block of Python code."""
    return f"```python\n{text.strip()}\n```"
