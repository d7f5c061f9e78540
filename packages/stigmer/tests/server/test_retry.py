"""What a retry takes over of a journal, and over the wire: limits, sessions, two at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from graphton.testing import FakeProviders, Reply
from stigmer.api import event_pb2 as pb
from stigmer.client import RemoteError
from stigmer.server._retry import carried


def replied(step: int, *calls: str, path: str = "", text: str = "") -> pb.Event:
    blocks = [pb.Block(tool_call=pb.ToolCall(call=call, name="t")) for call in calls]
    blocks += [pb.Block(text=text)] if text else []
    return pb.Event(path=path, model_replied=pb.ModelReplied(step=step, purpose="turn", blocks=blocks))


def asked(step: int, path: str = "") -> pb.Event:
    return pb.Event(path=path, model_requested=pb.ModelRequested(step=step, purpose="turn"))


def dispatched(call: str, path: str = "", *, key: str = "a key of its own") -> pb.Event:
    return pb.Event(path=path, tool_dispatched=pb.ToolDispatched(call=call, name="t", idempotency_key=key))


def done(call: str, path: str = "") -> pb.Event:
    return pb.Event(path=path, tool_finished=pb.ToolFinished(call=call, name="t"))


def question(call: str) -> pb.Event:
    return pb.Event(approval_requested=pb.ApprovalRequested(call=call))


def decision(call: str, word: str) -> pb.Event:
    return pb.Event(approval_decided=pb.ApprovalDecided(call=call, decision=word))


def ruled(call: str) -> pb.Event:
    return pb.Event(rule_matched=pb.RuleMatched(call=call, verdict="allow"))


def failed(code: str = "status") -> pb.Event:
    return pb.Event(finished=pb.Finished(outcome="failed", error=pb.Error(code=code)))


START = [
    pb.Event(created=pb.Created(task="go")),
    pb.Event(config_resolved=pb.ConfigResolved()),
    pb.Event(notice=pb.Notice(code="model")),
    pb.Event(attempt_started=pb.AttemptStarted(attempt=1)),
]


def test_what_is_done_is_taken_over_and_what_belonged_to_the_run_is_left() -> None:
    work = [asked(1), replied(1, "1.0"), question("1.0"), decision("1.0", "approved")]
    work += [ruled("1.0"), dispatched("1.0"), done("1.0"), asked(2)]
    left = [
        pb.Event(process_started=pb.ProcessStarted(call="1.0", pid=7)),
        pb.Event(waiting=pb.Waiting(reason="approval")),
        pb.Event(resumed=pb.Resumed(by="ann")),
        pb.Event(pause_requested=pb.PauseRequested(by="ann")),
        pb.Event(fallback=pb.Fallback(step=1)),
        pb.Event(retrying=pb.Retrying(step=1)),
        pb.Event(budget_exceeded=pb.BudgetExceeded(limit="steps")),
        pb.Event(cancel_requested=pb.CancelRequested(by="ann")),
        pb.Event(attempt_ended=pb.AttemptEnded(attempt=1)),
        failed(),
    ]
    assert carried([*START, *work, *left], execution="first") == work


def test_a_call_keeps_the_idempotency_key_that_its_first_execution_gave_it() -> None:
    ours, other = dispatched("1.0", key=""), dispatched("2.0", "/r@1.0", key="before::2.0")
    kept = carried([*START, asked(1), replied(1, "1.0"), ours, other, failed()], execution="first")
    assert [r.tool_dispatched.idempotency_key for r in kept[2:]] == ["first::1.0", "before::2.0"]


def test_of_a_call_without_a_result_only_its_dispatch_is_taken_over() -> None:
    open_ = [question("1.0"), decision("1.0", "cancelled"), ruled("1.1"), dispatched("1.1")]
    started = pb.Event(subagent_started=pb.SubagentStarted(call="1.1", name="r"))
    kept = carried([*START, asked(1), replied(1, "1.0", "1.1"), *open_, started, failed()], execution="first")
    assert kept == [asked(1), replied(1, "1.0", "1.1"), dispatched("1.1")]


@pytest.mark.parametrize("code", ["refused", "context", "length", "empty"])
def test_the_reply_that_a_run_failed_by_is_asked_for_again(code: str) -> None:
    good = [asked(1), replied(1, "1.0"), dispatched("1.0"), done("1.0"), asked(2)]
    assert carried([*START, *good, replied(2, text="no"), failed(code)], execution="first") == good
    in_a_child = [*good, replied(1, path="/r@1.0")]
    assert carried([*START, *in_a_child[:2], in_a_child[-1], failed("status")], execution="first") == [
        *in_a_child[:2],
        in_a_child[-1],
    ]


def test_what_ran_is_taken_over_whatever_the_run_failed_by() -> None:
    ran = [asked(1), replied(1, "1.0"), dispatched("1.0"), done("1.0")]
    assert carried([*START, *ran, failed("context")], execution="first") == ran
    assert carried([*START, *ran, failed("loop")], execution="first") == ran[:1]


async def test_a_retry_in_a_session_stands_for_the_run_that_failed(serving: Any, fake: FakeProviders) -> None:
    fake.reply("I am well.")
    fake.reply(status=400, error="no")
    first = await serving.run("How are you?", session="new")
    session = first[0].created.session
    second = await serving.run("And now?", session=session)
    assert second[-1].finished.outcome == "failed"
    async with serving.client() as client:
        (failed_one,) = await client.list(limit=1)
        fake.reply("Still well.")
        made = await client.create(serving.request("", retry_of=failed_one.id))
        await serving.until(client, made.execution.id, lambda e: e.HasField("finished"))
    assert (made.execution.session, made.execution.task) == (session, "And now?")
    said = [message["content"] for message in fake.chats[-1].json["messages"] if message["role"] == "user"]
    assert said == ["How are you?", "And now?"]


async def test_a_pause_that_two_people_ask_for_is_one(serving: Any, fake: FakeProviders) -> None:
    fake.rule(lambda request: Reply(text="one two", stall_after=1))
    async with serving.client() as client:
        made = await client.create(serving.request("Hello"))
        id = made.execution.id
        await serving.until(client, id, lambda e: e.HasField("model_requested"))
        await asyncio.gather(client.pause(id, by="ann"), client.pause(id, by="bob"))
        await client.cancel(id, by="ann")
        events = [event async for event in client.watch(id)]
    assert sum(event.HasField("pause_requested") for event in events) == 1
    assert events[-1].finished.outcome == "cancelled"


async def test_what_was_used_before_a_retry_counts_once_over_the_whole_chain(
    serving: Any, fake: FakeProviders
) -> None:
    """Each execution's usage is its own; what it took over stands apart, and counts for its limits only."""
    read = {"calls": [{"name": "list_files", "arguments": {}}], "input_tokens": 1000, "output_tokens": 10}
    bad = {"status": 400, "error": "no"}
    end = {"text": "ok", "input_tokens": 30, "output_tokens": 3}
    fake.script({"replies": [read, bad, {**read, "input_tokens": 200}, bad, end]})
    first = (await serving.run("go"))[-1].finished
    assert not first.HasField("carried")
    seen = [first]
    async with serving.client() as client:
        for _ in range(2):
            (last,) = await client.list(limit=1)
            made = await client.create(serving.request("", retry_of=last.id))
            events = [event async for event in client.watch(made.execution.id)]
            seen.append(events[-1].finished)
    assert [end.outcome for end in seen] == ["failed", "failed", "completed"]
    lost = [end.usage.input_tokens - asked for end, asked in zip(seen, (1000, 200, 30), strict=True)]
    assert all(0 < one < 1000 for one in lost[:2]), "the refused request counts at its estimate"
    assert lost[2] == 0
    assert [end.usage.output_tokens for end in seen] == [10, 10, 3]
    assert [end.carried.input_tokens for end in seen] == [
        0, seen[0].usage.input_tokens, seen[0].usage.input_tokens + seen[1].usage.input_tokens,
    ]  # fmt: skip
    assert [end.carried.output_tokens for end in seen] == [0, 10, 20]
    assert seen[2].usage.usd == pytest.approx(30 * 2e-6 + 3 * 8e-6)
    async with serving.client() as client:
        (last,) = await client.list(limit=1)
        with pytest.raises(RemoteError, match="has completed: there is nothing to retry"):
            await client.create(serving.request("", retry_of=last.id))


