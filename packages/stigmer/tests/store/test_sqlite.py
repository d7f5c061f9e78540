"""What is SQLite's alone: one file for its owner, a clock that may be given, pragmas, a WAL file that does not grow."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from stigmer.api import event_pb2 as pb
from stigmer.runner import failure
from stigmer.store import Row, Store, StoreError, new_id


def notice(text: str) -> pb.Event:
    return pb.Event(notice=pb.Notice(code="test", text=text))


async def accept(store: Store) -> Row:
    row, _ = await store.accept(new_id(), b"", events=[pb.Event(created=pb.Created(task="t"))])
    return row


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "stigmer.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    store = Store(path)
    yield store
    await store.close()


async def test_the_database_is_readable_by_its_owner_alone(store: Store, path: Path) -> None:
    await accept(store)
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


async def test_a_held_lease_cannot_be_claimed_until_it_runs_out(tmp_path: Path) -> None:
    now = 1000.0
    store = Store(tmp_path / "s.db", clock=lambda: now)
    row = await accept(store)
    assert await store.claim(row.no, worker="a", lease=10) == 1
    assert await store.claim(row.no, worker="b", lease=10) is None
    now = 1009.0
    assert await store.renew([(row.no, 1)], lease=10) == []
    now = 1018.0
    assert await store.claim(row.no, worker="b", lease=10) is None
    now = 1020.0
    assert await store.claim(row.no, worker="b", lease=10) == 2
    assert await store.renew([(row.no, 1)], lease=10) == [row.no]
    await store.close()


async def test_a_waiting_execution_is_due_when_its_time_has_come(tmp_path: Path) -> None:
    now = 1000.0
    store = Store(tmp_path / "s.db", clock=lambda: now)
    row = await accept(store)
    await store.control(row.no, [pb.Event(waiting=pb.Waiting(reason="approval", expires_ms=1_005_000))])
    assert (await store.due()) == []
    now = 1006.0
    assert [r.id for r in (await store.due())] == [row.id]
    await store.close()


async def test_a_file_that_is_no_database_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "stigmer.db"
    path.write_text("this is no database, it is a letter to a friend\n" * 10)
    with pytest.raises(StoreError, match="cannot be opened") as refused:
        Store(path)
    assert refused.value.hint.endswith(f"move it away: mv {path} {path}.old")


async def test_a_refused_write_is_an_error_for_all_and_leaves_nothing(store: Store, path: Path) -> None:
    row = await accept(store)
    blocker = sqlite3.connect(path, isolation_level=None)
    store._dialect.writer.execute("PRAGMA busy_timeout = 1")  # type: ignore[attr-defined]  # SQLite's own
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="refused a write: database is locked"):
        await store.control(row.no, [notice("x")])
    blocker.execute("ROLLBACK")
    blocker.close()
    assert await store.control(row.no, [notice("y")]) == 2


@contextmanager
def as_one_who_may_not_write(path: Path) -> Iterator[None]:
    """The files are read-only, and we are nobody: root may write to anything."""
    files = [path, *path.parent.glob(f"{path.name}-*")]
    for file in files:
        file.chmod(0o444)
    path.parent.chmod(0o777)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for file in files:
            file.chmod(0o600)


async def test_a_read_only_file_is_named_as_the_cause_and_written_to_again_when_it_may_be(
    short_folder: Path,
) -> None:
    path = short_folder / "stigmer.db"
    before = Store(path)
    row = await accept(before)
    await before.close()
    with as_one_who_may_not_write(path):
        store = Store(path)
        for _ in range(2):
            with pytest.raises(StoreError, match="readonly") as refused:
                await store.control(row.no, [notice("x")])
            assert refused.value.hint.startswith(f"let stigmer write to it: ls -l {path}; chmod u+w {path}")
    assert await store.control(row.no, [notice("y")]) == 2
    assert [seq for seq, _ in await store.events(row.no, 1)] == [1, 2]
    await store.close()


async def test_a_full_database_asks_for_room_and_not_for_rights(store: Store, path: Path) -> None:
    row = await accept(store)
    store._dialect.writer.execute("PRAGMA max_page_count = 1")  # type: ignore[attr-defined]  # SQLite's own
    with pytest.raises(StoreError, match="full") as refused:
        await store.control(row.no, [notice("x" * 100_000)])
    assert refused.value.hint == f"make room on the disk: df -h {path.parent}"


async def test_a_value_that_no_database_takes_is_a_defect_and_not_a_full_disk(
    store: Store, tmp_path: Path
) -> None:
    with pytest.raises(StoreError) as refused:
        await store.accept(new_id(), object(), events=[pb.Event(created=pb.Created(task="t"))])  # type: ignore[arg-type]
    told = failure(refused.value, home=tmp_path, about="test")
    assert told.code == "internal"
    assert "Error" in told.message
    assert "disk" not in told.message + told.hint
    (report,) = (tmp_path / "reports").iterdir()
    assert str(report) in told.hint
    assert "Traceback" in report.read_text()


async def test_the_wal_file_is_emptied_at_rest(store: Store, path: Path) -> None:
    row = await accept(store)
    await store.control(row.no, [notice("x" * 1000) for _ in range(500)])
    await store.rest()
    assert (path.parent / "stigmer.db-wal").stat().st_size == 0
