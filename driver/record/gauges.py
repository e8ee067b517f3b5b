"""A run's step lines as Ray metrics, for Prometheus: one gauge for each metric of driver/record/series.py, tagged with the run.

Owned by driver/cluster/cluster.py, written by driver/record/step_lines.py. A gauge keeps its last value, so gold stays
where it was last judged. A thread repeats the values until close; nothing waits for it.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from typing import Any

from ray.util.metrics import Gauge

from driver.record.series import HELP, PREFIX, Series, measured, series_of

# Ray 2.60 sends a gauge only in the interval (10 s) in which it was set (CollectGaugeMetricValues clears what it sent), and
# its agent forgets it after two: the curves of a run with steps of minutes would be dots. tests/integration/test_cluster.py
# fails when Ray repeats by itself; then delete the thread.
REPEAT_S = 5.0


class Gauges:
    """Every series' last value, exported until close."""

    def __init__(self, run: str, objectives: Collection[str], repeat_s: float = REPEAT_S):
        self._run, self._objectives, self._repeat_s = run, objectives, repeat_s
        self._gauges: dict[str, Gauge] = {}
        self._values: dict[Series, float] = {}
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="gauges", daemon=True)

    def start(self) -> None:
        """Begins to export; Ray must be running."""
        self._thread.start()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Exports the numbers of a step line."""
        found = measured({"step": step, **values})
        with self._lock:
            self._values |= {series_of(name, self._objectives): value for name, value in found.items()}
            self._export()

    def close(self) -> None:
        """Ends the export; call it before Ray shuts down."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _repeat(self) -> None:
        while not self._stop.wait(self._repeat_s):
            with self._lock:
                self._export()

    def _export(self) -> None:
        for series, value in self._values.items():
            self._gauge(series).set(value, tags={"run": self._run, **dict(series.tags)})

    def _gauge(self, series: Series) -> Gauge:
        name = series.metric
        if name not in self._gauges:
            keys = ("run", *(key for key, _ in series.tags))
            self._gauges[name] = Gauge(name, HELP.get(name.removeprefix(PREFIX), ""), keys)
        return self._gauges[name]
