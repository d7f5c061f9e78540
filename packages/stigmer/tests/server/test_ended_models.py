"""A recorded model past its end: it is asked as recorded, and its successor goes on when the provider has it no more."""

from __future__ import annotations

import json
from typing import Any

import pytest
from graphton.testing import FakeProviders
from stigmer.api import service_pb2 as api

OLD, NEW = "claude-sonnet-4-5-20250929", "claude-sonnet-5-5"
KEY = "sk-ant-0123456789abcdef-wxyz"


def request(idle: Any, fake: FakeProviders, **flags: str) -> api.CreateExecutionRequest:
    shell = {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": fake.anthropic_url}
    return idle.request("Hello", shell=shell, flags={"model": OLD, "max_tokens": "64000", **flags})


async def run(idle: Any, fake: FakeProviders, **flags: str) -> list[Any]:
    async with idle.client() as client:
        return [event async for event in client.run(request(idle, fake, **flags))]


async def test_the_successor_of_a_model_that_is_gone_answers_and_an_event_says_so(
    idle: Any, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STIGMER_NOW", "2026-12-01")
    await idle.start()
    fake.fail(404, f"model: {OLD}")
    fake.reply("Hello.")
    events = await run(idle, fake, temperature="0.5")
    assert events[-1].finished.text == "Hello.", events[-1]
    first, second = [json.loads(chat.body) for chat in fake.chats]
    assert (first["model"], second["model"]) == (OLD, NEW)
    assert "temperature" not in second  # The successor takes none.
    assert fake.chats[1].headers["x-api-key"] == KEY
    (change,) = [event.fallback for event in events if event.HasField("fallback")]
    assert (getattr(change, "from"), change.to) == (f"anthropic:{OLD}", f"anthropic:{NEW}")
    config = next(event.config_resolved for event in events if event.HasField("config_resolved"))
    assert [model.model for model in config.models] == [OLD]  # The recorded resolution keeps its id.
    assert any("ended on 2026-11-30" in notice for notice in config.notices)


async def test_before_its_end_a_model_that_is_not_found_is_an_error(
    idle: Any, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STIGMER_NOW", "2026-11-29")
    await idle.start()
    fake.fail(404, f"model: {OLD}")
    events = await run(idle, fake)
    assert events[-1].finished.outcome == "failed"
    assert "404" in events[-1].finished.error.message
    assert len(fake.chats) == 1


async def test_a_model_past_its_end_that_still_answers_goes_on_answering(
    idle: Any, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STIGMER_NOW", "2027-01-01")
    await idle.start()
    fake.reply("Hello.")
    events = await run(idle, fake)
    assert events[-1].finished.text == "Hello."
    assert [json.loads(chat.body)["model"] for chat in fake.chats] == [OLD]
