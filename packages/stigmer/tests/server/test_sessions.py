"""Sessions over a real server: the next run hears the first one, waits its turn, and outlives restarts in line."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from typing import Any

import pytest
from graphton.testing import FakeProviders
from stigmer.api import event_pb2 as pb
from stigmer.client import Client, RemoteError

DEADLINE = 30.0
READ = {"calls": [{"name": "read_file", "arguments": {"path": "notes.txt"}}]}
COMMAND = {"calls": [{"name": "run_command", "arguments": {"command": "echo hi"}}]}


def script(fake: FakeProviders, *replies: dict[str, Any]) -> None:
    fake.script({"replies": list(replies)})


def session_of(events: list[pb.Event]) -> str:
    return next(e.created.session for e in events if e.HasField("created"))


def messages(fake: FakeProviders, number: int) -> list[dict[str, Any]]:
    body = fake.requests[number].body
    found = body if isinstance(body, dict) else json.loads(body)
    return [
        m for m in found.get("messages") or found["input"] if m.get("role") not in ("system", "developer")
    ]


async def ended(client: Client, id: str) -> str:
    async with asyncio.timeout(DEADLINE):
        async for event in client.watch(id):
            if event.HasField("finished"):
                return event.finished.outcome
    raise AssertionError("it did not end")


async def test_the_next_run_of_a_session_sees_task_reply_and_results_of_the_first(
    serving: Any, fake: FakeProviders
) -> None:
    (serving.workspace / "notes.txt").write_text("the word is heron\n")
    script(fake, READ, {"text": "It is heron."}, {"text": "You asked for the word."})
    first = await serving.run("Which word?", session="new")
    session = session_of(first)
    assert session.startswith("ses_")
    second = await serving.run("What did I ask?", session=session)
    assert second[-1].finished.text == "You asked for the word."
    sent = json.dumps(messages(fake, 2))
    for said in ("Which word?", "read_file", "the word is heron", "It is heron.", "What did I ask?"):
        assert said in sent, said
    assert messages(fake, 2)[: len(messages(fake, 1))] == [
        *messages(fake, 1)
    ]  # To the byte, so that a prompt cache still fits.


async def test_another_session_and_no_session_know_nothing_of_it(serving: Any, fake: FakeProviders) -> None:
    script(fake, {"text": "hello"}, {"text": "hello"}, {"text": "hello"})
    await serving.run("the first", session="new")
    await serving.run("another", session="new")
    await serving.run("alone")
    assert "the first" not in json.dumps([messages(fake, 1), messages(fake, 2)])


async def test_a_run_that_was_cut_off_is_mended_for_the_next_one(serving: Any, fake: FakeProviders) -> None:
    script(fake, COMMAND, {"text": "fine"})
    async with serving.client() as client:
        made = (await client.create(serving.request("run it", session="new"))).execution
        await serving.until(client, made.id, lambda e: e.HasField("waiting"))
        await client.cancel(made.id, by="ann")
    events = await serving.run("and now?", session=made.session)
    assert events[-1].finished.outcome == "completed"
    sent = json.dumps(messages(fake, 1))
    assert "interrupted before it had an answer" in sent


async def test_runs_of_a_session_wait_in_line_and_run_in_order(serving: Any, fake: FakeProviders) -> None:
    script(fake, COMMAND, {"text": "one"}, {"text": "two"}, {"text": "three"})
    async with serving.client() as client:
        first = (await client.create(serving.request("first", session="new"))).execution
        await serving.until(client, first.id, lambda e: e.HasField("waiting"))
        later = [
            (await client.create(serving.request(task, session=first.session))).execution
            for task in ("second", "third")
        ]
        assert [one.state for one in later] == ["queued", "queued"]
        notice = await serving.until(client, later[1].id, lambda e: e.notice.code == "queued")
        assert f"begins when {later[0].id}" in notice.notice.text
        assert len(fake.requests) == 1
        await client.decide(first.id, "1.0", approve=True, by="ann")
        for one in (first, *later):
            assert await ended(client, one.id) == "completed"
    assert [messages(fake, n)[-1]["content"] for n in (2, 3)] == ["second", "third"]
    assert "second" in json.dumps(messages(fake, 3)[:-1])


async def test_a_line_survives_a_restart_of_the_server(serving: Any, fake: FakeProviders) -> None:
    script(fake, COMMAND, {"text": "one"}, {"text": "two"})
    shell = dict(serving.request("").shell)
    async with serving.client() as client:
        first = (await client.create(serving.request("first", session="new"))).execution
        await serving.until(client, first.id, lambda e: e.HasField("waiting"))
        second = (await client.create(serving.request("second", session=first.session))).execution
    await serving.restart()
    async with serving.client() as client:
        assert (await client.get(second.id)).state == "queued"
        await client.decide(first.id, "1.0", approve=True, by="ann", shell=shell)
        assert await ended(client, first.id) == "completed"
        assert await ended(client, second.id) == "completed"


async def test_a_run_that_does_not_want_to_wait_is_refused_by_name(serving: Any, fake: FakeProviders) -> None:
    script(fake, COMMAND)
    async with serving.client() as client:
        first = (await client.create(serving.request("first", session="new"))).execution
        await serving.until(client, first.id, lambda e: e.HasField("waiting"))
        with pytest.raises(RemoteError) as caught:
            await client.create(serving.request("second", session=first.session, if_running="reject"))
        assert caught.value.code == "session_busy"
        assert f"{first.id} of session {first.session!r} has not finished (waiting)" in caught.value.message
        assert len(await client.list()) == 1


async def test_a_run_that_interrupts_stops_the_one_before_it_first(serving: Any, fake: FakeProviders) -> None:
    script(fake, {"text": "slow", "first_token_delay": 30}, {"text": "at once"})
    async with serving.client() as client:
        first = (await client.create(serving.request("first", session="new"))).execution
        await serving.until(client, first.id, lambda e: e.HasField("model_requested"))
        request = serving.request("second", session=first.session, if_running="interrupt")
        second = (await client.create(request)).execution
        assert (await client.get(first.id)).state == "cancelled"
        assert await ended(client, second.id) == "completed"
    assert [m["content"] for m in messages(fake, -1)] == ["first", "second"]


async def test_a_cancelled_run_in_line_makes_way(serving: Any, fake: FakeProviders) -> None:
    script(fake, COMMAND, {"text": "third"})
    async with serving.client() as client:
        first = (await client.create(serving.request("first", session="new"))).execution
        await serving.until(client, first.id, lambda e: e.HasField("waiting"))
        second, third = [
            (await client.create(serving.request(task, session=first.session))).execution
            for task in ("second", "third")
        ]
        await client.cancel(second.id, by="ann")
        await client.cancel(first.id, by="ann")
        assert await ended(client, third.id) == "completed"


async def test_a_wrong_session_or_wish_is_told_with_a_way_on(serving: Any) -> None:
    async with serving.client() as client:
        for fields, code, words, hint in (
            ({"session": "ses_none"}, "not_found", "there is no session 'ses_none'", "--session new"),
            (
                {"session": "new", "if_running": "wait"},
                "usage",
                "'wait' is not reject, enqueue or interrupt",
                "leave it out",
            ),
            ({"if_running": "reject"}, "usage", "none is named", "--session ID"),
        ):
            with pytest.raises(RemoteError) as caught:
                await client.create(serving.request("go", **fields))
            assert caught.value.code == code
            assert words in caught.value.message
            assert hint in caught.value.hint
        for asked in (client.session("ses_none"), client.delete_session("ses_none")):
            with pytest.raises(RemoteError, match="there is no session 'ses_none'"):
                await asked


async def test_sessions_are_shown_with_their_executions_and_deleted_whole(
    serving: Any, fake: FakeProviders
) -> None:
    script(fake, {"text": "one"}, {"text": "two"}, {"text": "three"})
    session = session_of(await serving.run("first task", session="new"))
    await serving.run("second task", session=session)
    other = session_of(await serving.run("other", session="new"))
    async with serving.client() as client:
        found = await client.session(session)
        assert (found.count, found.state, [e.task for e in found.executions]) == (
            2,
            "completed",
            ["first task", "second task"],
        )
        assert found.executions[0].finished.text == "one"
        assert [(one.id, one.count) for one in await client.sessions()] == [(other, 1), (session, 2)]
        assert await client.delete_session(session) == 2
        assert [one.id for one in await client.sessions()] == [other]
        assert [one.session for one in await client.list()] == [other]


async def test_a_session_that_was_summarised_goes_on_from_its_summary(
    serving: Any, fake: FakeProviders
) -> None:
    (serving.workspace / "notes.txt").write_text("heron " * 1500)
    small = {"model": "openai:gpt-4.1", "context_window": "4096", "max_tokens": "512"}
    script(fake, READ, READ, {"text": "SUMMARY: heron"}, {"text": "done"}, {"text": "again"})
    first = await serving.run("read it twice", session="new", flags=small)
    assert first[-1].finished.outcome == "completed", first[-1].finished.error
    compacted = [e.compacted for e in first if e.HasField("compacted")]
    assert len(compacted) == 1
    assert compacted[0].tokens_after < compacted[0].tokens_before
    await serving.run("what was it?", session=session_of(first), flags=small)
    assert "SUMMARY: heron" in json.dumps(messages(fake, 4))


async def test_a_run_reads_back_no_further_than_to_the_last_summary(
    serving: Any, fake: FakeProviders
) -> None:
    """What came before it may be as long as it likes: here it cannot even be read any more."""
    (serving.workspace / "notes.txt").write_text("heron " * 1500)
    small = {"model": "openai:gpt-4.1", "context_window": "4096", "max_tokens": "512"}
    script(
        fake,
        {"text": "hi there"},
        READ,
        READ,
        {"text": "SUMMARY: heron"},
        {"text": "done"},
        {"text": "again"},
    )
    session = session_of(await serving.run("hello", session="new", flags=small))
    second = await serving.run("read it twice", session=session, flags=small)
    assert any(e.compacted.last for e in second if e.HasField("compacted"))
    with sqlite3.connect(serving.home.database) as db:
        first = db.execute("SELECT min(no) FROM executions").fetchone()[0]
        db.execute("UPDATE events SET body = x'ff' WHERE key >> 24 = ?", (first,))
    db.close()
    third = await serving.run("what was it?", session=session, flags=small)
    assert third[-1].finished.text == "again"
    sent = json.dumps(messages(fake, 5))
    assert "SUMMARY: heron" in sent
    assert "hi there" not in sent
    async with serving.client() as client:
        shown = await client.preview(serving.request("and?", session=session, flags=small))
    assert b"SUMMARY: heron" in shown.body


async def test_a_preview_shows_the_whole_conversation_and_stores_nothing(
    serving: Any, fake: FakeProviders
) -> None:
    script(fake, {"text": "one"})
    session = session_of(await serving.run("first task", session="new"))
    async with serving.client() as client:
        found = await client.preview(serving.request("second task", session=session))
        sent = [m["content"] for m in json.loads(found.body)["messages"] if m["role"] != "system"]
        assert sent == ["first task", "one", "second task"]
        assert (await client.session(session)).count == 1
        with pytest.raises(RemoteError, match="there is no session"):
            await client.preview(serving.request("second task", session="ses_none"))


async def test_a_run_that_was_tried_again_counts_once(serving: Any, fake: FakeProviders) -> None:
    script(fake, {"text": "", "status": 400, "error": "no"}, {"text": "this time"}, {"text": "next"})
    first = await serving.run("the task", session="new")
    assert first[-1].finished.outcome == "failed"
    async with serving.client() as client:
        session = await client.session(session_of(first))
        made = await client.create(serving.request("", session="", retry_of=session.executions[0].id))
        assert made.execution.session == session.id
        assert await ended(client, made.execution.id) == "completed"
    await serving.run("and now?", session=session.id)
    assert [m["content"] for m in messages(fake, 2)] == ["the task", "this time", "and now?"]
