"""Several servers on one PostgreSQL database: leases decide who runs what, and every server can be asked about it."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from typing import Any

import psutil
import pytest
from graphton.testing import FakeProviders
from stigmer.api import event_pb2 as pb
from stigmer.engines._here import has_ended, here

DEADLINE = 60.0


def ends(records: list[pb.Event]) -> list[str]:
    return [record.attempt_ended.outcome for record in records if record.HasField("attempt_ended")]


def workers(records: list[pb.Event]) -> list[str]:
    return [record.attempt_started.worker for record in records if record.HasField("attempt_started")]


def whole(records: list[pb.Event]) -> bool:
    return [record.seq for record in records] == list(range(1, len(records) + 1))


async def test_another_server_sees_a_run_as_it_happens(servers: Any, fake: FakeProviders) -> None:
    one, two = await servers(), await servers()
    fake.reply("Done.")
    row = await one.accept("Go.", submit=False)
    watcher = two.store.feed.join(row.no)
    one.engine.submit(row.id)
    async with asyncio.timeout(DEADLINE):
        while (await two.store.get(row.id)).finished_ms is None:
            await watcher.news()
            watcher.take()
    two.store.feed.leave(row.no, watcher)
    assert (await two.records(row))[-1].finished.text == "Done."


async def test_the_run_of_a_dead_server_is_taken_over_when_its_lease_has_run_out(
    servers: Any, fake: FakeProviders
) -> None:
    one, two = await servers(), await servers()
    (one.workspace / "a.txt").write_text("42")
    fake.call("read_file", {"path": "a.txt"})
    fake.reply("It is 42.")
    row = await one.accept("Read.", submit=False)
    # What a server that died leaves: an attempt that has asked and had its reply, and a lease.
    assert await one.store.claim(row.no, worker="elsewhere:1", lease=1.0) == 1
    died = one.store.now_ms
    assert (await two.store.claim(row.no, worker="early", lease=1.0)) is None
    await asyncio.wait_for(two.until(row, lambda r: r.HasField("finished")), DEADLINE)
    records = await two.records(row)
    assert whole(records)
    assert records[-1].finished.text == "It is 42."
    assert ends(records) == ["lost", "done"]
    (lost,) = [r for r in records if r.HasField("attempt_ended") and r.attempt_ended.outcome == "lost"]
    assert lost.time_ms - died >= 900
    assert workers(records)[0] == "elsewhere:1"
    assert len(workers(records)) == 2


async def test_a_zombie_that_wakes_up_stops_and_changes_nothing(servers: Any, fake: FakeProviders) -> None:
    one = await servers()
    fake.reply("never whole", stall_after=2)
    fake.reply("Done.")
    row = await one.accept("Go.")
    (asked,) = await fake.wait_for_requests(1)
    one.engine._keeper.cancel()  # It renews no lease any more: the process was stopped, or its machine slept.
    two = await servers()
    assert (
        await asyncio.wait_for(two.until(row, lambda r: r.HasField("finished")), DEADLINE)
    ).finished.text == "Done."
    await asyncio.wait_for(one.store.renew([(row.no, 1)], lease=10), DEADLINE)
    one.engine._keeper = asyncio.create_task(one.engine._keep())
    await asyncio.wait_for(asked.disconnected.wait(), DEADLINE)
    records = await two.records(row)
    assert whole(records)
    assert ends(records) == ["lost", "done"]
    assert records[-1].HasField("finished")


async def test_a_run_that_is_handed_over_goes_on_at_once(servers: Any, fake: FakeProviders) -> None:
    one, two = await servers(), await servers()
    fake.reply("half", stall_after=2)
    fake.reply("Done.")
    row = await one.accept("Go.")
    await fake.wait_for_requests(1)
    await one.engine.stop()
    await asyncio.wait_for(two.until(row, lambda r: r.HasField("finished")), DEADLINE)
    records = await two.records(row)
    assert whole(records)
    assert ends(records) == ["shutdown", "done"]


async def test_cancel_through_any_server_reaches_the_one_that_runs_it(
    servers: Any, fake: FakeProviders
) -> None:
    one, two = await servers(), await servers()
    fake.call("run_command", {"command": "sleep 600"})
    row = await one.accept("Sleep.", approve_all=True)
    started = await asyncio.wait_for(one.until(row, lambda r: r.HasField("process_started")), DEADLINE)
    process = psutil.Process(started.process_started.pid)
    assert await asyncio.wait_for(two.engine.cancel(row.id, by="ann"), DEADLINE)
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    records = await two.records(row)
    assert whole(records)
    assert records[-1].finished.outcome == "cancelled"
    assert ends(records) == ["done"]
    assert one.engine.running == 0


async def test_cancel_of_a_dead_servers_run_ends_when_its_lease_has_run_out(
    servers: Any, fake: FakeProviders
) -> None:
    one = await servers()
    row = await one.accept("Go.", submit=False)
    await one.store.claim(row.no, worker="elsewhere:1", lease=1.0)
    assert await asyncio.wait_for(one.engine.cancel(row.id, by="ann"), DEADLINE)
    records = await one.records(row)
    assert records[-1].finished.outcome == "cancelled"
    assert whole(records)
    assert not fake.chats


async def test_a_decision_through_another_server_lets_a_run_go_on(servers: Any, fake: FakeProviders) -> None:
    one, two = await servers(), await servers()
    fake.call("run_command", {"command": "echo done > out.txt"})
    fake.reply("Done.")
    row = await one.accept("Write.")
    await one.waiting(row)
    await two.decide(row)
    await asyncio.wait_for(one.until(row, lambda r: r.HasField("finished")), DEADLINE)
    assert (one.workspace / "out.txt").read_text() == "done\n"
    assert len(fake.chats) == 2
    assert whole(await one.records(row))


async def test_many_runs_over_two_servers_each_run_once(servers: Any, fake: FakeProviders) -> None:
    one, two = await servers(), await servers()
    for n in range(20):
        fake.reply(f"Done {n}.")
    rows = [await house.accept("Go.") for _ in range(10) for house in (one, two)]
    for row in rows:
        other = two if rows.index(row) % 2 == 0 else one
        await asyncio.wait_for(other.until(row, lambda r: r.HasField("finished")), DEADLINE)
        records = await other.records(row)
        assert whole(records)
        assert ends(records) == ["done"]
    assert len(fake.chats) == 20


async def test_processes_of_another_machine_are_left_alone(servers: Any, fake: FakeProviders) -> None:
    fake.reply("Done.")
    fake.reply("Done.")
    processes = []
    one = await servers()
    for host in ("elsewhere", socket.gethostname()):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "import time; time.sleep(600)", start_new_session=True
        )
        processes.append(process)
        row = await one.accept("Go.", submit=False)
        await one.store.claim(row.no, worker=f"{host}:1", lease=0)
        begun = psutil.Process(process.pid).create_time()
        started = pb.ProcessStarted(call="1.0", pid=process.pid, start_time=begun)
        await one.store.control(row.no, [pb.Event(process_started=started)])
        await asyncio.wait_for(one.until(row, lambda r: r.HasField("finished")), DEADLINE)
    assert processes[0].returncode is None, "this number means another process there"
    await asyncio.wait_for(processes[1].wait(), DEADLINE)
    processes[0].kill()
    await processes[0].wait()


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_accepted_runs_go_on_when_the_database_comes_back(
    servers: Any, postgres: Any, fake: FakeProviders, how: str
) -> None:
    one, two = await servers(), await servers()
    for n in range(1, 7):
        (one.workspace / f"{n}.txt").write_text(str(n))
        (two.workspace / f"{n}.txt").write_text(str(n))
    fake.rule(_reads_six_files)
    rows = [await house.accept("Read them all.") for house in (one, two, one)]
    await fake.wait_for_requests(5)
    await asyncio.to_thread(getattr(postgres, how))
    await asyncio.to_thread(postgres.start)
    for row in rows:
        await asyncio.wait_for(one.until(row, lambda r: r.HasField("finished")), DEADLINE)
        records = await one.records(row)
        assert whole(records)
        assert records[-1].finished.text == "All read.", records[-1].finished.error.message
        replies = [r.model_replied.step for r in records if r.HasField("model_replied")]
        assert replies == list(range(1, 8)), "each step has one reply"
        dispatched = [r.tool_dispatched.call for r in records if r.HasField("tool_dispatched")]
        assert len(set(dispatched)) == 6


def _reads_six_files(request: Any) -> Any:
    from graphton.testing import Call, Reply

    done = len(request.tool_results)
    return (
        Reply(text="All read.")
        if done == 6
        else Reply(calls=(Call("read_file", {"path": f"{done + 1}.txt"}),))
    )


def _who_died() -> str:
    """A process of this machine that has ended."""
    done = subprocess.run(
        [sys.executable, "-c", "from stigmer.engines._here import here; print(here())"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux says which boot and which processes these are"
)
async def test_what_a_dead_server_of_this_machine_held_goes_on_at_the_next_start(
    servers: Any, fake: FakeProviders
) -> None:
    """Its lease, which is for servers that cannot see whether it lives, is not waited for."""
    fake.reply("Done.")
    one = await servers()
    row = await one.accept("Go.", submit=False)
    assert await one.store.claim(row.no, worker="here:1", lease=600, process=_who_died()) == 1
    await servers()
    await asyncio.wait_for(one.until(row, lambda r: r.HasField("finished")), DEADLINE)
    assert ends(await one.records(row)) == ["lost", "done"]


@pytest.mark.parametrize(
    "process",
    [
        "",
        pytest.param("the boot before this one pid:[4026531836] 1 1", id="another-boot"),
        pytest.param(None, id="a-living-one"),
    ],
)
async def test_what_a_server_holds_that_lives_or_may_live_is_left_to_it(
    servers: Any, fake: FakeProviders, process: str | None
) -> None:
    one = await servers()
    held = await one.accept("Held.", submit=False)
    assert await one.store.claim(
        held.no, worker="w", lease=600, process=here() if process is None else process
    )
    two = await servers()
    fake.reply("Done.")
    other = await two.accept("Go.")
    await asyncio.wait_for(two.until(other, lambda r: r.HasField("finished")), DEADLINE)
    assert (await two.store.get(held.id)).epoch == 1
    assert ends(await two.records(held)) == []


def test_a_number_that_was_given_to_another_process_says_that_the_first_has_ended() -> None:
    *machine, pid, born = here().split(" ")
    assert not has_ended(here())
    assert has_ended(" ".join([*machine, pid, str(int(born) - 1)]))
    assert not has_ended(" ".join([*machine[:-1], "pid:[1]", pid, "1"])), "its numbers count elsewhere"
