"""Files between the driver's disk and those of nodes that do not share it, through Ray's object store.

    share(path)    the driver has it, every node gets it, at the same absolute path: before roles read it
    writing(path)  roles write it in this block, and the driver then takes what it lacks: before the driver reads it

The driver's disk is the run's: everything that must survive is there. On one machine, and for nodes that see run.dir, both
do nothing. Owned by driver/cluster/cluster.py; a manifest of hashes decides what travels, so a second call costs a look.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from common.errors import RunError
from driver.cluster.node_disk import Manifest, NodeDisk, manifest, remove

PIECE_BYTES = 64 * 2**20  # of one message


class DiskError(RunError):
    """A file that a node should have and cannot get; says which node and what to do."""


class Disks:
    """The disks of the nodes that do not see the run's directory, by the node's address."""

    def __init__(self, run_dir: Path, nodes: Mapping[str, NodeDisk]):
        self._run_dir = run_dir.resolve()
        self._far = self._blind(nodes) if nodes else {}

    @property
    def far(self) -> list[str]:
        """Addresses of the nodes that files are carried to and from."""
        return sorted(self._far)

    def share(self, path: str | Path | None) -> None:
        """Gives every far node what is at `path`. What a far node has there of the run's directory is replaced if it differs;
        anywhere else that is the user's, and DiskError says so. Nothing for a path that is not there, such as a Hub id."""
        if not self._far or path is None or (ours := manifest(Path(path))) is None:
            return
        for name, node in self._far.items():
            self._give(name, node, Path(path).resolve(), ours)

    @contextmanager
    def writing(self, path: str | Path) -> Iterator[str]:
        """The absolute path of a directory that roles write, each on its own node's disk; after the block all of it is on
        the driver's and nothing on far nodes. Nothing that an earlier run left there is taken for it."""
        target = Path(path).resolve()
        for node in self._far.values():
            node.remove(str(target))
        yield str(target)
        for name, node in self._far.items():
            self._bring(name, node, target)

    def _bring(self, name: str, node: NodeDisk, target: Path) -> None:
        theirs = node.manifest(str(target)) or {}
        for file, (size, digest) in theirs.items():
            self._take(node, target / file, size)
            if (got := (manifest(target / file) or {}).get("")) != (size, digest):
                raise DiskError(f"{target / file} did not come whole from {name}: got {got}, wanted {(size, digest)}")
        node.remove(str(target))

    def _blind(self, nodes: Mapping[str, NodeDisk]) -> dict[str, NodeDisk]:
        """The nodes that do not see a mark in run.dir."""
        mark, content = self._run_dir / ".node", uuid.uuid4().hex
        mark.write_text(content)
        return {name: node for name, node in nodes.items() if not node.sees(str(mark), content)}

    def _give(self, name: str, node: NodeDisk, source: Path, ours: Manifest) -> None:
        theirs = node.manifest(str(source))
        if theirs == ours:
            return
        if theirs is not None and not source.is_relative_to(self._run_dir):
            raise DiskError(
                f"{source} on {name} differs from the driver's; make them the same, or remove it there and it will be sent"
            )
        aside = f"{source}.arriving"
        node.remove(aside)
        for file in ours:
            self._send(node, source / file, os.path.join(aside, file) if file else aside)
        node.rename(aside, str(source))

    def _send(self, node: NodeDisk, source: Path, target: str) -> None:
        with source.open("rb") as file:
            node.append(target, file.read(PIECE_BYTES))  # also for an empty file
            while piece := file.read(PIECE_BYTES):
                node.append(target, piece)

    def _take(self, node: NodeDisk, target: Path, size: int) -> None:
        remove(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            while file.tell() < size:
                file.write(node.read(str(target), file.tell(), PIECE_BYTES))
