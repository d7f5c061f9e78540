"""The server process: who may call, what it says of itself, when it ends, what it leaves."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import stat
from typing import Any

import grpc
import grpc.aio
import pytest
from graphton.testing import FakeProviders, Reply
from stigmer import __version__
from stigmer.api import service_pb2 as api
from stigmer.api import service_pb2_grpc
from stigmer.client import RemoteError
from stigmer.home import Home
from stigmer.server.auth import token_of
from stigmer.store import StoreError

DEADLINE = 30.0


async def every_method(address: str, metadata: Any) -> dict[str, grpc.StatusCode]:
    """What each method of each service answers to an empty request."""
    rpc: Any = service_pb2_grpc
    answers = {}
    async with grpc.aio.insecure_channel(address) as channel:
        for service in api.DESCRIPTOR.services_by_name.values():
            stub = getattr(rpc, f"{service.name}Stub")(channel)
            for method in service.methods:
                request = getattr(api, method.input_type.name)()
                call = getattr(stub, method.name)(request, metadata=metadata, timeout=DEADLINE)
                try:
                    if method.server_streaming:
                        _ = [frame async for frame in call]
                    else:
                        await call
                    answers[method.name] = grpc.StatusCode.OK
                except grpc.aio.AioRpcError as error:
                    answers[method.name] = error.code()
    return answers


async def ended_idle(client: Any) -> bool:
    """Asks the server to end if it is idle."""
    try:
        await client.shutdown(if_idle=True)
    except RemoteError:
        return False
    return True


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", "Bearer wrong"),),
        (("authorization", "Bearer "),),
        (("authorization", "bearer x"), ("authorization", "Bearer y")),
        (("authorization-bin", b"\xff"),),
    ],
)
async def test_without_the_token_no_method_answers(serving: Any, metadata: Any) -> None:
    answers = await every_method(serving.address, metadata)
    assert set(answers.values()) == {grpc.StatusCode.UNAUTHENTICATED}
    assert len(answers) >= 17
    assert serving.task is not None
    assert not serving.task.done()


async def test_a_wrong_token_is_told_what_to_do(serving: Any) -> None:
    async with serving.client(token="0" * 64) as client:
        with pytest.raises(RemoteError, match="does not know this token") as caught:
            await client.status()
    assert "STIGMER_HOME" in caught.value.hint


async def test_token_and_socket_are_the_owners_alone(serving: Any) -> None:
    assert stat.S_IMODE(serving.home.token.stat().st_mode) == 0o600
    assert stat.S_IMODE(serving.home.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(serving.home.socket.stat().st_mode) & 0o077 == 0
    assert len(serving.token) == 64


def test_a_token_is_made_once(tmp_path: Any) -> None:
    first = token_of(tmp_path / "token")
    assert token_of(tmp_path / "token") == first
    (tmp_path / "token").write_text("")
    assert len(token_of(tmp_path / "token")) == 64


async def test_over_tcp_neither_shell_nor_file_nor_address_is_taken(idle: Any, fake: FakeProviders) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    await idle.start(address=address)
    project = api.ProjectFile(path="/x/.stigmer/config.yaml", text="llm: {model: qwen3:8b}")
    given, elsewhere = {"shell": {}, "workspace": ""}, api.ExecutionConfig(base_url=fake.openai_url)
    hostile = [
        idle.request("Hello", workspace=""),
        idle.request("Hello", shell={}),
        idle.request("Hello", **given, project_file=project),
        idle.request("Hello", **given, flags={"base_url": fake.openai_url, "model": "openai:gpt-4.1"}),
        idle.request("Hello", **given, flags={}, execution_config=elsewhere),
    ]
    async with idle.client(address=address) as client:
        for request in hostile:
            with pytest.raises(RemoteError) as caught:
                await client.create(request)
            assert caught.value.code in ("forbidden", "config", "workspace"), caught.value
        assert await client.list() == []
    assert not fake.requests


async def test_status_says_what_runs_here(serving: Any, fake: FakeProviders) -> None:
    fake.reply("never", stall_after=1)
    async with serving.client() as client:
        await client.create(serving.request("Wait."))
        await fake.wait_for_requests(1)
        status = await client.status()
    assert (status.version, status.pid, status.engine) == (__version__, os.getpid(), "embedded")
    assert (status.running, status.waiting, status.stays) == (1, 0, False)
    assert status.home == str(serving.home.path)


async def test_shutdown_ends_the_server_and_hands_runs_back(serving: Any, fake: FakeProviders) -> None:
    fake.reply("never", stall_after=1)
    async with serving.client() as client:
        id = (await client.create(serving.request("Wait."))).execution.id
        await fake.wait_for_requests(1)
        with pytest.raises(RemoteError, match="busy") as caught:
            await client.shutdown(if_idle=True)
        assert caught.value.status == "FAILED_PRECONDITION"
        await client.shutdown()
    await asyncio.wait_for(serving.task, DEADLINE)
    assert not serving.home.socket.exists()
    fake.reply("Done.")
    os.environ["OPENAI_API_KEY"] = "sk-of-the-next-process"
    os.environ["OPENAI_BASE_URL"] = fake.openai_url
    try:
        await serving.start()
    finally:
        del os.environ["OPENAI_API_KEY"], os.environ["OPENAI_BASE_URL"]
    async with serving.client() as client:
        events = [event async for event in client.watch(id)]
    assert events[-1].finished.text == "Done."
    assert fake.chats[-1].headers["authorization"] == "Bearer sk-of-the-next-process"


async def test_an_idle_server_ends(idle: Any, fake: FakeProviders) -> None:
    fake.reply("Done.", delay=0.6)
    await idle.start(idle_seconds=0.3)
    events = await idle.run("Hello")
    assert events[-1].finished.text == "Done."
    await asyncio.wait_for(idle.task, DEADLINE)


async def test_a_server_that_stays_does_not_end_when_idle(idle: Any) -> None:
    await idle.start(idle_seconds=0.01, stays=True)
    done, _ = await asyncio.wait({idle.task}, timeout=0.3)
    assert not done
    async with idle.client() as client:
        assert (await client.status()).stays


async def test_a_server_whose_home_is_gone_ends(idle: Any) -> None:
    await idle.start()
    shutil.rmtree(idle.home.path)
    await asyncio.wait_for(idle.task, DEADLINE)


async def test_a_database_of_a_newer_program_stops_the_server(idle: Any) -> None:
    import sqlite3

    with sqlite3.connect(idle.home.database) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match="written by a newer stigmer"):
        await idle.start()


async def test_a_long_home_gets_a_short_socket(idle: Any, fake: FakeProviders, short_folder: Any) -> None:
    fake.reply("Hi.")
    long = short_folder / ("x" * 120)
    idle.home = Home(long).create()
    idle.address = f"unix:{idle.home.create_socket_folder()}"
    await idle.start()
    assert (await idle.run("Hello"))[-1].finished.text == "Hi."


async def test_many_runs_at_once_through_one_server(serving: Any, fake: FakeProviders) -> None:
    fake.rule(lambda request: Reply(text="Hi."))
    ends = await asyncio.gather(*(serving.run(f"Task {n}") for n in range(25)))
    assert {events[-1].finished.text for events in ends} == {"Hi."}


async def test_logs_are_masked_whoever_writes_them(serving: Any, caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError("sk-0123456789abcdefghij")
    except ValueError:
        logging.getLogger("some.library").exception("Bearer %s", "abcdefgh12345678")
    assert "Bearer ***" in caplog.text
    assert "ValueError: ***" in caplog.text
    await serving.stop()
    assert logging.getLogRecordFactory() is logging.LogRecord


async def test_a_command_that_prints_the_token_file_shows_stars(serving: Any, fake: FakeProviders) -> None:
    fake.call("run_command", {"command": f"cat {serving.home.token}"})
    fake.reply("Printed.")
    events = await serving.run("Print it.", approve_all=True)
    result = next(event.tool_finished.result for event in events if event.HasField("tool_finished"))
    assert "***" in result
    assert not [event for event in events if serving.token.encode() in event.SerializeToString()]


async def test_a_client_that_goes_away_is_no_watcher_any_more(serving: Any, fake: FakeProviders) -> None:
    fake.call("run_command", {"command": "true"})
    async with serving.client() as client:
        id = (await client.create(serving.request("Go."))).execution.id
        await serving.until(client, id, lambda e: e.HasField("attempt_ended"))
        async with asyncio.timeout(DEADLINE):
            while not await ended_idle(client):
                pass
