"""The store's journal: every event of the loop survives the way to the record and back, text is shown in order."""

from __future__ import annotations

import asyncio
import dataclasses
import typing
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from graphton import journal as g
from graphton.errors import Fenced
from graphton.messages import (
    AssistantMessage,
    Opaque,
    StopReason,
    Text,
    Thinking,
    ToolCall,
    Usage,
)
from stigmer import redact
from stigmer._translate import from_record, to_live, to_record
from stigmer.api import event_pb2 as pb
from stigmer.journal import StoreJournal, masked, open_questions, running_seconds
from stigmer.store import Row, Store, new_id

DIGEST = "ab" * 32
MESSAGE = AssistantMessage(
    (
        Thinking("hm", provider="anthropic", raw=b'{"signature":"x\x00y"}'),
        Opaque("anthropic", raw=b"\xff\xfe"),
        Text("häh \U0001f600"),
        ToolCall("read_file", {"path": "a", "n": 2**70, "x": [1.5, None]}, id="1.0", wire_id="toolu_1"),
        ToolCall("bad", {}, id="1.1", wire_id="toolu_2", malformed='{"a":'),
    ),
    stop=StopReason.TOOLS,
    usage=Usage(10, 5, 3, 2),
    model="m-1",
)
EVENTS: list[g.Event] = [
    g.ModelRequested("", 1, 2, "anthropic:m", "turn", DIGEST, 99, 0, "native"),
    g.ModelReplied("", 1, 2, "turn", MESSAGE, ("bill.txt was not looked at",)),
    g.ToolDispatched("", "1.0", "read_file", {"path": "ä"}, DIGEST, "read", "exec_1::1.0"),
    g.ProcessStarted("", "1.0", 4711, 1700000000.25),
    g.ToolFinished("", "1.0", "read_file", "text", True, 0.5),
    g.ToolOutcomeUnknown("", "1.0"),
    g.ApprovalRequested("", "1.0", "run_command", {"command": "ls"}, DIGEST),
    g.ApprovalDecided("", "1.0", DIGEST, "rejected", "ann", "no"),
    g.RuleMatched("", "1.0", DIGEST, "allow", "allow run_command (command: ls *)"),
    g.SubagentStarted("", "2.0", "researcher", steps=33, usd=0.5),
    g.SubagentFinished("", "2.0"),
    g.LoopWarned("", 3, 3),
    g.Compacted("", 4, 1, 0, 9, 3, 9000, 2000, 8000),
    g.Retrying("", 1, 2, 529, 0.5, "overloaded"),
    g.ArgumentsRepaired("", "1.0", {"n": "5"}, {"n": 5}),
    g.Fallback("", 3, "openai:gpt-4.1", "ollama:qwen3:8b", "down"),
    g.HistoryChanged("", 3),
    g.Notice("", "code", "text"),
]


def test_the_list_of_events_here_is_complete() -> None:
    assert {type(event) for event in EVENTS} == set(typing.get_args(g.Event))


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_comes_back_from_its_record_as_it_was(event: g.Event) -> None:
    record = pb.Event.FromString(to_record(event).SerializeToString())
    back = from_record(record)
    assert back == event
    if isinstance(event, g.ModelReplied):
        assert isinstance(back, g.ModelReplied)
        assert [b.raw for b in back.message.blocks if isinstance(b, (Thinking, Opaque))] == [
            b'{"signature":"x\x00y"}',
            b"\xff\xfe",
        ]


def test_a_key_that_follows_from_the_call_is_not_stored_and_another_one_is() -> None:
    own = g.ToolDispatched("/r@1.0", "2.0", "t", {}, DIGEST, "read", "exec_1:/r@1.0:2.0")
    assert to_record(own, execution="exec_1").tool_dispatched.idempotency_key == ""
    assert to_record(own, execution="exec_2").tool_dispatched.idempotency_key == "exec_1:/r@1.0:2.0"


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_no_text_breaks_a_record(event: g.Event) -> None:
    """Half surrogate pairs come out of JSON escapes; protobuf does not take them."""
    changes: dict[str, typing.Any] = {}
    for field in dataclasses.fields(event):
        value = getattr(event, field.name)
        if isinstance(value, dict):
            changes[field.name] = {"\ud800": "\udfff"}
        elif isinstance(value, str) and field.name in ("reason", "text", "result", "name", "by"):
            changes[field.name] = "bad \ud800 text"
    record = to_record(dataclasses.replace(event, **changes))
    assert from_record(pb.Event.FromString(record.SerializeToString())) is not None


