"""A study's results on disk: one row per (study, arm, seed), one JSON object a file.

Owns the format of the rows. A study writes one when a run of it ends, and skips the runs whose rows are there; statistics,
tables and figures read them. Waits for the disk only.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from numbers import Integral
from pathlib import Path
from typing import cast


@dataclass(frozen=True, slots=True)
class Row:
    """What one run of a study measured: `end` once, `curves` along the run, all of one length; NaN: not measured there."""

    study: str
    arm: str
    seed: int
    end: dict[str, float]
    curves: dict[str, list[float]]
    config_hash: str  # of the arm's settings
    code: str  # the version of the code that ran
    world: str  # the sandbox world that it ran in
    wall_s: float

    def __post_init__(self) -> None:
        lengths = {name: len(values) for name, values in self.curves.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the curves of a row must have equal lengths; got {lengths}; use NaN where not measured")

    @property
    def label(self) -> str:
        """Names the row in a message."""
        return f"{self.study}: arm {self.arm!r}, seed {self.seed}"

    def curve(self, name: str) -> list[float]:
        """The values along the run. Raises ValueError where the row has no such curve."""
        if name not in self.curves:
            raise ValueError(f"{self.label} has no curve {name!r}; it has {', '.join(sorted(self.curves)) or 'none'}")
        return self.curves[name]

    def write(self, path: Path) -> None:
        """Whole or not at all: aside, fsynced, renamed. Floats keep 6 significant digits; NaN and infinities become null."""
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with aside.open("w", encoding="utf-8") as file:
                file.write(json.dumps(_fields(self), ensure_ascii=False, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)

    @classmethod
    def read(cls, path: Path) -> Row:
        """Raises ValueError, which names the file, where that is not a row; null is read as NaN."""
        try:
            return _row(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{path} is not a row of a study: {error}; delete it and run that arm again") from error


def read_rows(directory: Path) -> list[Row]:
    """The rows of all .json files in a directory, sorted by (arm, seed); a directory that is not there has none.

    Raises ValueError where a file is not a row, or where two files hold the same (study, arm, seed).
    """
    files: dict[tuple[str, int, str], Path] = {}
    rows: dict[tuple[str, int, str], Row] = {}
    for path in sorted(path for path in directory.glob("*.json") if not path.name.startswith(".")):
        row = Row.read(path)
        key = (row.arm, row.seed, row.study)
        if key in rows:
            raise ValueError(f"{files[key]} and {path} both hold {row.label}; delete one of them")
        files[key], rows[key] = path, row
    return [rows[key] for key in sorted(rows)]


def group_by_arm(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each arm, arms in order of first appearance."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.arm, []).append(row)
    return groups


# ---- Row -> JSON


def _fields(row: Row) -> dict[str, object]:
    return {
        "study": row.study,
        "arm": row.arm,
        "seed": row.seed,
        "end": {name: _rounded(value) for name, value in row.end.items()},
        "curves": {name: [_rounded(value) for value in values] for name, values in row.curves.items()},
        "config_hash": row.config_hash,
        "code": row.code,
        "world": row.world,
        "wall_s": _rounded(row.wall_s),
    }


def _rounded(value: float) -> float | None:
    """Integers stay as they are; numpy's numbers become Python's, which json accepts."""
    if isinstance(value, Integral):
        return int(value)
    return float(f"{value:.6g}") if math.isfinite(value) else None


# ---- JSON -> Row


def _row(raw: object) -> Row:
    values = _object(raw, "the file")
    names = [field.name for field in fields(Row)]
    if set(values) != set(names):
        raise ValueError(f"the keys must be {names}; got {sorted(values)}")
    curves = _object(values["curves"], "curves")
    return Row(
        study=_text(values, "study"),
        arm=_text(values, "arm"),
        seed=_seed(values["seed"]),
        end={name: _number(value, f"end.{name}") for name, value in _object(values["end"], "end").items()},
        curves={name: _numbers(value, f"curves.{name}") for name, value in curves.items()},
        config_hash=_text(values, "config_hash"),
        code=_text(values, "code"),
        world=_text(values, "world"),
        wall_s=_number(values["wall_s"], "wall_s"),
    )


def _object(value: object, name: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object; got {type(value).__name__}")
    return cast("dict[str, object]", value)


def _text(values: Mapping[str, object], key: str) -> str:
    value = values[key]
    if not isinstance(value, str):
        raise ValueError(f"{key} must be a text; got {value!r}")
    return value


def _seed(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"seed must be an integer; got {value!r}")
    return value


def _numbers(value: object, name: str) -> list[float]:
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list of numbers; got {type(value).__name__}")
    return [_number(item, f"{name}[{index}]") for index, item in enumerate(cast("list[object]", value))]


def _number(value: object, name: str) -> float:
    if value is None:
        return math.nan
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{name} must be a number or null; got {value!r}")
    return value
