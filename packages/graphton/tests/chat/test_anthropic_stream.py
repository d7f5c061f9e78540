"""What an Anthropic stream means: the same as to the official SDK, however it is cut, and told when it is broken."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx2
import orjson
import pytest
from graphton.chat import Chat, Chunk, Done, Request, TextChunk, ThinkingChunk, create_chat
from graphton.errors import BrokenStream, ProtocolError, ProviderError, ProviderTimeout, StatusError
from graphton.messages import (
    AssistantMessage,
    Opaque,
    StopReason,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
    ToolResults,
    Usage,
    UserMessage,
)
from graphton.models import ModelSettings, Timeouts
from graphton.testing import FakeProviders, Reply
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ASK = Request("Be short.", [UserMessage("What is in a.txt?")])


@pytest.fixture
async def fake() -> AsyncIterator[FakeProviders]:
    async with FakeProviders() as server:
        yield server


def chat_with(fake: FakeProviders, **fields: Any) -> Chat:
    given = ModelSettings(base_url=fake.anthropic_url, api_key="test", **fields)
    return create_chat("anthropic:claude-haiku-5.5", given)


async def chunks(fake: FakeProviders, reply: Reply, **fields: Any) -> list[Chunk]:
    fake.add(reply)
    return [chunk async for chunk in chat_with(fake, **fields).stream(ASK)]


async def drain(chat: Chat) -> None:
    async for _ in chat.stream(ASK):
        pass


async def message(fake: FakeProviders, reply: Reply, **fields: Any) -> AssistantMessage:
    last = (await chunks(fake, reply, **fields))[-1]
    assert isinstance(last, Done)
    return last.message


def sse(*events: dict[str, Any] | bytes) -> bytes:
    """A stream of these events; bytes go out as they stand."""
    return b"".join(
        e
        if isinstance(e, bytes)
        else b"event: %b\ndata: %b\n\n" % (e["type"].encode(), json.dumps(e).encode())
        for e in events
    )


START = {
    "type": "message_start",
    "message": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-5-5",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 12,
            "cache_creation_input_tokens": 300,
            "cache_read_input_tokens": 4000,
            "output_tokens": 1,
        },
    },
}
STOP = {"type": "message_stop"}


def begin(index: int, block: dict[str, Any]) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": block}


def delta(index: int, **fields: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": fields}


def end(reason: str | None = "end_turn", **usage: Any) -> dict[str, Any]:
    return {
        "type": "message_delta",
        "delta": {"stop_reason": reason, "stop_sequence": None},
        "usage": {"output_tokens": 89, **usage},
    }


RECORDED = sse(
    START,
    begin(0, {"type": "thinking", "thinking": "", "signature": ""}),
    b'event: ping\ndata: {"type": "ping"}\n\n',
    delta(0, type="thinking_delta", thinking="The user wants "),
    delta(0, type="thinking_delta", thinking="a file 📄."),
    delta(0, type="signature_delta", signature="EqQBCgIYAhIM1gbcDa9GJwZA2b3hGgxBdjrkzLoky3dl1pk="),
    {"type": "content_block_stop", "index": 0},
    begin(1, {"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3pzix/LafPsn4aDFIT2Xlxh0L5L8rLVyIw"}),
    {"type": "content_block_stop", "index": 1},
    begin(2, {"type": "text", "text": ""}),
    delta(2, type="text_delta", text="I'll re"),
    delta(2, type="text_delta", text="ad it: «ä»"),
    {"type": "content_block_stop", "index": 2},
    begin(3, {"type": "tool_use", "id": "toolu_01T1x1fJ34qAmk2tNTrN7Up6", "name": "read_file", "input": {}}),
    delta(3, type="input_json_delta", partial_json=""),
    delta(3, type="input_json_delta", partial_json='{"path": "a'),
    delta(3, type="input_json_delta", partial_json='.txt", "lines": [1, 2.5]}'),
    {"type": "content_block_stop", "index": 3},
    begin(4, {"type": "tool_use", "id": "toolu_02", "name": "todos", "input": {}}),
    {"type": "content_block_stop", "index": 4},
    end("tool_use"),
    STOP,
)
MESSAGE = AssistantMessage(
    (
        Thinking(
            "The user wants a file 📄.",
            "anthropic",
            '{"type":"thinking","thinking":"The user wants a file 📄.",'
            '"signature":"EqQBCgIYAhIM1gbcDa9GJwZA2b3hGgxBdjrkzLoky3dl1pk="}'.encode(),
        ),
        Opaque(
            "anthropic",
            b'{"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3pzix/LafPsn4aDFIT2Xlxh0L5L8rLVyIw"}',
        ),
        Text("I'll read it: «ä»"),
        ToolCall("read_file", {"path": "a.txt", "lines": [1, 2.5]}, wire_id="toolu_01T1x1fJ34qAmk2tNTrN7Up6"),
        ToolCall("todos", {}, wire_id="toolu_02"),
    ),
    stop=StopReason.TOOLS,
    usage=Usage(input_tokens=4312, output_tokens=89, cached_tokens=4000, cache_write_tokens=300),
    model="claude-haiku-5-5",
)

# --- the official SDK as an oracle


def sdk_message(stream: bytes) -> anthropic.types.Message:
    """What the official SDK makes of the same bytes."""
    transport = httpx2.MockTransport(
        lambda request: httpx2.Response(200, headers={"Content-Type": "text/event-stream"}, content=stream)
    )
    with (
        anthropic.Anthropic(api_key="test", http_client=httpx2.Client(transport=transport)) as client,
        client.messages.stream(
            model="claude-haiku-5-5", max_tokens=100, messages=[{"role": "user", "content": "x"}]
        ) as found,
    ):
        return found.get_final_message()


def as_sdk(message: AssistantMessage) -> dict[str, Any]:
    """Our message in the SDK's words."""
    content: list[dict[str, Any]] = []
    for block in message.blocks:
        match block:
            case Text():
                content.append({"type": "text", "text": block.text})
            case ToolCall():
                content.append(
                    {"type": "tool_use", "id": block.wire_id, "name": block.name, "input": block.arguments}
                )
            case Thinking() | Opaque():
                content.append(orjson.loads(block.raw))
    return {"model": message.model, "content": content}


