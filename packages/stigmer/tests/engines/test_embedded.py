"""The embedded engine: every accepted execution ends, nothing is asked or done twice, waiting holds nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import time
from typing import Any

import psutil
import pytest
from graphton.testing import Call, FakeProviders, Reply
from stigmer.api import event_pb2 as pb
from stigmer.secrets import Keys
from stigmer.store import Store

DEADLINE = 30.0


async def test_a_run_takes_the_whole_way(house: Any, fake: FakeProviders) -> None:
    (house.workspace / "a.txt").write_text("the answer is 42\n")
    fake.call("read_file", {"path": "a.txt"}, input_tokens=100, output_tokens=10)
    fake.reply("It is 42.", input_tokens=120, output_tokens=5)
    row = await house.accept("What is in a.txt?")
    finished = await house.finished(row)
    assert (finished.outcome, finished.text) == ("completed", "It is 42.")
    assert (finished.usage.input_tokens, finished.usage.output_tokens) == (220, 15)
    assert finished.usage.usd > 0
    assert finished.usage.unpriced_calls == 0
    assert finished.seconds > 0
    assert (await house.kinds(row)) == [
        "created", "config_resolved", "attempt_started", "model_requested", "model_replied", "tool_dispatched",
        "tool_finished", "model_requested", "model_replied", "attempt_ended", "finished",
    ]  # fmt: skip
    assert [r.seq for r in (await house.records(row))] == list(range(1, 12))
    assert "the answer is 42" in (await house.records(row))[6].tool_finished.result
    found = await house.store.get(row.id)
    assert found.state == "completed"


async def test_text_is_shown_as_it_comes_and_never_stored(house: Any, fake: FakeProviders) -> None:
    fake.reply("one two three four", pieces=8)
    row = await house.accept("Count.", submit=False)
    watcher = house.store.feed.join(row.no)
    house.engine.submit(row.id)
    await house.finished(row)
    shown = [pb.Event.FromString(body) for _, body in watcher.take()]
    deltas = [e.text_delta for e in shown if e.HasField("text_delta")]
    assert "".join(d.text for d in deltas) == "one two three four"
    assert [d.offset for d in deltas] == [sum(len(d.text) for d in deltas[:i]) for i in range(len(deltas))]
    assert {d.attempt for d in deltas} == {1}
    kinds = [e.WhichOneof("kind") for e in shown]
    assert kinds.index("model_requested") < kinds.index("text_delta") < kinds.index("model_replied")
    assert "text_delta" not in (await house.kinds(row))


async def test_a_known_failure_ends_the_run_with_its_own_words(house: Any, fake: FakeProviders) -> None:
    fake.fail(401, "bad key")
    row = await house.accept("Hello")
    finished = await house.finished(row)
    assert finished.outcome == "failed"
    assert finished.error.code == "status"
    assert "401" in finished.error.message
    assert not (house.home / "reports").exists()


async def test_a_defect_ends_the_run_with_a_report_and_no_trace(house: Any) -> None:
    row = await house.accept("Hello", workspace=str(house.workspace / "gone"), submit=False)
    broken = Keys(otherwise=lambda provider, url: {}[provider])  # type: ignore[return-value,index]  # a defect
    await house.restart(keys=broken)
    house.engine.submit(row.id)
    finished = await house.finished(row)
    assert finished.error.code == "internal"
    assert "Traceback" not in str(finished)
    (report,) = (house.home / "reports").iterdir()
    assert str(report) in finished.error.hint
    assert "KeyError" in report.read_text()
    assert report.stat().st_mode & 0o777 == 0o600


async def test_a_budget_ends_the_run(house: Any, fake: FakeProviders) -> None:
    (house.workspace / "a.txt").write_text("x")
    fake.rule(lambda request: Reply(calls=(Call("read_file", {"path": "a.txt"}),)))
    row = await house.accept("Loop.", budget=pb.Budget(steps=3))
    finished = await house.finished(row)
    assert finished.outcome == "budget_exceeded"
    exceeded = next(r.budget_exceeded for r in (await house.records(row)) if r.HasField("budget_exceeded"))
    assert (exceeded.limit, exceeded.value) == ("steps", 3)
    assert len(fake.chats) == 3


async def test_cancel_stops_the_model_stream(house: Any, fake: FakeProviders) -> None:
    fake.reply("never whole", stall_after=2)
    row = await house.accept("Wait.")
    (request,) = await fake.wait_for_requests(1)
    assert await house.engine.cancel(row.id, by="ann")
    finished = await house.finished(row)
    assert finished.outcome == "cancelled"
    assert (await house.kinds(row))[-3:] == ["cancel_requested", "attempt_ended", "finished"]
    await asyncio.wait_for(request.disconnected.wait(), DEADLINE)
    assert house.engine.running == 0
    assert not await house.engine.cancel(row.id, by="ann")


async def test_cancel_answers_when_the_last_tool_has_stopped(house: Any, fake: FakeProviders) -> None:
    fake.call("run_command", {"command": "sleep 600"})
    row = await house.accept("Sleep.", approve_all=True)
    started = await house.until(row, lambda r: r.HasField("process_started"))
    process = psutil.Process(started.process_started.pid)
    family = [process, *process.children(recursive=True)]
    await house.engine.cancel(row.id, by="ann")
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert (await house.finished(row)).outcome == "cancelled"
    assert len(fake.chats) == 1


async def test_waiting_for_an_approval_holds_nothing_and_goes_on_when_it_comes(
    house: Any, fake: FakeProviders
) -> None:
    fake.call("run_command", {"command": "echo done > out.txt"})
    fake.reply("Done.")
    row = await house.accept("Write out.txt by a command.")
    waiting = await house.waiting(row)
    assert (waiting.reason, waiting.call) == ("approval", "1.0")
    assert waiting.expires_ms > house.store.now_ms + 6 * 24 * 3600 * 1000
    assert (await house.store.get(row.id)).state == "waiting"
    assert not (house.workspace / "out.txt").exists()
    await house.decide(row)
    assert (await house.finished(row)).outcome == "completed"
    assert (house.workspace / "out.txt").read_text() == "done\n"
    assert len(fake.chats) == 2


async def test_a_rejection_reaches_the_model_with_its_reason(house: Any, fake: FakeProviders) -> None:
    fake.call("run_command", {"command": "rm -rf everything"})
    fake.reply("Then not.")
    row = await house.accept("Clean up.")
    await house.waiting(row)
    await house.decide(row, "rejected", reason="not on a Friday")
    assert (await house.finished(row)).text == "Then not."
    assert "not on a Friday" in fake.chats[1].tool_results[0].text


async def test_a_waiting_execution_survives_restarts(house: Any, fake: FakeProviders) -> None:
    fake.call("run_command", {"command": "echo done > out.txt"})
    fake.reply("Done.")
    row = await house.accept("Write.")
    await house.waiting(row)
    before = await house.kinds(row)
    await house.restart()
    await house.restart()
    assert house.engine.running == 0
    assert (await house.kinds(row)) == before
    await house.decide(row)
    assert (await house.finished(row)).text == "Done."
    assert len(fake.chats) == 2


async def test_a_decision_that_nobody_acted_on_is_found_at_the_next_start(
    house: Any, fake: FakeProviders
) -> None:
    fake.call("run_command", {"command": "echo done > out.txt"})
    fake.reply("Done.")
    row = await house.accept("Write.")
    await house.waiting(row)
    await house.close()
    house.open()
    house.engine.wake = lambda id: None  # The process died between the commit and this.
    await house.decide(row)
    await house.restart()
    assert (await house.finished(row)).text == "Done."


async def test_cancel_of_a_waiting_execution_closes_its_questions(house: Any, fake: FakeProviders) -> None:
    fake.call("run_command", {"command": "echo done > out.txt"})
    row = await house.accept("Write.")
    await house.waiting(row)
    assert await house.engine.cancel(row.id, by="ann")
    decided = next(r.approval_decided for r in (await house.records(row)) if r.HasField("approval_decided"))
    assert (decided.decision, decided.by) == ("cancelled", "ann")
    finished = await house.finished(row)
    assert finished.outcome == "cancelled"
    assert finished.usage.output_tokens > 0
    assert not (house.workspace / "out.txt").exists()


async def test_a_question_expires_and_the_model_is_told(alone: Any, fake: FakeProviders) -> None:
    fake.call("run_command", {"command": "echo done > out.txt"})
    fake.reply("Nobody answered.")
    row = await alone.accept("Write.")
    await alone.waiting(row)
    await alone.close()
    alone.lease = 0.3
    alone.open()
    alone.store._dialect._clock = lambda: time.time() + 8 * 24 * 3600
    await alone.engine.start()
    assert (await alone.finished(row)).text == "Nobody answered."
    decided = next(r.approval_decided for r in (await alone.records(row)) if r.HasField("approval_decided"))
    assert (decided.decision, decided.by) == ("expired", "stigmer")
    assert not (alone.workspace / "out.txt").exists()


async def test_a_run_that_is_handed_back_at_shutdown_goes_on_with_the_next_server(
    house: Any, fake: FakeProviders
) -> None:
    (house.workspace / "a.txt").write_text("42")
    fake.call("read_file", {"path": "a.txt"})
    fake.reply("half a rep", stall_after=2)
    fake.reply("It is 42.")
    row = await house.accept("Read.")
    await fake.wait_for_requests(2)
    await house.restart()
    finished = await house.finished(row)
    assert finished.text == "It is 42."
    ends = [r.attempt_ended.outcome for r in (await house.records(row)) if r.HasField("attempt_ended")]
    assert ends == ["shutdown", "done"]
    assert len(fake.chats) == 3
    assert [r.seq for r in (await house.records(row))] == list(range(1, len(await house.records(row)) + 1))
    lost = [r for r in (await house.records(row)) if r.HasField("model_requested")][1].model_requested
    answered = sum(r.model_replied.usage.input_tokens for r in (await house.records(row)))
    assert finished.usage.input_tokens == answered + lost.prompt_tokens_estimate


async def test_a_key_that_only_a_shell_had_is_waited_for(house: Any, fake: FakeProviders) -> None:
    fake.reply("half", stall_after=2)
    fake.reply("Whole.")
    row = await house.accept("Go.")
    await fake.wait_for_requests(1)
    await house.restart(keys=Keys())
    assert (await house.waiting(row)).reason == "key"
    await house.restart()
    assert house.engine.running == 0
    house.keys.put(
        "other",
        "sk-another-key-000000",
        organisation="default",
        provider="openai",
        base_url=house.fake.openai_url,
    )
    house.engine.wake(row.id)
    assert (await house.finished(row)).text == "Whole."
    assert fake.chats[-1].headers["authorization"] == "Bearer sk-another-key-000000"


async def test_an_execution_that_keeps_killing_its_server_ends(alone: Any, fake: FakeProviders) -> None:
    row = await alone.accept("Go.", submit=False)
    await alone.close()
    for _ in range(5):
        store = Store(alone.home / "stigmer.db")
        epoch = await store.claim(row.no, worker="dead", lease=0)
        await store.append(row.no, epoch or 0, batch=1, events=[pb.Event(notice=pb.Notice(text="…"))])
        ended = pb.AttemptEnded(attempt=epoch or 0, outcome="lost")
        if _ < 4:
            await store.control(row.no, [pb.Event(attempt_ended=ended)])
        await store.close()
    alone.open()
    await alone.engine.start()
    finished = await alone.finished(row)
    assert (finished.outcome, finished.error.code) == ("failed", "crashed")
    assert not fake.chats


async def test_left_over_processes_of_a_dead_server_are_ended_before_an_outcome_is_decided(
    alone: Any, fake: FakeProviders
) -> None:
    fake.reply("I do not know what became of it.")
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", "sleep 600 & sleep 600", start_new_session=True
    )
    innocent = await asyncio.create_subprocess_exec("sleep", "600", start_new_session=True)
    started = psutil.Process(process.pid).create_time()
    row = await alone.accept("Go.", submit=False)
    epoch = await alone.store.claim(row.no, worker="dead", lease=0)
    call = pb.ToolCall(call="1.0", name="run_command", arguments=b'{"command": "sleep 600"}')
    dispatched = pb.ToolDispatched(
        call="1.0", name="run_command", arguments=b'{"command": "sleep 600"}', effect="write", digest=b"d"
    )
    await alone.store.append(
        row.no,
        epoch,
        batch=1,
        events=[
            pb.Event(model_requested=pb.ModelRequested(step=1, purpose="turn", model="openai:gpt-4.1")),
            pb.Event(
                model_replied=pb.ModelReplied(
                    step=1, purpose="turn", blocks=[pb.Block(tool_call=call)], stop_reason="tools"
                )
            ),
            pb.Event(tool_dispatched=dispatched),
            pb.Event(process_started=pb.ProcessStarted(call="1.0", pid=process.pid, start_time=started)),
            # A pid that somebody else has by now: the start time tells.
            pb.Event(
                process_started=pb.ProcessStarted(call="1.0", pid=innocent.pid, start_time=started - 999)
            ),
        ],
    )
    await alone.restart()
    assert (await alone.finished(row)).text.startswith("I do not know")
    await asyncio.wait_for(process.wait(), DEADLINE)
    assert innocent.returncode is None
    os.kill(innocent.pid, signal.SIGKILL)
    await innocent.wait()
    kinds = await alone.kinds(row)
    assert kinds.index("attempt_ended") < kinds.index("tool_outcome_unknown")


async def test_a_decision_during_a_run_does_not_hide_that_it_runs(alone: Any, fake: FakeProviders) -> None:
    """`resumed` may be appended while the next attempt has begun; a crash then must still find an open attempt."""
    fake.reply("Done.")
    row = await alone.accept("Go.", submit=False)
    await alone.store.claim(row.no, worker="dead", lease=600)
    await alone.store.control(row.no, [pb.Event(resumed=pb.Resumed(by="ann"))])
    assert (await alone.store.get(row.id)).state == "running"
    await alone.restart()
    assert (await alone.finished(row)).text == "Done."
    ends = [r.attempt_ended.outcome for r in (await alone.records(row)) if r.HasField("attempt_ended")]
    assert ends == ["lost", "done"]


async def test_a_run_whose_lease_is_held_goes_on_when_it_has_run_out(alone: Any, fake: FakeProviders) -> None:
    fake.reply("Done.")
    await alone.close()
    alone.lease = 0.3
    alone.open()
    await alone.engine.start()
    row = await alone.accept("Go.", submit=False)
    await alone.store.claim(row.no, worker="another server", lease=0.2)
    alone.engine.submit(row.id)
    assert (await alone.finished(row)).text == "Done."


async def test_one_broken_execution_does_not_keep_the_others_from_going_on(
    alone: Any, fake: FakeProviders
) -> None:
    fake.reply("Done.")
    broken = await alone.accept("Broken.", submit=False)
    good = await alone.accept("Good.", submit=False)
    await alone.close()
    with sqlite3.connect(alone.home / "stigmer.db") as db:
        db.execute("UPDATE events SET body = x'ffffff' WHERE key = ?", (broken.no << 24 | 2,))
    db.close()
    alone.open()
    await alone.engine.start()
    assert (await alone.finished(good)).text == "Done."
    assert (await alone.store.get(broken.id)).state == "failed"
    assert [file for file in (alone.home / "reports").iterdir() if broken.id in file.name]


async def test_many_runs_at_once_share_commits(house: Any, fake: FakeProviders) -> None:
    (house.workspace / "a.txt").write_text("x")

    def rule(request: Any) -> Reply:
        if len(request.tool_results) >= 3:
            return Reply(text="Done.")
        return Reply(calls=(Call("read_file", {"path": "a.txt"}),))

    fake.rule(rule)
    rows = [await house.accept(f"Task {n}") for n in range(20)]
    ends = await asyncio.gather(*(house.finished(row) for row in rows))
    assert {end.outcome for end in ends} == {"completed"}
    assert len(fake.chats) == 80
    for row in rows:
        assert [r.seq for r in (await house.records(row))] == list(
            range(1, len(await house.records(row)) + 1)
        )


async def test_a_full_disk_pauses_a_run_and_does_not_lose_it(alone: Any, fake: FakeProviders) -> None:
    fake.rule(lambda request: Reply(text="Done."))
    await alone.close()
    alone.lease = 0.5
    alone.open()
    await alone.engine.start()
    row = await alone.accept("Go.", submit=False)
    alone.store._dialect.writer.execute("PRAGMA busy_timeout = 1")
    blocker = sqlite3.connect(alone.store._dialect.path, isolation_level=None, check_same_thread=False)
    blocker.execute("BEGIN IMMEDIATE")
    alone.engine.submit(row.id)
    await asyncio.sleep(0.05)
    blocker.execute("ROLLBACK")
    blocker.close()
    assert (await alone.finished(row)).text == "Done."


@pytest.mark.parametrize("moment", range(6))
async def test_a_cancel_at_any_moment_ends_the_run_once(house: Any, fake: FakeProviders, moment: int) -> None:
    # Always another file: who reads one and the same again and again is stopped for it.
    for n in range(300):
        (house.workspace / f"{n}.txt").write_text(f"{n}")
    fake.rule(lambda request: Reply(calls=(Call("read_file", {"path": f"{len(fake.chats)}.txt"}),)))
    row = await house.accept("Loop.")
    wanted = [
        "created",
        "attempt_started",
        "model_requested",
        "model_replied",
        "tool_dispatched",
        "tool_finished",
    ]
    await house.until(row, lambda r: r.WhichOneof("kind") == wanted[moment])
    answers = await asyncio.gather(*(house.engine.cancel(row.id, by=who) for who in ("ann", "bob")))
    assert any(answers)
    kinds = await house.kinds(row)
    assert kinds.count("finished") == 1
    assert kinds[-1] == "finished"
    assert (await house.records(row))[-1].finished.outcome == "cancelled"
    requests = len(fake.chats)
    await asyncio.sleep(0.05)
    assert len(fake.chats) == requests
