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


TOOLS = ("completion", "tools")


async def test_what_an_ollama_has_is_described_where_its_default_is_missing() -> None:
    async with FakeProviders(models={"qwen3:8b": TOOLS, "nomic-embed": ("embedding",)}) as fake:
        found = {row.name: row for row in await preflight.installed(fake.ollama_url) or ()}
    assert found["qwen3:8b"].tools is True
    assert found["qwen3:8b"].usable
    assert found["qwen3:8b"].memory > found["qwen3:8b"].size > 0
    assert not found["nomic-embed"].usable


async def test_with_its_default_there_nothing_is_described() -> None:
    async with FakeProviders(models={"qwen2.5-coder:7b": TOOLS, "qwen3:8b": TOOLS}) as fake:
        found = await preflight.installed(fake.ollama_url)
        assert [request.path for request in fake.requests if request.path == "/api/show"] == []
    assert {row.name for row in found or ()} == {"qwen2.5-coder:7b", "qwen3:8b"}


async def test_models_of_elsewhere_and_without_a_template_are_none_that_a_run_can_take() -> None:
    async with FakeProviders() as fake:
        fake.library.become(
            models={"gpt-oss:120b-cloud": TOOLS, "bare": TOOLS},
            remote={"gpt-oss:120b-cloud": "https://ollama.com:443"},
            templates={"bare": "{{ .Prompt }}"},
        )
        found = await preflight.installed(fake.ollama_url)
    assert [row.usable for row in found or ()] == [False, False]


async def test_a_loaded_model_needs_no_more_memory() -> None:
    async with FakeProviders(models={"qwen3:8b": TOOLS}) as fake:
        fake.library.loaded["qwen3:8b"] = 8192
        found = await preflight.installed(fake.ollama_url)
    assert [row.memory for row in found or ()] == [0]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "https://127.0.0.1:9/deep/", "nonsense"])
async def test_where_nobody_answers_nobody_can_tell(url: str) -> None:
    assert await preflight.installed(url) is None