def sdk_words(found: anthropic.types.Message) -> dict[str, Any]:
    content = [b.to_dict() for b in found.content]
    return {
        "model": found.model,
        "content": [b for b in content if (b["type"], b.get("text")) != ("text", "")],
    }


def sdk_usage(found: anthropic.types.Message) -> Usage:
    cached, written = found.usage.cache_read_input_tokens or 0, found.usage.cache_creation_input_tokens or 0
    return Usage(found.usage.input_tokens + cached + written, found.usage.output_tokens, cached, written)


async def test_a_recorded_stream_gives_its_message(fake: FakeProviders) -> None:
    assert await message(fake, Reply(body=RECORDED)) == MESSAGE


async def test_a_recorded_stream_gives_the_sdks_message(fake: FakeProviders) -> None:
    ours, theirs = await message(fake, Reply(body=RECORDED)), sdk_message(RECORDED)
    assert as_sdk(ours) == sdk_words(theirs)
    assert ours.usage == sdk_usage(theirs)


pieces = st.lists(st.text(max_size=8), max_size=4)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ids = st.text("abcXYZ019_-", min_size=1, max_size=12)


@st.composite
def blocks(draw: st.DrawFn, index: int) -> list[dict[str, Any]]:
    """The events of one content block."""
    kind = draw(st.sampled_from(["text", "thinking", "redacted_thinking", "tool_use", "server_tool_use"]))
    if kind == "text":
        inner = [delta(index, type="text_delta", text=t) for t in draw(pieces)]
        found = [begin(index, {"type": "text", "text": draw(st.sampled_from(["", "Well"]))}), *inner]
    elif kind == "thinking":
        inner = [delta(index, type="thinking_delta", thinking=t) for t in draw(pieces)]
        signed = delta(index, type="signature_delta", signature=draw(ids))
        found = [begin(index, {"type": "thinking", "thinking": "", "signature": ""}), *inner, signed]
    elif kind == "redacted_thinking":
        found = [begin(index, {"type": "redacted_thinking", "data": draw(ids)})]
    else:
        text = json.dumps(
            draw(st.dictionaries(st.text(max_size=5), values, max_size=3)), ensure_ascii=draw(st.booleans())
        )
        cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
        parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        name = "web_search" if kind == "server_tool_use" else draw(ids)
        start = begin(index, {"type": kind, "id": draw(ids), "name": name, "input": {}})
        found = [start, *(delta(index, type="input_json_delta", partial_json=p) for p in parts)]
    return [*found, {"type": "content_block_stop", "index": index}]


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """A whole reply, with pings and events of the future between."""
    events: list[dict[str, Any] | bytes] = [START]
    for index in range(draw(st.integers(0, 4))):
        events += draw(blocks(index))
        if draw(st.booleans()):
            events.append({"type": "ping"})
        if draw(st.booleans()):
            events.append({"type": "mood_changed", "index": 0, "mood": {"to": "good"}})
    reason = draw(
        st.sampled_from(["end_turn", "tool_use", "max_tokens", "stop_sequence", "refusal", "pause_turn"])
    )
    usage = draw(st.sampled_from([{}, {"input_tokens": 7, "cache_read_input_tokens": 5}]))
    return sse(*events, end(reason, **usage), STOP)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(stream=streams(), size=st.integers(1, 400))
