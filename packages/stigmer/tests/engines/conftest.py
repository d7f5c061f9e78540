"""A store, an engine and a model server on real parts; executions are accepted without the gRPC server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from graphton.testing import FakeProviders
from stigmer.api import event_pb2 as pb
from stigmer.api import service_pb2 as api
from stigmer.engines.embedded import EmbeddedEngine
from stigmer.runner import Runner
from stigmer.secrets import Keys
from stigmer.store import Row, Store, new_id

DEADLINE = 30.0
KEY = "sk-sentinel-0123456789abcdef"


def kind(record: pb.Event) -> str:
    return str(record.WhichOneof("kind"))


class House:
    """One home with its store and engine; `restart` is what a new process would find."""

    def __init__(self, home: Path, fake: FakeProviders, *, database: Path | str | None = None) -> None:
        self.home, self.fake = home, fake
        home.mkdir(exist_ok=True)
        self.database = database or home / "stigmer.db"
        self.workspace = home.parent / "work"
        self.workspace.mkdir(exist_ok=True)
        self.keys = Keys()
        self.lease = 10.0
        self.open()

    def open(self) -> None:
        self.store = Store(self.database)
        self.engine = EmbeddedEngine(self.store, Runner(self.home, self.keys), lease=self.lease)

    async def restart(self, *, keys: Keys | None = None) -> None:
        """Stops in good order and starts anew on the same database."""
        await self.close()
        self.keys = keys or self.keys
        self.open()
        await self.engine.start()

    async def close(self) -> None:
        await self.engine.stop()
        await self.store.close()

    def config(self) -> pb.ConfigResolved:
        model = pb.ResolvedModel(
            provider="openai",
            model="gpt-4.1",
            base_url=self.fake.openai_url,
            has_key=True,
            max_tokens=1000,
        )
        return pb.ConfigResolved(models=[model])

    async def accept(self, task: str, *, submit: bool = True, key: str | None = KEY, **fields: Any) -> Row:
        fields.setdefault("workspace", str(self.workspace))
        request = api.CreateExecutionRequest(task=task, **fields)
        id = new_id()
        if key is not None:
            self.keys.put(id, key, organisation="default", provider="openai", base_url=self.fake.openai_url)
        row, _ = await self.store.accept(
            id,
            request.SerializeToString(),
            events=[pb.Event(created=pb.Created(task=task)), pb.Event(config_resolved=self.config())],
        )
        if submit:
            self.engine.submit(row.id)
        return row

    async def records(self, row: Row) -> list[pb.Event]:
        return await self.store.replay(row.no)

    async def kinds(self, row: Row) -> list[str]:
        return [kind(record) for record in await self.records(row)]

    async def until(self, row: Row, wanted: Callable[[pb.Event], bool]) -> pb.Event:
        """The first record, stored or live, of which `wanted` is true; another server may have written it."""
        watcher = self.store.feed.join(row.no)
        try:
            async with asyncio.timeout(DEADLINE):
                while True:
                    watcher.take()
                    watcher.stale = False
                    for record in await self.records(row):
                        if wanted(record):
                            return record
                    while not (watcher.behind or watcher.stale):
                        await watcher.news()
                        if watcher.behind:
                            break
                        for _, body in watcher.take():
                            record = pb.Event.FromString(body)
                            if wanted(record):
                                return record
        finally:
            self.store.feed.leave(row.no, watcher)

    async def finished(self, row: Row) -> pb.Finished:
        return (await self.until(row, lambda r: r.HasField("finished"))).finished

    async def waiting(self, row: Row) -> pb.Waiting:
        """Waits until the attempt has ended too: nothing is held any more."""

        def ended(record: pb.Event) -> bool:
            return record.HasField("attempt_ended") and record.attempt_ended.outcome == "waiting"

        await self.until(row, ended)
        async with asyncio.timeout(DEADLINE):
            while tasks := [t for t in asyncio.all_tasks() if t.get_name() == f"execution {row.id}"]:
                await asyncio.wait(tasks)
        return [r for r in await self.records(row) if r.HasField("waiting")][-1].waiting

    async def decide(self, row: Row, decision: str = "approved", *, reason: str = "") -> None:
        asked = [r for r in await self.records(row) if r.HasField("approval_requested")][-1]
        decided = pb.ApprovalDecided(
            call=asked.approval_requested.call,
            digest=asked.approval_requested.digest,
            decision=decision,
            by="ann",
            reason=reason,
        )
        await self.store.control(row.no, [pb.Event(path=asked.path, approval_decided=decided)])
        self.engine.wake(row.id)


@pytest.fixture
async def fake() -> AsyncIterator[FakeProviders]:
    async with FakeProviders() as fake:
        yield fake


@pytest.fixture(params=["sqlite", "postgres"])
async def house(request: pytest.FixtureRequest, tmp_path: Path, fake: FakeProviders) -> AsyncIterator[House]:
    """One server, on either database."""
    shared = request.getfixturevalue("postgres").database() if request.param == "postgres" else None
    house = House(tmp_path / "home", fake, database=shared)
    await house.engine.start()
    yield house
    await house.close()


@pytest.fixture
async def alone(tmp_path: Path, fake: FakeProviders) -> AsyncIterator[House]:
    """The one server of a home, on SQLite."""
    house = House(tmp_path / "home", fake)
    await house.engine.start()
    yield house
    await house.close()


@pytest.fixture
async def servers(
    postgres: Any, tmp_path: Path, fake: FakeProviders
) -> AsyncIterator[Callable[[], Awaitable[House]]]:
    """Starts one server after another on one PostgreSQL database; each knows the key, as from its environment."""
    shared = postgres.database()
    houses: list[House] = []

    async def start() -> House:
        house = House(tmp_path / f"home{len(houses)}", fake, database=shared)
        houses.append(house)
        house.keys.put("any", KEY, organisation="default", provider="openai", base_url=fake.openai_url)
        house.lease = 1.5
        house.engine = EmbeddedEngine(house.store, Runner(house.home, house.keys), lease=house.lease)
        await house.engine.start()
        return house

    yield start
    for house in houses:
        await house.close()
