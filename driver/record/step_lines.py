"""Where a step line goes: metrics.jsonl, Ray's metrics and, with report.tensorboard, TensorBoard.

driver/loop/step_record.py makes them where a run starts or goes on. metrics.jsonl is the record; the others show what it has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.metrics import StepLog, read_rows, step_names
from driver.record.gauges import Gauges
from driver.record.progress import say
from driver.record.series import AT_THE_START
from driver.record.tensorboard import TensorBoard


class StepLines:
    """The lines of one run, after last_step (-1: none); later ones that a stopped run has left are removed."""

    def __init__(self, run: Path, objectives: Sequence[str], last_step: int, gauges: Gauges, tensorboard: bool):
        log = StepLog(run / "metrics.jsonl", step_names(objectives))
        log.cut(last_step)
        _say_missing(run / "metrics.jsonl", last_step)
        gauges.write(max(last_step, 0), AT_THE_START | _last_values(run / "metrics.jsonl"))
        self._writers: list[Callable[[int, Mapping[str, Any]], None]] = [log.write, gauges.write]
        if tensorboard:
            self._writers.append(TensorBoard(run / "tensorboard", last_step + 1).write)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """One line."""
        for write in self._writers:
            write(step, values)


def _say_missing(path: Path, last_step: int) -> None:
    """A checkpoint follows its line: one that is missing was lost since, and nothing can make it again."""
    known = {int(row["step"]) for row in read_rows(path)} if path.is_file() else set[int]()
    if missing := sorted(set(range(last_step + 1)) - known):
        shown = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        say(
            f"warning: {path} lacks the lines of {len(missing)} steps ({shown}); the run goes on, its curves have a gap"
        )


def _last_values(path: Path) -> dict[str, Any]:
    """The last value of each name that is not null."""
    rows = read_rows(path) if path.is_file() else []
    return {name: value for row in rows for name, value in row.items() if value is not None}
