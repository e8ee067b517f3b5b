"""A local HTTP server that speaks the OpenAI chat format, for the tests of the judge behind an endpoint: it answers as it is
told, and keeps what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "judge-model"
Answer = Callable[[str], "Reply | str"]  # of a question's text


@dataclass(frozen=True)
class Reply:
    """Anything but a chat answer: raw bytes, sent in pieces with a pause before each."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    pieces: int = 1
    pause_s: float = 0.0


class ChatServer:
    """url, and every request's body and headers in `asked`."""

    def __init__(self, answer: Answer, models: bytes):
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once, self._now, self._lock = 0, 0, threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, answer, models))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def questions(self) -> list[str]:
        return [request["messages"][0]["content"] for request in self.asked]

    @contextmanager
    def request(self, body: dict[str, Any], headers: dict[str, str]) -> Iterator[None]:
        with self._lock:
            self.asked.append(body)
            self.headers.append({name.lower(): value for name, value in headers.items()})
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        yield
        with self._lock:
            self._now -= 1

    def close(self) -> None:
        """Stops listening: who asks from now on finds nobody."""
        self._server.shutdown()
        self._server.server_close()


def models_of(*names: str) -> bytes:
    return json.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in names]}).encode()


def chat(content: str | None) -> bytes:
    message = {"role": "assistant", "content": content}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return json.dumps({"id": "1", "object": "chat.completion", "model": MODEL, "choices": choices}).encode()


def _handler(server: ChatServer, answer: Answer, models: bytes) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(Reply(models))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.request(body, dict(self.headers)):
                said = answer(body["messages"][0]["content"])
                self._send(Reply(chat(said)) if isinstance(said, str) else said)

        def _send(self, reply: Reply) -> None:
            self.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            size = -(-len(reply.body) // reply.pieces)
            for start in range(0, len(reply.body), max(size, 1)):
                time.sleep(reply.pause_s)
                try:
                    self.wfile.write(reply.body[start : start + size])
                    self.wfile.flush()
                except OSError:  # the client has left, as it should
                    return

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
