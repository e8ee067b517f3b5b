"""The study runner with its real worker processes: killed anywhere and started again, it loses the units in flight alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from studies.rows import read_rows

ROOT = Path(__file__).resolve().parents[2]
UNITS = 10


def start(directory: Path, study: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.integration.tiny_study", study]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def rows(directory: Path) -> dict[Path, float]:
    """The row files and when each was written."""
    return {path: path.stat().st_mtime for path in (directory / "rows" / "tiny").glob("[!.]*.json")}


def starts(directory: Path) -> int:
    return len(list((directory / "starts").glob("*")))


def test_a_killed_runner_loses_the_units_in_flight_alone(tmp_path: Path) -> None:
    kept: dict[Path, float] = {}
    for seed in range(3):
        runner = start(tmp_path, "tiny")
        workers = wait_for_workers(runner, tmp_path, seed)
        runner.send_signal(signal.SIGKILL)
        runner.wait()
        _, alive = psutil.wait_procs(workers, timeout=30)
        assert not alive, "workers end with their runner, or they would go on beside the next one's"
        now = rows(tmp_path)
        assert {path: now[path] for path in kept} == kept, "a finished row is never touched again"
        kept = now
    assert 0 < len(kept) < UNITS
    output, _ = start(tmp_path, "tiny").communicate(timeout=120)
    assert f"{UNITS} units, {len(kept)} have their rows" in output
    found = read_rows(tmp_path / "rows" / "tiny")
    assert [(row.arm, row.seed) for row in found] == [(arm, seed) for arm in ("first", "second") for seed in range(5)]
    assert starts(tmp_path) <= UNITS + 3 * 2, "each kill costs the two units in flight at most"


def wait_for_workers(runner: subprocess.Popen[str], directory: Path, seed: int) -> list[psutil.Process]:
    """Waits until this runner's workers have begun two units and a random moment more; gives the workers."""
    before, deadline = starts(directory), time.monotonic() + 120
    while starts(directory) < before + 2:
        assert runner.poll() is None and time.monotonic() < deadline, "the runner ended or did not begin"
        time.sleep(0.02)
    time.sleep(random.Random(seed).uniform(0, 1.2))
    return psutil.Process(runner.pid).children(recursive=True)


def test_a_finished_study_is_not_run_again(tmp_path: Path) -> None:
    start(tmp_path, "tiny").communicate(timeout=120)
    output, _ = start(tmp_path, "tiny").communicate(timeout=120)
    assert starts(tmp_path) == UNITS
    assert f"{UNITS} units, {UNITS} have their rows; 0 tasks to do" in output


def test_a_failed_unit_is_reported_and_leaves_no_row(tmp_path: Path) -> None:
    runner = start(tmp_path, "broken")
    output, _ = runner.communicate(timeout=120)
    assert runner.returncode == 1
    assert "FAILED broken/only/0" in output
    assert "RuntimeError: seed 1 cannot be measured" in output
    assert "Traceback" in "".join(path.read_text() for path in (tmp_path / "logs").glob("worker-*.log"))
    assert not (tmp_path / "rows").exists()
