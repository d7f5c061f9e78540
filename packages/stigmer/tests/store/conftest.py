"""Both databases, behind one face: each test of the contract runs on SQLite and on PostgreSQL."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from stigmer.store import Store
from stigmer.store._dialect import migrations


@dataclass
class Database:
    """An empty database; `open` gives one server's store on it."""

    kind: str
    where: Path | str
    server: Any = None
    opened: list[Store] = field(default_factory=list)

    async def open(self) -> Store:
        store = await Store.open(self.where)
        self.opened.append(store)
        return store

    def run(self, script: str) -> list[Any]:
        """Runs SQL beside the stores."""
        if isinstance(self.where, str):
            return list(self.server.run(script, on=self.where.rpartition("/")[2]))
        db = sqlite3.connect(self.where)
        try:
            if ";\n" in script:
                db.executescript(script)
                return []
            with db:
                return db.execute(script).fetchall()
        finally:
            db.close()

    def migrate(self, version: int) -> None:
        """What a program that knew only the first `version` migrations would have made."""
        for script in migrations(dialect=self.kind)[:version]:
            self.run(script)
        if self.kind == "sqlite":
            self.run(f"PRAGMA user_version = {version}")
            return
        self.run("CREATE TABLE stigmer_schema (version BIGINT NOT NULL)")
        self.run(f"INSERT INTO stigmer_schema SELECT generate_series(1, {version})")

    def version(self) -> int:
        """The schema's version."""
        sqlite = self.kind == "sqlite"
        ((version,),) = self.run(
            "PRAGMA user_version" if sqlite else "SELECT max(version) FROM stigmer_schema"
        )
        return int(version)

    async def size(self, store: Store) -> int:
        """Bytes of the events on disk."""
        await store.rest()
        if isinstance(self.where, Path):
            return self.where.stat().st_size
        self.run("CHECKPOINT")
        ((size,),) = self.run("SELECT pg_total_relation_size('events') + pg_total_relation_size('originals')")
        return int(size)

    def check(self) -> None:
        """Nothing in the files is broken."""
        if self.kind == "sqlite":
            assert self.run("PRAGMA integrity_check") == [("ok",)]

    async def close(self) -> None:
        for store in self.opened:
            await store.close()


@pytest.fixture(params=["sqlite", "postgres"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    if request.param == "sqlite":
        database = Database("sqlite", tmp_path / "stigmer.db")
    else:
        server = request.getfixturevalue("postgres")
        database = Database("postgres", server.database(), server)
    yield database
    await database.close()


@pytest.fixture
async def store(database: Database) -> Store:
    return await database.open()
