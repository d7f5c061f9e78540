"""What every store promises: order, fencing, one answer per batch, an end that is final, nothing lost by a kill."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from graphton.errors import Fenced
from stigmer.api import event_pb2 as pb
from stigmer.store import Moved, Row, Store, StoreError, new_id
from stigmer.store import _dialect as dialect
from stigmer.store._dialect import migrations

DEADLINE = 60.0


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


async def test_a_repeated_batch_gets_the_first_answer_and_changes_nothing(store: Store) -> None:
    row = await accept(store)
    await store.claim(row.no, worker="w", lease=10)
    first = await store.append(row.no, 1, batch=1, events=[notice("a"), notice("b")])
    again = await store.append(row.no, 1, batch=1, events=[notice("a"), notice("b")])
    assert first == again == 3
    assert await seqs(store, row) == [1, 2, 3, 4]
    with pytest.raises(StoreError, match="batch 3 of attempt 1 is out of order: the last one was 1"):
        await store.append(row.no, 1, batch=3, events=[notice("gap")])


async def test_what_joins_an_append_before_it_is_committed_is_of_its_batch(store: Store) -> None:
    row = await accept(store)
    await store.claim(row.no, worker="w", lease=10)
    heard: list[int] = []
    first = store.append(
        row.no, 1, batch=1, events=[notice("a")], told=lambda done: heard.append(done.result())
    )
    assert store.join(first, [notice("b")])
    assert (await first, heard) == (3, [3])
    assert not store.join(first, [notice("too late")])
    await store.append(row.no, 1, batch=2, events=[notice("c")])
    assert [e.notice.text for e in (await store.replay(row.no))[2:]] == ["a", "b", "c"]
    assert await store.append(row.no, 1, batch=2, events=[notice("c")]) == 5


async def test_what_must_survive_a_power_cut_makes_the_append_that_it_joins_do_so(store: Store) -> None:
    row = await accept(store)
    await store.claim(row.no, worker="w", lease=10)
    first = store.append(row.no, 1, batch=1, events=[notice("a")])
    assert store.join(first, [finished()])
    await asyncio.sleep(0)  # The turn in which everything but a durable commit is done.
    assert not first.done()
    await first
    found = await store.get(row.id)
    assert found is not None
    assert found.finished_ms is not None


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
    page = await store.page(organisation="default", limit=2)
    assert [r.id for r in page] == [rows[4].id, rows[3].id]
    assert [r.id for r in (await store.page(organisation="default", limit=9, before=page[-1].no))] == [
        rows[i].id for i in (2, 1, 0)
    ]
    assert [r.id for r in (await store.page(organisation="default", limit=9, state="failed"))] == [rows[2].id]
    assert (await store.count("queued")) == 4
    assert len(await store.unfinished()) == 4


def test_ids_sort_by_time_of_making() -> None:
    ids = [new_id(now) for now in (1.0, 2.0, 1_800_000_000.0, 1_800_000_000.001)]
    assert ids == sorted(ids)
    assert all(len(i) == len("exec_") + 26 for i in ids)
    assert len({new_id(5.0) for _ in range(1000)}) == 1000


async def until(tried: Callable[[], Awaitable[Any]]) -> Any:
    """What `tried` gives as soon as it gives something."""
    async with asyncio.timeout(DEADLINE):
        while True:
            if answer := await tried():
                return answer
            await asyncio.sleep(0.02)


async def test_a_held_lease_is_nobody_elses_until_it_runs_out(database: Any) -> None:
    one, two = await database.open(), await database.open()
    row = await accept(one)
    assert await one.claim(row.no, worker="one", lease=1.0) == 1
    assert await two.claim(row.no, worker="two", lease=1.0) is None
    assert await one.renew([(row.no, 1)], lease=1.5) == []
    renewed = one.now_ms
    assert await until(lambda: two.claim(row.no, worker="two", lease=600)) == 2
    assert two.now_ms >= renewed + 1400
    assert await one.renew([(row.no, 1)], lease=10) == [row.no]
    with pytest.raises(Fenced, match="attempt 2 owns the execution now"):
        await one.append(row.no, 1, batch=1, events=[notice("late")])


async def test_two_writers_have_one_fence(database: Any) -> None:
    one, two = await database.open(), await database.open()
    row = await accept(one)
    epochs = await asyncio.gather(
        *(store.claim(row.no, worker="w", lease=600) for store in (one, two) for _ in range(5))
    )
    assert sorted(epoch for epoch in epochs if epoch is not None) == [1]
    answers = await asyncio.gather(
        *(s.append(row.no, 1, batch=1, events=[notice(name)]) for s, name in ((one, "one"), (two, "two")))
    )
    assert answers == [3, 3], "the same batch twice is the same batch, whoever sends it"
    assert await seqs(two, row) == [1, 2, 3]


async def test_writers_beside_each_other_leave_no_gap_and_no_double(database: Any) -> None:
    stores = [await database.open() for _ in range(3)]
    row = await accept(stores[0])
    await asyncio.gather(
        *(store.control(row.no, [notice(f"{i}.{n}")]) for i, store in enumerate(stores) for n in range(20))
    )
    events = await stores[1].replay(row.no)
    assert [e.seq for e in events] == list(range(1, 62))
    texts = [e.notice.text for e in events[1:]]
    for i in range(3):
        assert [t for t in texts if t.startswith(f"{i}.")] == [f"{i}.{n}" for n in range(20)]


async def test_a_batch_whose_answer_was_lost_is_sent_again_to_another_server(database: Any) -> None:
    one = await database.open()
    row = await accept(one)
    await one.claim(row.no, worker="w", lease=600)
    first = await one.append(row.no, 1, batch=1, events=[notice("a"), dispatched("write")])
    await one.close()
    two = await database.open()
    again = await two.append(row.no, 1, batch=1, events=[notice("a"), dispatched("write")])
    assert first == again == 3
    assert await two.append(row.no, 1, batch=2, events=[notice("b")]) == 5
    assert await seqs(two, row) == [1, 2, 3, 4, 5]


async def test_an_attempt_is_lost_once_and_its_zombie_is_fenced(database: Any) -> None:
    one, two = await database.open(), await database.open()
    row = await accept(one)
    await one.claim(row.no, worker="one", lease=600)
    found = await two.get(row.id)
    assert not await two.lose(found), "its lease is held"
    assert sorted(await asyncio.gather(*(s.lose(found, expired=False) for s in (one, two)))) == [False, True]
    with pytest.raises(Fenced, match="attempt 1 is over: it was given up as lost"):
        await one.append(row.no, 1, batch=1, events=[notice("late")])
    assert await one.renew([(row.no, 1)], lease=10) == [row.no]
    assert await two.claim(row.no, worker="two", lease=600) == 2
    assert [e.WhichOneof("kind") for e in await two.replay(row.no)] == [
        "created", "attempt_started", "attempt_ended", "attempt_started",
    ]  # fmt: skip


async def test_what_nobody_drives_is_found(store: Store) -> None:
    queued, held, left, done = [await accept(store) for _ in range(4)]
    await store.claim(held.no, worker="w", lease=600)
    await store.claim(left.no, worker="w", lease=0)
    await store.control(done.no, [finished()])
    assert [row.id for row in await store.abandoned(idle=600)] == [left.id]
    assert [row.id for row in await store.abandoned(idle=0)] == [queued.id, left.id]


async def test_a_lease_of_an_attempt_that_has_ended_is_not_renewed(store: Store) -> None:
    row = await accept(store)
    await store.claim(row.no, worker="w", lease=600)
    ended = pb.Event(attempt_ended=pb.AttemptEnded(attempt=1, outcome="shutdown"))
    await store.append(row.no, 1, batch=1, events=[ended])
    assert await store.renew([(row.no, 1)], lease=600) == [row.no]
    assert await store.claim(row.no, worker="next", lease=600) == 2


async def test_a_decision_about_an_older_look_is_refused(store: Store) -> None:
    row = await accept(store)
    assert await store.control(row.no, [notice("first")], seen=1) == 2
    with pytest.raises(Moved, match="has grown since event 1"):
        await store.control(row.no, [notice("second")], seen=1)
    await store.control(row.no, [finished()], seen=2)
    with pytest.raises(Fenced):
        await store.control(row.no, [notice("late")], seen=3)


async def test_a_zero_byte_in_a_key_harms_nobody_else(store: Store) -> None:
    with pytest.raises(StoreError, match="zero byte"):
        store.accept(new_id(), b"", events=[notice("x")], idempotency_key="a\0b")
    await accept(store, key="ключ 🔑 'quoted' %s :no")
    assert await store.by_idempotency_key("ключ 🔑 'quoted' %s :no", organisation="default") is not None


async def test_an_event_of_256_kib_is_kept_and_sent_whole(store: Store) -> None:
    row = await accept(store)
    room = 256 * 1024 - notice("").ByteSize()
    event = notice("x" * (room - 20))
    await store.control(row.no, [event] * 3)
    assert 256 * 1024 - 20 < event.ByteSize() <= 256 * 1024
    page = await store.events(row.no, 2)
    assert [len(body) for _, body in page] == [event.ByteSize()] * 3
    assert (await store.replay(row.no))[1].notice.text == event.notice.text
    assert [seq for seq, _ in await store.events(row.no, 2, room=300_000)] == [2, 3]


async def test_bytes_per_event_are_constant(database: Any) -> None:
    store = await database.open()
    row = await accept(store)
    await store.claim(row.no, worker="w", lease=600)
    sizes = []
    for part in range(4):
        for n in range(8):
            events = [notice(f"{i:04d}" + "x" * 996) for i in range(50)]
            await store.append(row.no, 1, batch=part * 8 + n + 1, events=events)
        sizes.append(await database.size(store))
    grown = [after - before for before, after in itertools.pairwise(sizes)]
    assert max(grown) - min(grown) <= 0.06 * max(grown), grown
    assert max(grown) / 400 < 1400


def test_migrations_are_numbered_without_a_gap_or_a_double() -> None:
    """Their place is the schema's version: a second 0003 would be left out where the first one is there already."""
    folder = Path(dialect.__file__).with_name("migrations")
    names = {name.name.partition(".")[0] for name in folder.iterdir() if name.suffix == ".sql"}
    assert [name[:4] for name in sorted(names)] == [f"{n:04}" for n in range(1, len(names) + 1)]
    assert len(migrations()) == len(names)


