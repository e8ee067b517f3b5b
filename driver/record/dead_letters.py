"""dead_letters.jsonl in a run's directory: one row for each slot that was given up, and why.

Written by driver/loop/checkpoints.py when a checkpoint makes an end final, so that Redis can let the letter go, and by stage
iterate at its end for those that are left. A slot that a resume brings back has its letter in Redis alone: no row is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.data.data import write_jsonl
from common.metrics import read_rows
from common.queue.queue import DeadLetter, SettledLetter

FILE = "dead_letters.jsonl"


def note_letters(run: Path, letters: Sequence[DeadLetter | SettledLetter]) -> None:
    """Adds the letters that are not written down yet: one row for a slot and the stage that it died in."""
    path = run / FILE
    rows: list[dict[str, Any]] = read_rows(path) if path.is_file() else []
    known = {(row["slot"], row["stage"]) for row in rows}
    new = [{"slot": x.slot, "stage": x.stage, "reason": x.reason} for x in letters if (x.slot, x.stage) not in known]
    if new or not path.is_file():
        write_jsonl(path, [*rows, *new])
