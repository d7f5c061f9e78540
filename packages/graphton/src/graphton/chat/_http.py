"""The one door to the network: a request goes out, the reply comes back as it arrives, or as one of our errors.

    async with post(url, body, headers=headers, provider="ollama", limits=limits) as reply:
        async for line in reply.lines():
            ...

aiohttp's defaults would hurt here (it follows a 307 with prompt and key, adds headers, cookies and netrc
passwords), so this file switches them off, and no other file talks to aiohttp.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from graphton._proxies import proxy_for
from graphton._trust import tls_context
from graphton.chat._failures import Peer, Via, origin_of
from graphton.errors import ProviderError, ProviderTimeout, SettingError
from graphton.models import PROVIDERS, Timeouts

if TYPE_CHECKING:
    import aiohttp

    from graphton.chat._aiohttp import Pieces

__all__ = ["HEADERS", "MAX_LINE", "Limits", "Reply", "endpoint", "fetch", "limits_for", "post"]

MAX_LINE = 8 * 1024 * 1024
"""Bytes of the longest line, or server-sent event, that we read; more is no reply of a model."""

HEADERS = {"content-type": "application/json", "user-agent": "graphton"}
"""What every dialect sends; each adds its own. Nothing else goes out beside Host and Content-Length."""

_MAX_ERROR_BODY = 64 * 1024
_KEEP_ALIVE = 30.0
_SMALL = 64 * 1024
"""Bytes of a body that is sent in one piece."""
_TAIL_SECONDS = 0.25
"""How long a reply that has said everything may take to end, so that its connection can be used again."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds until a connection stands (TLS included), from then to the first token, and between two pieces."""

    connect: float
    first_token: float
    idle: float


def limits_for(timeouts: Timeouts, *, local: bool) -> Limits:
    """What somebody set, else the defaults for a server on this machine or for a hosted one."""
    ours = PROVIDERS["ollama" if local else "anthropic"].timeouts
    connect, first_token, idle = (
        getattr(ours if getattr(timeouts, name) is None else timeouts, name)
        for name in ("connect", "first_token", "idle")
    )
    return Limits(connect, first_token, idle)


def endpoint(base_url: str, path: str) -> str:
    """`base_url` with `path` behind it; refuses what is no plain http(s) address."""
    url = base_url.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise SettingError(
            f"base URL {url.rpartition('@')[2]!r} is not an address ({error})",
            hint="write it like https://api.example.com/v1",
        ) from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingError(
            f"base URL {url!r} needs http:// or https:// and a host",
            hint="write it like https://api.example.com/v1",
        )
    if parts.username is not None or parts.password is not None:
        raise SettingError(
            f"base URL {origin_of(url)!r} holds a user or password, which would be shown and logged",
            hint="give the key as api_key",
        )
    if parts.query or parts.fragment:
        raise SettingError(
            f"base URL {origin_of(url)!r} has a query or a fragment", hint="leave out what follows ? or #"
        )
    return url + path


