"""Pulling and removing an Ollama's models: progress in bytes, each trouble with its cure; against a real one, too."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from graphton.chat.ollama_facts import Server, measure
from graphton.chat.ollama_models import Step, _failed, knows, pull, remove
from graphton.errors import ConnectError, DownloadError
from graphton.testing import FakeProviders

TOOLS = ("completion", "tools")


async def steps_of(server: Server, name: str, *, insecure: bool = False) -> list[Step]:
    return [step async for step in pull(server, name, insecure=insecure)]


# ---- what a pull tells ---------------------------------------------------------------------------------------------


async def test_a_pull_tells_bytes_of_all_layers_and_then_the_model_is_there() -> None:
    async with FakeProviders(models={}, registry={"qwen3:8b": TOOLS}) as fake:
        server = await measure(fake.ollama_url)
        assert not await knows(server, "qwen3:8b")
        seen = await steps_of(server, "qwen3:8b")
        assert seen[0] == Step(0, 0, "pulling manifest")
        done = [step.done for step in seen]
        assert done == sorted(done)
        assert {step.text for step in seen} >= {"pulling", "verifying sha256 digest"}
        assert seen[-1].done == seen[-1].total == 1_117_320_768
        assert await knows(await measure(fake.ollama_url), "qwen3:8b")
        await remove(server, "qwen3:8b")
        assert (await measure(fake.ollama_url)).installed == ()


async def test_what_the_registry_does_not_have_is_named() -> None:
    async with FakeProviders(models={}) as fake:
        with pytest.raises(DownloadError) as caught:
            await steps_of(await measure(fake.ollama_url), "qwen33:8b")
        assert (
            f"model 'qwen33:8b' could not be pulled: the registry of the Ollama at {fake.ollama_url} has no"
            in str(caught.value)
        )
        assert "https://ollama.com/library" in caught.value.hint


async def test_a_name_that_none_can_have_is_told() -> None:
    async with FakeProviders(models={}) as fake:
        with pytest.raises(DownloadError, match="no model can have that name"):
            await steps_of(await measure(fake.ollama_url), "two words")


async def test_removing_what_is_not_there_is_told() -> None:
    async with FakeProviders(models={}) as fake:
        with pytest.raises(DownloadError, match="has no model 'qwen3:8b'"):
            await remove(await measure(fake.ollama_url), "qwen3:8b")


async def test_an_ollama_that_has_gone_is_told() -> None:
    async with FakeProviders(models={}) as fake:
        server = await measure(fake.ollama_url)
    with pytest.raises((ConnectError, DownloadError), match=r"broke off|nothing listens"):
        await steps_of(server, "qwen3:8b")


WORDS = [
    (
        "write /x/blobs/sha256-1-partial: no space left on device",
        "disk of the Ollama .* is full",
        "OLLAMA_MODELS",
    ),
    (
        'Get "https://r/v2/": tls: failed to verify certificate: x509: unknown authority',
        "certificate",
        "trust",
    ),
    ('Get "https://r/v2/": dial tcp: lookup r on 1.1.1.1:53: no such host', "does not reach", "HTTPS_PROXY"),
    ("pull model manifest: 412: requires a newer version of Ollama", "too old", "ollama.com/download"),
    ('Get "https://r/": tls: first record does not look like a TLS handshake', "plain HTTP", "--insecure"),
    ("insecure protocol http", "plain HTTP", "--insecure"),
    ("pull model manifest: 401: unauthorized", "refuses", "ollama signin"),
    ("max retries exceeded: read tcp: connection reset by peer", "does not reach", "goes on"),
    (
        "digest mismatch, file must be downloaded again: want sha256:1",
        "not what its registry promised",
        "again",
    ),
    ("open /x/blobs/sha256-1: permission denied", "may not write its models", "OLLAMA_MODELS"),
    (
        "something that nobody has seen yet",
        "by the Ollama at .*: something that nobody",
        "stigmer models pull m",
    ),
]


@pytest.mark.parametrize(("said", "means", "cure"), WORDS)
async def test_what_ollama_says_is_told_as_what_it_means_and_what_helps(
    said: str, means: str, cure: str
) -> None:
    async with FakeProviders() as fake:
        error = _failed(await measure(fake.ollama_url), "m", said)
    with pytest.raises(DownloadError, match=means):
        raise error
    assert cure in error.hint
    assert said in error.message


# ---- the real one --------------------------------------------------------------------------------------------------

LAYER = random.Random(5).randbytes(6_000_000)


class Registry:
    """A registry of Ollama's kind with one model, `library/tiny`; it can hold back the rest of a layer."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.ranges: list[str] = []
        self.hold: threading.Event | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.answer(self)

            do_HEAD = do_GET

            def log_message(self, *arguments: object) -> None:
                """Says nothing."""

        layers = [self._blob(LAYER, "model"), self._blob(b"{{ .System }} {{ .Prompt }}", "template")]
        facts = {"model_format": "gguf", "model_family": "qwen2", "model_type": "6M", "file_type": "Q4_0"}
        config = self._blob(json.dumps({**facts, "rootfs": {"type": "layers"}}).encode(), "config")
        self.manifest = json.dumps({"schemaVersion": 2, "config": config, "layers": layers}).encode()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.port = self.http.server_address[1]
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    @property
    def model(self) -> str:
        return f"127.0.0.1:{self.port}/library/tiny:latest"

    def close(self) -> None:
        if self.hold is not None:
            self.hold.set()
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()

    def _blob(self, data: bytes, kind: str) -> dict[str, object]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[digest] = data
        return {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": digest, "size": len(data)}

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        place, _, last = request.path.rpartition("/")
        if request.path == "/v2/library/tiny/manifests/latest":
            self._send(request, 200, self.manifest)
        elif last not in self.blobs:
            self._send(request, 404, b"")
        elif place == "/data":
            first, _, end = request.headers["Range"].removeprefix("bytes=").partition("-")
            self.ranges.append(request.headers["Range"])
            self._send(request, 206, self.blobs[last][int(first) : int(end) + 1])
        elif request.command == "HEAD":
            self._send(request, 200, self.blobs[last])
        else:  # Ollama wants to be sent to another host for the bytes.
            self._send(request, 307, b"", location=f"http://localhost:{self.port}/data/{last}")

    def _send(self, request: BaseHTTPRequestHandler, status: int, body: bytes, *, location: str = "") -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        if location:
            request.send_header("Location", location)
        request.end_headers()
        if request.command == "HEAD":
            return
        if self.hold is not None and len(body) > 1_000_000:
            request.wfile.write(body[:2_000_000])
            request.wfile.flush()
            self.hold.wait(60)
            body = body[2_000_000:]
        request.wfile.write(body)


@pytest.fixture
def registry() -> Iterator[Registry]:
    made = Registry()
    yield made
    made.close()


@asynccontextmanager
async def real_ollama(home: Path, *before: str) -> AsyncIterator[Server]:
    """A real Ollama of its own; `before` is a command that runs it."""
    binary = os.environ.get("STIGMER_TEST_OLLAMA_BIN")
    if not binary:
        pytest.skip("set STIGMER_TEST_OLLAMA_BIN to an ollama binary")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "OLLAMA_HOST": f"127.0.0.1:{port}",
        "OLLAMA_MODELS": str(home / "models"),
    }
    with (home.parent / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *before,
            binary,
            "serve",
            env=environment,
            stdout=log,
            stderr=log,
            stdin=asyncio.subprocess.DEVNULL,
        )
    try:
        async with asyncio.timeout(60):
            while True:
                try:
                    server = await measure(f"http://127.0.0.1:{port}", seconds=5)
                    break
                except ConnectError:
                    assert process.returncode is None
                    await asyncio.sleep(0)
        yield server
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 60)


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "home").mkdir()
        yield Path(folder) / "home"


