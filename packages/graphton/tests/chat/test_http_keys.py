"""A key reaches the host that it was given for, nobody else, and no text."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from graphton._proxies import proxy_for
from graphton.chat import Request, create_chat
from graphton.chat._http import HEADERS, Limits, fetch
from graphton.errors import ConnectError, GraphtonError, RedirectRefused
from graphton.messages import UserMessage
from graphton.models import ModelSettings

SENTINEL = "sk-sentinel-0123456789"
LIMITS = Limits(connect=30, first_token=30, idle=30)


class Recorder:
    """A TCP server that remembers every byte it is sent, and gives every request the same answer."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.heard = b""
        self.url = ""

    async def scene(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                self.heard += data
                if b"\r\n\r\n" in self.heard:
                    writer.write(self.answer)
                    await writer.drain()
        except ConnectionError:
            pass  # the client left first
        finally:
            writer.close()


@asynccontextmanager
async def recorder(
    answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Recorder]:
    record = Recorder(answer)
    server = await asyncio.start_server(record.scene, "127.0.0.1", 0, ssl=tls)
    scheme = "https" if tls else "http"
    record.url = f"{scheme}://localhost:{server.sockets[0].getsockname()[1]}"
    try:
        yield record
    finally:
        server.close()


async def send(url: str) -> bytes:
    headers = {**HEADERS, "x-api-key": SENTINEL}
    return await fetch(url, b"a prompt", headers=headers, provider="p", limits=LIMITS, secrets=(SENTINEL,))


def told(error: BaseException | None) -> str:
    """All that an error, and what led to it, would say to any log."""
    return "" if error is None else f"{error} {error!r} {told(error.__cause__)} {told(error.__context__)}"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


# --- redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(status: int) -> None:
    async with recorder() as thief:
        answer = f"HTTP/1.1 {status} X\r\nLocation: {thief.url}/v1?{SENTINEL}\r\nContent-Length: 0\r\n\r\n"
        async with recorder(answer.encode()) as own:
            with pytest.raises(RedirectRefused) as caught:
                await send(f"{own.url}/v1")
            assert f"{own.url!r} answered {status}" in caught.value.message
            assert f"to {thief.url!r}" in caught.value.message
            assert not caught.value.retryable
        assert SENTINEL.encode() in own.heard
    assert thief.heard == b""
    assert SENTINEL not in told(caught.value)


async def test_a_redirect_without_a_goal_is_refused_too() -> None:
    async with recorder(b"HTTP/1.1 304 X\r\n\r\n") as own:
        with pytest.raises(RedirectRefused, match="without saying where to"):
            await send(own.url)


# --- the environment


async def test_a_netrc_password_goes_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine localhost login me password netrc-sentinel\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    async with recorder() as own:
        await send(own.url)
    assert b"authorization" not in own.heard.lower()


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
async def test_this_machine_is_never_reached_through_a_proxy(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    async with recorder() as proxy, recorder() as own:
        monkeypatch.setenv(name, proxy.url)
        assert await send(own.url) == b"ok"
    assert proxy.heard == b""


async def test_a_key_is_not_shown_to_a_proxy_over_plain_http(monkeypatch: pytest.MonkeyPatch) -> None:
    async with recorder() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        with pytest.raises(
            ConnectError, match=r"\(from HTTP_PROXY\) would read the key for 'http://models\.example'"
        ) as caught:
            await send("http://models.example/v1")
    assert proxy.heard == b""
    assert "NO_PROXY=models.example" in caught.value.hint
    assert SENTINEL not in told(caught.value)


async def test_without_a_key_a_plain_http_proxy_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    async with recorder() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        body = await fetch("http://models.example/v1", b"{}", headers=HEADERS, provider="p", limits=LIMITS)
    assert body == b"ok"
    assert proxy.heard.startswith(b"POST http://models.example/v1 HTTP/1.1\r\n")


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
async def test_a_proxy_for_https_learns_the_host_and_nothing_more(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    async with recorder(b"HTTP/1.1 407 X\r\nContent-Length: 0\r\n\r\n") as proxy:
        monkeypatch.setenv(name, proxy.url.replace("//", "//me:proxy-sentinel@"))
        with pytest.raises(ConnectError, match="wants a user and password") as caught:
            await send("https://models.example/v1")
    assert proxy.heard.startswith(b"CONNECT models.example:443 HTTP/1.1\r\n")
    assert SENTINEL.encode() not in proxy.heard
    assert b"a prompt" not in proxy.heard
    assert SENTINEL not in told(caught.value)
    assert "proxy-sentinel" not in told(caught.value)


async def test_a_proxy_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(
        ConnectError,
        match=r"the proxy 'http://127\.0\.0\.1:9' \(from HTTPS_PROXY\) for 'https://models\.example' cannot be reached",
    ) as caught:
        await send("https://models.example/v1")
    assert "NO_PROXY=models.example" in caught.value.hint


async def test_a_kind_of_proxy_that_we_do_not_speak_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://me:proxy-sentinel@127.0.0.1:9")
    with pytest.raises(
        ConnectError, match=r"the proxy 'socks5://127\.0\.0\.1:9' \(from ALL_PROXY\)"
    ) as caught:
        await send("https://models.example/v1")
    assert "proxy-sentinel" not in told(caught.value)


@pytest.mark.parametrize(
    ("url", "environ", "proxy"),
    [
        ("https://a.example/", {}, None),
        ("https://a.example/", {"HTTPS_PROXY": "http://p:1"}, ("http://p:1", "HTTPS_PROXY")),
        (
            "https://a.example/",
            {"HTTPS_PROXY": "http://P", "https_proxy": "http://p"},
            ("http://p", "https_proxy"),
        ),
        ("https://a.example/", {"HTTPS_PROXY": " "}, None),
        ("https://a.example/", {"HTTPS_PROXY": "p:1"}, ("http://p:1", "HTTPS_PROXY")),
        ("https://a.example/", {"HTTP_PROXY": "http://p"}, None),
        ("http://a.example/", {"HTTP_PROXY": "http://p"}, ("http://p", "HTTP_PROXY")),
        ("http://a.example/", {"HTTP_PROXY": "http://p", "REQUEST_METHOD": "GET"}, None),
        ("http://a.example/", {"ALL_PROXY": "http://p"}, ("http://p", "ALL_PROXY")),
        ("https://a.example/", {"ALL_PROXY": "http://p", "NO_PROXY": "*"}, None),
        ("https://a.example/", {"ALL_PROXY": "http://p", "NO_PROXY": "b.example, a.example"}, None),
        ("https://x.a.example/", {"ALL_PROXY": "http://p", "no_proxy": ".a.example"}, None),
        ("https://x.a.example/", {"ALL_PROXY": "http://p", "no_proxy": "*.a.example"}, None),
        (
            "https://xa.example/",
            {"ALL_PROXY": "http://p", "NO_PROXY": "a.example"},
            ("http://p", "ALL_PROXY"),
        ),
        ("https://a.example:8443/", {"ALL_PROXY": "http://p", "NO_PROXY": "a.example:8443"}, None),
        (
            "https://a.example/",
            {"ALL_PROXY": "http://p", "NO_PROXY": "a.example:8443"},
            ("http://p", "ALL_PROXY"),
        ),
        ("http://10.1.2.3/", {"ALL_PROXY": "http://p", "NO_PROXY": "10.0.0.0/8"}, None),
        ("http://[fd00::1]/", {"ALL_PROXY": "http://p", "NO_PROXY": "[fd00::1]"}, None),
        ("http://localhost:1/", {"ALL_PROXY": "http://p"}, None),
        ("http://x.localhost/", {"ALL_PROXY": "http://p"}, None),
        ("http://127.0.0.2/", {"ALL_PROXY": "http://p"}, None),
        ("http://[::1]/", {"ALL_PROXY": "http://p"}, None),
    ],
)
def test_which_proxy(url: str, environ: dict[str, str], proxy: tuple[str, str] | None) -> None:
    assert proxy_for(url, environ) == proxy


# --- connections that do not come about


async def test_nothing_listening_is_said() -> None:
    async with recorder() as own:
        url = own.url
    with pytest.raises(ConnectError, match=f"nothing listens at {url!r}") as caught:
        await send(url)
    assert caught.value.retryable
    assert "set base_url" in caught.value.hint


async def test_plain_http_behind_an_https_url_is_said() -> None:
    async with recorder(b"HTTP/1.1 400 X\r\nContent-Length: 0\r\n\r\n") as own:
        own.heard = b"\r\n\r\n"  # so that it answers at once: the first bytes of TLS are no request
        with pytest.raises(ConnectError, match="no TLS connection with") as caught:
            await send(own.url.replace("http:", "https:"))
    assert "begin the base URL with http://" in caught.value.hint
    assert not caught.value.retryable


# --- keys in texts


def answer(status: str, body: str = "", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", body]
    return "\r\n".join(lines).encode()


STREAM = "Content-Type: text/event-stream"


@pytest.mark.parametrize(
    "given",
    [
        answer("401 X", f'{{"error":{{"type":"{SENTINEL}","message":"bad {SENTINEL}"}}}}'),
        answer("500 X", f"I saw {SENTINEL}"),
        answer("302 X", "", f"Location: https://{SENTINEL}.example/"),
        answer("200 OK", f"<b>{SENTINEL}</b>", "Content-Type: text/html"),
        answer(
            "200 OK",
            f'{{"type":"error","error":{{"message":"{SENTINEL}"}}}}',
            "Content-Type: application/json",
        ),
        answer("200 OK", f"data: {SENTINEL}\n\n", STREAM),
        answer(
            "200 OK", f'data: {{"type":"error","error":{{"type":"x","message":"{SENTINEL}"}}}}\n\n', STREAM
        ),
        f"HTTP/1.1 200 {SENTINEL}\r\nContent-Length: {SENTINEL}\r\n\r\n".encode(),
        f"{SENTINEL}\r\n\r\n".encode(),
    ],
)
async def test_no_error_text_holds_a_key_that_the_server_sends_back(given: bytes) -> None:
    async with recorder(given) as own:
        chat = create_chat("anthropic:claude-haiku-5.5", ModelSettings(base_url=own.url, api_key=SENTINEL))
        with pytest.raises(GraphtonError) as caught:
            async for _ in chat.stream(Request("", [UserMessage("hello")])):
                pass
    assert SENTINEL.encode() in own.heard
    assert SENTINEL not in f"{told(caught.value)} {vars(caught.value)} {chat.settings}"
    assert "***" in str(caught.value) or SENTINEL.encode() not in given.partition(b"\r\n\r\n")[2]
