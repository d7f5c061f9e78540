"""HTTP GET of large files with the standard library alone, so that nothing has to be installed to fetch a model.

A host that cannot be reached is given up in five seconds. Redirects are followed (the hub sends us to its file
servers, and no secret travels), but never from https to http.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from graphton._proxies import is_loopback
from graphton._trust import distrust, tls_context

__all__ = ["CHUNK", "Broken", "Reply", "SourceFailed", "open_at"]

CONNECT_LIMIT = 5.0
READ_LIMIT = 30.0
CHUNK = 1 << 20


class SourceFailed(Exception):
    """This source cannot give the file, now; the text says why, `cure` what helps, and the next source is tried."""

    def __init__(self, text: str, *, cure: str = "") -> None:
        super().__init__(text)
        self.cure = cure


class Broken(Exception):
    """The connection broke half-way; what came is kept, and the same source is asked for the rest."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer whose body is still to come."""

    raw: http.client.HTTPResponse
    start: int
    """The offset of the first byte that comes."""
    total: int | None
    etag: str

    def blocks(self, expected: int) -> Iterator[bytes]:
        """The body in pieces; raises Broken when it ends before `expected` bytes, and never gives more."""
        left = expected
        while left:
            try:
                block = self.raw.read1(min(CHUNK, left))
            except (OSError, http.client.HTTPException) as error:
                raise Broken(f"the connection broke ({_why(error)})") from error
            if not block:
                raise Broken(f"the connection ended {left:,} bytes early")
            left -= len(block)
            yield block


@contextlib.contextmanager
def open_at(url: str, offset: int, etag: str) -> Iterator[Reply]:
    """Ask for the bytes from `offset` on; `Reply.start` says where the server really begins (0: it starts over)."""
    headers = {"User-Agent": "graphton", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if etag:
            headers["If-Range"] = etag
    raw = _request(url, headers)
    with raw:
        yield _read_head(raw, offset)


def _request(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    request = urllib.request.Request(url, headers=headers)
    try:
        reply: http.client.HTTPResponse = _opener().open(request, timeout=CONNECT_LIMIT)
        return reply
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:  # our part does not fit what is there now: begin again
                return _request(url, {k: v for k, v in headers.items() if k not in ("Range", "If-Range")})
        kind = Broken if error.code in (408, 429, 500, 502, 503, 504) else SourceFailed
        raise kind(f"{urlsplit(url).hostname} answers {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            why, cure = distrust(reason, urlsplit(url).hostname or "")
            raise SourceFailed(
                f"the certificate of {urlsplit(url).hostname} is not believed: {why}", cure=cure
            ) from error
        if isinstance(reason, (_NotReached, ssl.SSLError)):
            raise SourceFailed(_why(reason)) from error
        raise Broken(f"no answer from {urlsplit(url).hostname} ({_why(reason)})") from error


def _read_head(raw: http.client.HTTPResponse, offset: int) -> Reply:
    etag = raw.headers.get("ETag", "")
    if etag.startswith("W/"):  # a weak tag promises nothing about bytes
        etag = ""
    length = raw.headers.get("Content-Length", "")
    if raw.status != 206:
        return Reply(raw, 0, int(length) if length.isdigit() else None, etag)
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", raw.headers.get("Content-Range", "").strip())
    if not match or int(match[1]) != offset:
        raise SourceFailed(f"asked for bytes from {offset}, got {raw.headers.get('Content-Range')!r}")
    return Reply(raw, offset, None if match[2] == "*" else int(match[2]), etag)


def _why(error: object) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


class _NotReached(OSError):
    """The host has no address or does not answer in time: the source is skipped at once."""


def _connect(address: tuple[str, int], timeout: object = None, source: object = None) -> socket.socket:
    """Like socket.create_connection, but five seconds for everything, name and all addresses together."""
    host, port = address
    deadline = time.monotonic() + CONNECT_LIMIT
    failed: object = "no address"
    for family, kind, proto, _, target in _resolve(host, port):
        try:
            sock = socket.socket(family, kind, proto)
            sock.settimeout(max(0.5, deadline - time.monotonic()))
            sock.connect(target)
        except OSError as error:
            sock.close()
            failed = _why(error)
            if time.monotonic() > deadline:
                break
        else:
            sock.settimeout(READ_LIMIT)
            return sock
    raise _NotReached(f"{host}:{port} cannot be reached ({failed})")


def _resolve(host: str, port: int) -> list[Any]:
    # getaddrinfo takes no limit, and a resolver that drops packets takes half a minute. The thread ends with it.
    answer: list[Any] = []

    def ask() -> None:
        try:
            answer.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as error:
            answer.append(error)

    asker = threading.Thread(target=ask, daemon=True, name=f"resolve {host}")
    asker.start()
    asker.join(CONNECT_LIMIT)
    if not answer:
        raise _NotReached(f"{host!r} cannot be resolved (no answer within {CONNECT_LIMIT:.0f} s)")
    if isinstance(answer[0], OSError):
        raise _NotReached(f"{host!r} cannot be resolved ({_why(answer[0])})") from answer[0]
    found: list[Any] = answer[0]
    return found


class _Http(http.client.HTTPConnection):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._create_connection = _connect


class _Https(http.client.HTTPSConnection):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._create_connection = _connect


class _HttpHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Http, req)


class _HttpsHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Https, req, context=tls_context())


class _Proxies(urllib.request.ProxyHandler):
    """The environment's proxies, but never for this machine itself."""

    def proxy_open(self, req: urllib.request.Request, proxy: str, type: str) -> Any:
        if is_loopback(urlsplit(f"//{req.host}").hostname or ""):
            return None
        return super().proxy_open(req, proxy, type)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """The hub sends us to its file servers. There is no secret to carry there; only https may not become http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.type == "https" and not newurl.startswith("https:"):
            raise SourceFailed(f"redirected from https to {newurl.partition('?')[0]!r}: refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()
    for handler in (
        _Proxies(),
        _HttpHandler(),
        _HttpsHandler(),
        _Redirects(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener
