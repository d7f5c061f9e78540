"""Folders of executions, on both databases: each is given up with the last execution that had it, and not before."""

from __future__ import annotations

from typing import Any

from stigmer.api import event_pb2 as pb
from stigmer.store import Row, Store, new_id
from stigmer.store._dialect import migrations

LATER = 1 << 61


async def ended(store: Store, folder: str, *, session: str = "") -> Row:
    """An execution with files in this folder that has ended."""
    created = pb.Event(created=pb.Created(task="t", session=session))
    row, _ = await store.accept(new_id(), b"request", events=[created], session=session, folder=folder)
    await store.control(row.no, [pb.Event(finished=pb.Finished(outcome="completed"))])
    return row


async def gone(store: Store, *folders: str, before_ms: int = LATER) -> list[str]:
    return sorted(await store.folders_gone(folders, before_ms=before_ms))


async def prune(store: Store, *, keep: int = 0) -> int:
    return await store.prune(await store.expendable(before_ms=LATER, keep=keep))


async def test_a_folder_is_given_up_with_its_session(store: Store) -> None:
    for _ in range(2):
        await ended(store, "volume/ses_1", session="ses_1")
    await ended(store, "volume/ses_2", session="ses_2")
    await ended(store, "")
    folders = ("volume/ses_1", "worker/ses_1", "volume/ses_2", "volume/ses_3")
    assert await gone(store, *folders) == []
    before = store.now_ms - 10  # The database's clock is known to a millisecond.
    assert await store.delete_session("ses_1", organisation="default") == 2
    assert await gone(store, *folders) == ["volume/ses_1"]
    assert await gone(store, *folders, before_ms=before) == []
    assert await prune(store) == 2
    assert await gone(store, *folders) == ["volume/ses_1", "volume/ses_2"]
    await store.forget_folders(before_ms=before)
    assert await gone(store, *folders) == ["volume/ses_1", "volume/ses_2"]
    await store.forget_folders(before_ms=LATER)
    assert await gone(store, *folders) == []


async def test_a_retry_keeps_the_folder_of_what_it_goes_on_from(store: Store) -> None:
    first, again = await ended(store, "worker/exec_1"), await ended(store, "worker/exec_1")
    assert await prune(store, keep=1) == 1
    assert await store.get(first.id) is None
    assert await gone(store, "worker/exec_1") == []
    assert await prune(store) == 1
    assert await store.get(again.id) is None
    assert await gone(store, "worker/exec_1") == ["worker/exec_1"]


async def test_a_folder_that_somebody_has_again_stays(store: Store) -> None:
    """A retry that was accepted at the moment at which the execution that it goes on from was deleted."""
    await ended(store, "volume/exec_1")
    assert await prune(store) == 1
    await ended(store, "volume/exec_1")
    assert await gone(store, "volume/exec_1") == []


async def test_what_was_there_before_folders_were_noted_lets_none_go(database: Any) -> None:
    database.migrate(6)
    assert len(migrations()) > 6
    empty = "x''" if database.kind == "sqlite" else "''"
    database.run(
        "INSERT INTO executions (id, request, state, created_ms, finished_ms)"
        f" VALUES ('exec_old', {empty}, 'completed', 5, 5)"
    )
    store = await database.open()
    assert await prune(store) == 1
    assert await gone(store, "volume/exec_old") == []
    database.check()
