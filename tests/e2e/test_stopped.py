"""A run that is stopped or killed while its engines start. SIGTERM, and kills later in a run: test_run.py."""

from __future__ import annotations

import signal

import pytest

from tests.e2e.conftest import Launch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


def test_ctrl_c_stops_everything_cleanly(launch: Launch) -> None:
    run = launch("run.name=stopped")
    run.wait_for("stage sft")
    run.kill(signal.SIGINT)
    assert run.process.returncode == 128 + signal.SIGINT
    assert "stopping" in run.log.read_text()
    run.assert_gone()


def test_nothing_survives_a_kill_while_engines_start(launch: Launch) -> None:
    run = launch("run.name=killed-early")
    run.wait_for("stage sft")
    run.kill(signal.SIGKILL)
    run.assert_gone()
