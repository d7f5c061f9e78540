"""The measured facts of an Ollama: what it says, what it leaves out, and what is no Ollama at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from aiohttp import web
from graphton.chat import ollama_facts
from graphton.chat.ollama_facts import loaded_models, measure, model_facts
from graphton.errors import BrokenStream, ConnectError, ProtocolError, ProviderTimeout, StatusError
from graphton.testing import FakeProviders

QWEN = {
    "general.architecture": "qwen2",
    "qwen2.attention.head_count": 12,
    "qwen2.attention.head_count_kv": 2,
    "qwen2.block_count": 28,
    "qwen2.context_length": 32768,
    "qwen2.embedding_length": 1536,
}


@asynccontextmanager
async def server(pages: Mapping[str, Any]) -> AsyncIterator[tuple[str, list[str]]]:
    """A web server that answers these paths (bytes as HTML, a number as a status), and 404 to all others."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        page = pages.get(request.path, 404)
        if isinstance(page, bytes):
            return web.Response(body=page, content_type="text/html")
        if isinstance(page, int):
            return web.Response(status=page, text="no such page")
        return web.Response(body=orjson.dumps(page), content_type="application/json")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", asked
    finally:
        await runner.cleanup()


def ollama(
    show: Mapping[str, Any] | None = None, *, version: str = "0.17.4", ps: Any = (), **more: Any
) -> dict[str, Any]:
    """The pages of an Ollama with one model."""
    tag = {"name": "tiny:latest", "digest": "aa" * 32, "size": 1_117_322_338}
    return {
        "/api/version": {"version": version},
        "/api/tags": {"models": [tag]},
        "/api/ps": {"models": list(ps)},
        "/api/show": {} if show is None else show,
        **more,
    }


async def facts_of(show: Mapping[str, Any], **more: Any) -> ollama_facts.ModelFacts:
    async with server(ollama(show, **more)) as (url, _):
        found = await model_facts(await measure(url, seconds=60), "tiny")
    assert found is not None
    return found


async def test_a_model_is_described_as_the_server_says() -> None:
    facts = await facts_of(
        {
            "capabilities": ["completion", "tools"],
            "model_info": QWEN,
            "template": "{{ range .Messages }}{{ .Content }}{{ end }}",
            "parameters": 'num_ctx                        4096\nstop                           "<|im_end|>"',
            "details": {"family": "qwen2", "parameter_size": "1.8B", "quantization_level": "Q4_K_M"},
        }
    )
    assert (facts.name, facts.size, facts.context_length) == ("tiny:latest", 1_117_322_338, 32_768)
    assert (facts.tools, facts.thinks, facts.bare_template) == (True, False, False)
    assert facts.kv_bytes == 28 * 2 * (128 + 128) * 2
    assert dict(facts.parameters) == {"num_ctx": "4096", "stop": '"<|im_end|>"'}
    assert (facts.family, facts.parameter_size, facts.quantization) == ("qwen2", "1.8B", "Q4_K_M")


async def test_what_the_server_leaves_out_is_not_guessed() -> None:
    facts = await facts_of({})
    assert (facts.capabilities, facts.tools, facts.thinks) == (None, None, None)
    assert (facts.context_length, facts.kv_bytes) == (None, None)


@pytest.mark.parametrize(
    ("info", "kv_bytes"),
    [
        ({"attention.key_length": 256, "attention.value_length": 128}, 28 * 2 * (256 + 128) * 2),
        ({"attention.head_count_kv": [2, 2, 0, 4]}, 8 * (128 + 128) * 2),
        ({"attention.head_count_kv": None}, None),
        ({"ssm.state_size": 128}, None),
        ({"full_attention_interval": 4}, None),
        ({"attention.head_count": None}, None),
        ({"block_count": None}, None),
    ],
)
async def test_the_cache_of_a_token_is_counted_where_all_layers_are_known(
    info: dict[str, Any], kv_bytes: int | None
) -> None:
    changed = {f"qwen2.{name}": value for name, value in info.items()}
    facts = await facts_of({"model_info": {k: v for k, v in {**QWEN, **changed}.items() if v is not None}})
    if info == {"attention.head_count_kv": None}:  # every head has a key of its own
        kv_bytes = 28 * 12 * (128 + 128) * 2
    assert facts.kv_bytes == kv_bytes