class Reply:
    """A reply of status 2xx while it arrives.

    Once bytes have been handed out, the gap limit counts from one piece to the next. A dialect that has only seen
    signs of life so far (pings, a role, progress) says so with `waiting()`, and the first-token limit goes on.
    """

    def __init__(
        self, response: aiohttp.ClientResponse, peer: Peer, limits: Limits, *, deadline: float
    ) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self.peer = peer
        self._content = response.content
        self._limits = limits
        self._deadline = deadline
        self._waiting = True

    @property
    def content_type(self) -> str:
        """The media type in lower case, without parameters; empty where the server names none."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()

    def waiting(self, *, progress: bool = False) -> None:
        """No token yet: the first-token limit still counts; with `progress` it starts again from now."""
        self._waiting = True
        if progress:
            self._deadline = asyncio.get_running_loop().time() + self._limits.first_token

    def began(self) -> None:
        """The model speaks: from here on the gap limit counts."""
        self._waiting = False

    async def read(self) -> bytes:
        """The next bytes as they arrive; empty at the end."""
        try:
            data = self._content.read_nowait() or await self._next()
        except ProviderTimeout:
            raise
        except Exception as error:
            raise self.peer.translate(error) from error
        self.began()
        return data

    async def lines(self) -> AsyncGenerator[bytes]:
        """Lines without their ends; a last one without an end counts. Longer than MAX_LINE is a ProtocolError."""
        rest = bytearray()
        while data := await self.read():
            first, *more = data.split(b"\n")
            rest += first
            for line in more:
                self._check(len(rest))
                self.began()
                yield bytes(rest.removesuffix(b"\r"))
                rest[:] = line
            self._check(len(rest))
        if rest:
            yield bytes(rest)

    async def body(self, limit: int = MAX_LINE) -> bytes:
        """The whole reply, for answers that are no stream."""
        whole = bytearray()
        while data := await self.read():
            whole += data
            self._check(len(whole), limit)
        return bytes(whole)

    def _check(self, size: int, limit: int = MAX_LINE) -> None:
        if size > limit:
            raise self.peer.protocol(f"more than {limit} bytes in one piece")

    async def _next(self) -> bytes:
        loop = asyncio.get_running_loop()
        limit = "first_token" if self._waiting else "idle"
        deadline = self._deadline if self._waiting else loop.time() + self._limits.idle
        try:
            async with asyncio.timeout_at(deadline):
                return await self._content.readany()
        except TimeoutError as error:
            raise self.peer.timed_out(limit, getattr(self._limits, limit)) from error

    async def _tail(self) -> None:
        """Read what follows the last thing said, normally nothing, so that the connection can be used again."""
        try:
            async with asyncio.timeout(_TAIL_SECONDS):
                while await self._content.readany():
                    pass
        except Exception:
            return  # the message is whole already; its connection is closed instead of kept


@asynccontextmanager
async def post(
    url: str,
    body: bytes | Sequence[bytes | bytearray] | None,
    *,
    headers: Mapping[str, str],
    provider: str,
    limits: Limits,
    secrets: tuple[str, ...] = (),
    method: str = "POST",
) -> AsyncIterator[Reply]:
    """Send one request and hand out the reply while it arrives; leaving early closes the connection at once.

    The body may come in pieces, which are not copied. Raises the ProviderError family only. `secrets` (keys in
    `headers`) appear in no error text.
    """
    peer, proxy = _through(Peer(provider, url, secrets))
    response, deadline = await _send(peer, method, body, headers, limits, proxy=proxy)
    try:
        reply = Reply(response, peer, limits, deadline=deadline)
        if response.status >= 300:
            raise await _refusal(reply, response)
        yield reply
        if not response.content.at_eof():
            await reply._tail()
    finally:
        response.close()  # hands a finished connection back to the pool, and cuts an unfinished one


async def fetch(
    url: str,
    body: bytes | None = None,
    *,
    headers: Mapping[str, str],
    provider: str,
    limits: Limits,
    secrets: tuple[str, ...] = (),
    method: str = "POST",
) -> bytes:
    """Send one request and return the whole body of its 2xx reply."""
    async with post(
        url, body, headers=headers, provider=provider, limits=limits, secrets=secrets, method=method
    ) as reply:
        return await reply.body()


@dataclass(slots=True)
class _Way:
    """How far a request has come, as the session's trace tells it."""

    looking_up: bool = False
    """The address of its host's name is being asked for."""
    sent: Callable[[], None] = lambda: None


async def _send(
    peer: Peer,
    method: str,
    body: bytes | Sequence[bytes | bytearray] | None,
    headers: Mapping[str, str],
    limits: Limits,
    *,
    proxy: str | None,
) -> tuple[aiohttp.ClientResponse, float]:
    """The response once its headers are here, and the loop time at which a first token is due."""
    from graphton.chat._aiohttp import aiohttp

    session = await _session()
    loop = asyncio.get_running_loop()
    way = _Way()
    try:
        # aiohttp limits the connect itself; our clock starts when the request leaves (the session's trace calls it).
        async with asyncio.timeout(None) as clock:
            due = loop.time() + limits.connect + limits.first_token

            def sent() -> None:
                nonlocal due
                due = loop.time() + limits.first_token
                clock.reschedule(due)

            way.sent = sent
            response = await session.request(
                method,
                peer.url,
                data=_as_data(body),
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None, connect=limits.connect),
                proxy=proxy,
                ssl=tls_context() if f"{peer.url} {proxy}".count("https:") else True,
                trace_request_ctx=way,
            )
            return response, due
    except aiohttp.ConnectionTimeoutError as error:
        raise peer.timed_out("connect", limits.connect, looking_up=way.looking_up) from error
    except TimeoutError as error:
        raise peer.timed_out("first_token", limits.first_token) from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        failure = peer.translate(error)
        # aiohttp's own error may hold the request with its headers, or the proxy with its password, for a log to
        # print: only the system's error beneath it is kept.
        cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None)
    raise failure from cause


