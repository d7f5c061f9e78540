"""What is measured before a run: an Ollama that answers, in bounded time, without a proxy."""

from __future__ import annotations

import asyncio

import pytest
from graphton.testing import FakeProviders
from stigmer import preflight


async def test_an_ollama_that_answers_is_found() -> None:
    async with FakeProviders() as fake:
        assert await preflight.ollama_up(fake.ollama_url)
        assert await preflight.ollama_up(fake.ollama_url + "/")


async def test_a_proxy_is_never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with FakeProviders() as fake:
        assert await preflight.ollama_up(fake.ollama_url)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "http://no-such-host.invalid:11434", "nonsense", "http://"]
)
async def test_where_nobody_answers_there_is_none(url: str) -> None:
    assert not await preflight.ollama_up(url)


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 404 Not Found\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\nhello", b"\x00\xff" * 4000],
)
async def test_something_else_that_answers_is_no_ollama(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        assert not await preflight.ollama_up(f"http://127.0.0.1:{port}")


async def test_a_server_that_says_nothing_is_given_up() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        assert not await preflight.ollama_up(f"http://127.0.0.1:{port}", limit=0.2)


def test_free_memory_is_a_number_of_bytes() -> None:
    assert preflight.free_memory() > 1 << 20


@pytest.mark.parametrize(
    "body", ["", "null", "[]", '{"models": 3}', "<html>", '{"models": [3, {"name": 4}]}', "x" * 100]
)
def test_what_is_no_list_of_models_is_no_error(body: str) -> None:
    import http.server
    import threading

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *arguments: object) -> None:
            """Says nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.timeout = 30
        thread = threading.Thread(target=server.handle_request, daemon=True)
        thread.start()
        assert not preflight.ollama_models(f"http://127.0.0.1:{server.server_port}", limit=30)
        thread.join(30)


def test_where_nothing_listens_there_is_no_list_of_models() -> None:
    assert preflight.ollama_models("http://127.0.0.1:9") is None
    assert preflight.ollama_models("https://127.0.0.1:9/deep/") is None
