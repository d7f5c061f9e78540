"""Sessions in the store: one after the other, in order, on both databases and over several servers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest
from stigmer.api import event_pb2 as pb
from stigmer.store import Busy, Gone, Row, Store, new_id


async def accept(store: Store, session: str = "ses_1", *, alone: bool = False, joins: bool = False) -> Row:
    created = pb.Event(created=pb.Created(task="t", session=session))
    row, _ = await store.accept(
        new_id(), b"request", events=[created], session=session, alone=alone, joins=joins
    )
    return row


async def finish(store: Store, row: Row) -> None:
    await store.control(row.no, [pb.Event(finished=pb.Finished(outcome="completed"))])


async def claim(store: Store, row: Row) -> int | None:
    return await store.claim(row.no, worker="w", lease=10)


def test_ids_of_sessions_say_what_they_are() -> None:
    assert new_id(kind="ses").startswith("ses_")
    assert new_id().startswith("exec_")


async def test_none_begins_while_one_before_it_has_not_finished(store: Store) -> None:
    first, second, third = [await accept(store) for _ in range(3)]
    other, alone = await accept(store, "ses_2"), await accept(store, "")
    assert await claim(store, second) is None
    assert await claim(store, first) == 1
    assert await claim(store, second) is None
    assert (await claim(store, other), await claim(store, alone)) == (1, 1)
    await store.append(first.no, 1, batch=1, events=[pb.Event(waiting=pb.Waiting(reason="approval"))])
    assert await claim(store, second) is None  # Waiting is not the end.
    await finish(store, first)
    assert await store.next_of_session(first.no) == second
    assert await claim(store, third) is None
    assert await claim(store, second) == 1
    assert [row.id for row in await store.earlier(third.no)] == [first.id, second.id]
    assert await store.earlier(alone.no) == []
    assert await store.next_of_session(alone.no) is None


async def test_what_stands_in_line_is_not_taken_for_abandoned(store: Store) -> None:
    first, second = await accept(store), await accept(store)
    assert [row.id for row in await store.abandoned(idle=0)] == [first.id]
    await finish(store, first)
    assert [row.id for row in await store.abandoned(idle=0)] == [second.id]


async def test_one_that_wants_to_be_alone_is_refused_by_name_while_another_runs(store: Store) -> None:
    first = await accept(store, alone=True)
    with pytest.raises(Busy) as caught:
        await accept(store, alone=True)
    assert f"{first.id} of session 'ses_1' has not finished (queued)" in caught.value.message
    assert f"stigmer cancel {first.id}" in caught.value.hint
    both = await asyncio.gather(
        *(accept(store, "ses_2", alone=True) for _ in range(2)), return_exceptions=True
    )
    assert [type(one) for one in both] == [Row, Busy]
    await finish(store, first)
    await accept(store, alone=True)


async def test_sessions_are_listed_with_their_first_and_last_execution(store: Store) -> None:
    first = await accept(store)
    other = await accept(store, "ses_2")
    await accept(store, "")
    last = await accept(store)
    found = await store.sessions(organisation="default", limit=10)
    assert [(one.id, one.count, one.first.id, one.last.id) for one in found] == [
        ("ses_1", 2, first.id, last.id),
        ("ses_2", 1, other.id, other.id),
    ]
    assert len(await store.sessions(organisation="default", limit=1)) == 1
    assert [row.id for row in await store.of_session("ses_1", organisation="default")] == [first.id, last.id]
    assert await store.of_session("ses_3", organisation="default") == []


async def test_a_session_is_deleted_whole_and_nothing_else(store: Store) -> None:
    first, other = await accept(store), await accept(store, "ses_2")
    with pytest.raises(Busy, match=first.id):
        await store.delete_session("ses_1", organisation="default")
    await finish(store, first)
    last = await accept(store)
    await finish(store, last)
    assert await store.delete_session("ses_1", organisation="default") == 2
    assert (await store.get(first.id), await store.replay(first.no), await store.replay(last.no)) == (
        None,
        [],
        [],
    )
    assert await store.get(other.id) == other
    assert len(await store.replay(other.no)) == 1
    assert await store.delete_session("ses_1", organisation="default") == 0
    assert (await accept(store)).no > last.no  # Numbers are never used twice.


@pytest.mark.parametrize("how", ["deleted", "pruned"])
async def test_a_run_that_joins_a_session_as_it_goes_is_refused_or_keeps_it(store: Store, how: str) -> None:
    """Never does it begin with an empty conversation: both are asked for in one moment, in either order."""
    for first in ("joins", "goes"):
        row = await accept(store, f"ses_{first}")
        await finish(store, row)
        found = await store.expendable(before_ms=store.now_ms + 1_000)

        goes: Awaitable[Any] = (
            store.delete_session(f"ses_{first}", organisation="default")
            if how == "deleted"
            else store.prune(found)
        )
        works: list[Awaitable[Any]] = [accept(store, f"ses_{first}", joins=True), goes]
        joined, gone = 0, 1
        if first == "goes":
            works.reverse()
            joined, gone = 1, 0
        ends = await asyncio.gather(*works, return_exceptions=True)
        there = await store.of_session(f"ses_{first}", organisation="default")
        if isinstance(ends[joined], Gone):
            assert str(ends[joined]).startswith(f"there is no session 'ses_{first}'")
            assert there == []
        else:
            assert [one.id for one in there] == [row.id, ends[joined].id]
            assert isinstance(ends[gone], Busy) or ends[gone] == 0
