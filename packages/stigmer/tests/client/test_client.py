"""The client: events without gap or double over a daemon's death, and errors in the server's words."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest
from stigmer import __version__
from stigmer.api import service_pb2 as api
from stigmer.api import service_pb2_grpc
from stigmer.client import Client, CreateExecutionRequest, RemoteError, ServerGone
from stigmer.daemon import DaemonError, ensure_running, find
from stigmer.home import Address, Home


def request(stigmer, fake, task: str = "go") -> CreateExecutionRequest:
    return CreateExecutionRequest(task=task, workspace=str(stigmer.folder), shell=fake.environment)


async def test_a_stream_goes_on_after_the_daemon_was_killed(
    stigmer, fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in fake.environment.items():
        monkeypatch.setenv(name, value)  # A daemon keeps no key; the new one has it from its own environment.
    fake.script({"text": "one two three four", "stall_after": 3}, {"text": "whole"})
    home: Home = stigmer.home
    notices: list[str] = []
    address = ensure_running(home)
    async with Client(address, again=lambda: ensure_running(home), notice=notices.append) as client:
        events = client.run(request(stigmer, fake))
        seqs, killed, text = [], False, ""
        async for event in events:
            if event.seq:
                seqs.append(event.seq)
            if event.HasField("text_delta") and not killed:
                killed = True
                os.kill(address.pid, signal.SIGKILL)
            if event.HasField("finished"):
                text = event.finished.text
    assert text == "whole"
    assert seqs == list(range(1, len(seqs) + 1))
    now = find(home)
    assert now is not None
    assert notices == [f"the daemon (pid {address.pid}) was gone; going on with pid {now.pid}"]


async def test_a_stream_waits_for_a_daemon_that_cannot_start_just_now(
    stigmer, fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in fake.environment.items():
        monkeypatch.setenv(name, value)
    fake.script({"text": "one two three four", "stall_after": 3}, {"text": "whole"})
    address, notices, refusals = ensure_running(stigmer.home), [], [1, 2]

    def again() -> Address:
        if refusals:
            refusals.pop()
            raise DaemonError("the daemon did not start: its database is away", hint="stigmer logs")
        return ensure_running(stigmer.home)

    async with Client(address, again=again, notice=notices.append) as client:
        async for event in client.run(request(stigmer, fake)):
            if event.HasField("text_delta") and client.address.pid == address.pid:
                os.kill(address.pid, signal.SIGKILL)
    assert event.finished.text == "whole"
    assert notices[0] == "the daemon did not start: its database is away; trying again"
    assert len(notices) == 2
    assert notices[1].startswith(f"the daemon (pid {address.pid}) was gone; going on with pid")


async def test_without_a_way_back_a_broken_stream_says_so(stigmer, fake) -> None:
    fake.script({"text": "one two three four", "stall_after": 3})
    address = ensure_running(stigmer.home)
    async with Client(address) as client:

        async def read() -> None:
            async for event in client.run(request(stigmer, fake)):
                if event.HasField("text_delta"):
                    os.kill(address.pid, signal.SIGKILL)

        with pytest.raises(ServerGone, match="does not answer"):
            await read()


async def test_an_error_keeps_the_servers_words(stigmer) -> None:
    async with Client(ensure_running(stigmer.home)) as client:
        with pytest.raises(RemoteError) as caught:
            await client.get("nope")
    assert caught.value.code == "not_found"
    assert "'nope'" in caught.value.message


async def test_a_wrong_token_is_refused(stigmer) -> None:
    right = ensure_running(stigmer.home)
    async with Client(Address(right.target, "wrong")) as client:
        with pytest.raises(RemoteError, match="token") as caught:
            await client.status()
    assert caught.value.code == "unauthenticated"


async def test_a_repeated_request_creates_nothing_twice(stigmer, fake) -> None:
    fake.script({"text": "ok"})
    async with Client(ensure_running(stigmer.home)) as client:
        asked = request(stigmer, fake)
        first = await client.create(asked)
        second = await client.create(asked)
    assert (first.created, second.created) == (True, False)
    assert first.execution.id == second.execution.id


async def test_a_server_that_dies_again_and_again_is_given_up(
    stigmer, fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in fake.environment.items():
        monkeypatch.setenv(name, value)
    fake.script(*[{"text": "one two three four", "stall_after": 3}] * 9)

    def again() -> Address:
        return ensure_running(stigmer.home)

    async def read() -> None:
        async with Client(again(), again=again) as client:
            async for event in client.run(request(stigmer, fake)):
                if event.HasField("text_delta"):
                    os.kill(client.address.pid, signal.SIGKILL)

    with pytest.raises(ServerGone, match="went away 4 times"):
        await read()


# --- Servers that somebody names


class Older(service_pb2_grpc.SystemServiceServicer):
    """A server of another version, which knows of nothing but its status."""

    async def GetStatus(self, request: Any, context: Any) -> api.Status:
        return api.Status(version="0.0.9")


@asynccontextmanager
async def listening(*services: Any) -> AsyncIterator[Address]:
    server = grpc.aio.server()
    for service in services:
        service_pb2_grpc.add_SystemServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield Address(f"127.0.0.1:{port}", "stk_1", source="--server")
    await server.stop(None)


async def test_a_server_of_another_version_is_told_from_one_that_is_none_of_ours() -> None:
    async with listening(Older()) as address, Client(address) as client:
        with pytest.raises(RemoteError) as older:
            await client.list()
        with pytest.raises(RemoteError, match=r"of version 0\.0\.9 and does not know this call"):
            async for _ in client.watch("exec_1"):
                pass
    async with listening() as address, Client(address) as client:
        with pytest.raises(RemoteError) as none:
            await client.list()
    assert older.value.code == none.value.code == "version"
    assert f"is of version 0.0.9 and does not know this call; this is {__version__}" in older.value.message
    assert none.value.message == f"what answers at '{address.target}' (--server) is no stigmer server"
