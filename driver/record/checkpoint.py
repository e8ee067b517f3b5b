"""Checkpoints as directories that are either whole or absent.

`step_N/` is written aside, every file hashed into MANIFEST.json and fsynced, then renamed (versions of the reward model are
committed the same way, without a manifest). A checkpoint counts if every file is as the manifest says, nothing else lies there,
and nobody but its owner can have written it. With a key in the environment (KEY_ENV) manifests are signed, and an unsigned one
is refused. Which checkpoint a run goes on from is driver/record/resume.py.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from common.errors import RunError
from common.files import commit, write_whole
from common.json_text import json_text

MANIFEST = "MANIFEST.json"
STATE = "driver.json"
NEWEST = "newest_checkpoint.json"  # beside the directory of checkpoints: the step of the newest one that was committed
KEY_ENV = "ITER_RLHF_CHECKPOINT_KEY"
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
    write_whole(aside / STATE, json_text(state))
    write_whole(aside / MANIFEST, json_text(_signed({"step": step, "files": _files(aside)}), indent=1))
    commit(aside, final)
    write_whole(root.parent / NEWEST, json_text({"step": step}))
    for old in steps(root)[:-keep]:
        shutil.rmtree(root / f"step_{old}")
    return final


def steps(root: Path) -> list[int]:
    """Steps of the committed checkpoints, ascending."""
    return numbered(root, NAME)


def numbered(root: Path, name: re.Pattern[str]) -> list[int]:
    """The numbers of what `root` holds under such a name, ascending; a copy beside it, step_6-old for one, is none of ours."""
    found = (name.fullmatch(path.name) for path in (root.iterdir() if root.is_dir() else ()))
    return sorted(int(match[1]) for match in found if match)


def newest(root: Path) -> Path | None:
    """The newest checkpoint, verified; None if there is none. Raises CheckpointError if it does not verify."""
    if not (found := steps(root)):
        return None
    path = root / f"step_{found[-1]}"
    verify(path)
    return path


def verify(path: Path) -> None:
    """Raises CheckpointError unless the manifest is whole and of this step, every file is as it says, and none lies beside."""
    if not (path / MANIFEST).is_file():
        raise CheckpointError(f"{path}: no {MANIFEST}; it is not a finished checkpoint")
    manifest = read_json(path / MANIFEST)
    wanted = _wanted(path, manifest)
    _check_owner(path, _check_signature(path, manifest))
    if str(manifest.get("step")) != path.name.removeprefix("step_"):
        raise CheckpointError(f"{path}: {MANIFEST} is of step {manifest.get('step')}; it belongs to another checkpoint")
    there = _files(path)
    for name in sorted({*wanted, *there}):
        if name not in there:
            raise CheckpointError(f"{path}: {name} is missing")
        if name not in wanted:
            raise CheckpointError(f"{path}: {name} is not in {MANIFEST}; the run did not write it there")
        if there[name] != wanted[name]:
            raise CheckpointError(f"{path}: {name} has changed")


def read_state(path: Path) -> dict[str, Any]:
    """The driver's state in a verified checkpoint."""
    return read_json(path / STATE)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object that the run wrote. Raises CheckpointError where the file was cut, emptied or replaced since."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, FileNotFoundError, RecursionError) as error:
        raise CheckpointError(f"{path} is no whole JSON file ({' '.join(str(error).split())}); {MEND}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, wanted an object; {MEND}")
    return found


def _files(path: Path) -> dict[str, Any]:
    """Name -> size and hash of every file but the manifest; hidden ones, which file browsers and network disks leave, are
    nobody's: neither we nor DeepSpeed read one."""
    found = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if not file.is_dir()}
    shown = {name: file for name, file in found.items() if not any(part.startswith(".") for part in name.split("/"))}
    return {name: _describe(file) for name, file in shown.items() if name != MANIFEST}


def _describe(file: Path) -> dict[str, Any]:
    if file.is_symlink() or not file.is_file():
        return {"bytes": 0, "sha256": "a link or a device, which no checkpoint holds"}
    with file.open("rb") as opened:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}


def _wanted(path: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """The files of a manifest. Raises CheckpointError where it names none, or one outside the checkpoint."""
    files = manifest.get("files")
    if not isinstance(files, dict) or not files:
        raise CheckpointError(f"{path}: {MANIFEST} names no files; it was cut or emptied")
    for name in files:
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or parts.as_posix() != name:
            raise CheckpointError(f"{path}: {MANIFEST} names {name!r}, which is no plain name below it")
    return files


# ---- who wrote it -----------------------------------------------------------------------------------------------------


def _signed(manifest: dict[str, Any]) -> dict[str, Any]:
    key = os.environ.get(KEY_ENV)
    return {**manifest, "signature": _signature(key, manifest)} if key else manifest


def _signature(key: str, manifest: dict[str, Any]) -> str:
    plain = {name: value for name, value in manifest.items() if name != "signature"}
    return hmac.new(key.encode(), json.dumps(plain, sort_keys=True).encode(), "sha256").hexdigest()


def _check_signature(path: Path, manifest: dict[str, Any]) -> bool:
    """Whether the manifest is signed with our key; False where we have none. CheckpointError where it should be and is not."""
    key = os.environ.get(KEY_ENV)
    if not key:
        return False
    if not hmac.compare_digest(str(manifest.get("signature")), _signature(key, manifest)):
        how = "is signed with another key, or was changed" if "signature" in manifest else "is not signed"
        raise CheckpointError(
            f"{path}: {MANIFEST} {how}, and {KEY_ENV} is set; unset it only if you trust who wrote this"
        )
    return True


def _check_owner(path: Path, is_signed: bool) -> None:
    """Without a signature, whoever may write there is trusted: that must be us (or root), and not everybody."""
    for part in () if is_signed else (path.parent, path):
        found = part.stat()
        if found.st_uid not in (os.geteuid(), 0):
            raise CheckpointError(
                f"{part} belongs to user {found.st_uid}, and this is user {os.geteuid()}; take it over (chown), or sign "
                f"checkpoints ({KEY_ENV})"
            )
        if found.st_mode & stat.S_IWOTH:
            raise CheckpointError(f"{part} can be written by everybody; chmod o-w it, or sign checkpoints ({KEY_ENV})")
