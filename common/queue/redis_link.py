"""One process's connection to Redis: calls that wait for a restarting server, and errors that say what to do.

Owns the client, its time limits, the retry and the translation of redis's errors; used by common/queue/queue.py only, and
the only importer of redis. Waits at most about retry_s for a server that is away, and the socket timeout for an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import EqualJitterBackoff, NoBackoff
from redis.exceptions import AuthenticationError, OutOfMemoryError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from common.errors import RunError

SOCKET_TIMEOUT_S = 15.0
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
        self._retry = Retry(EqualJitterBackoff(cap=1.0, base=0.05), 3 + round(retry_s / 0.75))
        self._scripts: dict[str, Any] = {}
        self.client: Any = redis.Redis.from_url(
            url,
            password=password,
            protocol=2,
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=5.0,
            retry=Retry(NoBackoff(), 0),
        )

    def call(self, do: Callable[[], Any]) -> Any:
        """The named retry: a server that is away is waited for; all of redis's errors become ours here."""
        try:
            return self._retry.call_with_retry(do, lambda _: None, is_retryable=_may_return)
        except RedisError as error:
            raise self._explain(error) from error

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
        if isinstance(error, OutOfMemoryError):
            return QueueFull(f"{self._where} is out of memory; raise its maxmemory or keep fewer checkpoints")
        if text.startswith("FENCED"):
            return Fenced(f"run {self._run} has a newer driver ({text.removeprefix('FENCED ')}); end this process")
        if text.startswith(("REGRESSED", "NOGROUP")):
            return QueueRegression(
                f"{self._where} does not know this incarnation of run {self._run} ({text}): either begin() has not run, "
                "or the server lost its data; restart the run so that it resumes from its checkpoint"
            )
        return QueueError(f"{self._where} answered {text!r} to run {self._run}")


def _may_return(error: Exception) -> bool:
    return not isinstance(error, AuthenticationError)


def _address(url: str) -> str:
    """The server's address without the password that a url may hold."""
    parts = urlsplit(url)
    return f"redis at {parts.hostname}:{parts.port or 6379}{parts.path}"
