"""The official openai SDK is the oracle: same streams of responses, same replies; our bodies are valid by its types."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, get_args

import openai
import orjson
import pytest
from graphton.chat import create_chat
from graphton.chat.base import Done, Request, ToolSpec
from graphton.messages import (
    AssistantMessage,
    Message,
    Opaque,
    StopReason,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
    ToolResults,
    UserMessage,
)
from graphton.models import ModelSettings
from graphton.testing import Call, FakeProviders, Reply
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.responses import (
    EasyInputMessageParam,
    FunctionToolParam,
    ResponseFunctionToolCallParam,
    ResponseReasoningItemParam,
)
from openai.types.responses.response_create_params import (
    ResponseCreateParamsBase,
    ResponseCreateParamsStreaming,
)
from openai.types.responses.response_input_param import FunctionCallOutput
from openai.types.shared import ChatModel
from pydantic import TypeAdapter

HELLO = Request("", [UserMessage("Hello")])


@pytest.fixture
async def fake() -> AsyncIterator[FakeProviders]:
    async with FakeProviders() as server:
        yield server


@pytest.fixture
async def sdk(fake: FakeProviders) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=fake.openai_url, api_key="k", max_retries=0) as client:
        yield client


async def ours(fake: FakeProviders) -> AssistantMessage:
    chat = create_chat(
        "openai:gpt-6-luna", ModelSettings(base_url=fake.openai_url, api_key="k", dialect="responses")
    )
    chunks = [chunk async for chunk in chat.stream(HELLO)]
    last = chunks[-1]
    assert isinstance(last, Done)
    return last.message


async def theirs(sdk: openai.AsyncOpenAI) -> Any:
    """The SDK's own accumulation of the same stream: the response, complete or not."""
    last: Any = None
    async with sdk.responses.stream(model="gpt-6-luna", input="Hello") as stream:
        async for event in stream:
            if event.type in ("response.completed", "response.incomplete"):
                last = event.response
    return last


def assert_same(mine: AssistantMessage, response: Any) -> None:
    kinds = [i.type for i in response.output]
    said = [
        "".join(p.refusal if p.type == "refusal" else p.text for p in item.content)
        for item in response.output
        if item.type == "message"
    ]
    assert [b.text for b in mine.blocks if isinstance(b, Text)] == [text for text in said if text]
    thoughts = [item for item in response.output if item.type == "reasoning"]
    assert [b.text for b in mine.blocks if isinstance(b, Thinking)] == [
        "\n\n".join(p.text for p in item.summary if p.text) for item in thoughts
    ]
    assert [json.loads(b.raw) for b in mine.blocks if isinstance(b, Thinking)] == [
        item.model_dump(exclude_unset=True) for item in thoughts
    ]
    calls = [item for item in response.output if item.type == "function_call"]
    assert [(c.wire_id, c.name) for c in mine.calls] == [(c.call_id, c.name) for c in calls]
    assert [c.arguments for c in mine.calls] == [json.loads(c.arguments) for c in calls]
    others = [i for i in response.output if i.type == "web_search_call"]
    kept = [json.loads(b.raw) for b in mine.blocks if isinstance(b, Opaque)]
    assert [k for k in kept if "type" in k] == [item.model_dump(exclude_unset=True) for item in others]
    phases = [
        i.phase
        for i, text in zip((i for i in response.output if i.type == "message"), said, strict=True)
        if text
    ]
    assert [k["phase"] for k in kept if "phase" in k] == [p for p in phases if p]
    refused = any(p.type == "refusal" for i in response.output if i.type == "message" for p in i.content)
    assert mine.stop is expected_stop(response, "function_call" in kinds, refused)
    assert mine.model == response.model
    if response.usage is not None:
        cached = response.usage.input_tokens_details.cached_tokens
        counted = (response.usage.input_tokens, response.usage.output_tokens, cached)
        assert (mine.usage.input_tokens, mine.usage.output_tokens, mine.usage.cached_tokens) == counted


def expected_stop(response: Any, calls: bool, refused: bool) -> StopReason:
    why = response.incomplete_details.reason if response.incomplete_details else None
    if refused or why == "content_filter":
        return StopReason.REFUSED
    if response.status == "incomplete":
        return StopReason.LENGTH
    return StopReason.TOOLS if calls else StopReason.END


