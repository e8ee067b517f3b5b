"""Files that are whole or absent: every file that a restart reads is written by one of these.

Written aside, fsynced, renamed, and the directory fsynced: neither a kill, nor a full disk, nor a power cut leaves a half of
one, and the file that was there before stays until the new one is whole. Used by everyone who writes into a run's directory;
tests/unit/common/test_files.py finds who does not. Waits for the disk.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, content: str | bytes, aside: Path | None = None) -> None:
    """Puts the content into the file, in place of an earlier one. `aside` is where it waits meanwhile, on the same disk; beside
    the file where none is given."""
    with written_aside(path, aside) as waiting:
        waiting.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def written_aside(path: Path, aside: Path | None = None) -> Iterator[Path]:
    """A path to write one file to; after the block it is the file `path`. If the block fails, nothing has changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting = aside or path.with_name(f".{os.getpid()}.{path.name}")  # the end stays: numpy goes by it
    try:
        yield waiting
        sync(waiting)
        waiting.replace(path)
        sync(path.parent)
    finally:
        waiting.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Adds one line to a file that only grows, safe when this returns. A kill can leave a part of the last line, no more."""
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def commit(aside: Path, final: Path) -> None:
    """Makes a directory that was written aside the one called `final`, whole, on the disk, in place of an earlier one."""
    sync_tree(aside)
    shutil.rmtree(final, ignore_errors=True)
    aside.rename(final)
    sync(final.parent)


def sync_tree(path: Path) -> None:
    """Makes a directory with all that it holds, or a file, safe from a power cut."""
    for part in (*path.rglob("*"), path):
        sync(part)


def sync(path: Path) -> None:
    """Makes a file's content, or a directory's names, safe from a power cut. Some disks say only here that they are full."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
