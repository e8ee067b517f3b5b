"""driver/record/run_lock.py: who holds a run, who is refused, and what a dead holder leaves."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from driver.record import checkpoint
from driver.record.run_lock import LOCK, RunHeld, held, held_elsewhere, queue_name

ROOT = Path(__file__).resolve().parents[4]
HOLD = """
import sys, time
from pathlib import Path
from driver.record.run_lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def written(run: Path) -> dict[str, object]:
    return json.loads((run / LOCK).read_text())


def test_a_second_holder_is_refused_by_name(tmp_path: Path) -> None:
    with held(tmp_path):
        assert written(tmp_path)["host"] == socket.gethostname()
        with (
            pytest.raises(RunHeld, match=f"{tmp_path} is worked on by process {os.getpid()} of this machine since 2"),
            held(tmp_path),
        ):
            pass
        assert held_elsewhere(tmp_path) is not None
    assert held_elsewhere(tmp_path) is None
    with held(tmp_path):
        pass


def test_nobody_holds_a_run_that_is_not_there(tmp_path: Path) -> None:
    assert held_elsewhere(tmp_path / "none") is None
    assert not (tmp_path / "none").exists()


def test_a_killed_holder_of_this_machine_is_taken_over(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        assert f"process {holder.pid} " in str(held_elsewhere(tmp_path))
        holder.send_signal(signal.SIGKILL)
    assert written(tmp_path)["pid"] == holder.pid, "a kill leaves the name"
    assert held_elsewhere(tmp_path) is None
    with held(tmp_path):
        assert written(tmp_path)["pid"] == os.getpid()


def test_a_holder_on_another_machine_is_named_and_never_overruled(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(json.dumps({"host": "node-7", "pid": 12, "since": "2026-01-02 03:04:05"}))
    with (
        pytest.raises(
            RunHeld, match="process 12 on node-7 since 2026-01-02 03:04:05; stop it there.* remove .*run.lock"
        ),
        held(tmp_path),
    ):
        pass
    assert written(tmp_path)["host"] == "node-7"
    (tmp_path / LOCK).unlink()
    with held(tmp_path):
        pass


@pytest.mark.parametrize("end", [SystemExit, RuntimeError])
def test_a_holder_that_ends_by_an_error_leaves_no_name(tmp_path: Path, end: type[BaseException]) -> None:
    with pytest.raises(end), held(tmp_path):
        raise end
    assert (tmp_path / LOCK).read_text() == ""


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": "x"}', '{"host": "x", "pid": "y", "since": ""}', "\x00"])
def test_a_lock_that_a_kill_cut_holds_nobody(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK).write_text(text)
    with held(tmp_path):
        assert written(tmp_path)["pid"] == os.getpid()


def test_a_run_keeps_its_name_on_redis_and_no_other_has_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = queue_name(tmp_path / "a", "mine")
    assert first.startswith("mine.") and queue_name(tmp_path / "a", "mine") == first
    assert queue_name(tmp_path / "b", "mine") != first


def test_a_run_from_before_there_were_ids_keeps_its_keys(tmp_path: Path) -> None:
    checkpoint.write_checkpoint(tmp_path / "checkpoints", 1, {}, lambda aside: None, 2)
    assert queue_name(tmp_path, "old") == "old"
    assert not (tmp_path / "run_id").exists()
