"""`python -m studies run|render|check NAME ...`: what `make study NAME=...`, `make studies` and `make sandbox-check` call.

run measures what has no row yet and renders; render writes the tables and figures of docs/ from the rows alone; check prints
the sandbox's checks and fails where one does not hold.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from driver.record.progress import say
from studies import catalog, render, runner, sandbox_check
from studies.study import Study
from studies.worlds import REAL_MODEL, SANDBOX

LOGS = Path("runs") / "studies"


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m studies", description="Run studies and write what they found.")
    parser.add_argument("command", choices=("run", "render", "check"))
    parser.add_argument("names", nargs="*", metavar="NAME", help="studies; none means all, to run: of the sandbox")
    parser.add_argument("--workers", type=int, default=2, help="units at once, each on one core (default 2)")
    arguments = parser.parse_args()
    try:
        studies = [catalog.study(name) for name in arguments.names] or everything(arguments.command)
        return COMMANDS[arguments.command](studies, arguments.workers)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2


def everything(command: str) -> list[Study]:
    """All studies; to run, those of the sandbox: the real model's take hours and are asked for by name."""
    return [study for study in catalog.STUDIES if command != "run" or study.world is SANDBOX]


def run(studies: Sequence[Study], workers: int) -> int:
    """Runs the units that have no row yet, one world after the other, and writes the studies' pages."""
    for world in (SANDBOX, REAL_MODEL):
        units = [unit for study in studies if study.world is world for unit in study.units()]
        if units and runner.run(units, workers, LOGS, catalog.__name__):
            return 1
    return write(studies, workers)


def write(studies: Sequence[Study], workers: int) -> int:
    """Writes the page of every study."""
    for study in studies:
        say(f"\n{study.name}: {study.question}\n\n{render.render(study)}\nwritten to {study.page}")
    return 0


def check(studies: Sequence[Study], workers: int) -> int:
    """Runs the sandbox's study and says which of its conditions do not hold."""
    sandbox = catalog.study("sandbox")
    if code := run([sandbox], workers):
        return code
    lost = [c.what for c in sandbox_check.checks(render.rows_of(sandbox)) if not c.holds]
    for what in lost:
        say(f"does not hold: {what}")
    return 1 if lost else 0


COMMANDS = {"run": run, "render": write, "check": check}


if __name__ == "__main__":
    sys.exit(main())
