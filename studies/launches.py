"""Runs launch.py for a unit of a study, from its beginning or from where it was stopped, and counts what it costs.

Called by smollm.py. The command ends with the process that started it, by SIGTERM, so that no run goes on without its study.
Every process that it starts inherits a mark in its environment, by which their CPU seconds are counted.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from common.files import write_whole
from common.json_text import json_text

MARK = "ITER_RLHF_STUDY_UNIT"
POLL_S = 2.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass
class Cost:
    """Seconds of wall clock and of CPU, over all processes of a unit and all its starts."""

    wall_s: float = 0.0
    cpu_s: float = 0.0

    @classmethod
    def read(cls, path: Path) -> Cost:
        """What earlier starts have cost; nothing where there was none."""
        return cls(**json.loads(path.read_text())) if path.is_file() else cls()

    def write(self, path: Path) -> None:
        """Whole or not at all."""
        write_whole(path, json_text(asdict(self)) + "\n")


@dataclass
class Meter:
    """Adds to what earlier starts have cost. A process counts with what it had used when it was last seen, so one that ends
    between two looks loses less than POLL_S of each of its threads."""

    path: Path
    mark: str
    started: float = field(default_factory=time.monotonic)
    seen: dict[tuple[int, float], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._before = Cost.read(self.path)

    def look(self) -> Cost:
        """Counts the processes that carry the mark, and writes the sum."""
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark:
                    used = process.cpu_times()
                    self.seen[process.pid, process.create_time()] = used.user + used.system
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        wall_s = self._before.wall_s + time.monotonic() - self.started
        cost = Cost(wall_s, self._before.cpu_s + sum(self.seen.values()))
        cost.write(self.path)
        return cost


def launch(arguments: Sequence[str], directory: Path, mark: str, watch: Callable[[], None]) -> Cost:
    """Runs `python launch.py ARGUMENTS` to its end, goes on with the run in `directory` where it was begun, and calls `watch`
    every POLL_S seconds. Output goes to DIRECTORY.log, what it cost to DIRECTORY.cost.json.

    Raises RuntimeError where the command fails.
    """
    log, costs = directory.with_name(f"{directory.name}.log"), directory.with_name(f"{directory.name}.cost.json")
    resume = ["--resume"] if (directory / "config.yaml").is_file() else []
    log.parent.mkdir(parents=True, exist_ok=True)
    meter = Meter(costs, mark)
    with log.open("a") as output:
        process = subprocess.Popen(
            [sys.executable, "launch.py", *arguments, *resume],
            env={**os.environ, MARK: mark},
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=_end_with_parent,
        )
        while process.poll() is None:
            meter.look()
            watch()
            time.sleep(POLL_S)
    if process.returncode:
        raise RuntimeError(
            f"launch.py ended with code {process.returncode}; see {log}; the next start goes on with {directory}, or delete "
            "it to begin again"
        )
    return meter.look()


def _end_with_parent() -> None:
    """In the child, before it becomes the command."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
