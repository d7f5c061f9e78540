"""Time to the first token: through our chat, and by a direct call with the same body to the same server.

    .venv/bin/python bench/first_token.py [--rounds 5] [--server fake|ollama|llamacpp] [--ollama BINARY] [--gguf FILE] [--words 900]

Every prompt is new from its first word on (none is cached) and has 900 tokens and more. Both ways take turns, each
round in the other order, on a server that has the model loaded. `fake` is FakeProviders, which answers at once: what
is left there is our own time. Targets: 1.05 times the direct call + 20 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from graphton.catalog import models_dir
from graphton.chat import Chat, Request, TextChunk, create_chat
from graphton.chat.base import chunks_of
from graphton.messages import UserMessage
from graphton.models import ModelRef, ModelSettings
from graphton.testing import FakeProviders, Reply

WORDS = [line.strip() for line in __doc__.split() if line.isalpha()]
CHATML = Path(__file__).parents[1] / "packages/graphton/tests/golden_ollama/chatml.template"
GGUF = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
SETTINGS = ModelSettings(max_tokens=2, temperature=0.0, context_window=4096)


@dataclass(frozen=True)
class Bench:
    """A chat, and where and how its server is called without it."""

    chat: Chat
    address: Callable[[], tuple[str, str]]
    """The URL and the key; known once the first call was answered."""
    words: int

    def request(self) -> Request:
        text = " ".join(random.choices(WORDS, k=self.words))
        return Request(f"{random.getrandbits(64):x} {text}", [UserMessage("Say one word.")])

    async def ours(self, session: aiohttp.ClientSession) -> float:
        request = self.request()
        begun = time.perf_counter()
        async with chunks_of(self.chat, request) as chunks:
            async for chunk in chunks:
                if isinstance(chunk, TextChunk):
                    return (time.perf_counter() - begun) * 1000
        raise SystemExit("the model said nothing")

    async def direct(self, session: aiohttp.ClientSession) -> float:
        body = self.chat.preview(self.request()).body
        url, key = self.address()
        headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
        begun = time.perf_counter()
        async with session.post(url, data=body, headers=headers) as reply:
            reply.raise_for_status()
            async for line in reply.content:
                if b'"content":"' in line and b'"content":""' not in line:
                    return (time.perf_counter() - begun) * 1000
        raise SystemExit("the model said nothing")


async def measure(name: str, bench: Bench, rounds: int) -> None:
    ways: dict[str, Callable[[aiohttp.ClientSession], Awaitable[float]]] = {
        "direct": bench.direct,
        "ours": bench.ours,
    }
    found: dict[str, list[float]] = {"direct": [], "ours": []}
    async with aiohttp.ClientSession() as session:
        await bench.ours(session)  # Loads the model.
        for number in range(rounds):
            for way in ("direct", "ours") if number % 2 else ("ours", "direct"):
                found[way].append(await ways[way](session))
    for way, values in found.items():
        print(
            f"{name:10} {way:8} median {statistics.median(values):9.1f} ms   min {min(values):9.1f}   max {max(values):9.1f}"
        )
    for what, pick in (("median", statistics.median), ("min", min)):
        ours, direct = pick(found["ours"]), pick(found["direct"])
        allowed = direct * 1.05 + 20
        print(
            f"{name:10} {what}: {ours - direct:+.1f} ms against the direct call; allowed {allowed - direct:+.1f}"
        )


@asynccontextmanager
async def fake(words: int) -> AsyncIterator[Bench]:
    async with FakeProviders() as server:
        server.rule(lambda request: Reply(text="One", input_tokens=1000))
        settings = ModelSettings(
            max_tokens=2, temperature=0.0, context_window=4096, base_url=server.ollama_url
        )
        chat = create_chat(ModelRef("ollama", "qwen2.5-coder:0.5b"), settings)
        yield Bench(chat, lambda: (f"{server.url}/api/chat", ""), words)


@asynccontextmanager
async def ollama(binary: str, gguf: Path, words: int) -> AsyncIterator[Bench]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="stigmer-bench-") as home, (Path(home) / "log").open("wb") as log:
        environment = {"PATH": os.environ["PATH"], "HOME": home, "OLLAMA_HOST": f"127.0.0.1:{port}"}
        own = {"env": environment, "stdout": log, "stderr": log}
        server = await asyncio.create_subprocess_exec(binary, "serve", **own)
        try:
            modelfile = Path(home) / "Modelfile"
            modelfile.write_text(f'FROM {gguf}\nTEMPLATE """{CHATML.read_text().rstrip()}"""\n')
            await _until(lambda: socket.create_connection(("127.0.0.1", port), 1).close())
            create = await asyncio.create_subprocess_exec(
                binary, "create", "bench", "-f", str(modelfile), **own
            )
            assert await create.wait() == 0, "ollama create failed"
            url = f"http://127.0.0.1:{port}"
            settings = ModelSettings(max_tokens=2, temperature=0.0, context_window=4096, base_url=url)
            chat = create_chat(ModelRef("ollama", "bench"), settings)
            yield Bench(chat, lambda: (f"{url}/api/chat", ""), words)
        finally:
            server.terminate()
            await server.wait()


@asynccontextmanager
async def llamacpp(gguf: Path, words: int) -> AsyncIterator[Bench]:
    from graphton.chat._llamacpp_pool import close_all, pool

    def address() -> tuple[str, str]:
        server = pool().latest(gguf)
        assert server is not None
        return f"{server.url}/v1/chat/completions", server.api_key

    try:
        yield Bench(create_chat(ModelRef("llamacpp", str(gguf)), SETTINGS), address, words)
    finally:
        await close_all()


async def _until(work: Callable[[], None], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while True:
            try:
                return work()
            except OSError:
                await asyncio.sleep(0.05)


async def run(arguments: argparse.Namespace) -> None:
    gguf = arguments.gguf
    for name in arguments.server or ("fake", "llamacpp", *(["ollama"] if arguments.ollama else [])):
        if name == "ollama" and not arguments.ollama:
            raise SystemExit("name the binary: --ollama $(scripts/ollama-for-tests)")
        made = {
            "fake": lambda: fake(arguments.words),
            "ollama": lambda: ollama(arguments.ollama, gguf, arguments.words),
            "llamacpp": lambda: llamacpp(gguf, arguments.words),
        }[name]
        async with made() as bench:
            await measure(name, bench, arguments.rounds * (20 if name == "fake" else 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--server", action="append", choices=("fake", "ollama", "llamacpp"))
    parser.add_argument("--ollama", default=os.environ.get("STIGMER_TEST_OLLAMA_BIN", ""))
    parser.add_argument("--gguf", default=os.environ.get("STIGMER_TEST_GGUF", ""))
    parser.add_argument("--words", type=int, default=900)
    arguments = parser.parse_args()
    arguments.gguf = Path(arguments.gguf or models_dir() / GGUF)
    if arguments.server != ["fake"] and not arguments.gguf.is_file():
        raise SystemExit(
            f"no model file {arguments.gguf}; stigmer models pull qwen2.5-coder:0.5b, or --gguf FILE"
        )
    asyncio.run(run(arguments))


if __name__ == "__main__":
    sys.exit(main())
