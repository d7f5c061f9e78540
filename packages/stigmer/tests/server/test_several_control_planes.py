"""Two control planes on one database behind one address: a worker's line to either, a watcher at the other."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from graphton.testing import FakeProviders
from stigmer.api import event_pb2 as pb
from stigmer.worker import Hands, plane_at

DEADLINE = 60.0
KEY = "sk-sentinel-0123456789abcdef"


@dataclass
class Planes:
    """Both servers; each has a home of its own, and what they share is the database."""

    servers: list[Any]
    ports: list[int]
    fake: FakeProviders

    async def start(self, number: int) -> None:
        await self.servers[number].start(engine="temporal", listen=[f"127.0.0.1:{self.ports[number]}"])

    async def accepted(self, number: int) -> str:
        async with self.servers[number].client() as client:
            request = self.servers[number].request("Go.", approve_all=True)
            return str((await client.create(request)).execution.id)

    async def watched(self, number: int, execution: str) -> list[pb.Event]:
        """The stored events up to the end, as a watcher at this server sees them."""
        async with self.servers[number].client() as client:
            return [event async for event in client.watch(execution) if event.seq]

    @asynccontextmanager
    async def hands(self, *numbers: int) -> AsyncIterator[Hands]:
        """A worker's, with a key that both servers know, at the address behind which these servers are."""
        async with self.servers[numbers[-1]].client() as client:
            key = (await client.create_key("worker", scopes=["worker"])).secret
        address = "http://ipv4:" + ",".join(f"127.0.0.1:{self.ports[number]}" for number in numbers)
        plane, channel = plane_at(address, key)
        try:
            yield Hands(self.servers[0].home, plane, key_for=lambda provider, base_url: KEY)
        finally:
            await channel.close(None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
async def planes(
    idle: Any, short_folder: Path, fake: FakeProviders, postgres: Any, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Planes]:
    """Temporal is away all the time: what it would say is done by hand."""
    monkeypatch.setenv("STIGMER_DATABASE_URL", postgres.database())
    monkeypatch.setenv("STIGMER_MODE", "local")
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")
    other = short_folder / "two"
    other.mkdir()
    both = Planes([idle, type(idle)(other, fake)], [free_port(), free_port()], fake)
    for number in range(2):
        await both.start(number)
    yield both
    for server in both.servers:
        await server.stop()


async def test_a_run_is_followed_at_the_server_that_does_not_hold_its_worker(planes: Planes) -> None:
    planes.fake.call("list_files", {})
    planes.fake.reply("Done.")
    execution = await planes.accepted(0)
    async with planes.hands(0) as hands, asyncio.timeout(DEADLINE):
        watching = asyncio.create_task(planes.watched(1, execution))
        assert await hands.take(execution).drive() == "done"
        seen = await watching
    assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
    assert seen[-1].finished.text == "Done."
    assert seen == await planes.watched(0, execution)


async def test_a_pause_through_the_other_server_reaches_the_worker(planes: Planes) -> None:
    planes.fake.call("list_files", {}, first_token_delay=1.0)
    execution = await planes.accepted(0)
    async with planes.hands(0) as hands, asyncio.timeout(DEADLINE):
        driving = asyncio.create_task(hands.take(execution).drive())
        await planes.fake.wait_for_requests(1)
        async with planes.servers[1].client() as client:
            await client.pause(execution, by="ann")
        assert await driving == "waiting"


async def test_a_worker_goes_on_over_another_server_when_its_own_ends(planes: Planes) -> None:
    planes.fake.call("list_files", {}, first_token_delay=1.0)
    planes.fake.reply("Done.")
    execution = await planes.accepted(0)
    async with planes.hands(0, 1) as hands, asyncio.timeout(DEADLINE):
        driving = asyncio.create_task(hands.take(execution).drive())
        await planes.fake.wait_for_requests(1)
        await planes.servers[0].stop()
        assert await driving == "done"
        seen = await planes.watched(1, execution)
    assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
    assert [e.attempt_ended.outcome for e in seen if e.HasField("attempt_ended")] == ["done"]