# As OpenAI's API sends them (ids and ciphertext shortened): reasoning with a summary, then two parallel calls; text.
HEAD = '"object":"response","created_at":1764000000,"model":"gpt-6-luna-2026","parallel_tool_calls":true,"tool_choice":"auto","tools":[],"store":false,"error":null,"incomplete_details":null,"instructions":null,"metadata":{},"temperature":1.0,"top_p":1.0'
CALLS = [
    '{"type":"response.created","sequence_number":0,"response":{"id":"resp_1",HEAD,"status":"in_progress","output":[],"usage":null}}',
    '{"type":"response.in_progress","sequence_number":1,"response":{"id":"resp_1",HEAD,"status":"in_progress","output":[],"usage":null}}',
    '{"type":"response.output_item.added","sequence_number":2,"output_index":0,"item":{"id":"rs_1","type":"reasoning","encrypted_content":"gAAAA","summary":[]}}',
    '{"type":"response.reasoning_summary_part.added","sequence_number":3,"item_id":"rs_1","output_index":0,"summary_index":0,"part":{"type":"summary_text","text":""}}',
    '{"type":"response.reasoning_summary_text.delta","sequence_number":4,"item_id":"rs_1","output_index":0,"summary_index":0,"delta":"**Reading**","obfuscation":"x1"}',
    '{"type":"response.reasoning_summary_text.done","sequence_number":5,"item_id":"rs_1","output_index":0,"summary_index":0,"text":"**Reading**"}',
    '{"type":"response.reasoning_summary_part.done","sequence_number":6,"item_id":"rs_1","output_index":0,"summary_index":0,"part":{"type":"summary_text","text":"**Reading**"}}',
    '{"type":"response.output_item.done","sequence_number":7,"output_index":0,"item":{"id":"rs_1","type":"reasoning","encrypted_content":"gAAAAB==","summary":[{"type":"summary_text","text":"**Reading**"}]}}',
    '{"type":"response.output_item.added","sequence_number":8,"output_index":1,"item":{"id":"fc_1","type":"function_call","status":"in_progress","arguments":"","call_id":"call_A","name":"read_file"}}',
    '{"type":"response.function_call_arguments.delta","sequence_number":9,"item_id":"fc_1","output_index":1,"delta":"{\\"pa","obfuscation":"y"}',
    '{"type":"response.function_call_arguments.delta","sequence_number":10,"item_id":"fc_1","output_index":1,"delta":"th\\":\\"a\\"}","obfuscation":""}',
    '{"type":"response.function_call_arguments.done","sequence_number":11,"item_id":"fc_1","output_index":1,"name":"read_file","arguments":"{\\"path\\":\\"a\\"}"}',
    '{"type":"response.output_item.done","sequence_number":12,"output_index":1,"item":{"id":"fc_1","type":"function_call","status":"completed","arguments":"{\\"path\\":\\"a\\"}","call_id":"call_A","name":"read_file"}}',
    '{"type":"keepalive","sequence_number":13}',
    '{"type":"response.output_item.added","sequence_number":14,"output_index":2,"item":{"id":"fc_2","type":"function_call","status":"in_progress","arguments":"","call_id":"call_B","name":"list_files"}}',
    '{"type":"response.function_call_arguments.done","sequence_number":15,"item_id":"fc_2","output_index":2,"name":"list_files","arguments":"{}"}',
    '{"type":"response.output_item.done","sequence_number":16,"output_index":2,"item":{"id":"fc_2","type":"function_call","status":"completed","arguments":"{}","call_id":"call_B","name":"list_files"}}',
    '{"type":"response.completed","sequence_number":17,"response":{"id":"resp_1",HEAD,"status":"completed","output":[{"id":"rs_1","type":"reasoning","encrypted_content":"gAAAAB==","summary":[{"type":"summary_text","text":"**Reading**"}]},{"id":"fc_1","type":"function_call","status":"completed","arguments":"{\\"path\\":\\"a\\"}","call_id":"call_A","name":"read_file"},{"id":"fc_2","type":"function_call","status":"completed","arguments":"{}","call_id":"call_B","name":"list_files"}],"usage":{"input_tokens":90,"input_tokens_details":{"cached_tokens":64,"cache_write_tokens":0},"output_tokens":41,"output_tokens_details":{"reasoning_tokens":20},"total_tokens":131}}}',
]
TEXT = [
    '{"type":"response.created","sequence_number":0,"response":{"id":"resp_2",HEAD,"status":"in_progress","output":[],"usage":null}}',
    '{"type":"response.output_item.added","sequence_number":1,"output_index":0,"item":{"id":"msg_1","type":"message","status":"in_progress","content":[],"phase":"final_answer","role":"assistant"}}',
    '{"type":"response.content_part.added","sequence_number":2,"item_id":"msg_1","output_index":0,"content_index":0,"part":{"type":"output_text","annotations":[],"logprobs":[],"text":""}}',
    '{"type":"response.output_text.delta","sequence_number":3,"item_id":"msg_1","output_index":0,"content_index":0,"delta":"Hello","logprobs":[],"obfuscation":"abc"}',
    '{"type":"response.output_text.done","sequence_number":4,"item_id":"msg_1","output_index":0,"content_index":0,"text":"Hello","logprobs":[]}',
    '{"type":"response.content_part.done","sequence_number":5,"item_id":"msg_1","output_index":0,"content_index":0,"part":{"type":"output_text","annotations":[],"logprobs":[],"text":"Hello"}}',
    '{"type":"response.output_item.done","sequence_number":6,"output_index":0,"item":{"id":"msg_1","type":"message","status":"completed","content":[{"type":"output_text","annotations":[],"logprobs":[],"text":"Hello"}],"phase":"final_answer","role":"assistant"}}',
    '{"type":"response.completed","sequence_number":7,"response":{"id":"resp_2",HEAD,"status":"completed","output":[{"id":"msg_1","type":"message","status":"completed","content":[{"type":"output_text","annotations":[],"logprobs":[],"text":"Hello"}],"phase":"final_answer","role":"assistant"}],"usage":{"input_tokens":9,"input_tokens_details":{"cached_tokens":0,"cache_write_tokens":0},"output_tokens":2,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":11}}}',
]


