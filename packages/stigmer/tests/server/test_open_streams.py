"""Streams on which nothing is said: each ends with the right of whoever opened it, and says why."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from stigmer.api import service_pb2 as api
from stigmer.api import service_pb2_grpc, worker_pb2, worker_pb2_grpc
from stigmer.server._audit import Audit
from stigmer.server._limits import Limits
from stigmer.server.auth import Access, Caller, Outside, Unknown, digest_of, new_key
from stigmer.store import KeyTable, Store
from stigmer.worker import plane_at
from stigmer.worker._line import Line

DEADLINE = 30.0
OWNERS = "t" * 64
TOKEN = "head.claims.signature"


class Silent(service_pb2_grpc.ExecutionServiceServicer):
    """Shows one event, and then nothing more; `left` is who has gone."""

    def __init__(self) -> None:
        self.left = asyncio.Queue[str]()

    async def WatchExecution(
        self, request: api.WatchExecutionRequest, context: Any
    ) -> AsyncIterator[api.Frame]:
        try:
            yield api.Frame(events=[b"one"])
            await asyncio.Event().wait()
        finally:
            self.left.put_nowait(request.execution)


class Begins(worker_pb2_grpc.WorkerServiceServicer):
    """Begins an attempt, and then says nothing more."""

    async def Attend(self, requests: AsyncIterator[worker_pb2.FromWorker], context: Any) -> None:
        await anext(requests)
        await context.write(worker_pb2.ToWorker(began=worker_pb2.Began(attempt=1, no=1)))
        await asyncio.Event().wait()


class Ends:
    """An issuer whose one token ends at a moment that the test names."""

    until = 0.0

    async def caller(self, token: str) -> Caller:
        if token != TOKEN:
            raise Unknown("another one")
        return Caller("user ann", frozenset({"run"}), "default", "oidc", id="oidc ann", until=self.until)


class Door:
    """A gRPC server that lets in as ours does, and looks after its open streams all the time."""

    def __init__(self, folder: Path) -> None:
        self.now, self.issuer, self.silent = time.time(), Ends(), Silent()
        self.store = Store(folder / "keys.db", clock=lambda: self.now)
        self.keys = KeyTable(self.store)
        outside = Outside(Limits(), Audit(None), self.issuer)
        self.server = grpc.aio.server(interceptors=(Access(OWNERS, self.keys, outside=outside, look=0.01),))
        rpc: Any = service_pb2_grpc
        rpc.add_ExecutionServiceServicer_to_server(self.silent, self.server)
        rpc = worker_pb2_grpc
        rpc.add_WorkerServiceServicer_to_server(Begins(), self.server)
        self.address = f"unix:{folder}/door"
        self.server.add_insecure_port(self.address)

    async def key(self, scope: str, *, seconds: float | None = None) -> tuple[str, str]:
        """A key's id, and the key."""
        id, key = new_key()
        expires = None if seconds is None else self.store.now_ms + int(seconds * 1000)
        await self.keys.add(id, name="ci", digest=digest_of(key), scopes=scope, by="ann", expires_ms=expires)
        return id, key

    def watch(self, channel: Any, shown: str, id: str = "exec_1") -> Any:
        stub: Any = service_pb2_grpc.ExecutionServiceStub(channel)
        return stub.WatchExecution(
            api.WatchExecutionRequest(execution=id), metadata=(("authorization", f"Bearer {shown}"),)
        )


@pytest.fixture
async def door(short_folder: Path) -> AsyncIterator[Door]:
    door = Door(short_folder)
    await door.server.start()
    yield door
    await door.server.stop(None)
    await door.store.close()


async def said_at_the_end(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await asyncio.wait_for(call.read(), DEADLINE)
    assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED
    return str(ended.value.details())


async def test_a_silent_stream_ends_when_its_key_expires_and_others_stay(door: Door) -> None:
    _, key = await door.key("read", seconds=60)
    _, other = await door.key("read")
    async with grpc.aio.insecure_channel(door.address) as channel:
        call, stays = door.watch(channel, key), door.watch(channel, other, id="stays")
        owners = door.watch(channel, OWNERS, id="owners")
        for one in (call, stays, owners):
            assert list((await one.read()).events) == [b"one"]
        door.now += 61
        assert await said_at_the_end(call) == "the key that opened this stream holds no more"
        assert await door.silent.left.get() == "exec_1"  # What it held here is given up.
        assert not stays.done()
        assert not owners.done()
        for one in (stays, owners):
            one.cancel()


async def test_a_silent_stream_ends_with_the_token_that_opened_it(door: Door) -> None:
    door.issuer.until = time.time() + 1
    async with grpc.aio.insecure_channel(door.address) as channel:
        call = door.watch(channel, TOKEN)
        assert list((await call.read()).events) == [b"one"]
        assert await said_at_the_end(call) == "the token that opened this stream has ended"
    assert time.time() >= door.issuer.until


async def test_a_workers_silent_line_ends_when_its_key_is_revoked(door: Door) -> None:
    """And its run fails there, so that it goes to another one: a line that is only broken would be made anew."""
    id, key = await door.key("worker")
    plane, channel = plane_at(door.address, key)
    line = Line(plane, "exec_1", worker="test:1")
    async with asyncio.timeout(DEADLINE):
        await line.begin()
        await door.keys.revoke(id)
        told = asyncio.Event()
        stored = line.append(1, 1, batch=1, events=[], told=lambda done: told.set())
        await told.wait()
    assert "the key that opened this stream holds no more" in str(stored.exception())
    await line.close()
    await channel.close(None)