def test_live_events_carry_the_attempt() -> None:
    live = [
        g.TextDelta("", 1, 2, 7, "t"),
        g.ThinkingDelta("", 1, 2, 7, "t"),
        g.StreamReset("", 1, 2),
        g.Progress("", "load", 1, 2, "MB", "x"),
    ]
    assert {type(event) for event in live} == set(typing.get_args(g.Live))
    records = [to_live(event, attempt=5) for event in live]
    assert [r.WhichOneof("kind") for r in records] == [
        "text_delta",
        "thinking_delta",
        "stream_reset",
        "progress",
    ]
    assert [records[0].text_delta.attempt, records[2].stream_reset.attempt] == [5, 5]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(tmp_path / "stigmer.db")
    yield store
    await store.close()


async def started(store: Store) -> tuple[Row, StoreJournal]:
    row, _ = await store.accept(new_id(), b"", events=[pb.Event(created=pb.Created(task="t"))])
    epoch = await store.claim(row.no, worker="w", lease=0)
    return row, StoreJournal(store, no=row.no, execution=row.id, epoch=epoch or 0)


def shown(store: Store, watched: list[tuple[int, bytes]]) -> list[str]:
    return [str(pb.Event.FromString(body).WhichOneof("kind")) for _, body in watched]


async def test_what_was_appended_answers_the_next_attempt(store: Store) -> None:
    row, journal = await started(store)
    for event in EVENTS:
        journal.append(event)
    await journal.commit()
    again = StoreJournal(store, no=row.no, execution=row.id, epoch=2, records=(await store.replay(row.no)))
    assert again.reply("", 1) == EVENTS[1]
    assert again.finished("", "1.0") == EVENTS[4]
    assert again.decision("", "1.0", DIGEST) == EVENTS[7]
    assert again.outcome_unknown("", "1.0")
    assert again.lost("") == journal.lost("")


async def test_appends_of_one_tick_are_one_commit_and_commit_waits_for_it(store: Store) -> None:
    row, journal = await started(store)
    before = store.commits
    for event in EVENTS:
        journal.append(event)
    assert len(await store.events(row.no, 1)) == 2
    await journal.commit()
    assert store.commits == before + 1
    assert len(await store.events(row.no, 1)) == 2 + len(EVENTS)


async def test_a_fenced_attempt_hears_of_it_and_writes_nothing(store: Store) -> None:
    failures: list[Exception] = []
    row, journal = await started(store)
    journal._on_failure = failures.append
    assert await store.claim(row.no, worker="heir", lease=0) == 2
    journal.append(EVENTS[0])
    with pytest.raises(Fenced):
        await journal.commit()
    journal.append(EVENTS[2])
    with pytest.raises(Fenced):
        await journal.commit()
    assert len(failures) == 1
    assert len(await store.events(row.no, 1)) == 3


async def test_what_is_appended_in_one_turn_of_the_loop_is_one_commit(store: Store) -> None:
    row, journal = await started(store)
    before = store.commits
    for number in range(1, 4):
        journal.append(g.Notice("", "n", f"{number} a"))
        journal.append(g.Notice("", "n", f"{number} b"))
        await journal.commit()
    told = [e.notice.text for e in await store.replay(row.no) if e.HasField("notice")]
    assert told[-6:] == ["1 a", "1 b", "2 a", "2 b", "3 a", "3 b"]
    assert store.commits - before == 3


