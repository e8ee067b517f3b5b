"""A study whose units take a second, for test_study_runner.py: what they measure is the number of times they were started."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from studies.study import Arm, Study, Unit

if TYPE_CHECKING:
    from studies.lab import Lab, Report

HERE = "tests.integration.tiny_study"
UNIT_S = 0.7


def count(unit: Unit, lab: Lab, report: Report) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Leaves a mark for each start, works a little, and returns its seed."""
    starts = Path("starts")
    starts.mkdir(exist_ok=True)
    (starts / f"{unit.arm.name}.{unit.seed}.{time.time_ns()}").touch()
    report("working", 1, 2)
    time.sleep(UNIT_S)
    return {"seed": float(unit.seed)}, {"step": [0.0, 1.0]}


def fail(unit: Unit, lab: Lab, report: Report) -> tuple[dict[str, float], dict[str, list[float]]]:
    raise RuntimeError(f"seed {unit.seed} cannot be measured")


STUDIES = (
    Study(
        "tiny",
        "Does the runner lose anything?",
        (Arm("first", f"{HERE}:count", needs=()), Arm("second", f"{HERE}:count", needs=())),
        page="",
        rows=Path("rows"),
    ),
    Study(
        "broken",
        "What of a failure?",
        (Arm("only", f"{HERE}:fail", needs=()),),
        page="",
        seeds=(0, 1),
        rows=Path("rows"),
    ),
)


def main() -> None:
    """python -m tests.integration.tiny_study STUDY: the runner on one of the studies above, in the current directory."""
    import sys

    from studies.runner import run
    from studies.study import find

    failed = run(find(STUDIES, sys.argv[1]).units(), 2, Path("logs"), HERE)
    print(failed)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
