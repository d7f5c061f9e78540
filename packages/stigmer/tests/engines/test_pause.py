"""Pause on both databases: what runs ends, nothing new starts, questions still expire, another server hears of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from graphton.errors import Fenced
from graphton.testing import FakeProviders
from stigmer.api import event_pb2 as pb
from stigmer.engines.embedded import going_on

HOLDS = "touch began; until [ -e go ]; do sleep 0.02; done; echo line >> out.txt"


async def asked_to_pause(house: Any, row: Any) -> None:
    """As the server does it."""
    events = [pb.Event(pause_requested=pb.PauseRequested(by="ann"))]
    found = await house.store.get(row.id)
    if found.state == "waiting":
        events.append(going_on([*await house.records(row), *events], (), by="ann"))
    await house.store.control(row.no, events)
    house.engine.wake(row.id)


async def resumed(house: Any, row: Any) -> None:
    await house.store.control(row.no, [pb.Event(resumed=pb.Resumed(by="ann"))])
    house.engine.wake(row.id)


async def until_it_holds(house: Any, row: Any) -> Path:
    await house.until(row, lambda r: r.HasField("process_started"))
    return house.workspace / "go"


async def test_a_pause_lets_the_tool_end_and_holds_nothing(house: Any, fake: FakeProviders) -> None:
    fake.call("run_command", {"command": HOLDS})
    fake.reply("Done.")
    row = await house.accept("Write.", approve_all=True)
    go = await until_it_holds(house, row)
    await asked_to_pause(house, row)
    await house.until(row, lambda r: r.HasField("pause_requested"))
    go.touch()
    assert (await house.waiting(row)).reason == "pause"
    assert house.engine.running == 0
    assert len(fake.chats) == 1
    await house.restart()
    assert house.engine.running == 0
    assert len(fake.chats) == 1
    await resumed(house, row)
    assert (await house.finished(row)).text == "Done."
    assert (house.workspace / "out.txt").read_text() == "line\n"


async def test_a_pause_that_is_taken_back_in_time_changes_nothing(house: Any, fake: FakeProviders) -> None:
    fake.call("run_command", {"command": HOLDS})
    fake.reply("Done.")
    row = await house.accept("Write.", approve_all=True)
    go = await until_it_holds(house, row)
    await asked_to_pause(house, row)
    await resumed(house, row)
    await asyncio.gather(*house.engine._errands)  # The attempt has heard both before its command ends.
    go.touch()
    assert (await house.finished(row)).text == "Done."
    assert "waiting" not in await house.kinds(row)


@pytest.mark.parametrize("moment", range(6))
async def test_pause_and_resume_at_any_moment_lose_nothing(
    house: Any, fake: FakeProviders, moment: int
) -> None:
    for n in range(3):
        fake.call("run_command", {"command": f"echo {n} >> out.txt"})
    fake.reply("Done.")
    row = await house.accept("Write.", approve_all=True)
    await house.until(row, lambda r: r.seq >= 3 + 2 * moment)
    with suppress(Fenced):  # It may have ended before either came.
        await asked_to_pause(house, row)
        await resumed(house, row)
    assert (await house.finished(row)).text == "Done."
    assert (house.workspace / "out.txt").read_text() == "0\n1\n2\n"
    assert len(fake.chats) == 4
    kinds = await house.kinds(row)
    assert kinds[-1] == "finished"


async def test_a_paused_run_is_cancelled_at_once(house: Any, fake: FakeProviders) -> None:
    fake.call("run_command", {"command": "echo done > out.txt"})
    row = await house.accept("Write.")
    await house.waiting(row)
    await asked_to_pause(house, row)
    assert await house.engine.cancel(row.id, by="ann")
    assert (await house.finished(row)).outcome == "cancelled"


async def test_a_question_expires_while_the_run_is_paused_and_it_stays_paused(
    alone: Any, fake: FakeProviders
) -> None:
    fake.call("run_command", {"command": "echo done > out.txt"})
    fake.reply("Nobody answered.")
    row = await alone.accept("Write.")
    await alone.waiting(row)
    await asked_to_pause(alone, row)
    await alone.close()
    alone.lease = 0.3
    alone.open()
    alone.store._dialect._clock = lambda: time.time() + 8 * 24 * 3600
    await alone.engine.start()
    await alone.until(row, lambda r: r.approval_decided.decision == "expired")
    assert (await alone.store.get(row.id)).state == "waiting"
    assert len(fake.chats) == 1
    assert not await alone.store.due()
    await resumed(alone, row)
    assert (await alone.finished(row)).text == "Nobody answered."


async def test_a_pause_that_another_server_was_asked_for_reaches_the_run(
    servers: Callable[[], Awaitable[Any]], fake: FakeProviders
) -> None:
    fake.call("run_command", {"command": HOLDS})
    fake.reply("Done.")
    one, other = await servers(), await servers()
    row = await one.accept("Write.", approve_all=True)
    go = await until_it_holds(one, row)
    await asked_to_pause(other, row)
    async with asyncio.timeout(30):
        while not one.engine._running[row.id].attempt.journal.pausing:  # noqa: ASYNC110  # It tells nobody.
            await asyncio.sleep(0.01)
    go.touch()
    assert (await one.waiting(row)).reason == "pause"
    await resumed(other, row)
    assert (await other.finished(row)).text == "Done."
