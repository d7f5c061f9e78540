"""Two control planes on one database behind one address: a worker's line to either, a watcher at the other."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from graphton.testing import FakeProviders
from stigmer.api import event_pb2 as pb
from stigmer.api import service_pb2 as api
from stigmer.errors import ConfigError
from stigmer.worker import Hands, plane_at

DEADLINE = 60.0
KEY = "sk-sentinel-0123456789abcdef"


@dataclass
class Planes:
    """Both servers; each has a home of its own, and what they share is the database."""

    servers: list[Any]
    ports: list[int]
    relays: list[int]
    fake: FakeProviders

    monkeypatch: pytest.MonkeyPatch

    async def start(self, number: int) -> None:
        self.monkeypatch.setenv("STIGMER_RELAY", f"127.0.0.1:{self.relays[number]}")
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
        address = f"https://127.0.0.1:{self.ports[numbers[0]]}"
        if not os.environ.get("STIGMER_TLS_CERT"):
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
def certificate(certificate_for: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that all servers share: for a name, and for the workers' sake for the address."""
    cert, key = certificate_for("stigmer.test", "127.0.0.1")
    for variable, file in (("CERT", cert), ("KEY", key), ("CA", cert), ("CLIENT_CA", cert)):
        monkeypatch.setenv(f"STIGMER_TLS_{variable}", str(file))


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
    both = Planes(
        [idle, type(idle)(other, fake)],
        [free_port(), free_port()],
        [free_port(), free_port()],
        fake,
        monkeypatch,
    )
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


async def test_text_is_live_over_tls(idle: Any, certificate: None, planes: Planes) -> None:
    """`idle` empties the environment first; then the servers start with the certificate."""
    await text_is_live(planes)


async def test_text_is_live_at_the_server_that_does_not_hold_the_worker(planes: Planes) -> None:
    await text_is_live(planes)


async def text_is_live(planes: Planes) -> None:
    """For whoever watches from the beginning, before anybody drives it, and for whoever comes later."""
    planes.fake.reply("a b c d", stall_after=3)
    execution = await planes.accepted(1)
    said = ""
    async with planes.hands(0) as hands, asyncio.timeout(DEADLINE):
        async with planes.servers[1].client() as client:
            watching = client.watch(execution)
            events = aiter(watching)
            assert (await anext(events)).HasField("created")
            driving = asyncio.create_task(hands.take(execution).drive())
            while not said:
                said = (await anext(events)).text_delta.text
        async with planes.servers[1].client() as client:
            late = [event.text_delta.text async for event in until_said(client.watch(execution), said)]
            assert "".join(late).startswith(said)
            assert await client.cancel(execution, by="ann")
        await driving
    assert [e.finished.outcome for e in await planes.watched(1, execution)][-1] == "cancelled"


async def until_said(events: AsyncIterator[pb.Event], text: str) -> AsyncIterator[pb.Event]:
    """The events up to the one with which so much text has been shown."""
    shown = ""
    async for event in events:
        shown += event.text_delta.text
        yield event
        if len(shown) >= len(text):
            return


async def test_a_watcher_goes_on_from_the_database_when_the_server_that_held_the_worker_ends(
    planes: Planes,
) -> None:
    planes.fake.call("list_files", {})
    planes.fake.reply("half and half", stall_after=3, stall=2.0)
    execution = await planes.accepted(1)
    async with planes.hands(0, 1) as hands, asyncio.timeout(DEADLINE):
        driving = asyncio.create_task(hands.take(execution).drive())
        seen: list[pb.Event] = []
        async with planes.servers[1].client() as client:
            stopping: asyncio.Task[None] | None = None
            async for event in client.watch(execution):
                seen.append(event)
                if event.HasField("text_delta") and stopping is None:
                    stopping = asyncio.create_task(planes.servers[0].stop())
        assert stopping is not None
        await stopping
        assert await driving == "done"
    stored = [event for event in seen if event.seq]
    assert [event.seq for event in stored] == list(range(1, len(stored) + 1))
    assert stored[-1].finished.text == "half and half"


async def test_nobody_follows_without_the_word_that_stands_in_the_lease(planes: Planes) -> None:
    execution = await planes.accepted(1)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{planes.relays[0]}") as channel:
        follow = channel.unary_stream(
            "/stigmer.v1.Relay/Follow",
            request_serializer=api.WatchExecutionRequest.SerializeToString,
            response_deserializer=api.Frame.FromString,
        )
        for metadata in ((), (("stigmer-ticket", ""),), (("stigmer-ticket", "0" * 64),)):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await follow(api.WatchExecutionRequest(execution=execution), metadata=metadata).read()
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("at", "told"),
    [
        ("7246", "STIGMER_RELAY '7246' is not HOST:PORT"),
        ("192.0.2.1:7246", "'192.0.2.1:7246' can be reached from"),
    ],
)
async def test_a_server_does_not_start_with_a_relay_that_cannot_be(
    idle: Any, monkeypatch: pytest.MonkeyPatch, at: str, told: str
) -> None:
    monkeypatch.setenv("STIGMER_MODE", "local")
    monkeypatch.setenv("STIGMER_RELAY", at)
    with pytest.raises(ConfigError, match=told):
        await idle.start(engine="temporal", listen=[f"127.0.0.1:{free_port()}"])