@pytest.mark.parametrize(
    ("template", "modelfile", "bare"),
    [
        ("{{ .Prompt }}", "FROM x\nTEMPLATE {{ .Prompt }}", True),
        ("{{.Prompt}}", "", True),
        ("{{- .Prompt -}}\n", "", True),
        ("", "", True),
        ("{{ .System }}{{ .Prompt }}", "", False),
        (
            "{{ .Prompt }}",
            "FROM x\nTEMPLATE {{ .Prompt }}\nRENDERER qwen3-coder\nPARSER qwen3-coder\n",
            False,
        ),
    ],
)
async def test_a_template_that_hides_the_system_text_is_noticed(
    template: str, modelfile: str, bare: bool
) -> None:
    assert (await facts_of({"template": template, "modelfile": modelfile})).bare_template is bare


async def test_a_model_is_asked_about_once_for_each_digest() -> None:
    async with server(pages := ollama({"model_info": QWEN})) as (url, asked):
        found = await measure(url, seconds=60)
        assert await model_facts(found, "tiny") is await model_facts(
            await measure(url, seconds=60), "TINY:latest"
        )
        assert asked.count("/api/show") == 1
        pages["/api/tags"]["models"][0]["digest"] = "bb" * 32
        assert (await model_facts(await measure(url), "tiny")).digest == "bb" * 32  # type: ignore[union-attr]
        assert asked.count("/api/show") == 2


async def test_a_model_that_is_not_installed_is_none_of_its_models() -> None:
    async with server(ollama()) as (url, asked):
        found = await measure(url, seconds=60)
        assert await model_facts(found, "tiny:7b") is None
        assert await model_facts(found, "other") is None
        assert "/api/show" not in asked


async def test_a_loaded_model_tells_its_window_and_its_memory() -> None:
    row = {
        "name": "tiny:latest",
        "size": 1_500_000_000,
        "size_vram": 0,
        "context_length": 8192,
        "expires_at": "2318-11-25T01:02:03.123456789Z",
    }
    async with server(pages := ollama(ps=[row])) as (url, _):
        found = await measure(url, seconds=60)
        loaded = found.loaded_model("tiny")
        assert loaded is not None
        assert (loaded.window, loaded.size, loaded.vram) == (8192, 1_500_000_000, 0)
        assert loaded.expires is not None
        assert loaded.expires.year == 2318
        del row["context_length"], row["expires_at"]
        pages["/api/ps"] = {"models": [row]}
        (older,) = await loaded_models(found)
        assert (older.window, older.expires) == (None, None)
        pages["/api/ps"] = {"models": None}
        assert await loaded_models(found) == ()


async def test_a_copy_of_a_model_is_loaded_where_the_model_is() -> None:
    """`ollama cp` gives one file two names, and the server lists it by the name that was used first."""
    pages = ollama(ps=[{"name": "tiny:latest", "digest": "aa" * 32, "context_length": 8192}])
    pages["/api/tags"]["models"] += [
        {"name": "copy:latest", "digest": "aa" * 32},
        {"name": "other:latest", "digest": "bb" * 32},
    ]
    async with server(pages) as (url, _):
        found = await measure(url, seconds=60)
    loaded = found.loaded_model("copy")
    assert loaded is not None
    assert (loaded.name, loaded.window) == ("tiny:latest", 8192)
    assert found.loaded_model("other") is None


async def test_a_version_that_cannot_say_what_is_loaded_is_an_ollama_all_the_same() -> None:
    async with server(ollama(version="0.1.30") | {"/api/ps": 404}) as (url, _):
        found = await measure(url, seconds=60)
        assert [one.name for one in found.installed] == ["tiny:latest"]
        assert (found.loaded, await loaded_models(found)) == ((), ())