def _as_data(body: bytes | Sequence[bytes | bytearray] | None) -> bytes | Pieces | None:
    """The body as aiohttp takes it: in pieces only where copying it costs more than sending it three times."""
    from graphton.chat._aiohttp import Pieces

    if body is None or isinstance(body, bytes):
        return body
    return b"".join(body) if sum(map(len, body)) < _SMALL else Pieces(body)


async def _refusal(reply: Reply, response: aiohttp.ClientResponse) -> ProviderError:
    """The error for a status of 300 or more; of its body, as much as an error may be long."""
    if response.status == 407 and reply.peer.via:
        return reply.peer.proxy_refused(407)
    if response.status < 400:
        return reply.peer.redirect(response.status, response.headers.get("Location", ""))
    body = bytearray()
    try:
        while len(body) < _MAX_ERROR_BODY and (data := await reply.read()):
            body += data
    except ProviderError as error:
        body = body or bytearray(f"(its explanation was cut off: {error.message})".encode())
    return reply.peer.status(response.status, bytes(body[:_MAX_ERROR_BODY]), response.headers)


def _through(peer: Peer) -> tuple[Peer, str | None]:
    """The peer with the proxy that stands before it, as errors name it, and that proxy's address."""
    found = proxy_for(peer.url)
    if found is None:
        return peer, None
    proxy, variable = found
    peer = replace(peer, via=Via(origin_of(proxy), variable))
    shown = peer.via
    host = urlsplit(peer.url).hostname
    if urlsplit(proxy).scheme not in ("http", "https"):
        raise peer.connect_error(
            f"{shown} is of a kind that we do not speak",
            trouble="proxy",
            hint=f"name an http:// proxy, or exempt the host with NO_PROXY={host}",
            retryable=False,
        )
    if peer.secrets and peer.url.startswith("http:"):
        raise peer.connect_error(
            f"{shown} would read the key for {peer.origin!r}, which is plain HTTP",
            trouble="proxy",
            hint=f"use an https:// base URL, or exempt the host with NO_PROXY={host}",
            retryable=False,
        )
    return peer, proxy


# --- one session per event loop -------------------------------------------------------------------------------------

_sessions: dict[asyncio.AbstractEventLoop, tuple[aiohttp.ClientSession, AsyncGenerator[None]]] = {}


async def _session() -> aiohttp.ClientSession:
    """This loop's session. It closes with its loop: `asyncio.run` closes async generators before the loop."""
    loop = asyncio.get_running_loop()
    if loop in _sessions:
        return _sessions[loop][0]
    for old in [known for known in list(_sessions) if known.is_closed()]:
        _sessions.pop(old, None)
    session = _new_session()
    keeper = _close_with_loop(loop, session)
    _sessions[loop] = session, keeper
    await anext(keeper)
    return session


async def _close_with_loop(
    loop: asyncio.AbstractEventLoop, session: aiohttp.ClientSession
) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        _sessions.pop(loop, None)
        await session.close()


def _new_session() -> aiohttp.ClientSession:
    from graphton.chat._aiohttp import aiohttp

    async def request_left(session: Any, context: Any, parameters: Any) -> None:
        context.trace_request_ctx.sent()

    async def lookup_begins(session: Any, context: Any, parameters: Any) -> None:
        context.trace_request_ctx.looking_up = True

    async def lookup_ends(session: Any, context: Any, parameters: Any) -> None:
        context.trace_request_ctx.looking_up = False

    trace = aiohttp.TraceConfig()
    trace.on_request_headers_sent.append(request_left)
    trace.on_dns_resolvehost_start.append(lookup_begins)
    trace.on_dns_resolvehost_end.append(lookup_ends)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        trace_configs=[trace],
    )