async def test_a_database_of_a_newer_program_is_refused_untouched(database: Any) -> None:
    database.migrate(len(migrations()))
    if database.kind == "sqlite":
        database.run("PRAGMA user_version = 99")
    else:
        database.run("INSERT INTO stigmer_schema VALUES (99)")
    with pytest.raises(
        StoreError, match=r"written by a newer stigmer \(schema 99, this program knows"
    ) as caught:
        await database.open()
    assert "hint: upgrade" in str(caught.value)
    assert database.version() == 99


async def test_a_database_of_the_first_version_is_brought_up_to_date(database: Any) -> None:
    database.migrate(1)
    body = pb.Event(seq=1, created=pb.Created(task="old")).SerializeToString().hex()
    blob = f"x'{body}'" if database.kind == "sqlite" else f"'\\x{body}'"
    database.run(
        "INSERT INTO executions (id, request, state, seq, created_ms)"
        f" VALUES ('exec_old', {blob}, 'queued', 1, 5)"
    )
    database.run(f"INSERT INTO events (key, body) VALUES ({1 << 24 | 1}, {blob})")
    one, two = await asyncio.gather(database.open(), database.open())
    assert database.version() == len(migrations())
    row = await one.get("exec_old")
    assert (row.no, row.seq, row.created_ms) == (1, 1, 5)
    assert await two.claim(row.no, worker="w", lease=600) == 1
    assert [e.WhichOneof("kind") for e in await one.replay(row.no)] == ["created", "attempt_started"]
    assert (await accept(two)).no == 2


