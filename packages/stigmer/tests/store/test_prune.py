"""Pruning, on both databases: only what has ended goes, conversations stay whole, and nobody is held up."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from stigmer.api import event_pb2 as pb
from stigmer.store import Row, Store, new_id
from stigmer.store._dialect import query

MANY = 10_000
LATER = 1 << 61
"""After every moment: whatever has ended is old enough."""


def finished() -> pb.Event:
    return pb.Event(finished=pb.Finished(outcome="completed"))


async def accept(
    store: Store, *, session: str = "", ended: bool = True, text: str = "", organisation: str = "default"
) -> Row:
    created = pb.Event(created=pb.Created(task="t", session=session))
    row, _ = await store.accept(
        new_id(), b"request", events=[created], session=session, organisation=organisation
    )
    if ended:
        await store.control(row.no, [pb.Event(notice=pb.Notice(code="test", text=text)), finished()])
    return row


async def prune(store: Store, *, before_ms: int = LATER, keep: int = 0) -> int:
    return await store.prune(await store.expendable(before_ms=before_ms, keep=keep))


async def left(store: Store) -> list[str]:
    return [row.id for row in reversed(await store.page(organisation="default", limit=1000))]


async def test_only_what_has_ended_goes_with_all_its_events(database: Any) -> None:
    store = await database.open()
    gone = await accept(
        store, text="x" * 300_000
    )  # Too large to be sent: it is stored cut, and whole beside it.
    states = {}
    for state in ("queued", "running", "waiting"):
        row = states[state] = await accept(store, ended=False)
        if state != "queued":
            await store.claim(row.no, worker="w", lease=60)
        if state == "waiting":
            events = [
                pb.Event(waiting=pb.Waiting(reason="approval")),
                pb.Event(attempt_ended=pb.AttemptEnded()),
            ]
            await store.append(row.no, 1, batch=1, events=events)
    before = {state: await store.events(row.no, 1) for state, row in states.items()}
    found = await store.expendable(before_ms=LATER)
    assert await store.bytes_of(found) > 300_000
    assert await store.prune(found) == 1
    assert await store.prune(found) == 0  # Once more changes nothing.
    assert await store.get(gone.id) is None
    assert await store.replay(gone.no) == []
    assert await left(store) == [row.id for row in states.values()]
    assert {state: await store.events(row.no, 1) for state, row in states.items()} == before
    assert database.run("SELECT count(*) FROM originals") == [(0,)]


async def test_age_is_counted_from_the_end_and_the_newest_stay(store: Store) -> None:
    rows = [await accept(store) for _ in range(5)]
    ended = [found.finished_ms for row in rows if (found := await store.get(row.id)) is not None]
    assert await prune(store, before_ms=min(time for time in ended if time is not None)) == 0
    waiting = await accept(store, ended=False)  # It does not count among those that are kept.
    assert await prune(store, keep=2) == 3
    assert await left(store) == [rows[3].id, rows[4].id, waiting.id]
    assert await prune(store, keep=2) == 0


async def test_a_session_goes_as_a_whole_or_not_at_all(store: Store) -> None:
    open_ = [await accept(store, session="ses_open"), await accept(store, session="ses_open", ended=False)]
    old = [await accept(store, session="ses_old") for _ in range(3)]
    used = [await accept(store, session="ses_used")]
    alone = await accept(store)
    used.append(await accept(store, session="ses_used"))
    assert await prune(store, keep=1) == 4
    assert [await store.get(row.id) for row in (*old, alone)] == [None] * 4
    assert await left(store) == [row.id for row in (*open_, *used)]
    assert len(await store.earlier(used[1].no)) == 1


async def test_a_session_that_grows_after_it_was_found_stays(store: Store) -> None:
    first = await accept(store, session="ses_1")
    found = await store.expendable(before_ms=LATER)
    assert len(found) == 1
    second = await accept(store, session="ses_1", ended=False)
    assert await store.prune(found) == 0
    assert await left(store) == [first.id, second.id]


async def test_a_session_stays_whole_where_an_earlier_run_of_it_ended_last(store: Store) -> None:
    """The run behind it was cancelled while it stood in line."""
    first = await accept(store, session="ses_1", ended=False)
    behind = await accept(store, session="ses_1")
    assert await prune(store) == 0
    await store.control(first.no, [finished()])
    found = await store.get(first.id)
    assert found is not None
    assert found.finished_ms is not None
    assert await prune(store, before_ms=found.finished_ms) == 0
    assert await left(store) == [first.id, behind.id]
    assert await prune(store, before_ms=found.finished_ms + 1) == 2


async def test_the_newest_of_each_organisation_stay(store: Store) -> None:
    rows = [await accept(store, organisation=name) for name in ("a", "b", "a", "b", "c")]
    assert [one.organisation for one in await store.expendable(before_ms=LATER, keep=1)] == ["a", "b"]
    assert await prune(store, keep=2) == 0
    assert await prune(store, keep=1) == 2
    assert [row.id for row in rows if await store.get(row.id)] == [row.id for row in rows[2:]]


async def test_what_is_not_old_enough_is_not_read(database: Any) -> None:
    """Fifty thousand are kept; the database looks into an index for those that ended before a moment."""
    await database.open()
    empty = "x''" if database.kind == "sqlite" else "''"
    database.run(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000)"
        " INSERT INTO executions (id, request, state, created_ms, finished_ms)"
        f" SELECT 'exec_' || i, {empty}, 'completed', i, i FROM n"
    )
    database.run("ANALYZE")
    values = {
        "organisation": "'default'",
        "before": 100,
        "ended": 0,
        "after": 0,
        "below": LATER,
        "limit": 2000,
    }
    text = re.sub(r":([a-z]+)", lambda name: str(values[name[1]]), re.sub("--.*", "", query("ended")))
    assert len(database.run(text)) == 99
    plan = str(database.run(f"EXPLAIN {'QUERY PLAN' * (database.kind == 'sqlite')} {text}"))
    assert re.search(
        r"executions_ended \(organisation=\? AND finished_ms|Index Cond: .*finished_ms < 100", plan
    ), plan


async def fill(store: Store, count: int) -> None:
    """Executions that have ended, many in one transaction."""
    for _ in range(0, count, 500):
        created = pb.Event(created=pb.Created(task="t"))
        made = [store.accept(new_id(), b"request", events=[created]) for _ in range(500)]
        rows = [row for row, _ in await asyncio.gather(*made)]
        note = pb.Event(notice=pb.Notice(code="test", text="n" * 400))
        await asyncio.gather(*(store.control(row.no, [note, finished()]) for row in rows))


@pytest.mark.timeout(300)
async def test_ten_thousand_are_listed_and_pruned_while_others_run(database: Any) -> None:
    store = await database.open()
    first = await accept(store, ended=False)
    await fill(store, MANY)
    running = await accept(store, ended=False)
    await store.claim(running.no, worker="w", lease=60)
    seen, before = 0, None
    while page := await store.page(organisation="default", limit=200, before=before, state="completed"):
        seen, before = seen + len(page), page[-1].no
    assert seen == MANY
    full = await database.size(store)
    pruning = asyncio.create_task(prune(store))
    batch = 0
    while not pruning.done():  # Each append is answered while the prune goes on.
        batch += 1
        await store.append(running.no, 1, batch=batch, events=[pb.Event(notice=pb.Notice(code="test"))])
    assert batch > 10
    assert await pruning == MANY
    assert await left(store) == [first.id, running.id]
    assert len(await store.replay(running.no)) == batch + 2
    database.check()
    await store.compact()
    assert await store.slack() == 0
    if database.kind == "sqlite":
        assert await database.size(store) < full / 4
    await fill(store, MANY // 4)
    assert await database.size(store) < full * 1.1  # The room is used again.
    await store.append(running.no, 1, batch=batch + 1, events=[finished()])
    database.check()