@pytest.mark.parametrize("recorded", [TEXT, CALLS], ids=["text", "calls"])
async def test_a_stream_as_the_api_sends_it_gives_the_same_reply(
    fake: FakeProviders, sdk: openai.AsyncOpenAI, recorded: list[str]
) -> None:
    whole = [line.replace("HEAD", HEAD) for line in recorded]
    body = "".join(f"event: {json.loads(line)['type']}\ndata: {line}\n\n" for line in whole).encode()
    fake.add(Reply(body=body), Reply(body=body, write_size=5))
    response = await theirs(sdk)
    assert response.output
    assert_same(await ours(fake), response)


async def test_the_fakes_own_streams_are_read_by_the_sdk(
    fake: FakeProviders, sdk: openai.AsyncOpenAI
) -> None:
    said: list[dict[str, Any]] = [
        {"text": "Hello there.", "thinking": "Hm.", "input_tokens": 100, "cached_tokens": 60},
        {"calls": (Call("f", {"a": "ä"}), Call("g")), "text": "So."},
        {"text": "Half of", "stop": StopReason.LENGTH},
        {"text": ""},
    ]
    for fields in said:
        fake.reply(**fields)
        fake.reply(**fields)
        response = await theirs(sdk)
        mine = await ours(fake)
        assert mine.text == response.output_text == fields["text"]
        assert [(c.wire_id, c.name) for c in mine.calls] == [
            (i.call_id, i.name) for i in response.output if i.type == "function_call"
        ]
        assert response.usage.output_tokens == mine.usage.output_tokens


# --- generated streams ----------------------------------------------------------------------------------------------

WORDS = st.text(st.characters(codec="utf-8"), max_size=12)
ARGUMENTS = st.dictionaries(WORDS, st.none() | st.booleans() | st.integers(-9, 9) | WORDS, max_size=3)


def _pieces(draw: st.DrawFn, text: str) -> list[str]:
    cut = draw(st.integers(0, len(text)))
    return [text[:cut], text[cut:]]


