"""A local HTTP server that stands in for the Hugging Face Hub: the calls that a push makes, and what it keeps of them.

Speaks the Hub's API as huggingface_hub 2.4 calls it: whoami, repositories, preupload, large files by LFS (single part) or by
Xet as hf_xet 1.8 does (one large file, of bytes that do not compress), commits in NDJSON. A test may tell it to answer badly.
It knows one token and shows it in no answer.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_standInSecret0123456789abcdef"
STOP = -1
STORAGE = {"lfs", "chunks", "xorb-grants", "xorbs", "shards"}  # these have addresses or a token of their own


@dataclass
class Repository:
    """private or not, the files of its newest commit by name, and the messages of its commits."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """The state. `broken` maps a call (create, batch, ...; "commit owner/name" for one repository) to a status to answer
    with, 0 to hang up, or STOP to interrupt this process while it waits."""

    url: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    broken: dict[str, int] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)


@contextmanager
def stand_in() -> Iterator[Hub]:
    """A running Hub; it is gone when the block ends."""

    class Handler(_Handler):
        hub = Hub("")

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        Handler.hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield Handler.hub
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._route({"whoami-v2": self._whoami, "models": self._info, "xet-write-token": self._xet_token})

    def do_POST(self) -> None:
        self._route(
            {
                "create": self._create,
                "validate-yaml": self._validate,
                "preupload": self._preupload,
                "commit": self._commit,
            }
            | {"batch": self._batch, "verify": self._verify, "xorbs": self._xorb, "shards": self._shard}
        )

    def do_PUT(self) -> None:
        self._route({"lfs": self._store})

    def do_DELETE(self) -> None:
        self._route({"delete": self._delete})

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""

    def _route(self, routes: dict[str, Any]) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        words = self.path.partition("?")[0].strip("/").split("/")
        name = next((word for word in reversed(words) if word in routes), "")
        self.hub.calls.append(name)
        here = f"{name} {'/'.join(words[2:4])}"
        if {name, here} & self.hub.broken.keys():
            self._break(self.hub.broken.get(name, self.hub.broken.get(here, 0)))
        elif not STORAGE & set(words) and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer({"error": "Invalid credentials in Authorization header"}, 401)
        elif not name:
            self._answer({"error": f"the stand-in does not know {self.command} {self.path}"}, 404)
        else:
            routes[name](body, words)

    def _break(self, status: int) -> None:
        if status == STOP:
            os.kill(os.getpid(), signal.SIGALRM)
            time.sleep(1)
        elif status:
            self._answer({"error": "told to fail"}, status)
        else:
            self.close_connection = True
            self.connection.close()

    def _answer(self, values: dict[str, Any], status: int = 200) -> None:
        content = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _whoami(self, body: bytes, words: list[str]) -> None:
        self._answer({"type": "user", "name": "tester"})

    def _create(self, body: bytes, words: list[str]) -> None:
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in self.hub.repositories:
            self._answer({"error": "You already created this model repo"}, 409)
            return
        self.hub.repositories[repo] = Repository(asked.get("visibility") == "private")
        self._answer({"url": f"{self.hub.url}/{repo}"})

    def _delete(self, body: bytes, words: list[str]) -> None:
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}"
        del self.hub.repositories[repo]
        self.hub.deleted.append(repo)
        self._answer({})

    def _info(self, body: bytes, words: list[str]) -> None:
        repo = "/".join(words[2:4])
        found = self.hub.repositories[repo]
        siblings = [{"rfilename": name} for name in found.files]
        self._answer({"id": repo, "private": found.private, "siblings": siblings, "sha": "0" * 40})

    def _validate(self, body: bytes, words: list[str]) -> None:
        fenced = json.loads(body)["content"].startswith("---\n")
        self._answer({"errors": [] if fenced else [{"message": "no metadata"}], "warnings": []}, 200 if fenced else 400)

    def _preupload(self, body: bytes, words: list[str]) -> None:
        names = [file["path"] for file in json.loads(body)["files"]]
        modes = ["lfs" if name.endswith(".safetensors") else "regular" for name in names]
        files = zip(names, modes, strict=True)
        self._answer({"files": [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in files]})

    def _batch(self, body: bytes, words: list[str]) -> None:
        objects = json.loads(body)["objects"]
        for found in objects:
            actions = ("upload", "lfs"), ("verify", "verify")
            found["actions"] = {action: {"href": f"{self.hub.url}/{name}/{found['oid']}"} for action, name in actions}
        self._answer({"transfer": "basic", "objects": objects})

    def _store(self, body: bytes, words: list[str]) -> None:
        self._keep(body)
        self._answer({})

    def _keep(self, content: bytes) -> None:
        self.hub.objects[hashlib.sha256(content).hexdigest()] = content

    def _verify(self, body: bytes, words: list[str]) -> None:
        asked = json.loads(body)
        self._answer({}, 200 if len(self.hub.objects.get(asked["oid"], b"")) == asked["size"] else 404)

    def _xet_token(self, body: bytes, words: list[str]) -> None:
        self._answer({"accessToken": "storage", "casUrl": self.hub.url, "exp": int(time.time()) + 3600})

    def _xorb(self, body: bytes, words: list[str]) -> None:
        """A Xet block: chunks behind heads of 8 bytes (version, stored size in 3, scheme 0 = as it is, size in 3)."""
        chunks, at = [], 0
        while at < len(body):
            size = int.from_bytes(body[at + 1 : at + 4], "little")
            assert body[at + 4] == 0, "a compressed chunk; test with random bytes"
            chunks.append(body[at + 8 : at + 8 + size])
            at += 8 + size
        self._keep(b"".join(chunks))
        self._answer({"was_inserted": True})

    def _shard(self, body: bytes, words: list[str]) -> None:
        self._answer({"type": "result", "result": 1})

    def _commit(self, body: bytes, words: list[str]) -> None:
        repo = "/".join(words[2:4])
        found = self.hub.repositories[repo]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                found.commits.append(value["summary"])
            elif line["key"] == "file":
                found.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                found.files[value["path"]] = self.hub.objects[value["oid"]]
            else:
                del found.files[value["path"]]
        commit = "1" * 40
        self._answer({"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/{repo}/commit/{commit}"})
