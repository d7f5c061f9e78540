"""A worker's attempts against a real control plane: taken twice, given up before they begin, told nonsense."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from graphton.errors import JournalError
from graphton.testing import FakeProviders, Reply
from stigmer.api import event_pb2 as pb
from stigmer.api import worker_pb2, worker_pb2_grpc
from stigmer.errors import ConfigError, StigmerError
from stigmer.home import Home
from stigmer.server.workers import BATCH, EVENT
from stigmer.worker import Hands, _Health, plane_at, work
from stigmer.worker._line import Line

DEADLINE = 30.0


@asynccontextmanager
async def hands_at(home: Home, address: str, token: str) -> AsyncIterator[Hands]:
    """A worker's hands, at the control plane there."""
    plane, channel = plane_at(address, token)
    try:
        yield Hands(home, plane, key_for=lambda provider, base_url: None)
    finally:
        await channel.close(None)


async def accepted(idle: Any) -> str:
    await idle.start(engine="temporal")
    async with idle.client() as client:
        return str((await client.create(idle.request("Go."))).execution.id)


async def ends(idle: Any, execution: str) -> list[str]:
    """How each attempt ended, and at last the execution."""
    async with idle.client() as client, asyncio.timeout(DEADLINE):
        found = [event async for event in client.watch(execution)]
    return [e.attempt_ended.outcome for e in found if e.HasField("attempt_ended")] + [
        e.finished.outcome for e in found if e.HasField("finished")
    ]


async def test_an_execution_that_comes_back_to_the_same_worker_is_driven_by_its_last_attempt(
    idle: Any, fake: FakeProviders
) -> None:
    """Temporal was away longer than a heartbeat may be: it gives the execution out again, and calls the first off."""
    fake.add(Reply(text="never", stall_after=0), Reply(text="Done.", first_token_delay=0.5))
    execution = await accepted(idle)
    async with hands_at(idle.home, idle.address, idle.token) as hands, asyncio.timeout(DEADLINE):
        first = hands.take(execution)
        driving = asyncio.create_task(first.drive())
        await fake.wait_for_requests(1)
        second = hands.take(execution)
        again = asyncio.create_task(second.drive())
        await fake.wait_for_requests(2)
        first.hand_over()
        with pytest.raises(JournalError):
            await driving
        assert await again == "done"
    assert await ends(idle, execution) == ["lost", "done", "completed"]


async def test_a_run_whose_worker_is_not_let_in_any_more_stops_there_at_once(
    idle: Any, fake: FakeProviders
) -> None:
    """It waits for a reply that never comes: there is nothing that it could try to write down."""
    fake.add(Reply(text="never", stall_after=0))
    execution = await accepted(idle)
    async with hands_at(idle.home, idle.address, idle.token) as hands, asyncio.timeout(DEADLINE):
        driving = asyncio.create_task(hands.take(execution).drive())
        await fake.wait_for_requests(1)
        await idle.stop()
        idle.home.token.write_text("a" * 64)
        await idle.start(engine="temporal")
        with pytest.raises(JournalError, match="the server does not know this token"):
            await driving
        assert hands.busy == 0


async def test_what_is_handed_over_before_it_has_begun_does_not_begin(idle: Any, short_folder: Path) -> None:
    """The control plane is away, and the worker is told to end: it does not wait for it."""
    async with (
        hands_at(idle.home, f"unix:{short_folder}/nobody", "x") as hands,
        asyncio.timeout(DEADLINE),
    ):
        taken = hands.take("exec_1")
        driving = asyncio.create_task(taken.drive())
        await asyncio.sleep(0)
        taken.hand_over()
        assert await driving == "shutdown"
        at_once = hands.take("exec_1")
        at_once.hand_over()
        assert await at_once.drive() == "shutdown"


class Babbles(worker_pb2_grpc.WorkerServiceServicer):
    """A control plane that begins an attempt and then says what is no event."""

    async def Attend(self, requests: AsyncIterator[worker_pb2.FromWorker], context: Any) -> None:
        await context.write(worker_pb2.ToWorker(began=worker_pb2.Began(attempt=1, no=1)))
        await context.write(worker_pb2.ToWorker(heard=[b"\xff"], seen=1))
        await asyncio.Event().wait()


