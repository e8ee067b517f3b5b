"""A run's checkpoints hold what the learners and the loop need to go on, and the scored stream keeps what they need of it.

The loop (driver/loop/loop.py) owns them, driver/record/checkpoint.py writes them whole. A checkpoint waits for the learners
to save, and for other nodes' disks.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.config.config import Config
from common.queue.ledger import Ledger
from common.queue.queue import Queue
from driver.cluster.cluster import Cluster
from driver.record import checkpoint
from driver.record.dead_letters import note_letters
from driver.record.loop_state import LoopState


class Checkpoints:
    """The checkpoints of one run, oldest ones removed."""

    def __init__(self, config: Config, cluster: Cluster, queue: Queue, run: Path):
        self._keep, self._cluster, self._queue = config.checkpoint.keep, cluster, queue
        self._directory = run / "checkpoints"
        self._saving_s = 0.0

    def newest(self) -> Path | None:
        """Returns the newest checkpoint, verified, or None where there is none."""
        return checkpoint.newest(self._directory)

    def save(self, state: LoopState) -> None:
        """Writes a checkpoint of the learners and of the loop's state, and trims what it makes needless."""
        started = time.monotonic()
        checkpoint.write_checkpoint(self._directory, state.step, asdict(state), self._write_learners, self._keep)
        self.trim()
        self._saving_s = time.monotonic() - started

    def trim(self) -> None:
        """Deletes the scored records that no kept checkpoint needs, and moves the dead letters of their slots to the disk."""
        oldest = self._directory / f"step_{checkpoint.steps(self._directory)[0]}"
        self._queue.trim_scored(_ledger(oldest)["cursor"])
        letters = self._queue.settled_letters()
        note_letters(self._directory.parent, letters)
        self._queue.forget_letters(letters)

    def take_saving_s(self) -> float:
        """Returns the seconds that the last checkpoint took, once; 0 where none was written since it was asked."""
        taken, self._saving_s = self._saving_s, 0.0
        return taken

    def audit(self, admitted: int) -> list[str]:
        """Returns how the newest checkpoint violates the ledger's law; [] when every admitted slot is accounted for."""
        found = self.newest()
        if found is None:
            return ["there is no checkpoint to audit"]
        return Ledger.from_dict(_ledger(found)).audit(admitted, self._queue.slots_in_flight())

    def _write_learners(self, directory: Path) -> None:
        with self._cluster.disks.writing(directory) as target:
            self._cluster.learners.save(target)


def _ledger(found: Path) -> dict[str, Any]:
    return checkpoint.read_json(found / "learner.json")["ledger"]
