"""What benchmarks share: pieces of work timed in turns in one process, a table with limits, JSON beside it."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch


@dataclass(frozen=True)
class Row:
    """One number: what it is of, its unit, its spread over the repeats, and the limit it is held to ("<" or ">"), if any."""

    what: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    limit: tuple[str, float] | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the value keeps its limit; None where it has none."""
        if self.limit is None:
            return None
        side, bound = self.limit
        return self.value <= bound if side == "<" else self.value >= bound


def in_turns(work: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each piece in each repeat. All pieces run once to warm up, then in turns, every other repeat backwards: what
    else the machine does hits them alike, and ratios are taken within a repeat."""
    for piece in work.values():
        piece()
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(repeats):
        for name in list(work)[:: -1 if repeat % 2 else 1]:
            started = time.perf_counter()
            work[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(
    what: str, above: Sequence[float], below: Sequence[float], unit: str, limit: tuple[str, float] | None = None
) -> Row:
    """Median, least and greatest of above / below over the repeats."""
    values = [a / b for a, b in zip(above, below, strict=True)]
    return Row(what, median(values), unit, min(values), max(values), limit)


def rate(what: str, amount: float, seconds: Sequence[float], unit: str) -> Row:
    """Median, least and greatest of amount per second."""
    values = [amount / s for s in seconds]
    return Row(what, median(values), unit, min(values), max(values))


def table(rows: Sequence[Row]) -> str:
    """A Markdown table: value, its range over the repeats, limit and whether it holds."""
    lines = ["| | value | range | limit |", "|---|---|---|---|"]
    for row in rows:
        spread = "" if row.low is None or row.high is None else f"{row.low:.4g} to {row.high:.4g}"
        held = "" if row.limit is None else f"{row.limit[0]} {row.limit[1]:g}: {'holds' if row.holds else 'missed'}"
        lines.append(f"| {row.what} | {row.value:.4g} {row.unit} | {spread} | {held} |")
    return "\n".join(lines)


def publish(name: str, settings: Mapping[str, object], rows: Sequence[Row], directory: Path) -> None:
    """Prints the table and writes <directory>/<name>.json."""
    directory.mkdir(parents=True, exist_ok=True)
    record = {
        "benchmark": name,
        "settings": dict(settings),
        "machine": {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "cpu": platform.processor()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "rows": [asdict(row) | {"holds": row.holds} for row in rows],
    }
    path = directory / f"{name}.json"
    path.write_text(json.dumps(record, indent=1, default=str, allow_nan=False) + "\n")
    print(f"{name}: {', '.join(f'{key} {value}' for key, value in settings.items())}\n\n{table(rows)}\n\n{path}")
