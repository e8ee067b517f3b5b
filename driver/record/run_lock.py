"""One process works on a run's directory: the lock that it holds there, and the run's id, which no other run has.

Taken by launch.py before it writes anything, asked by the preflight. The system gives the lock back when its holder dies,
however it dies, so that a lock of this machine is never stale. What another machine holds cannot be known here (not every
shared disk carries locks), so its name in the file counts until it is taken out. Waits for nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from common.errors import RunError
from common.files import write_whole
from common.json_text import json_text
from driver.record.checkpoint import steps

LOCK, RUN_ID = "run.lock", "run_id"


class RunHeld(RunError):
    """Another process works on the run; says which, where, and what to do."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who says that it works on the run, and since when (local time)."""

    host: str
    pid: int
    since: str


@contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Holds the run's directory for the time of the block. Raises RunHeld where another process does. What a dead process of
    this machine left is taken over."""
    descriptor = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if (problem := _problem(run_dir, descriptor)) is not None:
            raise RunHeld(problem)
        _write(descriptor, Holder(socket.gethostname(), os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S")))
        try:
            yield
        finally:
            _write(descriptor, None)
    finally:
        os.close(descriptor)


def held_elsewhere(run_dir: Path) -> str | None:
    """What is wrong with working on the run now, in one line; None where nothing is."""
    if not (run_dir / LOCK).is_file():
        return None
    descriptor = os.open(run_dir / LOCK, os.O_RDWR)
    try:
        return _problem(run_dir, descriptor)
    finally:
        os.close(descriptor)


def queue_name(run_dir: Path, name: str) -> str:
    """The run's name on Redis: its own and an id that is made once, so that two runs of one name never share a key. A run that
    was begun before there were ids keeps the keys that it has."""
    path = run_dir / RUN_ID
    if not path.is_file():
        if steps(run_dir / "checkpoints"):
            return name
        write_whole(path, uuid.uuid4().hex[:12])
    return f"{name}.{path.read_text().strip()}"


def _problem(run_dir: Path, descriptor: int) -> str | None:
    """Takes the lock, or says who has it."""
    holder, here = _read(descriptor), socket.gethostname()
    if holder is not None and holder.host != here:
        return (
            f"{run_dir} is worked on by process {holder.pid} on {holder.host} since {holder.since}; stop it there. If that "
            f"machine or container is gone, remove {run_dir / LOCK}"
        )
    if _lock(descriptor, holder):
        return None
    who = "another process" if holder is None else f"process {holder.pid} of this machine since {holder.since}"
    return f"{run_dir} is worked on by {who}; wait for it or stop it, or choose another run.name"


def _lock(descriptor: int, holder: Holder | None) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a disk without locks: the process's number must do
        return holder is None or not Path(f"/proc/{holder.pid}").exists()
    return True


def _read(descriptor: int) -> Holder | None:
    """Who is written there; None where nobody is, or a kill cut the writing."""
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
        return Holder(str(found["host"]), int(found["pid"]), str(found["since"]))
    except (ValueError, KeyError, TypeError):
        return None


def _write(descriptor: int, holder: Holder | None) -> None:
    os.ftruncate(descriptor, 0)
    if holder is not None:
        os.pwrite(descriptor, json_text(asdict(holder)).encode(), 0)
    os.fsync(descriptor)
