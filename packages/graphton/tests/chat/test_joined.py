"""A conversation that grows goes out as if it were put together anew each time, whatever was replaced in between."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from graphton.chat import create_chat
from graphton.chat.base import Done, Request
from graphton.history import History
from graphton.messages import (
    AssistantMessage,
    StopReason,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
    ToolResults,
    UserMessage,
)
from graphton.models import ModelRef, ModelSettings
from graphton.testing import FakeProviders


@pytest.fixture(params=["chat", "responses"])
def chat(request: pytest.FixtureRequest) -> Any:
    settings = ModelSettings(api_key="sk-test", base_url="http://127.0.0.1:1/v1", dialect=request.param)
    return create_chat(ModelRef("openai", "gpt-4.1"), settings)


@pytest.fixture
async def fake() -> AsyncIterator[FakeProviders]:
    async with FakeProviders() as server:
        yield server


def turn(number: int) -> tuple[AssistantMessage, ToolResults]:
    thought = Thinking(
        "hm", "openai", raw=orjson.dumps({"type": "reasoning", "id": f"r{number}", "summary": []})
    )
    call = ToolCall("read", {"n": number}, id=f"{number}.0", wire_id=f"c{number}")
    replied = AssistantMessage((thought, Text("look"), call), stop=StopReason.TOOLS)
    return replied, ToolResults((ToolResult(f"{number}.0", f"c{number}", "read", "ü" * number),))


def sent(chat: Any, history: History) -> Any:
    """The body of the next request, which must be the same as that of a conversation nobody has sent before."""
    kept = chat.preview(Request("Be brief.", history.messages, memo=history.memo)).body
    assert kept == chat.preview(Request("Be brief.", list(history.messages))).body
    return orjson.loads(kept)


def talk(history: History, numbers: range) -> None:
    for number in numbers:
        history.extend(turn(number))


def test_what_was_sent_before_is_not_put_together_again(chat: Any) -> None:
    history = History()
    history.add(UserMessage("go"), task=True)
    talk(history, range(1, 4))
    sent(chat, history)
    for message in history.messages:
        message.wire.clear()
    first = history.messages[0]
    talk(history, range(4, 6))
    chat.preview(Request("Be brief.", history.messages, memo=history.memo))
    assert (first.wire, len(history.messages[-1].wire)) == ({}, 1)


def test_a_growing_conversation_goes_out_whole(chat: Any) -> None:
    history = History()
    history.add(UserMessage("go"), task=True)
    sizes = []
    for number in range(1, 6):
        talk(history, range(number, number + 1))
        sizes.append(len(str(sent(chat, history))))
    assert sizes == sorted(set(sizes))


def test_a_summary_takes_the_place_of_what_was_sent_before(chat: Any) -> None:
    history = History()
    history.add(UserMessage("go"), task=True)
    talk(history, range(1, 5))
    sent(chat, history)
    history.compact(2, "so far so good")
    talk(history, range(5, 9))
    assert "so far so good" in str(sent(chat, history))


def test_reasoning_that_was_taken_out_does_not_go_out_again(chat: Any) -> None:
    history = History()
    history.add(UserMessage("go"), task=True)
    talk(history, range(1, 3))
    before = sent(chat, history)
    assert history.drop_reasoning()
    after = sent(chat, history)
    assert "r1" not in str(after)
    assert ("r1" in str(before)) == (chat.dialect == "responses")


def test_another_system_text_begins_anew(chat: Any) -> None:
    history = History()
    history.add(UserMessage("go"), task=True)
    talk(history, range(1, 3))
    sent(chat, history)
    other = chat.preview(Request("Be long.", history.messages, memo=history.memo)).body
    assert other == chat.preview(Request("Be long.", history.messages)).body
    assert (
        chat.preview(Request("", history.messages, memo=history.memo)).body
        == chat.preview(Request("", history.messages)).body
    )


def test_what_a_connection_still_sends_is_not_changed_by_what_comes_next(chat: Any) -> None:
    history = History()
    history.add(UserMessage("go"), task=True)
    sent(chat, history)
    (kept,) = history.memo.values()
    sending = memoryview(kept.wire)
    before = bytes(sending)
    talk(history, range(1, 4))
    sent(chat, history)
    assert bytes(sending) == before


async def test_a_large_conversation_is_sent_as_it_is_kept(fake: FakeProviders) -> None:
    settings = ModelSettings(api_key="sk-test", base_url=fake.openai_url, dialect="chat")
    chat = create_chat(ModelRef("openai", "gpt-4.1"), settings)
    history = History()
    history.add(UserMessage("x" * 200_000), task=True)
    wires = []
    for number in range(1, 5):
        fake.reply("Hi.")
        request = Request("Be brief.", history.messages, memo=history.memo)
        replied = [chunk.message async for chunk in chat.stream(request) if isinstance(chunk, Done)]
        assert fake.chats[-1].json == orjson.loads(chat.preview(request).body)
        wires.append(history.memo["openai:openai"].wire)
        history.extend([*replied, UserMessage(f"and {number}?")])
    assert all(wire is wires[0] for wire in wires)  # Else a request holds on to what it has sent.