async def test_any_stream_gives_the_sdks_message(fake: FakeProviders, stream: bytes, size: int) -> None:
    ours, theirs = await message(fake, Reply(body=stream, write_size=size)), sdk_message(stream)
    assert as_sdk(ours) == sdk_words(theirs)
    assert ours.usage == sdk_usage(theirs)


# --- how it arrives


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
async def test_the_size_of_the_pieces_does_not_matter(fake: FakeProviders, size: int) -> None:
    assert await message(fake, Reply(body=RECORDED, write_size=size)) == MESSAGE


async def test_a_stream_that_ends_at_any_byte_is_broken(fake: FakeProviders) -> None:
    chat = chat_with(fake)
    for cut in range(len(RECORDED)):
        fake.add(Reply(body=RECORDED[:cut]))
        with pytest.raises(BrokenStream, match="the stream ended without message_stop"):
            await drain(chat)


@pytest.mark.parametrize("cut", [0, 1, 200, 700, 1500])
async def test_a_connection_cut_anywhere_is_a_broken_stream(fake: FakeProviders, cut: int) -> None:
    with pytest.raises(BrokenStream) as caught:
        await chunks(fake, Reply(body=RECORDED, break_after_bytes=cut))
    assert caught.value.retryable


async def test_text_and_thinking_are_shown_as_they_come(fake: FakeProviders) -> None:
    found = await chunks(fake, Reply(body=RECORDED))
    assert [c.text for c in found if isinstance(c, ThinkingChunk)] == ["The user wants ", "a file 📄."]
    assert [c.text for c in found if isinstance(c, TextChunk)] == ["I'll re", "ad it: «ä»"]
    assert [type(c) for c in found].count(Done) == 1


async def test_a_very_long_line_is_read_and_an_endless_one_refused(fake: FakeProviders) -> None:
    long, endless = "x" * 3_000_000, "x" * 16_000_000
    text = [begin(0, {"type": "text", "text": ""}), delta(0, type="text_delta", text=long)]
    assert (await message(fake, Reply(body=sse(START, *text, end(), STOP)))).text == long
    text = [begin(0, {"type": "text", "text": ""}), delta(0, type="text_delta", text=endless)]
    with pytest.raises(ProtocolError, match="in one event"):
        await message(fake, Reply(body=sse(START, *text, end(), STOP)))


async def test_closing_the_stream_ends_the_request_at_the_server(fake: FakeProviders) -> None:
    fake.add(Reply(body=RECORDED, stall_after=0), Reply(text="a long story", stall_after=4))
    stream = chat_with(fake).stream(ASK)
    waiting = asyncio.ensure_future(anext(stream))
    await fake.wait_for_requests(1)
    waiting.cancel()
    await asyncio.wait_for(fake.chats[0].disconnected.wait(), 30)
    stream = chat_with(fake).stream(ASK)
    assert isinstance(await anext(stream), TextChunk)
    await stream.aclose()  # type: ignore[attr-defined]  # an async generator, typed as its protocol
    await asyncio.wait_for(fake.chats[1].disconnected.wait(), 30)


async def test_each_limit_is_told(fake: FakeProviders) -> None:
    short = Timeouts(first_token=0.3, idle=0.3)
    for reply, limit in [
        (Reply(text="late", delay=60), "first_token"),
        (Reply(text="late", first_token_delay=60), "first_token"),
        (Reply(text="late", stall_after=1), "first_token"),  # message_start is not yet a token
        (Reply(text="a long story", stall_after=4), "idle"),
    ]:
        with pytest.raises(ProviderTimeout) as caught:
            await chunks(fake, reply, timeouts=short)
        assert caught.value.limit == limit


