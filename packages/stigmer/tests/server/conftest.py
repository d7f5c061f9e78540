"""A real server on a Unix socket in this process, a fake model server, and the real client."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from graphton.testing import FakeProviders
from stigmer.api import event_pb2 as pb
from stigmer.api import service_pb2 as api
from stigmer.client import Client
from stigmer.home import Address, Home
from stigmer.server import serve

DEADLINE = 30.0
KEY = "sk-sentinel-0123456789abcdef"


class Serving:
    """One home, served; `restart` ends the server in good order and starts another."""

    def __init__(self, folder: Path, fake: FakeProviders) -> None:
        self.home = Home(folder / "home").create()
        self.fake = fake
        self.workspace = folder / "work"
        self.workspace.mkdir()
        self.address = f"unix:{self.home.socket}"
        self.task: asyncio.Task[None] | None = None

    async def start(self, **options: Any) -> None:
        ready = asyncio.Event()
        options.setdefault("address", self.address)
        self.task = asyncio.create_task(serve(self.home, on_ready=ready.set, **options))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait({self.task, waiting}, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self.task.done():
            refused, self.task = self.task, None
            await refused
        assert ready.is_set()

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            (ended,) = await asyncio.gather(self.task, return_exceptions=True)
            self.task = None
            if isinstance(ended, Exception):  # Not the cancelling: a fault while it stopped.
                raise ended

    async def restart(self, **options: Any) -> None:
        await self.stop()
        await self.start(**options)

    @property
    def token(self) -> str:
        return self.home.token.read_text().strip()

    @asynccontextmanager
    async def client(self, *, token: str | None = None, address: str = "") -> AsyncIterator[Client]:
        said = self.token if token is None else token
        async with Client(Address(address or self.address, said)) as client:
            yield client

    def request(self, task: str, **fields: Any) -> api.CreateExecutionRequest:
        """A request as the command line would send it from a shell that names the fake server."""
        shell = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": self.fake.openai_url}
        fields.setdefault("shell", shell)
        fields.setdefault("flags", {"model": "openai:gpt-4.1"})
        fields.setdefault("workspace", str(self.workspace))
        return api.CreateExecutionRequest(task=task, **fields)

    async def run(self, task: str, **fields: Any) -> list[pb.Event]:
        """All events of a run, live ones too."""
        async with self.client() as client, asyncio.timeout(DEADLINE):
            return [event async for event in client.run(self.request(task, **fields))]

    async def until(self, client: Client, id: str, wanted: Callable[[pb.Event], bool]) -> pb.Event:
        async with asyncio.timeout(DEADLINE):
            async for event in client.watch(id):
                if wanted(event):
                    return event
        raise AssertionError("the stream ended before the event came")


@pytest.fixture
async def fake() -> AsyncIterator[FakeProviders]:
    async with FakeProviders() as fake:
        yield fake


@pytest.fixture
async def idle(
    short_folder: Path, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Serving]:
    """A home that nobody serves yet, and an environment that says nothing."""
    for name in list(os.environ):
        if name.startswith(("STIGMER_", "OPENAI_", "ANTHROPIC_", "OLLAMA_")) or name == "MODE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(short_folder))
    monkeypatch.setenv("STIGMER_MODELS", str(short_folder / "models"))
    serving = Serving(short_folder, fake)
    yield serving
    await serving.stop()


@pytest.fixture
async def serving(idle: Serving) -> Serving:
    await idle.start()
    return idle