async def test_the_limits_of_a_retry_count_what_it_took_over(serving: Any, fake: FakeProviders) -> None:
    read = {"calls": [{"name": "list_files", "arguments": {}}], "input_tokens": 1000}
    fake.script({"replies": [read, {"status": 400, "error": "no"}]})
    await serving.run("go")
    async with serving.client() as client:
        (first,) = await client.list(limit=1)
        request = serving.request("", retry_of=first.id, budget=pb.Budget(tokens=900))
        made = await client.create(request)
        events = [event async for event in client.watch(made.execution.id)]
    assert events[-1].finished.outcome == "budget_exceeded"
    assert events[-1].finished.usage.input_tokens == 0
    assert len(fake.requests) == 2


async def test_limits_are_shown_as_they_hold(serving: Any, fake: FakeProviders) -> None:
    fake.reply("Hi.")
    await serving.run("Hello", budget=pb.Budget(steps=7))
    async with serving.client() as client:
        (found,) = await client.list(limit=1)
    assert found.limits == pb.Budget(steps=7, seconds=7200, children=5, depth=2)


async def test_a_program_that_names_a_bad_rule_is_told(serving: Any, fake: FakeProviders) -> None:
    async with serving.client() as client:
        request = serving.request("Hello")
        request.approvals.add(tool="run_command", verdict="maybe")
        with pytest.raises(RemoteError, match="'maybe', not allow, ask or deny"):
            await client.create(request)
        with pytest.raises(RemoteError, match="on_unknown 'guess' is not ask, tell or stop"):
            await client.create(serving.request("Hello", on_unknown="guess"))
