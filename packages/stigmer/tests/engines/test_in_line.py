"""Executions of one session on the engine: one after the other, on both databases, over a restart."""

from __future__ import annotations

import json
from typing import Any

from graphton.testing import Reply
from stigmer.api import event_pb2 as pb
from stigmer.api import service_pb2 as api
from stigmer.store import Row, new_id

KEY = "sk-sentinel-0123456789abcdef"
SESSION = "ses_1"
COMMAND = {"calls": [{"name": "run_command", "arguments": {"command": "echo hi"}}]}


async def accept(house: Any, task: str) -> Row:
    request = api.CreateExecutionRequest(task=task, session=SESSION, workspace=str(house.workspace))
    id = new_id()
    house.keys.put(id, KEY, organisation="default", provider="openai", base_url=house.fake.openai_url)
    row, _ = await house.store.accept(
        id,
        request.SerializeToString(),
        events=[pb.Event(created=pb.Created(task=task)), pb.Event(config_resolved=house.config())],
        session=SESSION,
    )
    house.engine.submit(row.id)
    return row


def asked(house: Any, number: int) -> str:
    return json.dumps(house.fake.requests[number].body, default=str)


async def test_executions_of_a_session_run_in_order_also_after_a_restart(house: Any) -> None:
    house.fake.script({"replies": [COMMAND]})
    house.fake.add(*(Reply(text=text) for text in ("one", "two", "three")))
    first = await accept(house, "first task")
    await house.waiting(first)
    second, third = await accept(house, "second task"), await accept(house, "third task")
    await house.restart(keys=house.keys)
    assert len(house.fake.requests) == 1
    await house.decide(first)
    ends = [(await house.finished(row)).text for row in (first, second, third)]
    assert ends == ["one", "two", "three"]
    assert "second task" in asked(house, 2)
    assert "third task" not in asked(house, 2)
    for said in ("first task", "echo hi", "one", "second task", "two", "third task"):
        assert said in asked(house, 3)


async def test_a_cancelled_one_in_line_is_passed_over(house: Any) -> None:
    house.fake.script({"replies": [COMMAND, {"text": "fine"}]})
    first = await accept(house, "first task")
    await house.waiting(first)
    second, third = await accept(house, "second task"), await accept(house, "third task")
    assert await house.engine.cancel(second.id, by="ann")
    assert await house.engine.cancel(first.id, by="ann")
    assert (await house.finished(third)).text == "fine"
    assert (await house.finished(second)).outcome == "cancelled"
    kinds = [record.WhichOneof("kind") for record in await house.records(second)]
    assert "attempt_started" not in kinds
