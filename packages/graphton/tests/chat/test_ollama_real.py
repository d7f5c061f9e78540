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
from graphton.chat.base import Done, Request
from graphton.chat.ollama import OllamaChat
from graphton.errors import PromptTooLong, StatusError
from graphton.messages import AssistantMessage, StopReason, UserMessage
from graphton.models import ModelRef, ModelSettings

pytestmark = [pytest.mark.ollama, pytest.mark.timeout(900)]

CHATML = """\
FROM {gguf}
TEMPLATE \"\"\"{{{{- range .Messages }}}}<|im_start|>{{{{ .Role }}}}
{{{{ .Content }}}}<|im_end|>
{{{{ end }}}}<|im_start|>assistant
\"\"\"
"""


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
    }
    with (home / "log").open("wb") as log:
        server = await asyncio.create_subprocess_exec(
            binary, "serve", env=environment, stdout=log, stderr=log, stdin=asyncio.subprocess.DEVNULL
        )
        try:
            await until_it_answers(url)
            modelfile = home / "Modelfile"
            modelfile.write_text(CHATML.format(gguf=gguf))
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


async def test_the_real_ollama_does_what_we_ask(files: tuple[Path, Path, Path]) -> None:
    """One server for all of it: starting one and loading a model takes longer than the rest."""
    async with ollama_server(*files) as url:
        one = chat(url, max_tokens=16, context_window=2048)
        said = await ask(
            one, Request("Answer with one word.", [UserMessage("What is the capital of France?")])
        )
        assert "paris" in said.text.lower()
        assert said.usage.input_tokens > 10
        assert said.usage.output_tokens > 0
        assert await one.loaded_window() == 2048

        schema = {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        }
        question = Request("", [UserMessage("What is the capital of France? Answer as JSON.")], schema=schema)
        reply = await ask(chat(url, max_tokens=64, context_window=2048), question)
        assert reply.stop is StopReason.END
        assert set(json.loads(reply.text)) == {"city"}

        # More tokens than bytes/4: the estimate says that it fits, and the server itself refuses to cut it.
        long = Request("", [UserMessage("a1,b2;" * 1200)])
        with pytest.raises(PromptTooLong, match="does not fit the context window of tiny"):
            await ask(one, long)
        with pytest.raises(StatusError, match="model 'nothing' not found") as caught:
            await ask(chat(url, "nothing", max_tokens=16, context_window=2048), question)
        assert "ollama pull nothing" in caught.value.hint
