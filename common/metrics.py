"""metrics.jsonl and samples.jsonl: one line a step, written by the driver alone.

Every step line has every name of STEP_NAMES; a value that a step did not measure is null. On resume the lines after the
checkpoint's step are removed, so the file reads as if the run had never stopped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import RunError
from common.files import append_line, write_whole
from common.json_text import json_text

STEP_NAMES = (
    "iteration",
    "policy/version",
    "reward/mean",
    "reward/mean_se",
    "reward/saturated_frac",
    "reward/linear_frac",
    "reward/floored_frac",
    "reward/all_good",
    "reward/no_spread_frac",
    "policy/kl_ref",
    "policy/entropy",
    "policy/clip_frac",
    "policy/ratio_mean",
    "policy/importance_weight_mean",
    "policy/importance_capped_frac",
    "policy/grad_norm",
    "rollout/tokens_per_s",
    "rollout/response_tokens",
    "rollout/truncated_frac",
    "rollout/mixed_versions_frac",
    "staleness/mean",
    "queue/work",
    "queue/rollouts",
    "queue/scored",
    "queue/dead",
    "rm/version",
    "sync/max_logprob_diff",
    "gold/mean",
)


# What follows reward/ and gate/ in a step line and is no objective's name
RESERVED = ("mean", "mean_se", "group_std", "gated_score", "saturated_frac", "linear_frac", "all_good")
RESERVED_KINDS = ("term/", "binding/")


def step_names(objectives: Sequence[str]) -> tuple[str, ...]:
    """The names that every step line has, whatever happened in the step."""
    return (*STEP_NAMES, *(f"{kind}/{name}" for name in objectives for kind in ("reward", "gate")))


class RecordError(RunError):
    """A record of a run that cannot be read; says which line, and what to do."""


class StepLog:
    """A JSONL file whose rows carry their step, cut back to a step on resume."""

    def __init__(self, path: Path, names: Sequence[str] = ()):
        self._path, self._names = path, names
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one row: step, then every fixed name (null if absent), then the rest."""
        row = {"step": step, **dict.fromkeys(self._names), **values}
        append_line(self._path, json_text(row))

    def cut(self, last_step: int) -> None:
        """Removes the rows after last_step, and a half-written last row. Raises RecordError for a line that cannot be read."""
        if not self._path.is_file():
            return
        lines = self._path.read_text(errors="replace").splitlines(keepends=True)
        kept = [line for at, line in enumerate(lines, 1) if _keeps(self._path, at, line, last_step)]
        write_whole(self._path, "".join(kept))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def _keeps(path: Path, at: int, line: str, last_step: int) -> bool:
    if not line.endswith("\n"):
        return False
    try:
        return int(json.loads(line)["step"]) <= last_step
    except (ValueError, TypeError, KeyError) as error:
        raise RecordError(f"{path}:{at} is no row of a step ({error}); restore the file, or remove the line") from error
