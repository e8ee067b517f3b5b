"""A worker process of the runner: `python -m studies.worker CATALOG` reads tasks from stdin and answers with JSON on stdout.

One line a task, one line an event. Keeps one Lab, so that engines are reused from unit to unit. Ends when stdin ends, so it
does not outlive its runner. Whatever else writes to stdout (vLLM, DeepSpeed) goes to stderr, which the runner sends to a log.
"""

from __future__ import annotations

import importlib
import os
import queue
import sys
import threading
import time
import traceback
from typing import TextIO

import torch

from common.json_text import json_text
from common.judge import load_function
from driver.preflight.environment import code_version
from studies import artifacts, making
from studies.lab import Lab
from studies.rows import Row
from studies.study import Unit, unit_called


def main() -> None:
    """Runs the units that come by standard input, one after the other, until it closes."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(1)
    lab, catalog, tasks = Lab(), importlib.import_module(sys.argv[1]), queue.Queue[str]()
    idle = threading.Event()
    threading.Thread(target=_read_tasks, args=(tasks, idle), daemon=True).start()
    while True:
        idle.set()
        line = tasks.get()
        idle.clear()
        if not line:
            return lab.close()
        _answer(answers, event="started")
        kind, name = line.split()
        started = time.monotonic()
        try:
            _run(kind, unit_called(catalog.STUDIES, name), lab, answers)
        except Exception as error:  # the task's boundary: the runner reports it and goes on with the others
            traceback.print_exc()
            _answer(answers, event="failed", error=f"{type(error).__name__}: {error}")
        else:
            _answer(answers, event="done", wall_s=round(time.monotonic() - started, 1))


def _read_tasks(tasks: queue.Queue[str], idle: threading.Event) -> None:
    """Brings the lines of stdin. Its end is the runner's: in the middle of a unit the process ends at once (the engine ends
    with its parent), or it would go on beside the next runner's workers."""
    for line in sys.stdin:
        tasks.put(line)
    if not (tasks.empty() and idle.is_set()):
        os._exit(1)
    tasks.put("")


def _run(kind: str, unit: Unit, lab: Lab, answers: TextIO) -> None:
    def report(what: str, done: int, total: int) -> None:
        _answer(answers, event="progress", what=what, done=done, total=total)

    config, started = unit.config, time.monotonic()
    if kind in artifacts.KINDS:
        making.make(artifacts.KINDS[kind](config), config, lab, report)
    else:
        end, curves = load_function(unit.arm.measure)(unit, lab, report)
        wall_s = time.monotonic() - started
        study, arm = unit.study.name, unit.arm.name
        row = Row(study, arm, unit.seed, end, curves, unit.config_hash(), code_version(), unit.world, wall_s)
        row.write(unit.row_path)


def _answer(answers: TextIO, **event: object) -> None:
    answers.write(json_text(event) + "\n")


if __name__ == "__main__":
    main()
