"""Against the real Ollama: the binary named by STIGMER_TEST_OLLAMA_BIN serves the model file STIGMER_TEST_GGUF."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from graphton.chat.base import Done, Request, WaitChunk
from graphton.chat.ollama import OllamaChat
from graphton.chat.ollama_facts import measure, model_facts
from graphton.errors import PromptTooLong, StatusError
from graphton.messages import (
    AssistantMessage,
    Message,
    StopReason,
    ToolCall,
    ToolResult,
    ToolResults,
    UserMessage,
)
from graphton.models import ModelRef, ModelSettings

pytestmark = [pytest.mark.ollama, pytest.mark.timeout(900)]

CHATML = Path(__file__).parents[1] / "golden_ollama" / "chatml.template"


@pytest.fixture(scope="module")
def files() -> Iterator[tuple[Path, Path, Path]]:
    """The binary, the model file, and a home of its own for the server."""
    binary, gguf = os.environ.get("STIGMER_TEST_OLLAMA_BIN"), os.environ.get("STIGMER_TEST_GGUF")
    if not binary or not gguf:
        pytest.skip("set STIGMER_TEST_OLLAMA_BIN to an ollama binary and STIGMER_TEST_GGUF to a model file")
    with tempfile.TemporaryDirectory() as home:
        yield Path(binary), Path(gguf), Path(home)


@asynccontextmanager
async def ollama_server(binary: Path, gguf: Path, home: Path) -> AsyncIterator[str]:
    """A server on a free port, with the model `tiny` in it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "OLLAMA_HOST": f"127.0.0.1:{port}",
        "OLLAMA_MODELS": str(home / "models"),
        "OLLAMA_CONTEXT_LENGTH": "512",  # a small default window must not matter
    }
    with (home / "log").open("wb") as log:
        server = await asyncio.create_subprocess_exec(
            binary, "serve", env=environment, stdout=log, stderr=log, stdin=asyncio.subprocess.DEVNULL
        )
        try:
            await until_it_answers(url)
            modelfile = home / "Modelfile"
            modelfile.write_text(f'FROM {gguf}\nTEMPLATE """{CHATML.read_text().rstrip()}"""\n')
            create = await asyncio.create_subprocess_exec(
                *(binary, "create", "tiny", "-f", str(modelfile)), env=environment, stdout=log, stderr=log
            )
            assert await asyncio.wait_for(create.wait(), 300) == 0
            yield url
        finally:
            server.terminate()
            await asyncio.wait_for(server.wait(), 60)


async def until_it_answers(url: str) -> None:
    async with asyncio.timeout(60), aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(f"{url}/api/version") as response:
                    assert response.status == 200
                    return
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.05)


def chat(url: str, model: str = "tiny", **settings: Any) -> OllamaChat:
    return OllamaChat(ModelRef("ollama", model), ModelSettings(base_url=url, temperature=0.0, **settings))


async def ask(one: OllamaChat, request: Request) -> AssistantMessage:
    chunks = [chunk async for chunk in one.stream(request)]
    last = chunks[-1]
    assert isinstance(last, Done)
    return last.message


def loads(home: Path) -> int:
    """How often the server has loaded a model: each load is a process of its own, which its log names."""
    return (home / "log").read_text(errors="replace").count("runner --model")


async def test_the_real_ollama_does_what_we_ask(files: tuple[Path, Path, Path]) -> None:
    """One server for all of it: starting one and loading a model takes longer than the rest."""
    async with ollama_server(*files) as url:
        await steps_of_a_run_load_the_model_once(url, files[2])
        await a_reply_is_held_to_its_schema(url)
        await a_prompt_that_is_too_long_is_refused(url)
        await a_model_that_is_missing_is_named(url)


async def steps_of_a_run_load_the_model_once(url: str, home: Path) -> None:
    server = await measure(url)
    facts = await model_facts(server, "tiny")
    assert facts is not None
    assert (facts.tools, facts.thinks, facts.bare_template) == (True, False, False)
    assert facts.context_length == 32_768
    assert facts.kv_bytes
    assert server.loaded == ()

    one = chat(url, max_tokens=16)
    history: list[Message] = [UserMessage("What is the capital of France? Answer with one word.")]
    said = await ask(one, Request("Be brief.", history))
    assert "paris" in said.text.lower()
    assert said.usage.input_tokens > 10
    assert said.usage.output_tokens > 0
    assert (one.window, await one.loaded_window()) == (4096, 4096)
    assert one.notices == ()

    # Two calls at once, with their ids, and their results: the server takes them as we send them.
    calls = tuple(
        ToolCall("capital_of", {"country": c}, id=f"2.{n}", wire_id=f"call_0000000{n}")
        for n, c in enumerate(("Italy", "Spain"))
    )
    results = tuple(
        ToolResult(c.id, c.wire_id, c.name, t) for c, t in zip(calls, ("Rome", "Madrid"), strict=True)
    )
    history += [said, UserMessage("And of Italy and Spain?"), AssistantMessage(calls, stop=StopReason.TOOLS)]
    history += [ToolResults(results)]
    told = await ask(one, Request("Be brief.", history))
    assert told.usage.input_tokens > said.usage.input_tokens

    # Another run finds the model loaded, and takes it as it is.
    other = chat(url, max_tokens=1000)
    chunks = [chunk async for chunk in other.stream(Request("Be brief.", history[:1]))]
    assert not any(isinstance(chunk, WaitChunk) and chunk.what == "load" for chunk in chunks)
    assert other.window == 4096
    assert loads(home) == 1


async def a_reply_is_held_to_its_schema(url: str) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    }
    question = Request("", [UserMessage("What is the capital of France? Answer as JSON.")], schema=schema)
    reply = await ask(chat(url, max_tokens=64), question)
    assert reply.stop is StopReason.END
    assert set(json.loads(reply.text)) == {"city"}


async def a_prompt_that_is_too_long_is_refused(url: str) -> None:
    # More tokens than bytes/4: the estimate says that it fits, and the server itself refuses to cut it.
    one = chat(url, max_tokens=16, context_window=2048)
    with pytest.raises(PromptTooLong, match="does not fit the context window of tiny"):
        await ask(one, Request("", [UserMessage("a1,b2;" * 1200)]))
    assert await one.loaded_window() == 2048


async def a_model_that_is_missing_is_named(url: str) -> None:
    with pytest.raises(StatusError, match="model 'nothing' not found") as caught:
        await ask(chat(url, "nothing", max_tokens=16), Request("", [UserMessage("Hello")]))
    assert "ollama pull nothing; installed are tiny:latest" in caught.value.hint
