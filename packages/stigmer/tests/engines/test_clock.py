"""A clock that is set, forward or back, while a run works, waits or lies in a dead daemon's database, harms none."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from graphton.testing import FakeProviders
from stigmer.api import event_pb2 as pb
from stigmer.engines.embedded import EmbeddedEngine
from stigmer.runner import Runner
from stigmer.store import Row, Store

HOUR, MONTH = 3600, 30 * 24 * 3600
DEADLINE = 30.0


class Clock:
    """This machine's, set by so many seconds."""

    def __init__(self) -> None:
        self.set_by = 0.0

    def __call__(self) -> float:
        return time.time() + self.set_by


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def begin(house: Any, clock: Clock) -> None:
    """Another process takes the home over, whose clock we hold."""
    await house.close()
    house.store = Store(house.database, clock=clock)
    house.engine = EmbeddedEngine(house.store, Runner(house.home, house.keys), lease=0.3)
    await house.engine.start()


@pytest.mark.parametrize("jump", [-MONTH, -HOUR, HOUR, MONTH])
async def test_a_run_goes_on_over_a_jump_of_the_clock(
    alone: Any, fake: FakeProviders, clock: Clock, jump: int
) -> None:
    await begin(alone, clock)
    fake.call("run_command", {"command": "until [ -e go ]; do sleep 0.02; done; echo line >> out.txt"})
    fake.reply("Done.")
    row: Row = await alone.accept("Go.", approve_all=True, budget=pb.Budget(seconds=7000))
    await alone.until(row, lambda r: r.HasField("process_started"))
    clock.set_by = jump
    commits = alone.store.commits
    async with asyncio.timeout(DEADLINE):
        while alone.store.commits < commits + 3:  # noqa: ASYNC110  (leases are renewed meanwhile: nobody tells of it)
            await asyncio.sleep(0.01)
    (alone.workspace / "go").touch()
    assert (await alone.finished(row)).text == "Done."
    assert [r.attempt_started.attempt for r in await alone.records(row) if r.HasField("attempt_started")] == [
        1
    ]
    assert (alone.workspace / "out.txt").read_text() == "line\n"


@pytest.mark.parametrize("jump", [-MONTH, -HOUR, HOUR, MONTH])
async def test_what_a_dead_daemon_left_goes_on_whatever_its_clock_said(
    alone: Any, fake: FakeProviders, clock: Clock, jump: int
) -> None:
    """Its lease may seem to hold for a month yet."""
    clock.set_by = -jump
    await begin(alone, clock)
    row: Row = await alone.accept("Go.", submit=False)
    assert await alone.store.claim(row.no, worker="dead:1", lease=10) == 1
    clock.set_by = 0
    fake.reply("Done.")
    await begin(alone, clock)
    assert (await alone.finished(row)).text == "Done."
    ends = [r.attempt_ended.outcome for r in await alone.records(row) if r.HasField("attempt_ended")]
    assert ends == ["lost", "done"]


async def test_an_answer_is_taken_after_the_clock_was_set_back(
    alone: Any, fake: FakeProviders, clock: Clock
) -> None:
    await begin(alone, clock)
    fake.call("run_command", {"command": "echo line >> out.txt"})
    fake.reply("Done.")
    row: Row = await alone.accept("Go.")
    await alone.waiting(row)
    clock.set_by = -MONTH
    await alone.decide(row, "approved")
    assert (await alone.finished(row)).text == "Done."
