"""A run's step lines as TensorBoard scalars, in <run>/tensorboard/ under the names of metrics.jsonl.

Written by driver/record/step_lines.py; the only importer of tensorboardX, of which it takes the record format and the
messages. Its SummaryWriter is not used: it writes from a queue and a thread, so a killed run would lose the last steps, and
it puts the host's name into the file's. Here a line is on disk when write returns.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX.proto import event_pb2, summary_pb2
from tensorboardX.record_writer import RecordWriter

from driver.record.series import measured

EVENTS: Any = event_pb2  # protobuf makes the classes when the module loads, where a type checker does not see them
SUMMARIES: Any = summary_pb2


class TensorBoard:
    """A new event file beside those of the run's earlier starts; what those have from first_step on is dropped."""

    def __init__(self, directory: Path, first_step: int):
        directory.mkdir(parents=True, exist_ok=True)
        number = len(list(directory.glob("events.out.tfevents.*")))  # TensorBoard reads a run's files in order of name
        self._records = RecordWriter(str(directory / f"events.out.tfevents.{number:04d}"))
        self._write(file_version="brain.Event:2")
        restart = EVENTS.SessionLog(status=EVENTS.SessionLog.START)
        self._write(step=first_step, session_log=restart)  # this is what SummaryWriter's purge_step writes

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """The numbers of a step line, as one event."""
        scalars = [SUMMARIES.Summary.Value(tag=name, simple_value=value) for name, value in measured(values).items()]
        self._write(step=step, summary=SUMMARIES.Summary(value=scalars))

    def _write(self, **content: object) -> None:
        self._records.write(EVENTS.Event(wall_time=time.time(), **content).SerializeToString())
        self._records.flush()
