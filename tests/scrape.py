"""Reads a run's gauges where Prometheus would: on a node's metrics page."""

from __future__ import annotations

import time
from collections.abc import Callable
from urllib.request import ProxyHandler, build_opener

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from driver.record.series import PREFIX, Series

TAGS = ("objective", "term")


def scrape(url: str, run: str) -> dict[Series, float]:
    """Every series of the run, by its name without Ray's prefix."""
    with build_opener(ProxyHandler({})).open(url, timeout=30) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    samples = [sample for family in families for sample in family.samples if sample.name.startswith(f"ray_{PREFIX}")]
    return {_series(sample): sample.value for sample in samples if sample.labels["run"] == run}


def _series(sample: Sample) -> Series:
    tags = tuple((tag, sample.labels[tag]) for tag in TAGS if tag in sample.labels)
    return Series(sample.name.removeprefix("ray_"), tags)


def scrape_until(
    url: str, run: str, good: Callable[[dict[Series, float]], bool], timeout_s: float = 240
) -> dict[Series, float]:
    """Scrapes until what comes is good; Ray sends metrics every 10 s."""
    deadline = time.monotonic() + timeout_s
    while not good(found := scrape(url, run)):
        assert time.monotonic() < deadline, f"after {timeout_s:g} s {url} has only {sorted(found.items(), key=str)}"
        time.sleep(0.5)
    return found
