"""Checkpoints as directories that are either whole or absent.

`step_N/` is written aside, every file hashed into MANIFEST.json and fsynced, then renamed (versions of the reward model are
committed the same way, without a manifest). The newest checkpoint is the one with the highest step whose manifest verifies;
one that does not verify is named and stops the resume.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.errors import RunError

MANIFEST = "MANIFEST.json"
STATE = "driver.json"
NAME = re.compile(r"step_(0|[1-9]\d*)")
MEND = "put back what the run wrote there, or remove it so that its stage is run again"


class CheckpointError(RunError):
    """A checkpoint that cannot be used; says which and why."""


def write_checkpoint(root: Path, step: int, state: dict[str, Any], write: Callable[[Path], None], keep: int) -> Path:
    """Commits `root/step_N` with what `write` puts there and the driver's state; removes all but the newest `keep`."""
    aside, final = root / f"writing_step_{step}", root / f"step_{step}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    write(aside)
    (aside / STATE).write_text(json.dumps(state))
    manifest = {str(file.relative_to(aside)): _describe(file) for file in sorted(aside.rglob("*")) if file.is_file()}
    (aside / MANIFEST).write_text(json.dumps({"step": step, "files": manifest}, indent=1))
    commit(aside, final)
    for old in steps(root)[:-keep]:
        shutil.rmtree(root / f"step_{old}")
    return final


def commit(aside: Path, final: Path) -> None:
    """Makes a directory that was written aside the one called `final`, whole, on the disk, in place of an earlier one."""
    for path in (*aside.rglob("*"), aside):
        sync(path)
    shutil.rmtree(final, ignore_errors=True)
    aside.rename(final)
    sync(final.parent)


def steps(root: Path) -> list[int]:
    """Steps of the committed checkpoints, ascending."""
    return numbered(root, NAME)


def numbered(root: Path, name: re.Pattern[str]) -> list[int]:
    """The numbers of what `root` holds under such a name, ascending; a copy beside it, step_6-old for one, is none of ours."""
    found = (name.fullmatch(path.name) for path in root.glob("*"))
    return sorted(int(match[1]) for match in found if match)


def newest(root: Path) -> Path | None:
    """The newest checkpoint, verified; None if there is none. Raises CheckpointError if it does not verify."""
    if not (found := steps(root)):
        return None
    path = root / f"step_{found[-1]}"
    verify(path)
    return path


def verify(path: Path) -> None:
    """Raises CheckpointError unless every file of the manifest is there, unchanged."""
    if not (path / MANIFEST).is_file():
        raise CheckpointError(f"{path}: no {MANIFEST}; it is not a finished checkpoint. Remove it and resume again.")
    for name, want in read_json(path / MANIFEST)["files"].items():
        file = path / name
        if not file.is_file() or _digest(file) != want["sha256"]:
            what = "is missing" if not file.is_file() else "has changed"
            raise CheckpointError(
                f"{path}: {name} {what}. To resume from the checkpoint before it, remove this directory."
            )


def read_state(path: Path) -> dict[str, Any]:
    """The driver's state in a verified checkpoint."""
    return read_json(path / STATE)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object that the run wrote. Raises CheckpointError where the file was cut, emptied or replaced since."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, FileNotFoundError) as error:
        raise CheckpointError(f"{path} is no whole JSON file ({' '.join(str(error).split())}); {MEND}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, wanted an object; {MEND}")
    return found


def _describe(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": _digest(file)}


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def write_whole(path: Path, text: str) -> None:
    """A small file that is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text(text)
    os.replace(aside, path)


def sync(path: Path) -> None:
    """Makes a file's content, or a directory's names, safe from a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
