"""A file server of our own: it can break off, answer errors, and tells what it was asked."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator

import pytest


class FileServer:
    """Serves `files`; `cuts` says after how many bytes the next replies of a path break off."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cuts: dict[str, list[int]] = {}
        self.ranges = True
        self.etag = '"one"'
        self.status: dict[str, int] = {}
        self.gate: threading.Event | None = None
        self.asked: list[tuple[str, str | None, str | None]] = []
        self.reached = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        path = request.path
        wanted, if_range = request.headers.get("Range"), request.headers.get("If-Range")
        self.asked.append((path, wanted, if_range))
        self.reached.set()
        if path in self.status:
            request.send_error(self.status[path])
            return
        data = self.files[path]
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        partial = bool(wanted) and self.ranges and (if_range is None or if_range == self.etag)
        if partial and start >= len(data):
            request.send_error(416)
            return
        request.send_response(206 if partial else 200)
        start = start if partial else 0
        if partial:
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        request.send_header("Content-Length", str(len(data) - start))
        if self.etag:
            request.send_header("ETag", self.etag)
        request.end_headers()
        cuts = self.cuts.get(path, [])
        body = data[start : start + cuts.pop(0)] if cuts else data[start:]
        if self.gate is not None:
            request.wfile.write(body[:10_000])
            request.wfile.flush()
            self.gate.wait(60)
            body = body[10_000:]
        request.wfile.write(body)


@pytest.fixture
def server() -> Iterator[FileServer]:
    made = FileServer()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name == "UV":
            monkeypatch.delenv(name)
