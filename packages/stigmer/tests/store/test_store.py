"""What every store promises: order, fencing, one answer per batch, an end that is final, nothing lost by a kill."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from graphton.errors import Fenced
from stigmer.api import event_pb2 as pb
from stigmer.store import Row, Store, StoreError, new_id


def notice(text: str) -> pb.Event:
    return pb.Event(notice=pb.Notice(code="test", text=text))


def finished(outcome: str = "completed") -> pb.Event:
    return pb.Event(finished=pb.Finished(outcome=outcome))


def dispatched(effect: str) -> pb.Event:
    return pb.Event(tool_dispatched=pb.ToolDispatched(call="1.0", name="t", effect=effect))


async def accept(store: Store, key: str = "") -> Row:
    row, _ = await store.accept(
        new_id(), b"request", events=[pb.Event(created=pb.Created(task="t"))], idempotency_key=key
    )
    return row


async def seqs(store: Store, row: Row) -> list[int]:
    return [seq for seq, _ in await store.events(row.no, 1)]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(tmp_path / "stigmer.db")
    yield store
    await store.close()


async def test_an_accepted_execution_has_its_record_at_once(store: Store) -> None:
    row = await accept(store)
    assert (row.state, row.seq, row.epoch) == ("queued", 1, 0)
    assert (await store.get(row.id)) == row
    assert (await store.get("exec_unknown")) is None
    (event,) = await store.replay(row.no)
    assert event.seq == 1
    assert event.created.task == "t"
    assert event.time_ms == row.created_ms


async def test_the_same_idempotency_key_gives_the_first_execution(store: Store) -> None:
    first = await accept(store, key="once")
    again, created = await store.accept(new_id(), b"other", events=[notice("x")], idempotency_key="once")
    assert not created
    assert again.id == first.id
    both = await asyncio.gather(
        store.accept(new_id(), b"", events=[notice("x")], idempotency_key="twice"),
        store.accept(new_id(), b"", events=[notice("x")], idempotency_key="twice"),
    )
    assert both[0][0].id == both[1][0].id
    assert [created for _, created in both] == [True, False]


async def test_the_database_is_readable_by_its_owner_alone(store: Store) -> None:
    await accept(store)
    for file in store._dialect.path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


async def test_sequence_numbers_rise_by_one_whoever_appends(store: Store) -> None:
    row = await accept(store)
    epoch = await store.claim(row.no, worker="w", lease=10)
    assert epoch == 1
    await asyncio.gather(
        store.append(row.no, 1, batch=1, events=[notice("a"), notice("b")]),
        store.control(row.no, [notice("c")]),
        store.append(row.no, 1, batch=2, events=[notice("d")]),
    )
    events = await store.replay(row.no)
    assert [e.seq for e in events] == [1, 2, 3, 4, 5, 6]
    assert [e.notice.text for e in events[2:]] == ["a", "b", "c", "d"]


async def test_an_old_epoch_is_fenced_off(store: Store) -> None:
    row = await accept(store)
    await store.claim(row.no, worker="zombie", lease=0)
    assert await store.claim(row.no, worker="heir", lease=10) == 2
    with pytest.raises(Fenced, match="attempt 2 owns the execution now"):
        await store.append(row.no, 1, batch=1, events=[notice("late")])
    assert [e.WhichOneof("kind") for e in (await store.replay(row.no))] == [
        "created", "attempt_started", "attempt_started",
    ]  # fmt: skip


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


async def test_a_repeated_batch_gets_the_first_answer_and_changes_nothing(store: Store) -> None:
    row = await accept(store)
    await store.claim(row.no, worker="w", lease=10)
    first = await store.append(row.no, 1, batch=1, events=[notice("a"), notice("b")])
    again = await store.append(row.no, 1, batch=1, events=[notice("a"), notice("b")])
    assert first == again == 3
    assert await seqs(store, row) == [1, 2, 3, 4]
    with pytest.raises(StoreError, match="batch 3 of attempt 1 is out of order: the last one was 1"):
        await store.append(row.no, 1, batch=3, events=[notice("gap")])


async def test_finished_is_final(store: Store) -> None:
    row = await accept(store)
    await store.claim(row.no, worker="w", lease=10)
    await store.append(row.no, 1, batch=1, events=[finished()])
    for late in (
        store.append(row.no, 1, batch=2, events=[notice("late")]),
        store.control(row.no, [notice("late")]),
    ):
        with pytest.raises(Fenced, match="the execution has finished"):
            await late
    assert await store.claim(row.no, worker="w", lease=10) is None
    found = await store.get(row.id)
    assert found is not None
    assert found.state == "completed"
    assert found.finished_ms is not None
    assert await seqs(store, row) == [1, 2, 3]


async def test_a_refused_append_does_not_disturb_the_others_of_its_group(store: Store) -> None:
    one, two = await accept(store), await accept(store)
    await store.claim(one.no, worker="w", lease=10)
    bad = store.append(one.no, 7, batch=1, events=[notice("zombie")])
    good = store.control(two.no, [notice("good")])
    assert await good == 2
    with pytest.raises(Fenced):
        await bad


async def test_what_is_asked_in_one_tick_is_one_commit(store: Store) -> None:
    rows = [await accept(store) for _ in range(20)]
    before = store.commits
    await asyncio.gather(*(store.control(row.no, [notice("x")]) for row in rows for _ in range(5)))
    assert store.commits == before + 1
    assert await seqs(store, rows[0]) == [1, 2, 3, 4, 5, 6]


async def test_writes_wait_for_a_durable_commit_and_join_the_next(store: Store) -> None:
    row = await accept(store)
    await store.claim(row.no, worker="w", lease=10)
    before = store.commits
    durable = store.append(row.no, 1, batch=1, events=[dispatched("write")])
    await asyncio.sleep(0)
    later = [store.append(row.no, 1, batch=n, events=[notice(str(n))]) for n in range(2, 12)]
    assert await durable == 3
    assert await asyncio.gather(*later) == list(range(4, 14))
    assert store.commits == before + 2


async def test_events_are_published_after_the_commit_with_the_stored_bytes(store: Store) -> None:
    row = await accept(store)
    watcher = store.feed.join(row.no)
    pending = store.control(row.no, [notice("a"), dispatched("write")])
    assert watcher.take() == []
    await pending
    assert watcher.take() == (await store.events(row.no, 2))


async def test_an_event_above_the_limit_is_sent_cut_and_replayed_whole(store: Store) -> None:
    row = await accept(store)
    huge = "ä" * 400_000
    call = pb.ToolCall(call="1.0", name="write_file", arguments=b'{"text": "' + b"x" * 400_000 + b'"}')
    reply = pb.ModelReplied(step=1, blocks=[pb.Block(text=huge), pb.Block(tool_call=call)])
    await store.control(row.no, [pb.Event(model_replied=reply)])
    ((_, body),) = await store.events(row.no, 2)
    assert len(body) <= 256 * 1024
    sent = pb.Event.FromString(body).model_replied
    assert "[cut: 400000 characters in all]" in sent.blocks[0].text
    assert sent.blocks[1].tool_call.arguments == b'{"cut": "400012 bytes"}'
    assert (await store.replay(row.no))[1].model_replied == reply


async def test_an_event_of_many_small_parts_is_cut_too(store: Store) -> None:
    row = await accept(store)
    reply = pb.ModelReplied(step=1, blocks=[pb.Block(text="y" * 100)] * 5000)
    await store.control(row.no, [pb.Event(model_replied=reply)])
    ((_, body),) = await store.events(row.no, 2)
    assert len(body) <= 256 * 1024
    assert (await store.replay(row.no))[1].model_replied == reply


async def test_pages_are_bounded_and_lose_nothing(store: Store) -> None:
    row = await accept(store)
    await store.control(row.no, [notice("x" * 1000) for _ in range(99)])
    first = await store.events(row.no, 1, limit=40)
    assert [seq for seq, _ in first] == list(range(1, 41))
    assert [seq for seq, _ in (await store.events(row.no, 41, room=5000))] == [41, 42, 43, 44, 45]
    assert [seq for seq, _ in (await store.events(row.no, 99, room=1))] == [99]


async def test_executions_are_listed_newest_first_in_pages(store: Store) -> None:
    rows = [await accept(store) for _ in range(5)]
    await store.control(rows[2].no, [finished("failed")])
    page = await store.page(limit=2)
    assert [r.id for r in page] == [rows[4].id, rows[3].id]
    assert [r.id for r in (await store.page(limit=9, before=page[-1].no))] == [rows[i].id for i in (2, 1, 0)]
    assert [r.id for r in (await store.page(limit=9, state="failed"))] == [rows[2].id]
    assert (await store.count("queued")) == 4
    assert len(await store.unfinished()) == 4


async def test_a_waiting_execution_is_due_when_its_time_has_come(tmp_path: Path) -> None:
    now = 1000.0
    store = Store(tmp_path / "s.db", clock=lambda: now)
    row = await accept(store)
    await store.control(row.no, [pb.Event(waiting=pb.Waiting(reason="approval", expires_ms=1_005_000))])
    assert (await store.due()) == []
    now = 1006.0
    assert [r.id for r in (await store.due())] == [row.id]
    await store.close()


async def test_a_database_of_a_newer_program_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "stigmer.db"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match=r"written by a newer stigmer \(schema 99") as caught:
        Store(path)
    assert "hint: upgrade" in str(caught.value)


async def test_a_file_that_is_no_database_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "stigmer.db"
    path.write_text("this is no database, it is a letter to a friend\n" * 10)
    with pytest.raises(StoreError, match="cannot be opened"):
        Store(path)


async def test_a_refused_write_is_an_error_for_all_and_leaves_nothing(store: Store) -> None:
    row = await accept(store)
    blocker = sqlite3.connect(store._dialect.path, isolation_level=None)
    store._dialect.writer.execute("PRAGMA busy_timeout = 1")
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="refused a write: database is locked"):
        await store.control(row.no, [notice("x")])
    blocker.execute("ROLLBACK")
    blocker.close()
    assert await store.control(row.no, [notice("y")]) == 2


async def test_the_wal_file_is_emptied_at_rest(store: Store) -> None:
    row = await accept(store)
    await store.control(row.no, [notice("x" * 1000) for _ in range(500)])
    await store.rest()
    assert (store._dialect.path.parent / "stigmer.db-wal").stat().st_size == 0


async def test_bytes_per_event_are_constant(store: Store) -> None:
    row = await accept(store)
    sizes = []
    for _ in range(3):
        await store.control(row.no, [notice("x" * 1000) for _ in range(400)])
        await store.rest()
        sizes.append(store._dialect.path.stat().st_size)
    assert sizes[1] - sizes[0] == pytest.approx(sizes[2] - sizes[1], rel=0.02)
    assert (sizes[2] - sizes[1]) / 400 < 1400


def test_ids_sort_by_time_of_making() -> None:
    ids = [new_id(now) for now in (1.0, 2.0, 1_800_000_000.0, 1_800_000_000.001)]
    assert ids == sorted(ids)
    assert all(len(i) == len("exec_") + 26 for i in ids)
    assert len({new_id(5.0) for _ in range(1000)}) == 1000


WRITER = """
import asyncio, sys
from pathlib import Path
from stigmer.api import event_pb2 as pb
from stigmer.store import Store, new_id

