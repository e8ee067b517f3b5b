"""Runs the units of studies that have no row yet, two at once, after the shared artifacts that they need.

Called by __main__. A unit is done when its row is on disk, so a runner killed anywhere loses the units in flight and nothing
else. Workers are processes fed by pipe; one that dies is replaced, and its task counts as failed.
"""

from __future__ import annotations

import fcntl
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from driver.record.progress import say
from studies import artifacts
from studies.rows import Row, read_rows
from studies.study import ROWS, Unit
from studies.tally import Tally, Task

PROJECT = Path(__file__).resolve().parent.parent
SHOW_EVERY_S = 30.0


@dataclass
class Worker:
    """A process and what it works on."""

    command: list[str]
    log: Path
    process: subprocess.Popen[str]
    task: Task | None = None
    state: str = ""
    started: float = 0.0


Process = subprocess.Popen[str]
Events = queue.Queue[tuple[Worker, Process, str | None]]


def adopt(units: Sequence[Unit]) -> int:
    """Copies rows that another study has measured with the same settings, seed and world; how many."""
    taken, rows = 0, {row.config_hash: row for directory in sorted(ROWS.glob("*/")) for row in read_rows(directory)}
    for unit in pending(units):
        if (row := rows.get(unit.config_hash())) is not None:
            replace(row, study=unit.study.name, arm=unit.arm.name).write(unit.row_path)
            say(f"{unit.name}: taken from {row.label}")
            taken += 1
    return taken


def pending(units: Sequence[Unit]) -> list[Unit]:
    """The units without a row, or whose row was made with other settings."""
    return [unit for unit in units if not has_row(unit)]


def has_row(unit: Unit) -> bool:
    """Whether a unit has the row of its present configuration."""
    return unit.row_path.is_file() and Row.read(unit.row_path).config_hash in unit.config_hashes


def tasks_of(units: Sequence[Unit]) -> list[Task]:
    """The units' tasks and those of the artifacts that are not there, each once, in an order in which needs come first."""
    found: dict[str, Task] = {}
    for unit in units:
        before: list[str] = []
        for kind in (kind for kind in artifacts.KINDS if kind in unit.arm.needs):
            artifact = artifacts.KINDS[kind](unit.config)
            if not artifact.is_made():
                found.setdefault(artifact.name, Task(kind, unit, artifact.name, tuple(before)))
                before.append(artifact.name)
        found[unit.name] = Task("measure", unit, unit.name, tuple(before))
    return list(found.values())


def run(units: Sequence[Unit], num_workers: int, logs: Path, catalog: str) -> dict[str, str]:
    """Runs what is missing of units of one world, as many at once as that allows; returns the failed tasks with their errors.
    `catalog` is the module with the units' STUDIES."""
    adopt(units)
    todo, tally, events = tasks_of(pending(units)), Tally(), Events()
    say(f"{len(units)} units, {len(units) - len(pending(units))} have their rows; {len(todo)} tasks to do")
    if not todo:
        return {}
    world = todo[0].unit.study.world
    at_once = min(num_workers, world.at_once, len(todo))
    hours = tally.left_s(todo) / at_once / 3600
    say(f"about {hours:.1f} hours, {at_once} at once: a guess for two idle cores, until the first tasks have ended")
    logs.mkdir(parents=True, exist_ok=True)
    with _only_runner(logs / "lock"):
        for unit in {task.unit.seed: task.unit for task in todo}.values():
            world.write(unit.config)
        workers = [_start(catalog, logs / f"worker-{i}.log", events) for i in range(at_once)]
        try:
            _drive(todo, workers, events, tally)
        finally:
            for worker in workers:
                _stop(worker)
    return tally.failed


def _drive(todo: list[Task], workers: list[Worker], events: Events, tally: Tally) -> None:
    waiting, total, shown = list(todo), len(todo), time.monotonic()
    while waiting or any(worker.task for worker in workers):
        _fail_orphans(waiting, tally)
        for worker in workers:
            while worker.task is None and (task := _next(waiting, tally)) is not None:
                waiting.remove(task)
                if task.kind == "measure" and adopt([task.unit]):  # another study measured the same meanwhile
                    tally.done.add(task.name)
                else:
                    _give(worker, task, events)
        _listen(events, tally, total)
        if time.monotonic() - shown > SHOW_EVERY_S:
            shown = time.monotonic()
            _show(workers, waiting, tally, total)


