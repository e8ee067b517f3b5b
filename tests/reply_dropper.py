"""A door to Redis that loses replies: it stands between a client and a real server, and cuts the connection after the server
has run what it was sent and before the client hears of it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit


class ReplyDropper:
    """Listens on a port of its own. `lose(n)` loses the replies to the next n requests on any connection."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._server = (parts.hostname, parts.port)
        self._door = socket.create_server(("127.0.0.1", 0))
        self._lock, self._left, self.lost = threading.Lock(), 0, 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """Where a client finds the server behind this door."""
        return f"redis://127.0.0.1:{self._door.getsockname()[1]}/0"

    def lose(self, replies: int) -> None:
        """Loses the replies to the next requests."""
        with self._lock:
            self._left, self.lost = replies, 0

    def close(self) -> None:
        """Takes no more connections."""
        self._door.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._door.accept()
            except OSError:  # the door was closed
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """A client waits for each reply before it asks again, so that what comes back answers what was just sent."""
        server = socket.create_connection(self._server)
        threading.Thread(target=self._forward, args=(client, server), daemon=True).start()
        while (reply := _receive(server)) and not self._loses(reply):
            client.sendall(reply)
        for end in (client, server):  # close() alone would wait for the other thread's recv
            with suppress(OSError):  # it has gone already
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        try:
            while sent := _receive(client):
                server.sendall(sent)
            server.shutdown(socket.SHUT_WR)
        except OSError:  # either end has gone
            return

    def _loses(self, reply: bytes) -> bool:
        if reply.startswith((b"+", b"-NOSCRIPT")):  # a greeting of a new connection, and a script that has not run
            return False
        with self._lock:
            if self._left == 0:
                return False
            self._left, self.lost = self._left - 1, self.lost + 1
            return True


def _receive(end: socket.socket) -> bytes:
    try:
        return end.recv(1 << 16)
    except OSError:  # cut by the other side
        return b""


@contextmanager
def reply_dropper(url: str) -> Iterator[ReplyDropper]:
    """A door for the time of a test."""
    door = ReplyDropper(url)
    try:
        yield door
    finally:
        door.close()
