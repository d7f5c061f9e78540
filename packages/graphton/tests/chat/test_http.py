"""The transport: what goes out, what comes back, and how each failure is told."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import NoReturn

import pytest
from graphton.chat._http import HEADERS, MAX_LINE, Limits, endpoint, fetch, limits_for, post
from graphton.errors import (
    BrokenStream,
    ConnectError,
    ProtocolError,
    ProviderTimeout,
    SettingError,
    StatusError,
)
from graphton.models import Timeouts

LIMITS = Limits(connect=30, first_token=30, idle=30)
OK = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Wire:
    """One accepted connection: the requests read from it, and what is written back."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def request(self) -> tuple[bytes, bytes]:
        """Head and body of the next request."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(h.split(b":")[1]) for h in head.split(b"\r\n") if h.lower().startswith(b"content-length:")),
            0,
        )
        return head, await self.reader.readexactly(length)

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    async def gone(self) -> None:
        """Returns when the client has closed its side."""
        while await self.reader.read(1000):
            pass


@asynccontextmanager
async def server(play: Callable[[Wire], Awaitable[None]]) -> AsyncIterator[str]:
    """A TCP server that plays the same scene on every connection; an error in it fails the test."""
    errors: list[BaseException] = []
    open_scenes: set[asyncio.Task[None]] = set()

    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_scenes.add(task)
        try:
            await play(Wire(reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        except BaseException as error:
            errors.append(error)
        finally:
            writer.close()
            open_scenes.discard(task)

    listening = await asyncio.start_server(scene, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()
        for task in list(open_scenes):
            task.cancel()
        await asyncio.gather(*open_scenes, return_exceptions=True)
    assert not errors


async def lines(url: str, limits: Limits = LIMITS) -> list[bytes]:
    async with post(url, b"{}", headers=HEADERS, provider="ollama", limits=limits) as reply:
        return [line async for line in reply.lines()]


# --- what goes out


async def test_nothing_goes_out_that_the_dialect_did_not_set() -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def play(wire: Wire) -> None:
        seen.append(await wire.request())
        await wire.send(OK, END)

    async with server(play) as url:
        await fetch(
            f"{url}/v1/x", b'{"a":1}', headers={**HEADERS, "x-mine": "1"}, provider="p", limits=LIMITS
        )
    head, body = seen[0]
    host = url.removeprefix("http://").encode()
    assert sorted(head.rstrip().split(b"\r\n")) == sorted(
        [
            b"POST /v1/x HTTP/1.1",
            b"Host: " + host,
            b"content-type: application/json",
            b"user-agent: graphton",
            b"x-mine: 1",
            b"Content-Length: 7",
        ]
    )
    assert body == b'{"a":1}'


async def test_a_get_has_no_body_and_no_content_type_of_ours() -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def play(wire: Wire) -> None:
        seen.append(await wire.request())
        await wire.send(OK, chunk(b"[]"), END)

    async with server(play) as url:
        assert await fetch(f"{url}/api/ps", headers={}, provider="p", limits=LIMITS, method="GET") == b"[]"
    assert seen[0][0].startswith(b"GET /api/ps HTTP/1.1\r\nHost: ")
    assert seen[0][0].count(b"\r\n") == 3


async def test_connections_are_used_again_and_cookies_are_not_kept() -> None:
    connections = 0
    heads: list[bytes] = []

    async def play(wire: Wire) -> None:
        nonlocal connections
        connections += 1
        while True:
            heads.append((await wire.request())[0])
            await wire.send(OK.replace(b"OK\r\n", b"OK\r\nSet-Cookie: id=sentinel\r\n"), chunk(b"x\n"), END)

    async with server(play) as url:
        assert await lines(url) == await lines(url) == [b"x"]
    assert connections == 1
    assert len(heads) == 2
    assert b"ookie" not in heads[1]


# --- what comes back


@pytest.mark.parametrize("size", range(1, 12))
async def test_lines_do_not_depend_on_how_they_arrive(size: int) -> None:
    body = b'{"a":1}\r\n\n{"b":"\xe2\x82\xac"}\nlast'

    async def play(wire: Wire) -> None:
        await wire.request()
        await wire.send(OK, *(chunk(body[i : i + size]) for i in range(0, len(body), size)), END)

    async with server(play) as url:
        assert await lines(url) == [b'{"a":1}', b"", '{"b":"€"}'.encode(), b"last"]


async def test_a_line_of_several_megabytes_is_read() -> None:
    async def play(wire: Wire) -> None:
        await wire.request()
        await wire.send(OK, *[chunk(b"x" * 65_536)] * 80, chunk(b"\n"), END)

    async with server(play) as url:
        assert [len(line) for line in await lines(url)] == [80 * 65_536]


async def test_a_line_without_end_is_refused() -> None:
    async def play(wire: Wire) -> None:
        await wire.request()
        await wire.send(OK, *[chunk(b"x" * 65_536)] * 256, chunk(b"\n"), END)

    async with server(play) as url:
        with pytest.raises(ProtocolError, match=f"more than {MAX_LINE} bytes in one piece"):
            await lines(url)


async def test_a_body_without_end_is_refused() -> None:
    async def play(wire: Wire) -> None:
        await wire.request()
        await wire.send(OK, *[chunk(b"x\n" * 32_768)] * 256, END)

    async with server(play) as url:
        with pytest.raises(ProtocolError, match="in one piece"):
            await fetch(url, headers={}, provider="p", limits=LIMITS)


async def test_a_cut_connection_is_a_broken_stream() -> None:
    async def play(wire: Wire) -> None:
        await wire.request()
        await wire.send(OK, chunk(b"half"))

    async with server(play) as url:
        with pytest.raises(BrokenStream, match="cut in the middle") as caught:
            await lines(url)
    assert caught.value.retryable


async def test_no_answer_at_all_is_a_broken_stream() -> None:
    async def play(wire: Wire) -> None:
        await wire.request()

    async with server(play) as url:
        with pytest.raises(BrokenStream, match="closed the connection without an answer"):
            await lines(url)


async def test_what_is_no_http_is_a_protocol_error() -> None:
    async def play(wire: Wire) -> None:
        await wire.request()
        await wire.send(b"220 mail.example ready\r\n\r\n")

    async with server(play) as url:
        with pytest.raises(ProtocolError, match="no valid HTTP"):
            await lines(url)


# --- limits, each its own


async def test_no_tls_handshake_is_a_connect_timeout() -> None:
    async with server(Wire.gone) as url:
        with pytest.raises(ProviderTimeout, match=r"could not be connected to within 0\.3 s") as caught:
            await lines(url.replace("http:", "https:"), Limits(connect=0.3, first_token=30, idle=30))
    assert caught.value.limit == "connect"
    assert "--connect-timeout 0.6, or llm.timeouts.connect" in caught.value.hint


async def test_a_name_server_that_says_nothing_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def silent(*asked: object, **options: object) -> NoReturn:
        over.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    try:
        with pytest.raises(ProviderTimeout) as caught:
            await lines("https://models.example/v1", Limits(connect=0.3, first_token=30, idle=30))
    finally:
        over.set()
    assert caught.value.message == (
        "ollama at 'https://models.example' was not connected to: the address of the name 'models.example' was not "
        "found within 0.3 s"
    )
    assert "this machine's DNS does not answer" in caught.value.hint
    assert caught.value.limit == "connect"


async def test_a_name_that_cannot_be_looked_up_now_is_no_unknown_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def offline(*asked: object, **options: object) -> NoReturn:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    with pytest.raises(ConnectError, match="cannot be looked up just now: no name server answers") as caught:
        await lines("https://models.example/v1")
    assert caught.value.hint.startswith("this machine may be offline, or its DNS may be down")
    assert (caught.value.trouble, caught.value.retryable) == ("lookup", True)


async def test_an_unknown_name_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*asked: object, **options: object) -> NoReturn:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ConnectError) as caught:
        await lines("https://nosuch.example/v1")
    assert caught.value.message == "the host name 'nosuch.example' of ollama is not known here"
    assert "check the spelling" in caught.value.hint
    assert caught.value.trouble == "host"


async def test_silence_before_the_headers_is_a_first_token_timeout() -> None:
    async with server(Wire.gone) as url:
        with pytest.raises(ProviderTimeout, match=r"sent no first token within 0\.3 s") as caught:
            await lines(url, Limits(connect=30, first_token=0.3, idle=30))
    assert caught.value.limit == "first_token"
    assert "--first-token-timeout 0.6, or llm.timeouts.first_token" in caught.value.hint


async def test_silence_after_the_headers_is_a_first_token_timeout() -> None:
    async def play(wire: Wire) -> None:
        await wire.request()
        await wire.send(OK)
        await wire.gone()

    async with server(play) as url:
        with pytest.raises(ProviderTimeout) as caught:
            await lines(url, Limits(connect=30, first_token=0.3, idle=30))
    assert caught.value.limit == "first_token"


async def test_signs_of_life_are_no_token() -> None:
    async def play(wire: Wire) -> None:
        await wire.request()
        await wire.send(OK)
        while True:
            await wire.send(chunk(b"ping\n"))
            await asyncio.sleep(0.05)

    async def ask(url: str) -> None:
        limits = Limits(connect=30, first_token=0.3, idle=30)
        async with post(url, b"", headers={}, provider="p", limits=limits) as reply:
            async for _ in reply.lines():
                reply.waiting()

    async with server(play) as url:
        with pytest.raises(ProviderTimeout) as caught:
            await ask(url)
    assert caught.value.limit == "first_token"


async def test_a_gap_in_the_reply_is_an_idle_timeout() -> None:
    async def play(wire: Wire) -> None:
        await wire.request()
        await wire.send(OK, chunk(b"one\n"))
        await wire.gone()

    async with server(play) as url:
        with pytest.raises(ProviderTimeout, match=r"fell silent .* for 0\.3 s") as caught:
            await lines(url, Limits(connect=30, first_token=30, idle=0.3))
    assert caught.value.limit == "idle"
    assert "--idle-timeout 0.6, or llm.timeouts.idle" in caught.value.hint


def test_limits_are_the_said_ones_else_the_defaults() -> None:
    assert limits_for(Timeouts(), local=True) == Limits(5, 600, 120)
    assert limits_for(Timeouts(), local=False) == Limits(10, 120, 60)
    assert limits_for(Timeouts(connect=1, idle=3), local=False) == Limits(1, 120, 3)


# --- leaving early


@pytest.mark.parametrize("way", ["cancel", "close", "raise"])
async def test_leaving_early_closes_the_connection_at_once(way: str) -> None:
    left = asyncio.Event()
    started = asyncio.Event()

    async def play(wire: Wire) -> None:
        await wire.request()
        await wire.send(OK, chunk(b"one\n"))
        await wire.gone()
        left.set()

    async def stream(url: str) -> AsyncIterator[bytes]:
        async with post(url, b"", headers={}, provider="p", limits=LIMITS) as reply:
            async for line in reply.lines():
                yield line

    async def read(url: str) -> None:
        async with aclosing(stream(url)) as found:  # type: ignore[type-var]  # an async generator, typed as its protocol
            async for _ in found:
                started.set()
                if way == "close":
                    return
                if way == "raise":
                    raise KeyError("the consumer's own failure")

    async with server(play) as url:
        task = asyncio.create_task(read(url))
        await asyncio.wait_for(started.wait(), 30)
        if way == "cancel":
            task.cancel()
        await asyncio.wait([task], timeout=30)
        await asyncio.wait_for(left.wait(), 30)
        if way == "raise":
            assert isinstance(task.exception(), KeyError)


async def test_cancelling_before_the_headers_closes_the_connection_at_once() -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def play(wire: Wire) -> None:
        await wire.request()
        asked.set()
        await wire.gone()
        left.set()

    async with server(play) as url:
        task = asyncio.create_task(lines(url))
        await asyncio.wait_for(asked.wait(), 30)
        task.cancel()
        await asyncio.wait_for(left.wait(), 30)
        await asyncio.wait([task], timeout=30)
        assert task.cancelled()


# --- statuses


def answer(status: str, body: bytes = b"", headers: str = "") -> Callable[[Wire], Awaitable[None]]:
    async def play(wire: Wire) -> None:
        await wire.request()
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
        await wire.send(head.encode() + body)

    return play


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504, 529])
async def test_a_status_says_whether_to_try_again(status: int) -> None:
    async with server(answer(f"{status} X", b'{"error":{"type":"some_kind","message":"words"}}')) as url:
        with pytest.raises(StatusError, match=rf"answered {status} \(some_kind\): words") as caught:
            await lines(url)
    assert caught.value.status == status
    assert caught.value.kind == "some_kind"
    assert caught.value.retryable is (status in (408, 409, 429) or status >= 500)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"type":"error","error":{"type":"t","message":"anthropic words"}}', " (t): anthropic words"),
        (b'{"error":{"code":"c","type":null,"message":"openai words"}}', " (c): openai words"),
        (b'{"error":"ollama words"}', ": ollama words"),
        (b'{"detail":"vllm words"}', ": vllm words"),
        (b'{"detail":[{"loc":["body"],"msg":"bad"}]}', ': [{"loc":["body"],"msg":"bad"}]'),
        (b'[{"error":{"code":400,"message":"gemini words"}}]', " (400): gemini words"),
        (b"plain\n  words", ": plain words"),
        (b"<html><h1>Bad Gateway</h1></html>", ""),
        (b"", ""),
        (b"null", ": None"),
    ],
)
async def test_the_servers_own_words_are_found(body: bytes, said: str) -> None:
    async with server(answer("502 Bad Gateway", body)) as url:
        with pytest.raises(StatusError) as caught:
            await lines(url)
    assert caught.value.message == f"ollama at {url!r} answered 502{said}"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("Retry-After: 3", 3.0),
        ("retry-after: 0.5", 0.5),
        ("retry-after-ms: 1500\r\nRetry-After: 9", 1.5),
        ("Retry-After: Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Retry-After: soon", None),
        ("X-Other: 1", None),
    ],
)
async def test_retry_after_is_read_in_every_form(header: str, seconds: float | None) -> None:
    async with server(answer("429 X", b"{}", f"{header}\r\n")) as url:
        with pytest.raises(StatusError) as caught:
            await lines(url)
    assert caught.value.retry_after == seconds


def test_retry_after_as_a_date_counts_from_now() -> None:
    from graphton.chat._failures import retry_after

    assert retry_after({"Retry-After": "Wed, 21 Oct 2015 07:28:30 GMT"}, now=1_445_412_480) == 30.0


async def test_an_endless_error_body_is_cut() -> None:
    async def play(wire: Wire) -> None:
        await wire.request()
        await wire.send(OK.replace(b"200 OK", b"500 X"))
        while True:
            await wire.send(chunk(b"word " * 10_000))

    async with server(play) as url:
        with pytest.raises(StatusError, match="word word") as caught:
            await lines(url)
    assert len(str(caught.value)) < 1500


async def test_a_hint_names_the_variable_of_the_key() -> None:
    async with server(answer("401 X")) as url:
        with pytest.raises(StatusError) as caught:
            await fetch(url, headers={}, provider="anthropic", limits=LIMITS)
    assert (
        caught.value.hint
        == f"check the API key for anthropic (ANTHROPIC_API_KEY), and that it belongs to {url!r}"
    )


# --- addresses


@pytest.mark.parametrize(
    ("base_url", "problem"),
    [
        ("not a url", "'not a url' needs http:// or https:// and a host"),
        ("ftp://x", "'ftp://x' needs http:// or https://"),
        ("https://", "needs http:// or https:// and a host"),
        ("http://[::", "'http://[::' is not an address (Invalid IPv6 URL)"),
        ("http://u:secret@h:99999", "'h:99999' is not an address (Port out of range 0-65535)"),
        ("https://me:sentinel@api.example.com/v1", "'https://api.example.com' holds a user or password"),
        ("https://api.example.com/v1?key=sentinel", "'https://api.example.com' has a query or a fragment"),
    ],
)
def test_what_is_no_base_url_is_refused(base_url: str, problem: str) -> None:
    with pytest.raises(SettingError) as caught:
        endpoint(base_url, "/x")
    assert problem in str(caught.value)
    assert "sentinel" not in str(caught.value)


def test_slashes_at_the_end_of_a_base_url_do_not_matter() -> None:
    assert endpoint(" https://api.example.com/v1// ", "/chat") == "https://api.example.com/v1/chat"


# --- loops

THREE_LOOPS = """
import asyncio, http.server, sys, threading
import graphton.chat
from graphton.chat import _http
assert "aiohttp" not in sys.modules, "aiohttp is loaded too early"

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *args):
        pass

async def main(url):
    for _ in range(2):
        print(await _http.fetch(url, headers={}, provider="p", limits=_http.Limits(30, 30, 30)))

with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    for _ in range(3):
        asyncio.run(main(f"http://127.0.0.1:{server.server_port}"))
    server.shutdown()
    thread.join()
assert not _http._sessions
assert "truststore" not in sys.modules, "the trust store is read for plain HTTP"
"""


def test_sessions_survive_several_event_loops_and_leave_nothing_open() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", THREE_LOOPS], capture_output=True, text=True, timeout=110
    )
    assert (done.stdout, done.stderr, done.returncode) == ("b'ok'\n" * 6, "", 0)
