"""What one call's failure means for the other runs of a process: a 429 slows all, a failed model rests."""

from __future__ import annotations

from typing import Any

from graphton._retry import REST_SECONDS, Pace, Retry
from graphton.agent import Agent, create_deep_agent
from graphton.journal import Fallback, MemoryJournal, Retrying
from graphton.models import ModelRef, ModelSettings
from graphton.testing import FakeProviders

REF = ModelRef("openai", "gpt-4.1")
KEY, OTHER = "sk-0123456789abcdef", "sk-fedcba9876543210"


def agent_of(fake: FakeProviders, key: str, waits: list[float], **more: Any) -> Agent:
    """An agent that notes how long it would have waited."""

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    settings = ModelSettings(base_url=fake.openai_url, api_key=key)
    retry = Retry(tries=2, sleep=sleep, jitter=lambda: 1.0)
    return create_deep_agent("openai:gpt-4.1", settings=settings, retry=retry, **more)


def events_of(journal: MemoryJournal, kind: type) -> list[Any]:
    return [event for event in journal.events if isinstance(event, kind)]


async def test_a_429_slows_every_run_with_the_same_key_and_no_other() -> None:
    async with FakeProviders() as fake:
        fake.fail(429, retry_after=30)
        for _ in range(3):
            fake.reply("done")
        await agent_of(fake, KEY, []).run("go")
        same: list[float] = []
        journal = MemoryJournal()
        assert (await agent_of(fake, KEY, same).run("go", journal=journal)).text == "done"
        other: list[float] = []
        assert (await agent_of(fake, OTHER, other).run("go")).text == "done"
    (wait,) = same
    assert 20 < wait <= 30
    (told,) = events_of(journal, Retrying)
    assert (told.status, told.try_) == (429, 1)
    assert "told another call with this key to slow down" in told.reason
    assert other == []


async def test_a_model_that_failed_rests_while_there_is_a_fallback() -> None:
    async with FakeProviders() as fake:
        second = ModelSettings(base_url=fake.openai_url, api_key=KEY)
        from graphton.chat import create_chat

        chats = [create_chat(ModelRef("openai", "gpt-4o"), second) for _ in range(2)]
        fake.fail(503)
        fake.fail(503)
        for text in ("first", "second", "third"):
            fake.reply(text)
        first = agent_of(fake, OTHER, [], fallbacks=[chats[0]])
        assert (await first.run("go")).text == "first"
        journal = MemoryJournal()
        later = agent_of(fake, OTHER, [], fallbacks=[chats[1]])
        assert (await later.run("go", journal=journal)).text == "second"
        alone = agent_of(fake, OTHER, [])
        assert (await alone.run("go")).text == "third"
        for agent in (first, later, alone):
            await agent.close()
    asked = [chat.json["model"] for chat in fake.chats]
    assert asked == ["gpt-4.1", "gpt-4.1", "gpt-4o", "gpt-4o", "gpt-4.1"]
    (change,) = events_of(journal, Fallback)
    assert "failed in another run and rests for" in change.reason


def test_a_pace_ends_with_its_time() -> None:
    now = 100.0
    pace = Pace(clock=lambda: now)
    settings = ModelSettings(base_url="https://gw.example/v1", api_key=KEY)
    pace.slow(REF, settings, 5)
    pace.slow(REF, settings, 2)  # A shorter wait takes nothing back.
    pace.rest(REF, settings)
    assert (pace.held(REF, settings), pace.resting(REF, settings)) == (5, REST_SECONDS)
    assert pace.held(REF, ModelSettings(base_url="https://gw.example/v1", api_key=OTHER)) == 0
    assert pace.held(REF, ModelSettings(base_url="https://else.example/v1", api_key=KEY)) == 0
    now = 105.0
    assert pace.held(REF, settings) == 0
    now = 100.0 + REST_SECONDS
    assert pace.resting(REF, settings) == 0
