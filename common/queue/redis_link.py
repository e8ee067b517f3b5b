"""One process's connection to Redis: calls that wait for a restarting server, and errors that say what to do.

Owns the client, its time limits, the retry and the translation of redis's errors; used by common/queue/queue.py only, and
the only importer of redis. A call begins no new try after retry_s, and a try lasts at most the socket's time limit: half of
retry_s, but at least what the longest blocking read needs.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, OutOfMemoryError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from common.errors import RunError

LEAST_TRY_S, LONGEST_TRY_S = 2.0, 15.0  # a blocking read lasts up to 1 s
LONGEST_PAUSE_S = 1.0  # between two tries
_NO_PASSWORD = ("NOAUTH", "Authentication required")
_WRONG_PASSWORD = ("WRONGPASS", "ERR AUTH", "invalid username-password")


class QueueError(RunError):
    """The queue cannot do what was asked; the message says what, why and what to do."""


class QueueFull(QueueError):
    """The server is at its maxmemory; nothing was changed."""


class Fenced(QueueError):
    """The run has a newer driver: this process belongs to a former one and must end."""


class QueueRegression(QueueError):
    """The server knows less of this run than this process does: it lost data, or it is another server."""


class Link:
    """A lazily connected client. Every call goes through `call`, every script through `script`."""

    def __init__(self, url: str, password: str | None, run: str, retry_s: float) -> None:
        self._where, self._run = _address(url), run
        self._retry_s = retry_s
        try_s = min(max(retry_s / 2, LEAST_TRY_S), LONGEST_TRY_S)
        self._scripts: dict[str, Any] = {}
        self.client: Any = redis.Redis.from_url(
            url,
            password=password,
            protocol=2,
            socket_timeout=try_s,
            socket_connect_timeout=min(try_s, 5.0),
            retry=Retry(NoBackoff(), 0),
        )

    def call(self, do: Callable[[], Any]) -> Any:
        """The named retry: a server that is away is waited for; all of redis's errors become ours here."""
        deadline, pause_s = time.monotonic() + self._retry_s, 0.05
        while True:
            try:
                return do()
            except RedisError as error:
                if not _may_return(error) or time.monotonic() + pause_s > deadline:
                    raise self._explain(error) from error
            time.sleep(random.uniform(pause_s / 2, pause_s))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def script(self, source: str, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:
        """Runs a script by its hash; loads it where the server does not know it yet."""
        if source not in self._scripts:
            self._scripts[source] = self.client.register_script(source)
        return self.call(lambda: self._scripts[source](keys=keys, args=args))

    def _explain(self, error: RedisError) -> QueueError:
        text = str(error)
        if any(sign in text for sign in _NO_PASSWORD):
            return QueueError(
                f"{self._where} wants a password and none is given; put it in the environment variable that "
                "redis.password_env names"
            )
        if isinstance(error, AuthenticationError) or any(sign in text for sign in _WRONG_PASSWORD):
            return QueueError(f"{self._where} refused the password; check the variable that redis.password_env names")
        if isinstance(error, (RedisConnectionError, RedisTimeoutError)):
            return QueueError(f"{self._where} cannot be reached ({text}); check that the server runs, and redis.url")
        if isinstance(error, OutOfMemoryError) or "OOM command not allowed" in text:  # the latter from inside a script
            return QueueFull(f"{self._where} is out of memory; raise its maxmemory or keep fewer checkpoints")
        if text.startswith("FENCED"):
            return Fenced(f"run {self._run} has a newer driver ({text.removeprefix('FENCED ')}); end this process")
        if text.startswith("REGRESSED") or "NOGROUP" in text:
            return QueueRegression(
                f"{self._where} does not know this incarnation of run {self._run} ({text}): either begin() has not run, "
                "or the server lost its data; restart the run so that it resumes from its checkpoint"
            )
        return QueueError(f"{self._where} answered {text!r} to run {self._run}")


def _may_return(error: RedisError) -> bool:
    away = isinstance(error, (RedisConnectionError, RedisTimeoutError))
    return away and not isinstance(error, AuthenticationError)


def _address(url: str) -> str:
    """The server's address without the password that a url may hold."""
    parts = urlsplit(url)
    return f"redis at {parts.hostname}:{parts.port or 6379}{parts.path}"