# --- what it says


@pytest.mark.parametrize(
    ("reason", "stop"),
    [
        ("end_turn", StopReason.END),
        ("stop_sequence", StopReason.END),
        ("tool_use", StopReason.TOOLS),
        ("max_tokens", StopReason.LENGTH),
        ("refusal", StopReason.REFUSED),
        ("pause_turn", StopReason.PAUSED),
        ("model_context_window_exceeded", StopReason.CONTEXT),
        ("a_reason_of_the_future", StopReason.END),
        (None, StopReason.END),
    ],
)
async def test_stop_reasons(fake: FakeProviders, reason: str | None, stop: StopReason) -> None:
    text = begin(0, {"type": "text", "text": "hi"})
    assert (await message(fake, Reply(body=sse(START, text, end(reason), STOP)))).stop is stop


@pytest.mark.parametrize(
    ("reason", "stop"), [(None, StopReason.TOOLS), ("a_reason_of_the_future", StopReason.LENGTH)]
)
async def test_calls_run_only_for_a_reason_that_we_know(
    fake: FakeProviders, reason: str | None, stop: StopReason
) -> None:
    call = begin(0, {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}})
    assert (await message(fake, Reply(body=sse(START, call, end(reason), STOP)))).stop is stop


def test_every_stop_reason_of_the_sdk_is_known() -> None:
    from typing import get_args

    from graphton.chat.anthropic import _STOPS

    assert set(get_args(anthropic.types.StopReason)) == set(_STOPS)


async def test_an_empty_reply_is_a_message_without_blocks(fake: FakeProviders) -> None:
    found = await message(fake, Reply(body=sse(START, end(), STOP)))
    assert (found.blocks, found.text, found.stop) == ((), "", StopReason.END)


async def test_unknown_events_and_fields_change_nothing(fake: FakeProviders) -> None:
    plain = await message(fake, Reply(text="hello", thinking="hm"))
    assert (
        await message(fake, Reply(text="hello", thinking="hm", unknown_events=True, keep_alives=True))
        == plain
    )


async def test_unknown_blocks_are_kept_and_sent_back_byte_for_byte(fake: FakeProviders) -> None:
    raw = b'{"type" : "web_thing",  "n": 1.0, "big": 123456789012345678901234567890, "s":"\\u20ac \\"content_block\\":"}'
    event = (
        b'event: content_block_start\ndata: {"index":0, "type":"content_block_start", "content_block" : '
        + raw
    )
    found = await message(fake, Reply(body=sse(START, event + b"}\n\n", end("pause_turn"), STOP)))
    assert found.blocks == (Opaque("anthropic", raw),)
    fake.reply("on we go")
    async for _ in chat_with(fake).stream(Request("", [UserMessage("go"), found])):
        pass
    assert b'"content":[' + raw + b"]" in fake.chats[-1].body


async def test_thinking_is_sent_back_unchanged_and_only_when_it_was_signed(fake: FakeProviders) -> None:
    found = await message(fake, Reply(body=RECORDED))
    results = ToolResults(
        (
            ToolResult("1.0", "toolu_01T1x1fJ34qAmk2tNTrN7Up6", "read_file", "ok"),
            ToolResult("1.1", "toolu_02", "todos", "ok"),
        )
    )
    fake.reply("done")
    async for _ in chat_with(fake).stream(Request("", [UserMessage("go"), found, results])):
        pass
    sent = fake.chats[-1].json["messages"][1]["content"]
    assert sent[0] == {
        "type": "thinking",
        "thinking": "The user wants a file 📄.",
        "signature": "EqQBCgIYAhIM1gbcDa9GJwZA2b3hGgxBdjrkzLoky3dl1pk=",
    }
    assert sent[1]["data"] == "EmwKAhgBEgy3va3pzix/LafPsn4aDFIT2Xlxh0L5L8rLVyIw"
    cut = sse(
        START,
        begin(0, {"type": "thinking", "thinking": ""}),
        delta(0, type="thinking_delta", thinking="so far"),
        end("max_tokens"),
        STOP,
    )
    assert (await message(fake, Reply(body=cut))).blocks == (Thinking("so far", "anthropic", b""),)


