"""The numbers of a run while it works, where Prometheus would read them."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from common.config.config import SIGNALS
from common.metrics import read_rows, step_names
from driver.record.series import HELP, PREFIX, series_of
from driver.rounds.reward_models import METRICS as ROUND_NAMES
from tests.e2e.conftest import Launch, ready_made
from tests.e2e.test_run import OBJECTIVES
from tests.scrape import scrape_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


def test_every_value_of_a_step_line_is_scraped_while_the_run_works(first: Path, launch: Launch, runs: Path) -> None:
    run = launch("run.name=watched", *ready_made(first), "iteration.num=1", "iteration.steps=60")
    run.wait_for("step 1/60")
    url = re.findall(r"^Ray metrics: (\S+)$", run.log.read_text(), re.M)[0]
    assert f"TensorBoard: tensorboard --logdir {runs}/watched/tensorboard" in run.log.read_text()
    names = {"step", *step_names(OBJECTIVES)}
    found = scrape_until(url, "watched", lambda found: found.keys() >= {series_of(n, OBJECTIVES) for n in names})
    run.kill(signal.SIGTERM)
    rows = read_rows(runs / "watched" / "metrics.jsonl")
    series = {series_of(name, OBJECTIVES): [row.get(name) for row in rows] for row in rows for name in row}
    assert all(value in series[key] for key, value in found.items())
    rounds = {series_of(f"rm/{name}", ()) for name in (*ROUND_NAMES, "accepted")}
    rounds |= {series_of(f"drift/{name}", ()) for name in (*SIGNALS, "baseline")}
    assert {key.metric.removeprefix(PREFIX) for key in series.keys() | rounds} == set(HELP), (
        "describe a new name, draw it in grafana.json"
    )
    run.assert_gone()