def _next(waiting: Sequence[Task], tally: Tally) -> Task | None:
    return next((task for task in waiting if set(task.needs) <= tally.done), None)


def _fail_orphans(waiting: list[Task], tally: Tally) -> None:
    """Tasks whose artifact failed cannot run."""
    for task in list(waiting):
        if lost := set(task.needs) & set(tally.failed):
            waiting.remove(task)
            tally.failed[task.name] = f"needs {', '.join(sorted(lost))}, which failed"


def _give(worker: Worker, task: Task, events: Events) -> None:
    if worker.process.poll() is not None:
        worker.process = _spawn(worker.command, worker.log)
        _read_answers(worker, events)
    assert worker.process.stdin is not None
    worker.task, worker.state, worker.started = task, "starting", time.monotonic()
    worker.process.stdin.write(f"{task.kind} {task.unit.name}\n")
    worker.process.stdin.flush()


def _listen(events: Events, tally: Tally, total: int) -> None:
    """Waits a second at most for an answer, and handles those that are there."""
    try:
        worker, process, line = events.get(timeout=1.0)
    except queue.Empty:
        return
    if process is not worker.process:
        return  # the last word of one that has been replaced
    if line is not None:
        _handle(worker, json.loads(line), tally, total)
    elif worker.task is not None:
        _end(worker, tally, total, f"its worker process ended with code {worker.process.wait()}; see {worker.log}")


def _handle(worker: Worker, event: dict[str, object], tally: Tally, total: int) -> None:
    if event["event"] == "progress":
        worker.state = f"{event['what']} {event['done']}/{event['total']}"
    elif event["event"] == "failed":
        _end(worker, tally, total, f"{event['error']} (traceback: {worker.log})")
    elif event["event"] == "done":
        _end(worker, tally, total, None)


def _end(worker: Worker, tally: Tally, total: int, error: str | None) -> None:
    task, seconds = worker.task, time.monotonic() - worker.started
    assert task is not None, "an answer belongs to a task"
    worker.task = None
    if error is not None:
        tally.failed[task.name] = error
        say(f"FAILED {task.name} after {seconds:.0f} s: {error}")
        return
    tally.done.add(task.name)
    tally.measured(task, seconds)
    say(f"[{len(tally.done)}/{total}] {task.name} in {seconds:.0f} s")


def _show(workers: Sequence[Worker], waiting: Sequence[Task], tally: Tally, total: int) -> None:
    now = time.monotonic()
    busy = [worker for worker in workers if worker.task]
    running = sum(max(tally.expected_s(w.task) - (now - w.started), 0) for w in busy if w.task)
    left_s = (running + tally.left_s(waiting)) / len(workers)
    states = ", ".join(f"{worker.task.name}: {worker.state}" for worker in busy if worker.task)
    say(f"  {len(tally.done)}/{total} done, about {left_s / 60:.0f} min left; {states}")


def _read_answers(worker: Worker, events: Events) -> None:
    """Brings the worker's lines to `events`, and None when it has ended."""
    process = worker.process
    assert process.stdout is not None

    def read(lines: Iterable[str]) -> None:
        for line in lines:
            events.put((worker, process, line))
        events.put((worker, process, None))

    threading.Thread(target=read, args=(process.stdout,), daemon=True).start()


def _start(catalog: str, log: Path, events: Events) -> Worker:
    command = [sys.executable, "-m", "studies.worker", catalog]
    worker = Worker(command, log, _spawn(command, log))
    _read_answers(worker, events)
    return worker


def _spawn(command: list[str], log: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_BUILD_OPS": "0", "PYTHONPATH": str(PROJECT)}
    pipe = subprocess.PIPE
    with log.open("a") as errors:
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True, env=environment)


def _stop(worker: Worker) -> None:
    """A worker without a task ends by itself when its stdin closes; one in the middle of a task is killed."""
    assert worker.process.stdin is not None
    worker.process.stdin.close()
    if worker.task is not None:
        worker.process.kill()
    worker.process.wait()


@contextmanager
def _only_runner(path: Path) -> Iterator[None]:
    """Two runners would make the same artifacts and share two cores."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"another study runner holds {path}; wait for it or stop it") from None
        yield