WRITER = """
import asyncio, sys
from pathlib import Path
from stigmer.api import event_pb2 as pb
from stigmer.store import Store, new_id

async def main():
    where = sys.argv[1]
    store = await Store.open(where if "://" in where else Path(where))
    row, _ = await store.accept(new_id(), b"", events=[pb.Event(created=pb.Created(task="t"))])
    await store.claim(row.no, worker="w", lease=1)
    for n in range(1, 1_000_000):
        effect = "write" if n % 7 == 0 else "read"
        call = pb.Event(tool_dispatched=pb.ToolDispatched(call=str(n), effect=effect))
        seq = await store.append(row.no, 1, batch=n, events=[call, pb.Event(notice=pb.Notice(text=str(n)))])
        print(row.id, n, seq, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("acknowledged", [1, 60, 333])
async def test_a_killed_writer_loses_nothing_it_was_told_is_written(database: Any, acknowledged: int) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, str(database.where), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    last = [await process.stdout.readline() for _ in range(acknowledged)][-1].decode().split()
    process.kill()
    await process.communicate()
    store = await database.open()
    row = await store.get(last[0])
    assert row is not None
    assert await until(lambda: store.claim(row.no, worker="heir", lease=600)) == 2
    *events, started = await store.replay(row.no)
    assert started.attempt_started.worker == "heir"
    assert [e.seq for e in events] == list(range(1, started.seq))
    assert len(events) >= int(last[2]) + 1
    calls = [int(e.tool_dispatched.call) for e in events if e.WhichOneof("kind") == "tool_dispatched"]
    notes = [int(e.notice.text) for e in events if e.WhichOneof("kind") == "notice"]
    assert calls == notes == list(range(1, len(calls) + 1))
    assert len(calls) >= acknowledged
    await store.close()
    database.check()
