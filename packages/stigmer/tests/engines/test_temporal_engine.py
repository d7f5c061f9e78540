"""What the engine on Temporal asks of Temporal, seen from Temporal's side."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from stigmer.api import event_pb2 as pb
from stigmer.api import service_pb2 as api
from stigmer.engines.temporal.connection import TemporalAway, TemporalWorkflows, connect
from stigmer.engines.temporal.engine import TemporalEngine
from stigmer.runner import Runner
from stigmer.secrets import Keys
from stigmer.server.workers import Attended
from stigmer.store import Row, Store, new_id

DEADLINE = 30.0


class Temporal:
    """Hears what is asked of it, in order."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self._news = asyncio.Event()

    async def start(self, execution: str) -> None:
        self._hear("start", execution)

    async def wake(self, execution: str) -> None:
        self._hear("wake", execution)

    async def reachable(self) -> None:
        """It always is."""

    def _hear(self, word: str, execution: str) -> None:
        self.asked.append((word, execution))
        self._news.set()

    async def until(self, *words: str, row: Row) -> None:
        """Until these words came last about this execution."""
        async with asyncio.timeout(DEADLINE):
            while tuple(word for word, id in self.asked if id == row.id)[-len(words) :] != words:
                self._news.clear()
                await self._news.wait()


async def accept(store: Store, *, session: str) -> Row:
    request = api.CreateExecutionRequest(task="Go.", session=session)
    row, _ = await store.accept(
        new_id(),
        request.SerializeToString(),
        events=[pb.Event(created=pb.Created(task="Go."))],
        session=session,
    )
    return row


@pytest.mark.parametrize("dies", ["before", "after"])
async def test_the_next_of_a_session_is_called_although_the_server_that_owed_it_the_word_died(
    tmp_path: Path, dies: str
) -> None:
    """Its workflow has begun, found it in line, and waits for a word: a start that finds it there is none."""
    store = Store(tmp_path / "stigmer.db")
    first, second = await accept(store, session="ses_1"), await accept(store, session="ses_1")
    end = [pb.Event(finished=pb.Finished(outcome="completed"))]
    if dies == "before":
        await store.control(first.no, end)
    temporal = Temporal()
    engine = TemporalEngine(store, Runner(tmp_path, Keys()), temporal, lease=0.3)
    await engine.start()
    if dies == "after":
        await temporal.until("start", row=second)
        await store.control(first.no, end)
    await temporal.until("wake", row=second)
    await temporal.until(
        "start", "start", "start", row=second
    )  # It is looked at ever again, but called no more.
    await engine.stop()
    await store.close()


async def test_a_temporal_that_takes_the_call_and_says_nothing_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else what was asked would never be asked again."""
    held: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda reader, writer: held.append(writer), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    monkeypatch.setenv("TEMPORAL_ADDRESS", f"127.0.0.1:{port}")
    workflows = TemporalWorkflows(await connect(lazy=True), queue="q", limit=0.5)
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(TemporalAway, match=r"Temporal did not answer within 0.5 s"):
            await workflows.wake("exec_1")
        with pytest.raises(TemporalAway, match=r"Temporal at '127.0.0.1:\d+' did not answer within 0.5 s"):
            await connect(limit=0.5)
    for writer in held:
        writer.close()
    silent.close()
    await silent.wait_closed()


async def test_an_attempt_that_begins_while_leases_are_renewed_is_not_taken_for_the_lost_one(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path / "stigmer.db")
    row = await accept(store, session="ses_1")
    engine = TemporalEngine(store, Runner(tmp_path, Keys()), Temporal())
    attempts = [await engine.take_over(row, worker=f"test:{n}") for n in (1, 2)]
    assert attempts == [1, 2]
    first, second = (Attended(store, row, n, seen=row.seq) for n in (1, 2))
    engine.attend(first)
    renewing = asyncio.create_task(engine._renew())
    await asyncio.sleep(0)  # It waits for the store.
    engine.attend(second)
    await renewing
    told = await anext(first.messages())
    assert told.refused.code == "fenced"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(second.messages()), 0.05)
    await engine.stop()
    await store.close()
