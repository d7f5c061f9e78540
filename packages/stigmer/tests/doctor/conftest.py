"""A web server with fixed answers that remembers what it was asked, and the report of a real `stigmer doctor`."""

from __future__ import annotations

import http.server
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest


@dataclass
class Web:
    """`answers` maps a path (what follows ? left out) to a status and a body; others are 404.

    A body that is a function is called with the JSON that was sent, and gives both.
    """

    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    url: str = ""
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    silent: bool = False
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def paths(self) -> list[str]:
        return [f"{method} {path}" for method, path, _ in self.asked]


class _Handler(http.server.BaseHTTPRequestHandler):
    web: Web

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        sent = self.rfile.read(length)
        heard = {name.lower(): value for name, value in self.headers.items()}
        self.web.asked.append((self.command, self.path, heard))
        if self.web.silent:
            self.web.over.wait(60)
            return
        status, body = self.web.answers.get(self.path.partition("?")[0], (404, {"error": "not found"}))
        if callable(body):
            status, body = body(json.loads(sent or b"{}"))
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response_only(status)
        for name, value in self.web.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_CONNECT = _answer

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


@contextmanager
def serving(web: Web, tls: ssl.SSLContext | None = None) -> Iterator[Web]:
    handler = type("Handler", (_Handler,), {"web": web})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        web.url = f"{'https' if tls else 'http'}://localhost:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield web
        web.over.set()
        server.shutdown()
        thread.join(30)


@pytest.fixture
def web() -> Iterator[Web]:
    """An empty web server: everything is 404 until `answers` says otherwise."""
    with serving(Web()) as one:
        yield one


Row = dict[str, Any]
Report = Callable[..., tuple[int, dict[str, Row]]]


@pytest.fixture
def report(stigmer) -> Report:
    """Runs `stigmer doctor --json …` and gives its exit code and its checks by id."""

    def run(*arguments: str, **environment: str) -> tuple[int, dict[str, Row]]:
        done = stigmer("doctor", "--json", *arguments, **environment)
        assert done.stderr == ""
        said = json.loads(done.stdout)
        rows = {row["id"]: row for row in said["checks"]}
        assert len(rows) == len(said["checks"]), "an id stands twice"
        assert said["decides"] == [row["id"] for row in said["checks"] if row["status"] == "fail"]
        assert said["ok"] is (not said["decides"])
        return done.returncode, rows

    return run
