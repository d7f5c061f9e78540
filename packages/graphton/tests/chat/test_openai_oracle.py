"""The official openai SDK is the oracle: same streams, same messages; our bodies are valid by its types."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, get_args

import openai
import orjson
import pytest
from graphton.chat.base import Done, Request, ToolSpec
from graphton.chat.openai import OpenAIChat
from graphton.messages import (
    AssistantMessage,
    StopReason,
    Text,
    ToolCall,
    ToolResult,
    ToolResults,
    UserMessage,
)
from graphton.models import ModelRef, ModelSettings
from graphton.testing import FakeProviders, Reply
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types import ChatModel
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionMessageParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionToolMessageParam,
    ChatCompletionToolUnionParam,
    ChatCompletionUserMessageParam,
)
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
from pydantic import TypeAdapter

HELLO = Request("", [UserMessage("Hello")])
STOPS = {
    "stop": {StopReason.END, StopReason.TOOLS},
    "tool_calls": {StopReason.TOOLS},
    "length": {StopReason.LENGTH},
    "content_filter": {StopReason.REFUSED},
}


@pytest.fixture
async def fake() -> AsyncIterator[FakeProviders]:
    async with FakeProviders() as server:
        yield server


@pytest.fixture
async def sdk(fake: FakeProviders) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=fake.openai_url, api_key="k", max_retries=0) as client:
        yield client


async def ours(fake: FakeProviders) -> AssistantMessage:
    chat = OpenAIChat(ModelRef("openai", "gpt-6-luna"), ModelSettings(base_url=fake.openai_url, api_key="k"))
    chunks = [chunk async for chunk in chat.stream(HELLO)]
    last = chunks[-1]
    assert isinstance(last, Done)
    return last.message


async def theirs(sdk: openai.AsyncOpenAI) -> Any:
    """The SDK's own accumulation of the same stream."""
    state = ChatCompletionStreamState()
    stream = await sdk.chat.completions.create(
        model="gpt-6-luna",
        messages=[{"role": "user", "content": "Hello"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    async for chunk in stream:
        state.handle_chunk(chunk)
    return state.current_completion_snapshot


def assert_same(mine: AssistantMessage, snapshot: Any) -> None:
    (choice,) = snapshot.choices
    assert mine.text == (choice.message.content or "")
    assert [(c.wire_id, c.name) for c in mine.calls] == [
        (c.id, c.function.name) for c in choice.message.tool_calls or ()
    ]
    assert [c.arguments for c in mine.calls] == [
        json.loads(c.function.arguments or "{}") for c in choice.message.tool_calls or ()
    ]
    assert mine.stop in STOPS[choice.finish_reason]
    assert mine.model == snapshot.model
    if snapshot.usage is not None:
        cached = snapshot.usage.prompt_tokens_details.cached_tokens
        counted = (snapshot.usage.prompt_tokens, snapshot.usage.completion_tokens, cached)
        assert (mine.usage.input_tokens, mine.usage.output_tokens, mine.usage.cached_tokens) == counted


# Recorded from OpenAI's API (ids shortened): text; two parallel calls.
TEXT = [
    '{"id":"chatcmpl-B1","object":"chat.completion.chunk","created":1741290958,"model":"gpt-6-luna-2026","service_tier":"default","system_fingerprint":"fp_1","choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}],"usage":null,"obfuscation":"x1"}',
    '{"id":"chatcmpl-B1","object":"chat.completion.chunk","created":1741290958,"model":"gpt-6-luna-2026","service_tier":"default","system_fingerprint":"fp_1","choices":[{"index":0,"delta":{"content":"Hello"},"logprobs":null,"finish_reason":null}],"usage":null,"obfuscation":"x"}',
    '{"id":"chatcmpl-B1","object":"chat.completion.chunk","created":1741290958,"model":"gpt-6-luna-2026","service_tier":"default","system_fingerprint":"fp_1","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null,"obfuscation":""}',
    '{"id":"chatcmpl-B1","object":"chat.completion.chunk","created":1741290958,"model":"gpt-6-luna-2026","service_tier":"default","system_fingerprint":"fp_1","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11,"prompt_tokens_details":{"cached_tokens":4,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}},"obfuscation":"y"}',
]
CALLS = [
    '{"id":"chatcmpl-B2","object":"chat.completion.chunk","created":1741290958,"model":"gpt-6-luna-2026","choices":[{"index":0,"delta":{"role":"assistant","content":null},"finish_reason":null}]}',
    '{"id":"chatcmpl-B2","object":"chat.completion.chunk","created":1741290958,"model":"gpt-6-luna-2026","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"call_A","type":"function","function":{"name":"read_file","arguments":""}}]},"finish_reason":null}]}',
    '{"id":"chatcmpl-B2","object":"chat.completion.chunk","created":1741290958,"model":"gpt-6-luna-2026","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\\"pa"}}]},"finish_reason":null}]}',
    '{"id":"chatcmpl-B2","object":"chat.completion.chunk","created":1741290958,"model":"gpt-6-luna-2026","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"th\\": \\"a\\"}"}}]},"finish_reason":null}]}',
    '{"id":"chatcmpl-B2","object":"chat.completion.chunk","created":1741290958,"model":"gpt-6-luna-2026","choices":[{"index":0,"delta":{"tool_calls":[{"index":1,"id":"call_B","type":"function","function":{"name":"list_files","arguments":"{}"}}]},"finish_reason":null}]}',
    '{"id":"chatcmpl-B2","object":"chat.completion.chunk","created":1741290958,"model":"gpt-6-luna-2026","choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}',
]


@pytest.mark.parametrize("recorded", [TEXT, CALLS])
async def test_a_recorded_stream_gives_the_same_message(
    fake: FakeProviders, sdk: openai.AsyncOpenAI, recorded: list[str]
) -> None:
    body = "".join(f"data: {line}\n\n" for line in [*recorded, "[DONE]"]).encode()
    fake.add(Reply(body=body), Reply(body=body, write_size=5))
    snapshot = await theirs(sdk)
    assert_same(await ours(fake), snapshot)


# --- generated streams ----------------------------------------------------------------------------------------------

# Without `<`: thinking between tags we tell from the text, and the SDK does not.
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=12)
ARGUMENTS = st.dictionaries(WORDS, st.none() | st.booleans() | st.integers(-9, 9) | WORDS, max_size=3)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """A stream of chunks: text and the argument pieces of several calls in any order, with oddities in between."""
    calls = draw(st.lists(ARGUMENTS, max_size=3))
    queues: list[list[dict[str, Any]]] = [[{"content": t} for t in draw(st.lists(WORDS, max_size=4))]]
    for index, arguments in enumerate(calls):
        raw = orjson.dumps(arguments).decode()
        cut = draw(st.integers(0, len(raw)))
        opening = {"name": f"tool_{index}", "arguments": ""}
        head = {"index": index, "id": f"call_{index}", "type": "function", "function": opening}
        pieces = [{"index": index, "function": {"arguments": p}} for p in (raw[:cut], raw[cut:])]
        queues.append([{"tool_calls": [p]} for p in (head, *pieces)])
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": None}]
    opened = 1
    while any(queues):
        # A call begins only after the one before it has begun: indexes rise, as on the real wire.
        ready = [i for i, q in enumerate(queues) if q and i <= opened]
        chosen = draw(st.sampled_from(ready))
        deltas.append(queues[chosen].pop(0))
        opened = max(opened, chosen + 1)
    finish = draw(st.sampled_from(["tool_calls"] if calls else ["stop", "length", "content_filter"]))
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": draw(st.sampled_from("mn"))}
    chunks = [{**head, "choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas]
    chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    if draw(st.booleans()):
        given_, made, cached = draw(st.tuples(*[st.integers(0, 10_000)] * 3))
        details = {"cached_tokens": cached}
        usage = {"prompt_tokens": given_, "completion_tokens": made, "total_tokens": given_ + made}
        chunks.append({**head, "choices": [], "usage": {**usage, "prompt_tokens_details": details}})
    end = draw(st.sampled_from([b"\n\n", b"\r\n\r\n", b"\n: ping\n\n"]))
    return b"".join(b"data: " + orjson.dumps(c) + end for c in chunks) + b"data: [DONE]\n\n"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=streams(), size=st.sampled_from([None, 1, 3, 64]))
async def test_any_stream_gives_the_same_message(
    fake: FakeProviders, sdk: openai.AsyncOpenAI, body: bytes, size: int | None
) -> None:
    fake.add(Reply(body=body), Reply(body=body, write_size=size))
    snapshot = await theirs(sdk)
    assert_same(await ours(fake), snapshot)


# --- request bodies -------------------------------------------------------------------------------------------------

READ = ToolSpec("read_file", "Reads.", {"type": "object", "properties": {"path": {"type": "string"}}})
CONVERSATION = [
    UserMessage("Read a."),
    AssistantMessage(
        (Text("Sure."), ToolCall("read_file", {"path": "a"}, id="1.0", wire_id="call_a")),
        stop=StopReason.TOOLS,
    ),
    ToolResults((ToolResult("1.0", "call_a", "read_file", "text"),)),
    AssistantMessage((Text("It says text."),)),
    UserMessage("Thanks."),
]
PARAMS = {
    "system": ChatCompletionSystemMessageParam,
    "user": ChatCompletionUserMessageParam,
    "assistant": ChatCompletionAssistantMessageParam,
    "tool": ChatCompletionToolMessageParam,
}


@pytest.mark.parametrize("model", ["gpt-6.2-sol", "gpt-6-luna", "gpt-5.6-terra", "gpt-4.1"])
@pytest.mark.parametrize("level", [None, "off", "low", "high"])
@pytest.mark.parametrize(
    "schema", [None, {"type": "object", "properties": {}, "additionalProperties": False}]
)
def test_our_bodies_are_valid_by_the_sdks_types(
    model: str, level: str | None, schema: dict[str, Any] | None
) -> None:
    assert model in get_args(ChatModel)
    chat = OpenAIChat(
        ModelRef("openai", model),
        ModelSettings(max_tokens=1000, temperature=0.5, thinking=level, api_key="k"),
    )
    body = orjson.loads(chat.preview(Request("Be kind.", CONVERSATION, [READ], schema)).body)
    assert set(body) <= set(CompletionCreateParamsStreaming.__annotations__) | _inherited()
    TypeAdapter(CompletionCreateParamsStreaming).validate_python(body)
    TypeAdapter(list[ChatCompletionMessageParam]).validate_python(body["messages"], strict=True)
    TypeAdapter(list[ChatCompletionToolUnionParam]).validate_python(body["tools"], strict=True)
    for message in body["messages"]:
        assert set(message) <= set(PARAMS[message["role"]].__annotations__)


def _inherited() -> set[str]:
    from openai.types.chat.completion_create_params import CompletionCreateParamsBase

    return set(CompletionCreateParamsBase.__annotations__)


async def test_the_sdk_sends_the_same_conversation_in_the_same_words(
    fake: FakeProviders, sdk: openai.AsyncOpenAI
) -> None:
    """What the SDK makes of our own body is our own body: no field is dropped or renamed on its way."""
    chat = OpenAIChat(
        ModelRef("openai", "gpt-6-luna"),
        ModelSettings(max_tokens=1000, thinking="low", api_key="k", base_url=fake.openai_url),
    )
    body = orjson.loads(chat.preview(Request("Be kind.", CONVERSATION, [READ])).body)
    fake.reply("ok")
    async for _ in await sdk.chat.completions.create(**body):
        pass
    assert fake.chats[0].json == body
