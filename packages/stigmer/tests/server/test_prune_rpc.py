"""Pruning over a real server: on request and on the timer, with the setting read anew; what runs is never touched."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from graphton.testing import FakeProviders
from stigmer.api import event_pb2 as pb
from stigmer.client import RemoteError
from stigmer.config import Retention
from stigmer.errors import ConfigError
from stigmer.server._retention import Pruner
from stigmer.store import Store, new_id

DEADLINE = 30.0
COMMAND = {"calls": [{"name": "run_command", "arguments": {"command": "echo hi"}}]}


async def test_what_has_ended_goes_and_a_watcher_of_it_hears_not_found(
    serving: Any, fake: FakeProviders
) -> None:
    fake.script({"replies": [{"text": "one"}, {"text": "two"}, COMMAND]})
    await serving.run("first", session="new")
    await serving.run("second")
    async with serving.client() as client:
        waits = (await client.create(serving.request("third"))).execution.id
        await serving.until(client, waits, lambda e: e.HasField("waiting"))
        _, second, first = [one.id for one in await client.list()]
        found = await client.prune(older_than_days=0, dry_run=True)
        assert (found.executions, found.sessions, found.compacted) == (2, 1, False)
        assert found.bytes > 1000
        assert len(await client.list()) == 3
        found = await client.prune(older_than_days=0, keep=1)
        assert (found.executions, found.older_than_days, found.keep) == (1, 0, 1)
        assert found.compacted
        assert [one.id for one in await client.list()] == [waits, second]
        with pytest.raises(RemoteError) as caught:
            _ = [event async for event in client.watch(first)]
        assert (caught.value.code, caught.value.message) == (
            "not_found",
            f"there is no execution {first!r}",
        )
        assert (await client.get(waits)).state == "waiting"
        assert (await client.prune(older_than_days=1)).executions == 0


async def test_without_a_word_on_what_may_go_nothing_goes(serving: Any, fake: FakeProviders) -> None:
    fake.script({"replies": [{"text": "one"}]})
    await serving.run("first")
    async with serving.client() as client:
        with pytest.raises(RemoteError, match="nothing says what may go") as caught:
            await client.prune()
        assert caught.value.code == "usage"
        assert "stigmer prune --older-than 90" in caught.value.hint
        (serving.home.path / "config.yaml").write_text("retention: {days: 30, keep: 7}\n")
        found = await client.prune()
        assert (found.older_than_days, found.keep, found.executions) == (30, 7, 0)
        (serving.home.path / "config.yaml").write_text("retention: {dys: 30}\n")
        with pytest.raises(RemoteError, match=r"unknown key 'dys' in `retention:`.*did you mean 'days'"):
            await client.prune()
        assert len(await client.list()) == 1


async def test_the_environment_goes_before_the_file_and_a_wrong_variable_stops_the_server(
    idle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STIGMER_RETENTION_KEEP", "many")
    with pytest.raises(ConfigError, match="STIGMER_RETENTION_KEEP 'many' is not a whole number of exec"):
        await idle.start()
    monkeypatch.setenv("STIGMER_RETENTION_KEEP", "5")
    (idle.home.path / "config.yaml").write_text("retention: {days: 30, keep: 7}\n")
    await idle.start()
    async with idle.client() as client:
        found = await client.prune()
    assert (found.older_than_days, found.keep) == (30, 5)


async def ended(store: Store) -> str:
    row, _ = await store.accept(new_id(), b"request", events=[pb.Event(created=pb.Created(task="t"))])
    await store.control(row.no, [pb.Event(finished=pb.Finished(outcome="completed"))])
    return row.id


async def test_the_timer_prunes_while_nothing_runs_and_leaves_what_has_just_ended(tmp_path: Path) -> None:
    now = [time.time()]
    store = Store(tmp_path / "stigmer.db", clock=lambda: now[0])
    said, runs = [Retention()], [True]
    asked: asyncio.Queue[str] = asyncio.Queue()

    def retention() -> Retention:
        asked.put_nowait("setting")
        return said[0]

    def busy() -> bool:
        asked.put_nowait("busy")
        return runs[0]

    async def rounds() -> set[str]:
        """What the timer asks in two whole rounds from now."""
        while not asked.empty():
            asked.get_nowait()
        async with asyncio.timeout(DEADLINE):
            return {await asked.get() for _ in range(6)}

    old = [await ended(store) for _ in range(3)]
    now[0] += 7200
    young = [await ended(store) for _ in range(3)]
    pruner = Pruner(store, retention=retention, busy=busy, look=0.001, rest=0.001)
    keeping = asyncio.create_task(pruner.keep())
    try:
        assert await rounds() == {"busy"}
        runs[0] = False
        assert await rounds() == {"busy", "setting"}
        assert len(await store.page(organisation="default", limit=10)) == 6  # Nobody set it: nothing goes.
        said[0] = Retention(keep=1)
        await rounds()
        assert [row.id for row in reversed(await store.page(organisation="default", limit=10))] == young
        assert await store.get(old[0]) is None
        said[0] = Retention(days=1)
        now[0] += 86_400 + 60
        await rounds()
        assert await store.page(organisation="default", limit=10) == []
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await store.close()


async def test_a_busy_server_gives_the_room_back_later(tmp_path: Path) -> None:
    store = Store(tmp_path / "stigmer.db")
    await ended(store)
    pruner = Pruner(store, retention=Retention, busy=lambda: True)
    pruned = await pruner.prune(Retention(days=0))
    assert (pruned.executions, pruned.compacted) == (1, False)
    await store.close()


async def test_a_database_that_servers_share_is_pruned_while_something_runs(postgres: Any) -> None:
    url = postgres.database()
    store = await Store.open(url)
    old = await ended(store)
    young = await ended(store)
    postgres.run(f"UPDATE executions SET finished_ms = 1 WHERE id = '{old}'", on=url.rpartition("/")[2])
    looked: asyncio.Queue[None] = asyncio.Queue()

    def retention() -> Retention:
        looked.put_nowait(None)
        return Retention(days=1)

    pruner = Pruner(store, retention=retention, busy=lambda: True, look=0.001, rest=0.001)
    keeping = asyncio.create_task(pruner.keep())
    try:
        async with asyncio.timeout(DEADLINE):
            while await store.get(old) is not None:
                await looked.get()
        assert await store.get(young) is not None
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await store.close()