@pytest.mark.parametrize(
    ("text", "arguments", "malformed"),
    [
        ('{"a": 1', {}, '{"a": 1'),
        ("[1]", {}, "[1]"),
        ("NaN", {}, "NaN"),
        (" ", {}, ""),
        ('{"n": 123456789012345678901234567890}', {"n": 123456789012345678901234567890}, ""),
        ('{"face": "\\ud83d\\ude00"}', {"face": "😀"}, ""),
        ('{"half": "\\ud83d"}', {"half": "\ufffd"}, ""),
        ("[" * 5000, {}, "[" * 5000),
    ],
)
async def test_arguments_that_are_no_object_are_kept_as_they_came(
    fake: FakeProviders, text: str, arguments: dict[str, Any], malformed: str
) -> None:
    call = begin(0, {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}})
    part = delta(0, type="input_json_delta", partial_json=text)
    found = (await message(fake, Reply(body=sse(START, call, part, end("tool_use"), STOP)))).calls
    assert found == (ToolCall("f", arguments, wire_id="toolu_1", malformed=malformed),)


async def test_half_a_surrogate_pair_does_not_end_the_run(fake: FakeProviders) -> None:
    text = begin(0, {"type": "text", "text": "a\ud83d"})
    assert (await message(fake, Reply(body=sse(START, text, end(), STOP)))).text == "a\ufffd"


# --- what it says when it fails


KINDS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
    "an_error_of_the_future": 500,
}


@pytest.mark.parametrize(("kind", "status"), KINDS.items())
async def test_an_error_inside_a_200_stream_has_the_status_that_it_names(
    fake: FakeProviders, kind: str, status: int
) -> None:
    with pytest.raises(StatusError, match=rf"answered {status} \({kind}\): sorry") as caught:
        await chunks(fake, Reply(text="hello", error="sorry", error_kind=kind, error_event=3))
    assert (caught.value.status, caught.value.kind) == (status, kind)
    assert caught.value.retryable is (status in (429, 500, 504, 529))


async def test_an_error_in_a_200_that_is_no_stream_is_told_too(fake: FakeProviders) -> None:
    with pytest.raises(StatusError, match="answered 529"):
        await chunks(
            fake,
            Reply(
                headers={"Content-Type": "application/json"},
                body=b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}',
            ),
        )


async def test_a_page_instead_of_a_stream_is_shown(fake: FakeProviders) -> None:
    with pytest.raises(
        ProtocolError, match="'text/html' instead of a stream of events: '<html>Sign in"
    ) as caught:
        await chunks(fake, Reply(headers={"Content-Type": "text/html"}, body=b"<html>Sign in</html>"))
    assert "check that the base URL" in caught.value.hint


@pytest.mark.parametrize(
    "event",
    [
        b"data: []\n\n",
        b"data: {}\n\n",
        sse({"type": "message_start"}),
        sse({"type": "content_block_start", "index": 0}),
        sse(delta(7, type="text_delta", text="nobody began me")),
        sse(begin(0, {"type": "text"}), delta(0, type="text_delta", text=None), end(), STOP),
        sse(begin(0, {"type": "tool_use"}), end(), STOP),
    ],
)
async def test_events_of_no_dialect_are_protocol_errors(fake: FakeProviders, event: bytes) -> None:
    with pytest.raises(ProtocolError, match="none of its dialect") as caught:
        await chunks(fake, Reply(body=sse(START, event)))
    assert "does not speak the Messages API rightly" in caught.value.hint


async def test_an_event_cut_in_half_is_a_broken_stream_that_is_asked_again(fake: FakeProviders) -> None:
    with pytest.raises(BrokenStream, match="an event that cannot be read") as caught:
        await chunks(fake, Reply(body=sse(START, b"data: {broken\n\n")))
    assert caught.value.retryable
    with pytest.raises(ProtocolError, match="an event that cannot be read"):
        await chunks(fake, Reply(body=b"data: {broken\n\n"))


async def test_http_errors_are_told_with_the_servers_words(fake: FakeProviders) -> None:
    with pytest.raises(StatusError, match=r"answered 529 \(overloaded_error\): Overloaded") as caught:
        await chunks(fake, Reply(status=529, error="Overloaded", retry_after=7))
    assert caught.value.retry_after == 7
    assert isinstance(caught.value, ProviderError)
