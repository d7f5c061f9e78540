"""How much one caller may ask of a server for others, how large a request may be, and what happens to a dead connection."""

from __future__ import annotations

import asyncio
import math
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from graphton.testing import FakeProviders
from stigmer import client as client_module
from stigmer import server as server_module
from stigmer import worker as worker_module
from stigmer.api import event_pb2 as pb
from stigmer.api import service_pb2 as api
from stigmer.api import worker_pb2
from stigmer.client import Client, RemoteError
from stigmer.errors import ConfigError
from stigmer.home import Address
from stigmer.server._limits import Buckets, Limits, Streams, address_of, limits_of
from stigmer.server._sizes import LONGEST, TEXTS, check_sizes
from stigmer.server.auth import new_key
from stigmer.server.status import Refused
from stigmer.worker import plane_at

DEADLINE = 30.0


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_gives_so_many_at_once_and_then_so_many_a_second() -> None:
    clock = Clock()
    buckets = Buckets(2.0, 3, clock=clock)
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 0.5]
    assert buckets.take("b") == 0  # Each has its own.
    clock.now += 0.5
    assert [buckets.take("a"), buckets.take("a")] == [0, 0.5]
    clock.now += 100
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 0.5]  # No more than the burst is saved up.


def test_rate_0_is_no_limit() -> None:
    buckets = Buckets(0, 1)
    assert {buckets.take("a") for _ in range(1000)} == {0}
    assert len(buckets) == 0


def test_no_more_buckets_are_remembered_than_there_is_room_for() -> None:
    clock = Clock()
    buckets = Buckets(1.0, 1, most=100, clock=clock)
    for n in range(1000):
        clock.now += 0.001
        buckets.take(str(n))
    assert len(buckets) == 100
    assert buckets.take("999") > 0
    assert buckets.take("0") == 0


def test_streams_are_counted_while_they_are_open() -> None:
    streams = Streams(2)
    with streams.one("a"), streams.one("a"):
        assert streams.full("a")
        assert not streams.full("b")
    assert not streams.full("a")


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.7:5123", "10.0.0.7"),
        ("ipv6:%5B2001:db8:1:2:a:b:c:d%5D:443", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2::9]:443", "2001:db8:1:2::/64"),
        ("ipv6:[::ffff:10.0.0.7]:443", "10.0.0.7"),
        ("ipv6:[fe80::1%eth0]:443", "fe80::/64"),
        ("unix:", "unix"),
    ],
)
def test_an_address_is_what_one_machine_cannot_change_at_will(peer: str, address: str) -> None:
    assert address_of(peer) == address


def test_limits_are_settings_and_all_wrong_ones_are_told() -> None:
    assert limits_of({"STIGMER_RATE_LIMIT": " 5 ", "STIGMER_STREAM_LIMIT": ""}) == Limits(calls=5)
    with pytest.raises(ConfigError) as refused:
        limits_of(
            {"STIGMER_RATE_LIMIT": "-1", "STIGMER_RATE_BURST": "0", "STIGMER_KEEPALIVE_SECONDS": "9" * 99}
        )
    assert len(refused.value.problems) == 3


def test_every_setting_of_access_is_documented() -> None:
    folder = Path(server_module.__file__).parent
    text = (Path(__file__).parents[4] / "docs" / "access.md").read_text("utf-8")
    named = {
        name
        for file in ("_limits.py", "_audit.py", "_oidc.py")
        for name in re.findall(r'"(STIGMER_[A-Z_]+)"', (folder / file).read_text("utf-8"))
    }
    assert len(named) > 10
    assert {name for name in named if f"`{name}" not in text} == set()


def test_the_threat_model_names_tests_that_there_are() -> None:
    root = Path(__file__).parents[4]
    text = (root / "docs" / "threat-model.md").read_text("utf-8")
    named = set(re.findall(r"`((?:[a-z]+/)*(?:test_\w+\*?\.py|toolsets))`", text))
    assert len(named) > 15
    below = [root / "packages" / "stigmer" / "tests", root / "packages" / "graphton"]
    assert [name for name in named if not any([*folder.glob(name)] for folder in below)] == []


# --- At a server


async def serve(idle: Any, monkeypatch: pytest.MonkeyPatch, engine: str = "embedded", **settings: str) -> str:
    """Starts a server for others with these settings; its address."""
    for name, value in {"STIGMER_MODE": "local", **settings}.items():
        monkeypatch.setenv(name, value)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    await idle.start(listen=[address], stays=True, engine=engine)
    return address


async def made(idle: Any, *scopes: str, name: str = "ci") -> str:
    async with idle.client() as client:
        return str((await client.create_key(name, scopes=scopes, by="ann")).secret)