async def main():
    store = Store(Path(sys.argv[1]))
    row, _ = await store.accept(new_id(), b"", events=[pb.Event(created=pb.Created(task="t"))])
    await store.claim(row.no, worker="w", lease=10)
    for n in range(1, 1_000_000):
        effect = "write" if n % 7 == 0 else "read"
        call = pb.Event(tool_dispatched=pb.ToolDispatched(call=str(n), effect=effect))
        seq = await store.append(row.no, 1, batch=n, events=[call, pb.Event(notice=pb.Notice(text=str(n)))])
        print(row.id, n, seq, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("acknowledged", [1, 60, 333])
async def test_a_killed_process_loses_nothing_it_was_told_is_written(
    tmp_path: Path, acknowledged: int
) -> None:
    path = tmp_path / "stigmer.db"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, str(path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    last = [await process.stdout.readline() for _ in range(acknowledged)][-1].decode().split()
    process.kill()
    await process.communicate()
    store = Store(path)
    row = await store.get(last[0])
    assert row is not None
    events = await store.replay(row.no)
    assert [e.seq for e in events] == list(range(1, row.seq + 1))
    assert row.seq >= int(last[2]) + 1
    calls = [int(e.tool_dispatched.call) for e in events if e.WhichOneof("kind") == "tool_dispatched"]
    notes = [int(e.notice.text) for e in events if e.WhichOneof("kind") == "notice"]
    assert calls == notes == list(range(1, len(calls) + 1))
    assert len(calls) >= acknowledged
    await store.close()
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
