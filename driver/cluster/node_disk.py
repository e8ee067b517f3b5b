"""One node's disk, for nodes that do not see the run's directory: what it has, gets and gives.

A Ray actor on each node of a cluster (driver/cluster/cluster.py), called by driver/cluster/disks.py alone. Knows paths and
bytes, nothing else.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

Manifest = dict[str, tuple[int, str]]  # name below the path ("" for a file itself) -> (bytes, sha256)


class NodeDisk:
    """Reads and writes absolute paths of the node that it runs on."""

    def sees(self, path: str, content: str) -> bool:
        """Whether the file `path` has this content here: then the disk is shared."""
        file = Path(path)
        return file.is_file() and file.read_text() == content

    def manifest(self, path: str) -> Manifest | None:
        """What is at the path, a file or a directory; None where there is nothing."""
        return manifest(Path(path))

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Up to `size` bytes of a file from `offset`."""
        with Path(path).open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def append(self, path: str, piece: bytes) -> None:
        """Adds bytes at the end of a file, which it makes with its folders where they are absent."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with Path(path).open("ab") as file:
            file.write(piece)

    def remove(self, path: str) -> None:
        """Removes a file or a directory, if it is there."""
        remove(Path(path))

    def rename(self, path: str, target: str) -> None:
        """Puts a path in the place of `target`, which is removed first."""
        remove(Path(target))
        Path(path).rename(target)


def manifest(path: Path) -> Manifest | None:
    """Sizes and hashes of a file or of all files of a directory; None where there is nothing."""
    if not path.exists():
        return None
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return {"" if file == path else str(file.relative_to(path)): (file.stat().st_size, _digest(file)) for file in files}


def remove(path: Path) -> None:
    """Removes a file or a directory, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