async def refused_at(client: Client, tries: int) -> RemoteError | None:
    """The refusal that one of so many calls met, if any."""
    for _ in range(tries):
        try:
            await client.list()
        except RemoteError as error:
            return error
    return None


async def test_a_key_that_calls_too_often_is_told_when_to_come_again(
    idle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = await serve(idle, monkeypatch, STIGMER_RATE_LIMIT="1", STIGMER_RATE_BURST="5")
    busy, calm = await made(idle, "read"), await made(idle, "read", name="calm")
    async with idle.client(token=busy, address=address) as client:
        refused = await refused_at(client, 100)
        assert refused is not None
        assert (refused.code, refused.status) == ("too_many_calls", "RESOURCE_EXHAUSTED")
        wait = float(refused.details["retry_after_seconds"])
        assert 0 < wait <= 1
        assert (
            str(refused) == f"key ci makes more than 1 calls a second\nhint: try again in {math.ceil(wait)} s"
        )
    async with idle.client(token=calm, address=address) as client:
        await client.list()
    async with idle.client() as owner:
        assert await refused_at(owner, 100) is None
    async with idle.client(address=address) as owner:
        assert await refused_at(owner, 100) is None


async def test_a_workers_calls_have_room_for_a_servers_restart(
    idle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"STIGMER_RATE_LIMIT": "1", "STIGMER_RATE_BURST": "5", "TEMPORAL_ADDRESS": "127.0.0.1:9"}
    address = await serve(idle, monkeypatch, engine="temporal", **settings)
    token = await made(idle, "worker")
    async with grpc.aio.insecure_channel(address) as channel:
        read = channel.unary_stream("/stigmer.v1.WorkerService/ReadEvents")
        metadata = (("authorization", f"Bearer {token}"),)
        codes = []
        for _ in range(1000):
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await read(b"", metadata=metadata).read()
            codes.append(ended.value.code().name)
            if codes[-1] != "NOT_FOUND":
                break
        assert codes[:100] == ["NOT_FOUND"] * 100
        assert codes[-1] == "RESOURCE_EXHAUSTED"


async def test_a_worker_reads_as_many_records_as_it_has_executions(
    idle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"STIGMER_STREAM_LIMIT": "1", "TEMPORAL_ADDRESS": "127.0.0.1:9"}
    address = await serve(idle, monkeypatch, engine="temporal", **settings)
    token = await made(idle, "worker")
    async with idle.client() as client:  # Long enough that a stream stays open until it is read.
        execution = (await client.create(idle.request("x" * 1_000_000))).execution.id
    plane, channel = plane_at(address, token)
    asked = worker_pb2.ReadEventsRequest(execution=execution)
    streams = [plane.stub.ReadEvents(asked, metadata=plane.metadata) for _ in range(3)]
    for stream in streams:
        await stream.initial_metadata()
    for stream in reversed(streams):
        assert (await stream.read()).request
    await channel.close(None)


async def test_strangers_of_one_address_are_looked_at_so_often_and_keep_nobody_out(
    idle: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    address = await serve(idle, monkeypatch)
    known, late = await made(idle, "read"), await made(idle, "read", name="late")
    async with idle.client(token=known, address=address) as friend:
        await friend.list()
        async with idle.client(token=new_key()[1], address=address) as stranger:
            codes = []
            for _ in range(100):
                refused = await refused_at(stranger, 1)
                assert refused is not None
                codes.append(refused.code)
        assert codes[:30] == ["unauthenticated"] * 30
        assert codes.count("too_many_calls") > 50
        assert "too many calls from this address were refused" in str(refused)
        await friend.list()
    async with idle.client(token=late, address=address) as client:
        refused = await refused_at(client, 1)
        assert refused is None or refused.code == "too_many_calls"
    told = [record for record in caplog.records if "too_many_calls" in record.getMessage()]
    assert len(told) < 5  # Not a line for each of them.
    async with idle.client() as owner:
        await owner.list()


async def watching(client: Client, execution: str) -> asyncio.Task[None]:
    """A watch of which the first event has come."""
    first = asyncio.Event()

    async def watch() -> None:
        async for _ in client.watch(execution):
            first.set()

    task = asyncio.create_task(watch())
    waiting = asyncio.create_task(first.wait())
    await asyncio.wait({task, waiting}, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    return task


async def let_in(client: Client, execution: str, *, within: float = DEADLINE) -> asyncio.Task[None]:
    """A watch, tried until the server has room for it."""
    async with asyncio.timeout(within):
        while True:
            task = await watching(client, execution)
            if not task.done():
                return task
            error = task.exception()
            assert isinstance(error, RemoteError)
            assert error.code == "too_many_calls"


async def ended(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def waits(idle: Any, fake: FakeProviders) -> str:
    """A model that asks for a command, so that a run waits for an answer."""
    fake.call("run_command", {"command": "true"})
    return "run_command"


async def waiting(idle: Any) -> str:
    async with idle.client() as client:
        execution = (await client.create(idle.request("Go."))).execution.id
        await idle.until(client, execution, lambda event: event.HasField("waiting"))
        return str(execution)


async def test_a_caller_has_so_many_streams_open_and_no_more(
    idle: Any, waits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = await serve(idle, monkeypatch, STIGMER_STREAM_LIMIT="2", STIGMER_RATE_LIMIT="0")
    execution, token = await waiting(idle), await made(idle, "read")
    async with idle.client(token=token, address=address) as client:
        tasks = [await watching(client, execution) for _ in range(2)]
        with pytest.raises(RemoteError, match="key ci has 2 streams open, and may not open more") as refused:
            async for _ in client.watch(execution):
                pass
        assert refused.value.code == "too_many_calls"
        await client.get(execution)
        await ended(tasks[0])
        await ended(await let_in(client, execution), tasks[1])


async def test_a_key_that_was_revoked_hears_no_more(
    idle: Any, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.call("run_command", {"command": "true"})
    fake.reply("done")
    address = await serve(idle, monkeypatch, STIGMER_RATE_LIMIT="0")
    execution, token = await waiting(idle), await made(idle, "read")
    async with idle.client() as owner, idle.client(token=token, address=address) as client:
        watch = await watching(client, execution)
        (key,) = await owner.keys()
        await owner.revoke_key(key.id)
        async with asyncio.timeout(DEADLINE):
            while await refused_at(client, 1) is None:
                pass
        await owner.decide(execution, "1.0", approve=True)
        await idle.until(owner, execution, lambda event: event.HasField("finished"))
        with pytest.raises(RemoteError, match="the key that opened this stream holds no more"):
            await asyncio.wait_for(watch, DEADLINE)


async def read_by(plane: Any, asked: worker_pb2.ReadEventsRequest) -> bool:
    """Whether a worker is let in."""
    try:
        await plane.stub.ReadEvents(asked, metadata=plane.metadata).read()
    except grpc.aio.AioRpcError:
        return False
    return True


async def test_a_worker_whose_key_was_revoked_tells_no_more(
    idle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"TEMPORAL_ADDRESS": "127.0.0.1:9", "STIGMER_RATE_LIMIT": "0"}
    address = await serve(idle, monkeypatch, engine="temporal", **settings)
    token = await made(idle, "worker")
    plane, channel = plane_at(address, token)
    async with idle.client() as owner:
        execution = (await owner.create(idle.request("Go."))).execution.id
        call = plane.stub.Attend(metadata=plane.metadata)
        await call.write(worker_pb2.FromWorker(begin=worker_pb2.Begin(execution=execution, worker="test:1")))
        assert (await call.read()).HasField("began")
        (key,) = await owner.keys()
        await owner.revoke_key(key.id)
        asked = worker_pb2.ReadEventsRequest(execution=execution)
        async with asyncio.timeout(DEADLINE):
            while await read_by(plane, asked):
                pass
        seq = (await owner.get(execution)).last_seq
        notice = pb.Event(notice=pb.Notice(code="x", text="y")).SerializeToString()
        await call.write(worker_pb2.FromWorker(appends=[worker_pb2.Append(batch=1, events=[notice])]))
        with pytest.raises(grpc.aio.AioRpcError, match="the key that opened this stream holds no more"):
            await asyncio.wait_for(call.read(), DEADLINE)
        assert (await owner.get(execution)).last_seq == seq
    await channel.close(None)


async def test_nothing_that_shows_the_insides_is_served(idle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    address = await serve(idle, monkeypatch)
    async with grpc.aio.insecure_channel(address) as channel:
        for method in (
            "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "grpc.channelz.v1.Channelz/GetServers",
            "grpc.admin.v1.Admin/Anything",
            "grpc.health.v1.Health/Check",
        ):
            for token in ("", idle.token):
                call = channel.stream_stream(f"/{method}")(
                    iter([b"\x3a\x00"]), metadata=(("authorization", f"Bearer {token}"),)
                )
                with pytest.raises(grpc.aio.AioRpcError) as ended:
                    async for _ in call:
                        pass
                assert ended.value.code() is grpc.StatusCode.UNIMPLEMENTED


# --- Sizes


def request_of(**fields: Any) -> api.CreateExecutionRequest:
    return api.CreateExecutionRequest(task="x", **fields)


def agent(instructions: str, *below: api.Agent) -> api.Agent:
    return api.Agent(name="a", instructions=instructions, subagents=below)


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (request_of(session="s" * (LONGEST + 1)), "session has 4097 characters, more than 4096"),
        (request_of(idempotency_key="a\0b"), "idempotency_key holds a zero character"),
        (request_of(flags={"model": "m" * 5000}), "flags has 5000|value has 5000"),
        (request_of(flags={str(n): "" for n in range(1001)}), "flags has 1001 entries, more than 1000"),
        (
            request_of(agent_record=agent("i" * (TEXTS["instructions"] + 1))),
            "instructions has 1048577 characters",
        ),
        (
            request_of(agent_record=agent("i" * 600_000, agent("j" * 600_000))),
            "instructions has 1200000 characters, more than 1048576",
        ),
        (api.WatchExecutionRequest(from_seq=1 << 63), "from_seq 9223372036854775808 is above"),
    ],
)
def test_what_is_too_large_is_named(request_: Any, why: str) -> None:
    with pytest.raises(Refused, match=why) as refused:
        check_sizes(request_)
    assert refused.value.code == "too_large"


def test_what_people_send_is_not_too_large() -> None:
    check_sizes(
        request_of(
            workspace="/" + "w" * 4000,
            flags={"model": "m"},
            agent_record=agent("i" * 500_000, agent("j" * 500_000)),
        )
    )


async def test_a_task_or_a_request_that_is_too_long_is_refused_in_words(
    idle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = await serve(idle, monkeypatch)
    for where in (idle.address, address):
        async with idle.client(address=where) as client:
            with pytest.raises(
                RemoteError, match="the task has 4194305 characters, more than 4194304"
            ) as refused:
                await client.create(idle.request("x" * (TEXTS["task"] + 1), shell={}, workspace=""))
            assert refused.value.code == "task_too_long"
            with pytest.raises(RemoteError, match="the request is larger than the server takes") as refused:
                await client.create(idle.request("😀" * TEXTS["task"] * 2, shell={}, workspace=""))
            assert refused.value.code == "task_too_long"
            with pytest.raises(RemoteError, match="session has 5000 characters") as refused:
                await client.session("s" * 5000)
            assert refused.value.code == "too_large"


# --- Connections


@asynccontextmanager
async def relay(to: str) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """An address that leads to another, until the event is set: then nothing passes any more, and nobody is told."""
    host, port = to.rsplit(":", 1)
    deaf = asyncio.Event()
    tasks: set[asyncio.Task[None]] = set()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if deaf.is_set():
                    continue  # Taken, and dropped.
                writer.write(data)
                await writer.drain()
        if not deaf.is_set():
            writer.close()

    async def joined(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(host, int(port))
        writers.extend([writer, there_writer])
        for pair in ((reader, there_writer), (there_reader, writer)):
            tasks.add(asyncio.create_task(pass_on(*pair)))

    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(joined, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", deaf
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.close()


async def test_a_watch_over_a_dead_connection_ends_at_both_sides(
    idle: Any, waits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"STIGMER_KEEPALIVE_SECONDS": "1", "STIGMER_STREAM_LIMIT": "1", "STIGMER_RATE_LIMIT": "0"}
    address = await serve(idle, monkeypatch, **settings)
    execution, token = await waiting(idle), await made(idle, "read")
    async with (
        relay(address) as (through, deaf),
        Client(Address(through, token), keepalive=1.0) as far,
        idle.client(token=token, address=address) as near,
    ):
        watch = await watching(far, execution)
        full = await watching(near, execution)
        assert full.done()  # The server counts the far one.
        with pytest.raises(RemoteError):
            await full
        deaf.set()
        with pytest.raises(RemoteError) as gone:
            await asyncio.wait_for(watch, DEADLINE)
        assert gone.value.code == "unavailable"
        # The server has noticed, too; as it stands by itself it would after half a minute.
        await ended(await let_in(near, execution, within=20.0))


def option(options: Any, name: str) -> int:
    return int(dict(options)[name])


def test_nobody_asks_more_often_than_the_server_puts_up_with() -> None:
    server = server_module._options(Limits().keepalive)
    allowed = option(server, "grpc.http2.min_ping_interval_without_data_ms")
    for options in (client_module.keepalive_options(client_module.KEEPALIVE), worker_module.OPTIONS):
        assert option(options, "grpc.keepalive_time_ms") >= 2 * allowed
        assert option(options, "grpc.http2.max_pings_without_data") == 0
    assert option(server, "grpc.keepalive_time_ms") == 30_000


def test_both_sides_limit_what_they_take() -> None:
    for options in (server_module.OPTIONS, client_module.OPTIONS, worker_module.OPTIONS):
        assert 0 < option(options, "grpc.max_receive_message_length") <= 64 << 20