def _message(draw: st.DrawFn, at: int, status: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    parts: list[dict[str, Any]] = []
    grown: list[dict[str, Any]] = []
    for number in range(draw(st.integers(0, 2))):
        words = draw(WORDS)
        if refusal := draw(st.integers(0, 9)) == 0:
            part: dict[str, Any] = {"type": "refusal", "refusal": words}
        else:
            part = {"type": "output_text", "text": words, "annotations": []}
        kind = "response.refusal.delta" if refusal else "response.output_text.delta"
        empty = {**part, "refusal" if refusal else "text": ""}
        grown.append({"type": "response.content_part.added", "content_index": number, "part": empty})
        grown += [
            {"type": kind, "content_index": number, "delta": p, "logprobs": []} for p in _pieces(draw, words)
        ]
        parts.append(part)
    item = {"id": f"msg_{at}", "type": "message", "role": "assistant", "status": status, "content": parts}
    if phase := draw(st.sampled_from([None, "commentary", "final_answer"])):
        item["phase"] = phase
    return item, grown


def _reasoning(draw: st.DrawFn, at: int, status: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    texts = draw(st.lists(WORDS, max_size=3))
    grown = [
        {"type": "response.reasoning_summary_text.delta", "summary_index": n, "delta": p}
        for n, text in enumerate(texts)
        for p in _pieces(draw, text)
    ]
    summary = [{"type": "summary_text", "text": text} for text in texts]
    return {
        "id": f"rs_{at}",
        "type": "reasoning",
        "summary": summary,
        "encrypted_content": "g" + draw(WORDS),
    }, grown


def _call(draw: st.DrawFn, at: int, status: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    raw = orjson.dumps(draw(ARGUMENTS)).decode()
    kind = "response.function_call_arguments"
    grown: list[dict[str, Any]] = [{"type": f"{kind}.delta", "delta": p} for p in _pieces(draw, raw)]
    if draw(st.booleans()):
        grown.append({"type": f"{kind}.done", "arguments": raw, "name": f"tool_{at}"})
    head = {"id": f"fc_{at}", "type": "function_call", "call_id": f"call_{at}", "name": f"tool_{at}"}
    return {**head, "arguments": raw, "status": status}, grown


def _search(draw: st.DrawFn, at: int, status: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    action = {"type": "search", "query": draw(WORDS)}
    return {"id": f"ws_{at}", "type": "web_search_call", "status": "completed", "action": action}, []


_EMPTY = {"content": [], "summary": [], "arguments": ""}


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """A stream of a response: items that open, grow at once, and close, with events of no meaning in between."""
    reason = draw(st.sampled_from([None, None, None, "max_output_tokens", "content_filter"]))
    status = "incomplete" if reason else "completed"
    kinds = draw(st.lists(st.sampled_from([_message, _reasoning, _call, _search]), max_size=4))
    output: list[dict[str, Any]] = []
    queues: list[list[dict[str, Any]]] = []
    for at, make in enumerate(kinds):
        item, grown = make(draw, at, status)
        opened = {**item, **{k: v for k, v in _EMPTY.items() if k in item}}
        queues.append(
            [
                {"type": "response.output_item.added", "output_index": at, "item": opened},
                *({**e, "output_index": at, "item_id": item["id"]} for e in grown),
                {"type": "response.output_item.done", "output_index": at, "item": item},
            ]
        )
        output.append(item)
    head = {"id": "resp_1", "object": "response", "created_at": 1, "tools": [], "tool_choice": "auto"}
    head |= {"model": draw(st.sampled_from("mn")), "parallel_tool_calls": True, "error": None, "metadata": {}}
    started = {**head, "status": "in_progress", "output": []}
    events: list[dict[str, Any]] = [{"type": "response.created", "response": started}]
    opened_items = 0
    while any(queues):
        # Items open in their order and may grow at once.
        ready = [i for i, q in enumerate(queues) if q and i <= opened_items]
        chosen = draw(st.sampled_from(ready))
        events.append(queues[chosen].pop(0))
        opened_items = max(opened_items, chosen + 1)
        if draw(st.integers(0, 5)) == 0:
            events.append({"type": draw(st.sampled_from(["keepalive", "response.of_the_future"]))})
    end: dict[str, Any] = {**head, "status": status, "output": output}
    end["incomplete_details"] = {"reason": reason} if reason else None
    if draw(st.booleans()):
        given_, made, cached = draw(st.tuples(*[st.integers(0, 10_000)] * 3))
        end["usage"] = {
            "input_tokens": given_,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": made,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": given_ + made,
        }
    events.append({"type": f"response.{status}", "response": end})
    after = draw(st.sampled_from([b"\n\n", b"\r\n\r\n", b"\n: ping\n\n"]))
    named = draw(st.booleans())
    return b"".join(
        (b"event: " + e["type"].encode() + b"\n" if named else b"")
        + b"data: "
        + orjson.dumps({**e, "sequence_number": n})
        + after
        for n, e in enumerate(events)
    )


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=streams(), size=st.sampled_from([None, 1, 3, 64]))
async def test_any_stream_gives_the_same_reply(
    fake: FakeProviders, sdk: openai.AsyncOpenAI, body: bytes, size: int | None
) -> None:
    fake.add(Reply(body=body), Reply(body=body, write_size=size))
    response = await theirs(sdk)
    assert_same(await ours(fake), response)


# --- request bodies -------------------------------------------------------------------------------------------------

READ = ToolSpec("read_file", "Reads.", {"type": "object", "properties": {"path": {"type": "string"}}})
REASONING = b'{"id":"rs_1","type":"reasoning","summary":[],"encrypted_content":"gAAA"}'
CONVERSATION: list[Message] = [
    UserMessage("Read a."),
    AssistantMessage(
        (
            Thinking("", "openai", REASONING),
            Opaque("openai", b'{"phase":"commentary"}'),
            Text("Sure."),
            ToolCall("read_file", {"path": "a"}, id="1.0", wire_id="call_a"),
        ),
        stop=StopReason.TOOLS,
    ),
    ToolResults((ToolResult("1.0", "call_a", "read_file", "text"),)),
    AssistantMessage((Text("It says text."),)),
    UserMessage("Thanks."),
]
BODY = TypeAdapter(ResponseCreateParamsStreaming)
TOOLS = TypeAdapter(list[FunctionToolParam])
PARAMS: dict[str | None, Any] = {
    None: EasyInputMessageParam,
    "reasoning": ResponseReasoningItemParam,
    "function_call": ResponseFunctionToolCallParam,
    "function_call_output": FunctionCallOutput,
}


@pytest.mark.parametrize("model", ["gpt-6.2-sol", "gpt-6.1-sol", "gpt-6-luna", "gpt-5.6-terra", "gpt-4.1"])
@pytest.mark.parametrize("level", [None, "off", "low", "medium", "high"])
@pytest.mark.parametrize(
    "schema", [None, {"type": "object", "properties": {}, "additionalProperties": False}]
)
def test_our_bodies_are_valid_by_the_sdks_types(
    model: str, level: str | None, schema: dict[str, Any] | None
) -> None:
    assert model in get_args(ChatModel)
    chat = create_chat(
        f"openai:{model}", ModelSettings(max_tokens=1000, temperature=0.5, thinking=level, api_key="k")
    )
    body = orjson.loads(chat.preview(Request("Be kind.", CONVERSATION, [READ], schema)).body)
    assert set(body) <= set(ResponseCreateParamsBase.__annotations__) | {"stream"}
    BODY.validate_python(body)
    TOOLS.validate_python(body["tools"], strict=True)
    for item in body["input"]:
        param = PARAMS[item.get("type")]
        TypeAdapter(param).validate_python(item)
        assert set(item) <= set(param.__annotations__)


async def test_the_sdk_sends_the_same_conversation_in_the_same_words(
    fake: FakeProviders, sdk: openai.AsyncOpenAI
) -> None:
    """What the SDK makes of our own body is our own body: no field is dropped or renamed on its way."""
    chat = create_chat(
        "openai:gpt-6-luna",
        ModelSettings(
            max_tokens=1000, thinking="low", api_key="k", base_url=fake.openai_url, dialect="responses"
        ),
    )
    body = orjson.loads(chat.preview(Request("Be kind.", CONVERSATION, [READ])).body)
    fake.reply("ok")
    async for _ in await sdk.responses.create(**body):
        pass
    assert fake.chats[0].json == body