@pytest.fixture
def small_disk(home: Path) -> list[str]:
    """The command before a command that sees its home on a disk of 3 MB."""
    alone = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    may = [*alone, "mount", "-t", "tmpfs", "none", str(home)]
    if not shutil.which("unshare") or subprocess.run(may, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small disk (unshare --mount)")
    return [*alone, "sh", "-c", 'mount -t tmpfs -o size=3m none "$1" && shift && exec "$@"', "sh", str(home)]


@pytest.mark.ollama
@pytest.mark.timeout(300)
async def test_a_real_ollama_pulls_goes_on_after_a_break_and_removes(registry: Registry, home: Path) -> None:
    async with real_ollama(home) as server:
        registry.hold = threading.Event()
        async with aclosing(pull(server, registry.model, insecure=True)) as steps:
            async for step in steps:
                if step.done >= 1_000_000:
                    break
        assert step.total >= len(LAYER)
        assert (await measure(server.base_url)).installed == ()
        registry.hold.set()
        registry.hold = None
        seen = await steps_of(server, registry.model, insecure=True)
        assert seen[-1].done == seen[-1].total > len(LAYER)
        begins = [int(one.removeprefix("bytes=").partition("-")[0]) for one in registry.ranges]
        assert any(0 < one <= 2_000_000 for one in begins), "it began anew"
        assert await knows(await measure(server.base_url), registry.model)
        await remove(server, registry.model)
        assert (await measure(server.base_url)).installed == ()


@pytest.mark.ollama
@pytest.mark.timeout(300)
async def test_a_real_ollama_says_what_went_wrong(registry: Registry, home: Path) -> None:
    async with real_ollama(home) as server:
        for name, insecure, words in (
            (registry.model.replace("tiny", "none"), True, "has no such model"),
            (registry.model, False, "speaks plain HTTP"),
            ("127.0.0.1:9/library/tiny", True, "does not reach its registry"),
            ("two words", False, "no model can have that name"),
        ):
            with pytest.raises(DownloadError, match=words):
                await steps_of(server, name, insecure=insecure)
        with pytest.raises(DownloadError, match="has no model 'nothing'"):
            await remove(server, "nothing")


@pytest.mark.ollama
@pytest.mark.timeout(300)
async def test_a_real_ollama_on_a_full_disk_installs_nothing(
    registry: Registry, home: Path, small_disk: list[str]
) -> None:
    async with real_ollama(home, *small_disk) as server:
        with pytest.raises(DownloadError, match=r"the disk of the Ollama at .* is full") as caught:
            await steps_of(server, registry.model, insecure=True)
        assert "run it again: what has come is kept there" in caught.value.hint
        assert (await measure(server.base_url)).installed == ()