@pytest.mark.parametrize(
    ("version", "what", "takes"),
    [
        ("0.17.4", "call ids", True),
        ("0.12.10", "call ids", True),
        ("0.12.9", "call ids", False),
        ("0.12.10-rc1", "truncate", True),
        ("0.12.5", "truncate", False),
        ("0.9.6", "loaded window", False),
        ("0.4.7", "schema", False),
        ("0.0.0", "call ids", True),  # built from source: it has no number, and is none of the old ones
        ("main", "call ids", True),
    ],
)
async def test_what_a_version_takes(version: str, what: str, takes: bool) -> None:
    async with server(ollama(version=version)) as (url, _):
        assert (await measure(url)).takes(what) is takes


async def test_no_server_is_said_at_once_with_the_command_that_starts_one() -> None:
    async with server({}) as (url, _):
        pass
    with pytest.raises(ConnectError, match="nothing listens at") as caught:
        await measure(url)
    assert "`ollama serve`" in caught.value.hint


async def test_a_server_that_stays_silent_is_given_up() -> None:
    gone = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 16):
            pass
        writer.close()
        await writer.wait_closed()
        gone.set()

    silent = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    with pytest.raises(ProviderTimeout, match=r"nothing at '.*' \(ollama\) answered within 0\.2 s") as caught:
        await measure(url, seconds=0.2)
    assert f"curl {url}/api/version" in caught.value.hint
    await asyncio.wait_for(gone.wait(), 30)
    silent.close()
    await silent.wait_closed()


@pytest.mark.parametrize(
    ("pages", "what", "hint"),
    [
        ({}, "a web server: it answers 404 to /api/version", "OLLAMA_HOST"),
        ({"/api/version": b"<html>hello</html>"}, "a web server: it answers /api/version with no JSON", ""),
        ({"/api/version": {"status": "ok"}}, "a web server: it names no version", ""),
        ({"/api/version": ["0.1"]}, "a web server: it names no version", ""),
        (
            {path: {"version": "2.1"} for path in ("/api/version", "/api/tags", "/api/ps")},
            "a web server: it lists no models at /api/tags",
            "OLLAMA_HOST",
        ),
        (
            {"/v1/models": {"data": [{"id": "m", "owned_by": "llamacpp"}]}},
            "a llama.cpp server",
            "--provider llamacpp",
        ),
        ({"/v1/models": {"data": [{"id": "m", "owned_by": "vllm"}]}}, "a vLLM server", "--provider vllm"),
        ({"/v1/models": {"data": []}}, "a server of OpenAI's API", "/v1"),
    ],
)
async def test_what_is_no_ollama_is_named(pages: Mapping[str, Any], what: str, hint: str) -> None:
    async with server(pages) as (url, _):
        with pytest.raises(ProtocolError, match="is no Ollama but") as caught:
            await measure(url)
    assert what in caught.value.message
    assert hint in caught.value.hint


@asynccontextmanager
async def port(sent: bytes) -> AsyncIterator[str]:
    """What answers every connection with these bytes, and closes it."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if sent:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(sent)
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()
        await listening.wait_closed()


async def test_what_speaks_no_http_is_no_web_server() -> None:
    async with port(b"SSH-2.0-OpenSSH_9.6\r\n") as url:
        with pytest.raises(ProtocolError) as caught:
            await measure(url)
    assert caught.value.message == (
        f"what listens at {url!r} is no Ollama but something else: it answers /api/version with no HTTP"
    )


async def test_a_port_behind_which_nothing_runs_is_told_as_that() -> None:
    async with port(b"") as url:
        with pytest.raises(BrokenStream) as caught:
            await measure(url)
    assert "a forwarded port (docker, ssh -L) behind which nothing runs" in caught.value.hint
    assert f"curl {url}/api/version" in caught.value.hint


async def test_a_server_that_wants_a_key_is_no_other_server() -> None:
    async with server({"/api/version": 401}) as (url, _):
        with pytest.raises(StatusError) as caught:
            await measure(url)
    assert caught.value.status == 401


async def test_a_v1_at_the_end_of_the_address_is_left_out_and_a_key_goes_along() -> None:
    async with FakeProviders() as fake:
        found = await measure(f"{fake.url}/v1/", api_key="sentinel-key-0123456789")
        assert found.base_url == fake.url
        assert {r.headers["authorization"] for r in fake.requests} == {"Bearer sentinel-key-0123456789"}
        assert "sentinel" not in repr(found)
