"""Cancel reaches a run wherever it is, answers when all has stopped, and nothing starts afterwards."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import psutil
import pytest
from graphton.testing import FakeProviders
from stigmer.client import Client

DEADLINE = 30.0
SLEEP = ["sleep", f"611.{os.getpid()}"]
COMMAND = {"calls": [{"name": "run_command", "arguments": {"command": f"touch began; {' '.join(SLEEP)}"}}]}
Reach = Callable[[Any, FakeProviders, Client], Awaitable[str]]


async def begin(serving: Any, client: Client, **fields: Any) -> str:
    return str((await client.create(serving.request("Go.", **fields))).execution.id)


async def asks(serving: Any, fake: FakeProviders, client: Client) -> str:
    fake.script({"replies": [COMMAND]})
    id = await begin(serving, client)
    await serving.until(client, id, lambda e: e.HasField("attempt_ended"))
    return id


async def lacks_its_key(serving: Any, fake: FakeProviders, client: Client) -> str:
    id = await asks(serving, fake, client)
    await serving.restart()
    async with serving.client() as other:
        await other.decide(id, "1.0", approve=True, by="ann")
        await serving.until(other, id, lambda e: e.waiting.reason == "key")
    return id


async def rests(serving: Any, fake: FakeProviders, client: Client) -> str:
    id = await asks(serving, fake, client)
    await client.pause(id, by="ann")
    return id


async def streams(serving: Any, fake: FakeProviders, client: Client) -> str:
    fake.reply("one two three", stall_after=2)
    id = await begin(serving, client)
    await serving.until(client, id, lambda e: e.HasField("text_delta"))
    return id


async def waits_to_ask_again(serving: Any, fake: FakeProviders, client: Client) -> str:
    fake.script({"replies": [{"status": 429, "error": "slow down", "retry_after": 200}]})
    id = await begin(serving, client)
    await serving.until(client, id, lambda e: e.HasField("retrying"))
    return id


async def works(serving: Any, fake: FakeProviders, client: Client) -> str:
    fake.script({"replies": [COMMAND]})
    id = await begin(serving, client, approve_all=True)
    await serving.until(client, id, lambda e: e.HasField("process_started"))
    return id


async def stands_in_line(serving: Any, fake: FakeProviders, client: Client) -> str:
    fake.script({"replies": [COMMAND]})
    first = (await client.create(serving.request("First.", session="new"))).execution
    await serving.until(client, first.id, lambda e: e.HasField("attempt_ended"))
    return await begin(serving, client, session=first.session)


@pytest.mark.parametrize(
    "reach", [asks, lacks_its_key, rests, streams, waits_to_ask_again, works, stands_in_line]
)
async def test_cancel_ends_a_run_in_whatever_state_it_is(
    serving: Any, fake: FakeProviders, reach: Reach
) -> None:
    async with serving.client() as client:
        id = await reach(serving, fake, client)
    async with serving.client() as client, asyncio.timeout(DEADLINE):
        asked = len(fake.requests)
        answers = await asyncio.gather(*(client.cancel(id, by=who) for who in ("ann", "bob")))
        assert {answer.execution.state for answer in answers} == {"cancelled"}
        assert not all(answer.already_finished for answer in answers)
        events = [event async for event in client.watch(id)]
        assert events[-1].finished.outcome == "cancelled"
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert not (await client.get(id)).approvals
        open_ = {e.approval_requested.call for e in events if e.HasField("approval_requested")}
        closed = {e.approval_decided.call for e in events if e.HasField("approval_decided")}
        assert open_ <= closed
        assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == SLEEP]
        assert (await client.cancel(id, by="eve")).already_finished
        assert len(fake.requests) == asked
        again = [event async for event in client.watch(id)]
    assert again == events, "nothing is added to what has ended"


async def test_a_decision_and_a_cancel_at_once_end_the_run_once(serving: Any, fake: FakeProviders) -> None:
    async with serving.client() as client, asyncio.timeout(DEADLINE):
        id = await asks(serving, fake, client)
        answers = await asyncio.gather(
            client.cancel(id, by="ann"),
            client.decide(id, "1.0", approve=True, by="bob"),
            client.decide(id, "1.0", approve=False, by="eve"),
            return_exceptions=True,
        )
        assert not isinstance(answers[0], Exception)
        events = [event async for event in client.watch(id)]
    assert events[-1].finished.outcome == "cancelled"
    decided = [e.approval_decided for e in events if e.HasField("approval_decided")]
    assert len(decided) == 1
    assert decided[0].decision in ("cancelled", "approved", "rejected")
    ran = any(e.HasField("tool_dispatched") for e in events)
    assert not ran or decided[0].decision == "approved"