async def test_a_line_that_cannot_be_understood_fails_whoever_waits_for_it(short_folder: Path) -> None:
    server = grpc.aio.server()
    rpc: Any = worker_pb2_grpc
    rpc.add_WorkerServiceServicer_to_server(Babbles(), server)
    server.add_insecure_port(f"unix:{short_folder}/s")
    await server.start()
    plane, channel = plane_at(f"unix:{short_folder}/s", "x")
    line = Line(plane, "exec_1", worker="test:1")
    async with asyncio.timeout(DEADLINE):
        await line.begin()
        told = asyncio.Event()
        stored = line.append(1, 1, batch=1, events=[], told=lambda done: told.set())
        await told.wait()
    with pytest.raises(JournalError, match="the line to the control plane failed"):
        stored.result()
    await line.close()
    await channel.close(None)
    await server.stop(None)


class Breaks(worker_pb2_grpc.WorkerServiceServicer):
    """A control plane that is far ahead at first and hangs up; the next time it is not, and has stored a batch."""

    def __init__(self) -> None:
        self._ahead_ms = [3_600_000, 0]

    async def Attend(self, requests: AsyncIterator[worker_pb2.FromWorker], context: Any) -> None:
        await anext(requests)
        ahead = self._ahead_ms.pop(0)
        began = worker_pb2.Began(attempt=1, no=1, seq=1, now_ms=time.time_ns() // 1_000_000 + ahead)
        await context.write(worker_pb2.ToWorker(began=began))
        if ahead:
            await anext(requests)  # The batch, which is lost.
            return
        await context.write(worker_pb2.ToWorker(stored=1))
        await asyncio.Event().wait()


async def test_time_does_not_run_back_when_a_line_is_made_anew(short_folder: Path) -> None:
    server = grpc.aio.server()
    rpc: Any = worker_pb2_grpc
    rpc.add_WorkerServiceServicer_to_server(Breaks(), server)
    server.add_insecure_port(f"unix:{short_folder}/s")
    await server.start()
    plane, channel = plane_at(f"unix:{short_folder}/s", "x")
    line = Line(plane, "exec_1", worker="test:1")
    async with asyncio.timeout(DEADLINE):
        await line.begin()
        earlier = line.now_ms
        said = pb.Event(tool_finished=pb.ToolFinished(call="1.0"))
        await line.append(1, 1, batch=1, events=[said], told=lambda done: None)
        assert line.now_ms >= earlier
    await line.close()
    await channel.close(None)
    await server.stop(None)


async def test_without_temporals_sdk_both_sides_say_what_is_missing(
    idle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "temporalio.client", None)
    for starting in (
        idle.start(engine="temporal"),
        work(idle.home, target="127.0.0.1:1", token="x" * 64, beside=True),
    ):
        with pytest.raises(StigmerError, match="the engine temporal needs Temporal's SDK") as refused:
            await starting
        assert "pip install 'stigmer[temporal]'" in refused.value.hint


async def test_a_worker_does_not_guess_its_mode(idle: Any) -> None:
    with pytest.raises(ConfigError, match="mode is not set, and `stigmer worker` does not guess it"):
        await work(idle.home, target="127.0.0.1:1", token="x" * 64)


async def test_what_is_said_in_one_moment_may_be_longer_than_a_message(idle: Any) -> None:
    """Sixty results of parallel calls, of 300 KB each: one batch, which is stored whole or not at all."""
    execution = await accepted(idle)
    plane, channel = plane_at(idle.address, idle.token)
    line = Line(plane, execution, worker="test:1")
    async with asyncio.timeout(DEADLINE):
        began = await line.begin()
        assert not isinstance(began, str)
        said = [
            pb.Event(tool_finished=pb.ToolFinished(call=f"1.{n}", result="x" * 300_000)) for n in range(60)
        ]
        stored = line.append(began.no, began.attempt, batch=1, events=said, told=lambda done: None)
        after = pb.Event(tool_finished=pb.ToolFinished(call="2.0", result="after"))
        await line.append(began.no, began.attempt, batch=2, events=[after], told=lambda done: None)
        assert stored.done()
        found = [r.tool_finished for r in await line.replay(began.no) if r.HasField("tool_finished")]
    assert [one.call for one in found] == [f"1.{n}" for n in range(60)] + ["2.0"]
    assert {len(one.result) for one in found[:-1]} == {300_000}
    await line.close()
    await channel.close(None)


async def test_a_batch_without_an_end_is_refused_before_it_fills_the_servers_memory(idle: Any) -> None:
    """Of empty events: what each takes in memory counts, too."""
    execution = await accepted(idle)
    plane, channel = plane_at(idle.address, idle.token)
    call = plane.stub.Attend(metadata=plane.metadata)

    def part(count: int) -> worker_pb2.FromWorker:
        return worker_pb2.FromWorker(appends=[worker_pb2.Append(batch=1, events=[b""] * count, more=True)])

    async with asyncio.timeout(DEADLINE):
        await call.write(worker_pb2.FromWorker(begin=worker_pb2.Begin(execution=execution)))
        assert (await call.read()).began.attempt == 1
        await call.write(part(BATCH // EVENT))
        await call.write(part(1))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details() == f"batch 1 of {execution} is larger than {BATCH} bytes"
    await channel.close(None)


async def test_a_batch_that_is_too_large_fails_whoever_waits_for_it_and_is_not_sent_again(idle: Any) -> None:
    execution = await accepted(idle)
    plane, channel = plane_at(idle.address, idle.token)
    line = Line(plane, execution, worker="test:1")
    large = pb.Event(tool_finished=pb.ToolFinished(call="1.0", result="x" * (8 << 20)))
    async with asyncio.timeout(DEADLINE):
        began = await line.begin()
        assert not isinstance(began, str)
        with pytest.raises(JournalError, match=r"batch 1 of .* is larger than"):
            await line.append(began.no, 1, batch=1, events=[large] * 8, told=lambda done: None)
    await line.close()
    await channel.close(None)


async def test_what_is_said_in_one_turn_is_one_batch_until_it_is_sent(idle: Any) -> None:
    """What joined a batch that the server has already would be lost."""
    execution = await accepted(idle)
    plane, channel = plane_at(idle.address, idle.token)
    line = Line(plane, execution, worker="test:1")
    first, second, third = (pb.Event(tool_finished=pb.ToolFinished(call=f"{n}.0")) for n in (1, 2, 3))
    async with asyncio.timeout(DEADLINE):
        began = await line.begin()
        assert not isinstance(began, str)
        stored = line.append(began.no, began.attempt, batch=1, events=[first], told=lambda done: None)
        assert line.join(stored, [second])
        await stored
        assert not line.join(stored, [third])
        await line.append(began.no, began.attempt, batch=2, events=[third], told=lambda done: None)
    async with idle.client() as client, asyncio.timeout(DEADLINE):
        found: list[str] = []
        async for event in client.watch(execution):
            found += [event.tool_finished.call] if event.HasField("tool_finished") else []
            if len(found) == 3:
                break
    assert found == ["1.0", "2.0", "3.0"]
    known = [r.tool_finished.call for r in await line.replay(began.no) if r.HasField("tool_finished")]
    assert known == found
    await line.close()
    await channel.close(None)


async def test_a_worker_is_ready_while_the_control_plane_lets_it_in(idle: Any) -> None:
    await idle.start(engine="temporal")
    plane, channel = plane_at(idle.address, idle.token)
    stranger, other = plane_at(idle.address, "x" * 64)
    async with asyncio.timeout(DEADLINE):
        await _Health(plane).checks["server"]()
        with pytest.raises(StigmerError, match="UNAUTHENTICATED"):
            await _Health(stranger).checks["server"]()
        await idle.stop()
        with pytest.raises(StigmerError, match="UNAVAILABLE"):
            await _Health(plane).checks["server"]()
    await channel.close(None)
    await other.close(None)


async def test_a_worker_that_cannot_say_its_whole_version_does_not_start(
    idle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPORAL_DEPLOYMENT_NAME", "stigmer")
    with pytest.raises(
        StigmerError, match="TEMPORAL_DEPLOYMENT_NAME is set and TEMPORAL_WORKER_BUILD_ID is not"
    ):
        await work(idle.home, target="127.0.0.1:1", token="x" * 64, beside=True)