async def test_who_stops_waiting_for_a_commit_stops_nobody_else(store: Store) -> None:
    row, journal = await started(store)
    journal.append(g.ToolDispatched("", "1.0", "t", {}, DIGEST, "write", ""))  # In the store's thread.
    gone, stays = (asyncio.ensure_future(journal.commit()) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    await stays
    assert (gone.cancelled(), len(await store.events(row.no, 3))) == (True, 1)


async def test_live_events_never_overtake_appended_ones(store: Store) -> None:
    row, journal = await started(store)
    watcher = store.feed.join(row.no)
    journal.append(g.ModelRequested("", 1, 1, "m:m", "turn", DIGEST, 9))
    journal.live(g.TextDelta("", 1, 1, 0, "a"))
    assert watcher.take() == []
    await journal.commit()
    journal.live(g.TextDelta("", 1, 1, 1, "b"))
    journal.append(g.ModelReplied("", 1, 1, "turn", MESSAGE))
    await journal.commit()
    await asyncio.sleep(0)
    assert shown(store, watcher.take()) == ["model_requested", "text_delta", "text_delta", "model_replied"]


async def test_a_watcher_is_told_together_what_happens_in_one_turn_of_the_loop(store: Store) -> None:
    row, journal = await started(store)
    watcher = store.feed.join(row.no)
    journal.live(g.TextDelta("", 1, 1, 0, "a"))
    journal.append(g.ModelReplied("", 1, 1, "turn", MESSAGE))
    journal.append(EVENTS[2])
    await asyncio.wait_for(watcher.news(), 10)
    assert shown(store, watcher.take()) == ["text_delta", "model_replied", "tool_dispatched"]


async def test_a_watcher_is_told_of_the_end_at_once_and_of_all_before_it(store: Store) -> None:
    row, journal = await started(store)
    watcher = store.feed.join(row.no)
    journal.append(EVENTS[0])
    await asyncio.wait_for(watcher.news(), 10)
    watcher.take()
    journal.append(EVENTS[2])
    journal.write([pb.Event(finished=pb.Finished(outcome="completed"))])
    await journal.commit()
    hearing = asyncio.ensure_future(watcher.news())
    await asyncio.sleep(0)
    assert hearing.done()
    assert shown(store, watcher.take()) == ["tool_dispatched", "finished"]


async def test_text_is_batched_but_the_first_piece_is_shown_at_once(store: Store) -> None:
    row, journal = await started(store)
    watcher = store.feed.join(row.no)
    journal.live(g.TextDelta("", 1, 1, 0, "0"))
    assert len(watcher.take()) == 1
    for n in range(1, 10):
        journal.live(g.TextDelta("", 1, 1, n, str(n)))
    assert watcher.take() == []
    await asyncio.wait_for(watcher.news(), 10)
    ((_, body),) = watcher.take()
    delta = pb.Event.FromString(body).text_delta
    assert (delta.offset, delta.text) == (1, "123456789")


async def test_a_late_watcher_gets_the_text_so_far_until_the_reply_is_whole(store: Store) -> None:
    row, journal = await started(store)
    journal.append(g.ModelRequested("", 1, 1, "m:m", "turn", DIGEST, 9))
    await journal.commit()
    journal.live(g.TextDelta("", 1, 1, 0, "so "))
    journal.live(g.TextDelta("", 1, 1, 3, "far"))
    journal.live(g.ThinkingDelta("/r@1.0", 2, 1, 0, "hm"))
    journal.append(EVENTS[-1])
    await journal.commit()
    await asyncio.sleep(0)
    partial = [pb.Event.FromString(body) for body in store.feed.partial(row.no)]
    assert [(e.path, e.text_delta.text, e.thinking_delta.text) for e in partial] == [
        ("", "so far", ""),
        ("/r@1.0", "", "hm"),
    ]
    journal.live(g.StreamReset("/r@1.0", 2, 2))
    journal.append(g.ModelReplied("", 1, 1, "turn", MESSAGE))
    await journal.commit()
    assert store.feed.partial(row.no) == []


async def test_a_watcher_that_does_not_keep_up_costs_no_memory_and_is_told_to_read_again(
    store: Store,
) -> None:
    row, journal = await started(store)
    watcher = store.feed.join(row.no)
    for _ in range(40):
        journal.append(g.Notice("", "big", "x" * 100_000))
        await journal.commit()
    assert watcher.behind
    assert watcher.size <= 1 << 20
    assert len(await store.events(row.no, 3)) <= 40


SECRET = "s3cret-value-of-the-test-0001"


@pytest.mark.parametrize("size", [1, 2, 5, 7, 100])
async def test_a_secret_is_masked_in_a_stream_wherever_it_is_cut(store: Store, size: int) -> None:
    redact.remember([SECRET])
    row, journal = await started(store)
    journal.append(g.ModelRequested("", 1, 1, "m:m", "turn", DIGEST, 9))
    await journal.commit()
    watcher = store.feed.join(row.no)
    text = f"the key {SECRET} and {SECRET[:10]} and {SECRET}"
    for start in range(0, len(text), size):
        journal.live(g.TextDelta("", 1, 1, start, text[start : start + size]))
        journal._flush_text()
    message = AssistantMessage((Text(text), Thinking("", provider="p", raw=SECRET.encode())))
    journal.append(g.ModelReplied("", 1, 1, "turn", message))
    await journal.commit()
    bodies = [body for _, body in watcher.take()]
    assert not [body for body in bodies if SECRET.encode() in body]
    deltas = [e.text_delta for e in map(pb.Event.FromString, bodies) if e.HasField("text_delta")]
    told = "".join(d.text for d in deltas)
    assert told == f"the key *** and {SECRET[:10]} and ***"
    assert [d.offset for d in deltas] == [
        len("".join(d.text for d in deltas[:i])) for i in range(len(deltas))
    ]
    replied = (await store.replay(row.no))[-1].model_replied
    assert replied.blocks[0].text == told


def test_masking_reaches_every_field() -> None:
    redact.remember([SECRET])
    record = to_record(
        g.ModelReplied("", 1, 1, "turn", AssistantMessage((ToolCall("t", {"a": SECRET}, id="1.0"),)))
    )
    error = pb.Error(message=SECRET, problems=[SECRET, "x"])
    assert SECRET not in str(masked(record))
    finished = masked(pb.Event(finished=pb.Finished(error=error, text=f"a{SECRET}b")))
    assert finished.finished.text == "a***b"
    assert list(finished.finished.error.problems) == ["***", "x"]


def at(seconds: float, **kind: typing.Any) -> pb.Event:
    return pb.Event(time_ms=int(seconds * 1000), **kind)


def attempt(outcome: str) -> pb.AttemptEnded:
    return pb.AttemptEnded(outcome=outcome)


def test_running_time_counts_attempts_and_not_what_lies_between() -> None:
    start = pb.AttemptStarted()
    records = [
        at(1, created=pb.Created()),
        at(10, attempt_started=start),
        at(15, attempt_ended=attempt("waiting")),
        at(1000, attempt_started=start),
        at(1003, notice=pb.Notice()),
        at(2000, attempt_ended=attempt("lost")),
        at(2001, attempt_started=start),
    ]
    assert running_seconds(records, now_ms=2005_000) == 5 + 3 + 4
    assert running_seconds(records[:3], now_ms=9999_000) == 5
    assert running_seconds(records[:1], now_ms=9999_000) == 0


def test_open_questions_are_those_that_nobody_answered() -> None:
    records = [
        to_record(g.ApprovalRequested("", "1.0", "t", {}, DIGEST)),
        to_record(g.ApprovalRequested("", "1.1", "t", {}, DIGEST)),
        to_record(g.ApprovalRequested("/r@1.0", "1.0", "t", {}, DIGEST)),
        to_record(g.ApprovalDecided("", "1.0", DIGEST, "approved", "ann")),
    ]
    assert [(q.path, q.approval_requested.call) for q in open_questions(records)] == [
        ("", "1.1"),
        ("/r@1.0", "1.0"),
    ]


def test_running_time_hardly_feels_a_clock_that_is_set() -> None:
    """Back it adds nothing and takes nothing away, forward it adds an hour and no day."""
    start = pb.AttemptStarted()
    records = [
        at(100_000, attempt_started=start),
        at(100_010, notice=pb.Notice()),
        at(10_000, notice=pb.Notice()),
        at(10_020, notice=pb.Notice()),
    ]
    assert running_seconds(records, now_ms=10_025_000) == 10 + 0 + 20 + 5
    assert running_seconds(records, now_ms=5_000_000) == 10 + 0 + 20
    assert running_seconds(records, now_ms=10**10) == 10 + 0 + 20 + 3700
    records += [at(10**7, attempt_ended=attempt("done"))]
    assert running_seconds(records, now_ms=10**12) == 10 + 0 + 20 + 3700
