"""The official ollama SDK is the oracle: same streams, same messages; our bodies are valid by its types."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import ollama
import orjson
import pytest
from graphton.chat.base import Done, Request, ToolSpec
from graphton.chat.ollama import OllamaChat
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
from graphton.testing import FakeProviders, Reply
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ollama._types import ChatRequest, Options

HELLO = Request("", [UserMessage("Hello")])
BEYOND_THE_SDK = {"truncate", "shift"}
"""Fields of the real server's API (tests/chat/test_ollama_real.py sees them work) that the SDK's types lack."""


@pytest.fixture
async def fake() -> AsyncIterator[FakeProviders]:
    async with FakeProviders() as server:
        yield server


@pytest.fixture
async def sdk(fake: FakeProviders) -> AsyncIterator[ollama.AsyncClient]:
    client = ollama.AsyncClient(host=fake.ollama_url)
    yield client
    await client.close()


async def ours(fake: FakeProviders) -> AssistantMessage:
    chat = OllamaChat(ModelRef("ollama", "qwen3:8b"), ModelSettings(base_url=fake.ollama_url))
    chunks = [chunk async for chunk in chat.stream(HELLO)]
    last = chunks[-1]
    assert isinstance(last, Done)
    return last.message


async def theirs(sdk: ollama.AsyncClient) -> list[ollama.ChatResponse]:
    stream = await sdk.chat(model="qwen3:8b", messages=[{"role": "user", "content": "Hello"}], stream=True)
    return [part async for part in stream]


def assert_same(mine: AssistantMessage, parts: list[ollama.ChatResponse]) -> None:
    assert mine.text == "".join(p.message.content or "" for p in parts)
    thoughts = "".join(p.message.thinking or "" for p in parts)
    assert "".join(b.text for b in mine.blocks if isinstance(b, Thinking)) == thoughts
    calls = [c.function for p in parts for c in p.message.tool_calls or ()]
    assert [(c.name, c.arguments) for c in mine.calls] == [(c.name, dict(c.arguments)) for c in calls]
    last = parts[-1]
    assert (mine.usage.input_tokens, mine.usage.output_tokens) == (last.prompt_eval_count, last.eval_count)
    assert (mine.stop is StopReason.LENGTH) == (last.done_reason == "length")
    assert mine.model == last.model


# Recorded from Ollama 0.17.4.
RECORDED = b"""\
{"model":"qwen3:8b","created_at":"2026-11-25T01:43:01.1Z","message":{"role":"assistant","content":"","thinking":"Hm"},"done":false}
{"model":"qwen3:8b","created_at":"2026-11-25T01:43:01.2Z","message":{"role":"assistant","content":"Let me"},"done":false}
{"model":"qwen3:8b","created_at":"2026-11-25T01:43:01.3Z","message":{"role":"assistant","content":" look."},"done":false}
{"model":"qwen3:8b","created_at":"2026-11-25T01:43:01.4Z","message":{"role":"assistant","content":"","tool_calls":[{"id":"call_4r8k1c2p","function":{"index":0,"name":"read_file","arguments":{"path":"a.txt"}}}]},"done":false}
{"model":"qwen3:8b","created_at":"2026-11-25T01:43:01.5Z","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop","total_duration":7333355512,"load_duration":3815666135,"prompt_eval_count":152,"prompt_eval_duration":213542390,"eval_count":26,"eval_duration":3277665354}
"""


async def test_a_recorded_stream_gives_the_same_message(fake: FakeProviders, sdk: ollama.AsyncClient) -> None:
    fake.add(Reply(body=RECORDED), Reply(body=RECORDED, write_size=5))
    parts = await theirs(sdk)
    mine = await ours(fake)
    assert_same(mine, parts)
    assert mine.stop is StopReason.TOOLS


# The SDK takes three more signs for line ends (httpx splits like str.splitlines), so it cannot judge them.
SPLITTERS = "\x85\u2028\u2029"
# Without `<`: thinking between tags we tell from the text, and the SDK does not.
WORDS = st.text(st.characters(codec="utf-8", exclude_characters=SPLITTERS + "<"), max_size=12)
ARGUMENTS = st.dictionaries(WORDS, st.none() | st.booleans() | st.integers(-9, 9) | WORDS, max_size=3)
FUNCTIONS = st.builds(lambda name, arguments: {"name": name, "arguments": arguments}, WORDS, ARGUMENTS)
MESSAGES = st.one_of(
    st.builds(lambda text: {"content": text}, WORDS),
    st.builds(lambda text: {"content": "", "thinking": text}, WORDS),
    st.builds(
        lambda functions: {"content": "", "tool_calls": [{"function": f} for f in functions]},
        st.lists(FUNCTIONS, min_size=1, max_size=3),
    ),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    messages=st.lists(MESSAGES, max_size=6),
    last=MESSAGES,
    reason=st.sampled_from(["stop", "length"]),
    counts=st.tuples(st.integers(0, 5000), st.integers(0, 5000)),
    size=st.sampled_from([None, 1, 3, 64]),
)
async def test_any_stream_gives_the_same_message(
    fake: FakeProviders,
    sdk: ollama.AsyncClient,
    messages: list[dict[str, Any]],
    last: dict[str, Any],
    reason: str,
    counts: tuple[int, int],
    size: int | None,
) -> None:
    ends = {"done_reason": reason, "prompt_eval_count": counts[0], "eval_count": counts[1]}
    events = [
        {"model": "m", "message": {"role": "assistant", **message}, "done": number == len(messages)}
        for number, message in enumerate([*messages, last])
    ]
    events[-1] |= ends
    body = b"".join(orjson.dumps(e) + b"\n" for e in events)
    fake.add(Reply(body=body), Reply(body=body, write_size=size))
    parts = await theirs(sdk)
    assert_same(await ours(fake), parts)


async def test_signs_that_some_take_for_line_ends_are_text_to_us(fake: FakeProviders) -> None:
    fake.reply(f"one{SPLITTERS}line", pieces=1)
    assert (await ours(fake)).text == f"one{SPLITTERS}line"


READ = ToolSpec("read_file", "Reads.", {"type": "object", "properties": {"path": {"type": "string"}}})
CONVERSATION = [
    UserMessage("Read a."),
    AssistantMessage((Text("Sure."), ToolCall("read_file", {"path": "a"}, id="1.0")), stop=StopReason.TOOLS),
    ToolResults((ToolResult("1.0", "", "read_file", "text"),)),
    AssistantMessage((Text("It says text."),)),
    UserMessage("Thanks."),
]


def body_of(model: str, level: str | None, schema: dict[str, Any] | None) -> dict[str, Any]:
    chat = OllamaChat(
        ModelRef("ollama", model),
        ModelSettings(max_tokens=1000, temperature=0.5, thinking=level, context_window=8192),
    )
    body = orjson.loads(chat.preview(Request("Be kind.", CONVERSATION, [READ], schema)).body)
    assert isinstance(body, dict)
    return body


@pytest.mark.parametrize("model", ["qwen2.5-coder:7b", "qwen3:8b", "gpt-oss:20b"])
@pytest.mark.parametrize("level", [None, "off", "low", "high"])
@pytest.mark.parametrize("schema", [None, {"type": "object", "properties": {}}])
def test_our_bodies_are_valid_by_the_sdks_types(
    model: str, level: str | None, schema: dict[str, Any] | None
) -> None:
    body = body_of(model, level, schema)
    assert set(body) - set(ChatRequest.model_fields) == BEYOND_THE_SDK
    assert set(body["options"]) <= set(Options.model_fields)
    for message in body["messages"]:
        # The server has known the ids of calls since 0.12.10; the SDK has no field for them yet.
        assert set(message) - set(ollama.Message.model_fields) <= {"tool_call_id"}
        ollama.Message.model_validate(message, strict=True)
    for tool in body["tools"]:
        ollama.Tool.model_validate(tool, strict=True)
    ChatRequest.model_validate(body, strict=True)
    Options.model_validate(body["options"], strict=True)


async def test_the_sdk_sends_the_same_conversation_in_the_same_words(
    fake: FakeProviders, sdk: ollama.AsyncClient
) -> None:
    """What the SDK makes of our own body is our own body: no field is dropped, but for ids, or renamed on its way."""
    body = {
        k: v for k, v in body_of("qwen3:8b", "low", {"type": "object"}).items() if k not in BEYOND_THE_SDK
    }
    fake.reply("ok")
    async for _ in await sdk.chat(**body):
        pass
    for message in body["messages"]:
        message.pop("tool_call_id", None)
        for call in message.get("tool_calls", ()):
            assert call.pop("id") == "call_1.0"
    assert fake.chats[0].json == body
