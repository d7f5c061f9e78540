"""The Responses API: what goes out for every setting, what comes back, and what goes back of that."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import orjson
import pytest
from graphton.chat import create_chat
from graphton.chat.base import Chat, Chunk, Done, Request, TextChunk, ThinkingChunk, ToolSpec
from graphton.chat.responses import ResponsesChat
from graphton.errors import (
    BrokenStream,
    ConnectError,
    PromptTooLong,
    ProtocolError,
    ProviderTimeout,
    RedirectRefused,
    SettingError,
    StatusError,
)
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
    Usage,
    UserMessage,
)
from graphton.models import ModelRef, ModelSettings, Timeouts
from graphton.testing import Call, FakeProviders, Reply

KEY = "sk-sentinel-0123456789abcdef"
SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
READ = ToolSpec("read_file", "Reads a file.", SCHEMA)
HELLO = Request("Be brief.", [UserMessage("Hello")])
REASONING = b'{"id":"rs_1", "type":"reasoning","encrypted_content":"gAAA\\u00e4/+==", "summary":[], "n":1.0}'


@pytest.fixture
async def fake() -> AsyncIterator[FakeProviders]:
    async with FakeProviders() as server:
        yield server


def chat(fake: FakeProviders, model: str = "openai:gpt-6-luna", **settings: Any) -> Chat:
    provider, _, name = model.partition(":")
    settings = {"base_url": fake.openai_url, "api_key": KEY, "dialect": "responses", **settings}
    return create_chat(ModelRef(provider, name), ModelSettings(**settings))


async def ask(one: Chat, request: Request = HELLO) -> tuple[list[Chunk], AssistantMessage]:
    chunks = [chunk async for chunk in one.stream(request)]
    assert [isinstance(c, Done) for c in chunks] == [False] * (len(chunks) - 1) + [True]
    last = chunks[-1]
    assert isinstance(last, Done)
    return chunks[:-1], last.message


def sse(*events: Any) -> bytes:
    """A stream of these events."""
    lines = [e if isinstance(e, bytes) else b"data: " + orjson.dumps(e) for e in events]
    return b"".join(line + b"\n\n" for line in lines)


def created() -> dict[str, Any]:
    return {"type": "response.created", "response": {"id": "r", "model": "m", "output": []}}


def added(index: int, kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": "response.output_item.added", "output_index": index, "item": {"type": kind, **fields}}


def text(index: int, delta: str) -> dict[str, Any]:
    return {"type": "response.output_text.delta", "output_index": index, "content_index": 0, "delta": delta}


def closed(index: int, kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": "response.output_item.done", "output_index": index, "item": {"type": kind, **fields}}


def said(index: int, words: str, **fields: Any) -> dict[str, Any]:
    return closed(index, "message", content=[{"type": "output_text", "text": words}], **fields)


def ended(status: str = "completed", **fields: Any) -> dict[str, Any]:
    return {"type": f"response.{status}", "response": {"id": "r", "status": status, "model": "m", **fields}}


# --- what goes out --------------------------------------------------------------------------------------------------


async def test_the_body_holds_model_tools_messages_and_settings_in_one_stable_order(
    fake: FakeProviders,
) -> None:
    fake.reply("Hi.")
    await ask(
        chat(fake, max_tokens=500, thinking="low"), Request("Be brief.", [UserMessage("Hello")], [READ])
    )
    (request,) = fake.chats
    assert request.path == "/v1/responses"
    expected = {
        "model": "gpt-6-luna",
        "tools": [
            {
                "type": "function",
                "name": "read_file",
                "description": "Reads a file.",
                "parameters": SCHEMA,
                "strict": False,
            }
        ],
        "instructions": "Be brief.",
        "input": [{"role": "user", "content": "Hello"}],
        "max_output_tokens": 500,
        "reasoning": {"effort": "low", "summary": "auto"},
        "include": ["reasoning.encrypted_content"],
        "store": False,
        "stream": True,
    }
    assert request.json == expected
    assert list(request.json) == list(expected)


async def test_a_conversation_goes_out_as_items(fake: FakeProviders) -> None:
    fake.reply("Done.")
    history: list[Message] = [
        UserMessage("Read both."),
        AssistantMessage(
            (
                Thinking("another's thoughts", "anthropic", b'{"type":"thinking"}'),
                Opaque("anthropic", b'{"type":"redacted_thinking"}'),
                Text("Sure."),
                ToolCall("read_file", {"path": "a"}, id="1.0", wire_id="call_a"),
                ToolCall("read_file", {}, id="1.1", wire_id="call_b", malformed='{"path": "b'),
            ),
            stop=StopReason.TOOLS,
        ),
        ToolResults(
            (
                ToolResult("1.0", "call_a", "read_file", "text of a"),
                ToolResult("1.1", "call_b", "read_file", "arguments are no JSON", is_error=True),
            )
        ),
    ]
    await ask(chat(fake), Request("", history))
    assert "instructions" not in fake.chats[0].json
    assert fake.chats[0].json["input"] == [
        {"role": "user", "content": "Read both."},
        {"role": "assistant", "content": "Sure."},
        {
            "type": "function_call",
            "call_id": "call_a",
            "name": "read_file",
            "arguments": '{"path":"a"}',
        },
        {
            "type": "function_call",
            "call_id": "call_b",
            "name": "read_file",
            "arguments": '{"malformed":"{\\"path\\": \\"b"}',
        },
        {"type": "function_call_output", "call_id": "call_a", "output": "text of a"},
        {"type": "function_call_output", "call_id": "call_b", "output": "Error: arguments are no JSON"},
    ]


async def test_reasoning_goes_back_byte_for_byte_and_to_its_provider_only(fake: FakeProviders) -> None:
    item = b'data: {"type":"response.output_item.done","output_index":0,"item" : ' + REASONING + b"}"
    call = {"name": "f", "call_id": "a", "arguments": "{}"}
    fake.add(
        Reply(
            body=sse(
                created(), added(0, "reasoning", id="rs_1"), item, closed(1, "function_call", **call), ended()
            )
        )
    )
    _, message = await ask(chat(fake))
    assert message.blocks == (Thinking("", "openai", REASONING), ToolCall("f", {}, wire_id="a"))
    fake.rule(lambda request: Reply(text="ok"))
    request = Request("", [UserMessage("go"), message, ToolResults((ToolResult("1.0", "a", "f", "done"),))])
    await ask(chat(fake), request)
    await ask(chat(fake, "azure:mine"), request)
    await ask(chat(fake, dialect="chat"), request)
    _, same, other, completions = fake.chats
    assert REASONING in same.body
    assert [i.get("type") for i in same.json["input"]] == [
        None,
        "reasoning",
        "function_call",
        "function_call_output",
    ]
    assert b"gAAA" not in other.body
    assert b"gAAA" not in completions.body


async def test_reasoning_that_led_to_nothing_is_not_sent_back(fake: FakeProviders) -> None:
    fake.reply("ok")
    cut = AssistantMessage((Text("Well"), Thinking("Hm.", "openai", REASONING)), stop=StopReason.LENGTH)
    await ask(chat(fake), Request("", [UserMessage("go"), cut, UserMessage("go on")]))
    assert [i["content"] for i in fake.chats[0].json["input"]] == ["go", "Well", "go on"]


async def test_reasoning_without_its_content_is_shown_and_not_sent_back(fake: FakeProviders) -> None:
    bare = closed(0, "reasoning", id="rs_1", summary=[{"type": "summary_text", "text": "Hm."}])
    fake.add(Reply(body=sse(created(), bare, said(1, "Yes."), ended())))
    _, message = await ask(chat(fake))
    assert message.blocks == (Thinking("Hm.", "openai"), Text("Yes."))


async def test_the_phase_of_a_message_goes_back_with_it(fake: FakeProviders) -> None:
    call = {"name": "f", "call_id": "a", "arguments": "{}"}
    fake.add(
        Reply(
            body=sse(
                created(), said(0, "I look.", phase="commentary"), closed(1, "function_call", **call), ended()
            )
        ),
        Reply(text="ok"),
    )
    _, message = await ask(chat(fake))
    assert message.text == "I look."
    results = ToolResults((ToolResult("1.0", "a", "f", "done"),))
    await ask(chat(fake), Request("", [UserMessage("go"), message, results]))
    assert fake.chats[1].json["input"][1] == {
        "role": "assistant",
        "content": "I look.",
        "phase": "commentary",
    }


async def test_items_of_kinds_that_we_do_not_know_go_back_unchanged(fake: FakeProviders) -> None:
    search = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"n": 1}}
    done = {"type": "response.output_item.done", "output_index": 0, "item": search}
    fake.add(Reply(body=sse(created(), done, said(1, "Found."), ended())), Reply(text="ok"))
    _, message = await ask(chat(fake))
    await ask(chat(fake), Request("", [UserMessage("go"), message, UserMessage("more")]))
    assert fake.chats[1].json["input"][1] == search


async def test_what_chat_completions_kept_for_itself_is_no_item(fake: FakeProviders) -> None:
    fake.reply("ok")
    kept = Opaque("openai", b'{"tool_call":"a","extra_content":{}}')
    message = AssistantMessage((Text("Hi."), kept))
    await ask(chat(fake), Request("", [UserMessage("go"), message, UserMessage("more")]))
    assert [i["content"] for i in fake.chats[0].json["input"]] == ["go", "Hi.", "more"]


async def test_names_and_ids_of_other_models_calls_are_made_fit(fake: FakeProviders) -> None:
    fake.reply("ok")
    long = "chatcmpl-tool-" + "0" * 64
    history: list[Message] = [
        UserMessage("go"),
        AssistantMessage((ToolCall("read file!", {}, id="1.0", wire_id=long), ToolCall("", {}, id="1.1"))),
        ToolResults((ToolResult("1.0", long, "read file!", "no"), ToolResult("1.1", "", "", "no"))),
    ]
    await ask(chat(fake), Request("", history))
    _, one, two, first, second = fake.chats[0].json["input"]
    assert [one["name"], two["name"]] == ["read_file_", "unnamed"]
    assert [one["call_id"], two["call_id"]] == [first["call_id"], second["call_id"]]
    assert len(first["call_id"]) <= 64
    assert second["call_id"] == "call_1.1"


async def test_text_that_is_no_unicode_and_huge_numbers_still_go_out(fake: FakeProviders) -> None:
    fake.reply("Hi.")
    history: list[Message] = [
        UserMessage("bad \udcff byte"),
        AssistantMessage((ToolCall("f", {"n": 2**80}, id="1.0", wire_id="c"),), stop=StopReason.TOOLS),
        ToolResults((ToolResult("1.0", "c", "f", "ok"),)),
    ]
    await ask(chat(fake), Request("bad \udcff system", history))
    spoken, call, _ = fake.chats[0].json["input"]
    assert (fake.chats[0].json["instructions"], spoken["content"]) == ("bad ? system", "bad ? byte")
    assert json.loads(call["arguments"]) == {"n": 2**80}


async def test_every_message_is_translated_once(fake: FakeProviders) -> None:
    spoken = UserMessage("Hello")
    one = chat(fake)
    first = one.preview(Request("", [spoken])).body
    kept = next(iter(spoken.wire.values()))
    assert one.preview(Request("", [spoken])).body == first
    assert next(iter(spoken.wire.values())) is kept


ENCRYPTED = ["reasoning.encrypted_content"]


@pytest.mark.parametrize(
    ("model", "settings", "seen"),
    [
        ("openai:gpt-6-luna", {}, {"store": False, "stream": True, "include": ENCRYPTED, "reasoning": None}),
        ("openai:gpt-6-luna", {"max_tokens": 77}, {"max_output_tokens": 77}),
        ("openai:gpt-4.1", {"temperature": 0.0}, {"temperature": 0.0}),
        ("openai:gpt-4.1", {"thinking": "off"}, {"reasoning": None, "include": None}),
        ("openai:gpt-6-luna", {"thinking": "off"}, {"reasoning": {"effort": "none"}}),
        ("openai:gpt-5", {"thinking": "off"}, {"reasoning": {"effort": "minimal"}}),
        (
            "openai:gpt-6.2-sol",
            {"thinking": "medium"},
            {"reasoning": {"effort": "medium", "summary": "auto"}},
        ),
        ("openai:gpt-99", {"thinking": "high"}, {"reasoning": {"effort": "high", "summary": "auto"}}),
        ("azure:mine", {"thinking": "low"}, {"reasoning": {"effort": "low", "summary": "auto"}}),
        ("ollama:qwen3:8b", {"thinking": "low"}, {"reasoning": {"effort": "low", "summary": "auto"}}),
    ],
)
async def test_every_setting_is_seen_on_the_wire(
    fake: FakeProviders, model: str, settings: dict[str, Any], seen: dict[str, Any]
) -> None:
    fake.reply("Hi.")
    one = chat(fake, model, **settings)
    await ask(one)
    assert {k: fake.chats[0].json.get(k) for k in seen} == seen
    assert one.notices == ()


@pytest.mark.parametrize(
    ("model", "settings", "absent", "notice"),
    [
        (
            "openai:gpt-6-luna",
            {"temperature": 0.5},
            "temperature",
            "temperature 0.5 is not sent: gpt-6-luna takes none",
        ),
        (
            "openai:gpt-6.2-sol",
            {"thinking": "off"},
            "reasoning",
            "thinking off is not sent: gpt-6.2-sol always thinks",
        ),
        (
            "openai:gpt-4.1",
            {"thinking": "low"},
            "reasoning",
            "thinking low is not sent: gpt-4.1 does not think",
        ),
        (
            "openai:gpt-6-luna",
            {"context_window": 9000},
            "context_window",
            "context_window 9000 is not sent: the window is the server's",
        ),
    ],
)
async def test_a_setting_that_is_not_sent_is_announced(
    fake: FakeProviders, model: str, settings: dict[str, Any], absent: str, notice: str
) -> None:
    fake.reply("Hi.")
    one = chat(fake, model, **settings)
    await ask(one)
    assert absent not in fake.chats[0].json
    assert one.notices == (notice,)


async def test_nothing_is_sent_or_announced_that_nobody_set(fake: FakeProviders) -> None:
    fake.reply("Hi.")
    one = chat(fake)
    await ask(one)
    ours = {"model", "instructions", "input", "max_output_tokens", "include", "store", "stream"}
    assert set(fake.chats[0].json) == ours
    assert one.notices == ()


async def test_an_unknown_thinking_level_is_refused_with_the_known_ones(fake: FakeProviders) -> None:
    with pytest.raises(SettingError, match="thinking 'hard' is not known") as caught:
        chat(fake, thinking="hard")
    assert "off, low, medium, high" in str(caught.value)


@pytest.mark.parametrize("strict", [True, False])
async def test_a_reply_schema_is_strict_where_openai_can_keep_it(fake: FakeProviders, strict: bool) -> None:
    fake.reply('{"path": "a"}')
    schema = {**SCHEMA, "additionalProperties": False} if strict else SCHEMA
    await ask(chat(fake), Request("", [UserMessage("Which?")], schema=schema))
    assert fake.chats[0].json["text"] == {
        "format": {"type": "json_schema", "name": "reply", "schema": schema, "strict": strict}
    }
    assert fake.chats[0].schema == schema


async def test_the_key_goes_out_as_the_host_wants_it_and_nothing_else_does(fake: FakeProviders) -> None:
    for _ in range(3):
        fake.reply("Hi.")
    await ask(chat(fake))
    await ask(chat(fake, "azure:my-deployment"))
    await ask(chat(fake, "vllm:some-model", api_key=None))
    plain, azure, none = fake.chats
    ours = {"accept", "authorization", "content-length", "content-type", "host", "user-agent"}
    assert set(plain.headers) - {"connection", "accept-encoding"} == ours
    assert plain.headers["authorization"] == f"Bearer {KEY}"
    assert azure.headers["api-key"] == KEY
    assert "authorization" not in azure.headers
    assert "authorization" not in none.headers


async def test_a_preview_is_the_request_with_the_key_masked(fake: FakeProviders) -> None:
    fake.reply("Hi.")
    one = chat(fake)
    preview = one.preview(HELLO)
    await ask(one)
    assert preview.body == fake.chats[0].body
    assert (preview.method, preview.url) == ("POST", f"{fake.openai_url}/responses")
    assert preview.headers["authorization"] == "Bearer ***"
    assert KEY not in repr(preview)


async def test_a_missing_key_for_openais_own_host_is_said_before_anything_is_sent() -> None:
    with pytest.raises(SettingError, match="no API key for openai") as caught:
        await ask(create_chat("openai:gpt-6-luna"))
    assert "OPENAI_API_KEY" in str(caught.value)


# --- what comes back ------------------------------------------------------------------------------------------------


async def test_text_thinking_calls_and_usage_arrive(fake: FakeProviders) -> None:
    fake.calls(
        Call("read_file", {"path": "ä"}),
        Call("read_file", {"path": "b"}),
        text="Let me look.",
        thinking="Two files.",
        model="gpt-6-luna-2026",
        input_tokens=100,
        cached_tokens=60,
        cache_write_tokens=20,
        output_tokens=9,
    )
    chunks, message = await ask(chat(fake))
    assert "".join(c.text for c in chunks if isinstance(c, TextChunk)) == "Let me look."
    assert "".join(c.text for c in chunks if isinstance(c, ThinkingChunk)) == "Two files."
    assert sum(isinstance(c, TextChunk) for c in chunks) > 1
    thinking, *others = message.blocks
    assert isinstance(thinking, Thinking)
    assert (thinking.text, thinking.provider) == ("Two files.", "openai")
    assert json.loads(thinking.raw)["encrypted_content"]
    assert others == [
        Text("Let me look."),
        ToolCall("read_file", {"path": "ä"}, wire_id="call_fake_0"),
        ToolCall("read_file", {"path": "b"}, wire_id="call_fake_1"),
    ]
    assert (message.stop, message.model) == (StopReason.TOOLS, "gpt-6-luna-2026")
    assert message.usage == Usage(100, 9, cached_tokens=60, cache_write_tokens=20)


@pytest.mark.parametrize(
    ("status", "reason", "calls", "stop"),
    [
        ("completed", None, False, StopReason.END),
        ("completed", None, True, StopReason.TOOLS),
        ("incomplete", "max_output_tokens", False, StopReason.LENGTH),
        ("incomplete", "max_output_tokens", True, StopReason.LENGTH),
        ("incomplete", "content_filter", False, StopReason.REFUSED),
        ("incomplete", "content_filter", True, StopReason.REFUSED),
        ("incomplete", "a reason to come", True, StopReason.LENGTH),
        ("incomplete", None, False, StopReason.LENGTH),
    ],
)
async def test_every_end_has_its_stop_reason(
    fake: FakeProviders, status: str, reason: str | None, calls: bool, stop: StopReason
) -> None:
    call = closed(1, "function_call", name="f", call_id="a", arguments="{}")
    details = {"reason": reason} if reason else None
    body = sse(
        created(), said(0, "Hi."), *([call] if calls else []), ended(status, incomplete_details=details)
    )
    fake.add(Reply(body=body))
    assert (await ask(chat(fake)))[1].stop is stop


@pytest.mark.parametrize("stop", list(StopReason))
async def test_the_fake_says_every_stop_that_the_api_has_a_word_for(
    fake: FakeProviders, stop: StopReason
) -> None:
    words = {StopReason.CONTEXT: StopReason.LENGTH, StopReason.PAUSED: StopReason.LENGTH}
    made = (Call("f"),) if stop is StopReason.TOOLS else ()
    fake.reply("Hi.", calls=made, stop=stop)
    assert (await ask(chat(fake)))[1].stop is words.get(stop, stop)


async def test_a_call_that_was_cut_is_known_as_such(fake: FakeProviders) -> None:
    piece = {"type": "response.function_call_arguments.delta", "output_index": 0, "delta": '{"path": "a'}
    opened = added(0, "function_call", name="write_file", call_id="a", arguments="")
    fake.add(
        Reply(
            body=sse(
                created(),
                opened,
                piece,
                ended("incomplete", incomplete_details={"reason": "max_output_tokens"}),
            )
        ),
        Reply(body=sse(created(), opened, piece, ended())),
        Reply(
            body=sse(
                created(),
                {**closed(0, "function_call", name="f", call_id="a", arguments="{}", status="incomplete")},
                ended(),
            )
        ),
    )
    for _ in range(2):
        _, message = await ask(chat(fake))
        assert message.stop is StopReason.LENGTH
        assert message.calls == (ToolCall("write_file", {}, wire_id="a", malformed='{"path": "a'),)
    assert (await ask(chat(fake)))[1].stop is StopReason.LENGTH


async def test_a_refusal_is_shown_and_said_to_be_one(fake: FakeProviders) -> None:
    refusal = {
        "type": "response.refusal.delta",
        "output_index": 0,
        "content_index": 0,
        "delta": "I will not.",
    }
    part = {"type": "refusal", "refusal": "I will not."}
    fake.add(
        Reply(
            body=sse(
                created(),
                added(0, "message", content=[]),
                refusal,
                closed(0, "message", content=[part]),
                ended(),
            )
        ),
        Reply(body=sse(created(), closed(0, "message", content=[part]), ended())),
    )
    for _ in range(2):
        chunks, message = await ask(chat(fake))
        assert (chunks, message.text) == ([TextChunk("I will not.")], "I will not.")
        assert message.stop is StopReason.REFUSED


async def test_summaries_are_set_apart(fake: FakeProviders) -> None:
    def delta(part: int, words: str) -> dict[str, Any]:
        kind = "response.reasoning_summary_text.delta"
        return {"type": kind, "output_index": 0, "summary_index": part, "delta": words}

    summary = [{"type": "summary_text", "text": t} for t in ("One.", "", "Two.")]
    last = closed(0, "reasoning", id="rs", summary=summary, encrypted_content="x")
    fake.add(
        Reply(
            body=sse(
                created(),
                added(0, "reasoning", summary=[]),
                delta(0, "One"),
                delta(0, "."),
                delta(1, ""),
                delta(2, "Two."),
                last,
                ended(),
            )
        )
    )
    chunks, message = await ask(chat(fake))
    assert chunks == [ThinkingChunk("One"), ThinkingChunk("."), ThinkingChunk("\n\nTwo.")]
    (block,) = message.blocks
    assert isinstance(block, Thinking)
    assert block.text == "One.\n\nTwo."


async def test_plain_reasoning_of_open_models_is_thinking(fake: FakeProviders) -> None:
    delta = {"type": "response.reasoning_text.delta", "output_index": 0, "content_index": 0, "delta": "Hm."}
    content = [{"type": "reasoning_text", "text": "Hm."}]
    last = closed(0, "reasoning", id="rs", summary=[], content=content)
    fake.add(Reply(body=sse(created(), added(0, "reasoning"), delta, last, said(1, "Yes."), ended())))
    chunks, message = await ask(chat(fake, "vllm:gpt-oss-20b"))
    assert chunks == [ThinkingChunk("Hm."), TextChunk("Yes.")]
    thinking, _ = message.blocks
    assert isinstance(thinking, Thinking)
    assert json.loads(thinking.raw)["content"] == content


async def test_what_was_not_streamed_is_shown_from_the_closed_item(fake: FakeProviders) -> None:
    fake.add(
        Reply(
            body=sse(created(), added(0, "message", content=[]), text(0, "Hel"), said(0, "Hello"), ended())
        ),
        Reply(
            body=sse(
                created(),
                ended(output=[{"type": "message", "content": [{"type": "output_text", "text": "Hello"}]}]),
            )
        ),
    )
    assert (await ask(chat(fake)))[0] == [TextChunk("Hel"), TextChunk("lo")]
    chunks, message = await ask(chat(fake))
    assert (chunks, message.text) == ([TextChunk("Hello")], "Hello")


async def test_the_closed_item_has_the_last_word(fake: FakeProviders) -> None:
    fake.add(
        Reply(
            body=sse(created(), added(0, "message", content=[]), text(0, "Hullo"), said(0, "Hello"), ended())
        )
    )
    assert (await ask(chat(fake)))[1].text == "Hello"


async def test_items_may_grow_at_once_and_keep_their_order(fake: FakeProviders) -> None:
    fake.add(
        Reply(
            body=sse(
                created(),
                added(1, "function_call", name="f", call_id="a"),
                added(0, "message", content=[]),
                text(0, "Hi"),
                {"type": "response.function_call_arguments.delta", "output_index": 1, "delta": "{"},
                text(0, "."),
                {"type": "response.function_call_arguments.delta", "output_index": 1, "delta": "}"},
                said(0, "Hi."),
                {"type": "response.function_call_arguments.done", "output_index": 1, "arguments": "{}"},
                closed(1, "function_call", name="f", call_id="a", arguments="{}"),
                ended(),
            )
        )
    )
    assert (await ask(chat(fake)))[1].blocks == (Text("Hi."), ToolCall("f", {}, wire_id="a"))


@pytest.mark.parametrize("arguments", ["{", "[1]", '"x"', "[" * 9_999])
async def test_arguments_that_are_no_object_are_kept_as_they_came(
    fake: FakeProviders, arguments: str
) -> None:
    fake.add(Reply(calls=(Call("f", arguments),)))
    (call,) = (await ask(chat(fake)))[1].calls
    assert (call.arguments, call.malformed) == ({}, arguments)


async def test_a_host_that_does_not_stream_is_understood(fake: FakeProviders) -> None:
    output = [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi."}]}]
    body = {
        "object": "response",
        "status": "completed",
        "error": None,
        "model": "m",
        "output": output,
        "usage": {"input_tokens": 5, "output_tokens": 2},
    }
    failed = {**body, "status": "failed", "output": [], "error": {"code": "server_error", "message": "oh no"}}
    kind = {"Content-Type": "application/json"}
    fake.add(Reply(body=orjson.dumps(body), headers=kind), Reply(body=orjson.dumps(failed), headers=kind))
    _, message = await ask(chat(fake))
    assert (message.text, message.usage) == ("Hi.", Usage(5, 2))
    with pytest.raises(StatusError, match="oh no"):
        await ask(chat(fake))


async def test_usage_that_a_host_does_not_count_is_estimated(fake: FakeProviders) -> None:
    fake.add(Reply(body=sse(created(), said(0, "twelve bytes"), ended())))
    _, message = await ask(chat(fake))
    assert message.usage == Usage(len(fake.chats[0].body) // 4 + 1, 4)


async def test_unknown_events_and_keepalives_say_nothing(fake: FakeProviders) -> None:
    fake.calls(Call("f"), text="Hello there.", thinking="Hm.", unknown_events=True, keep_alives=True)
    _, message = await ask(chat(fake))
    assert (message.text, [c.name for c in message.calls]) == ("Hello there.", ["f"])
    fake.add(
        Reply(
            body=sse(
                b": comment",
                b"event: weather\ndata: {}\ndata: ",
                {"type": "response.weather", "sky": ["blue"]},
                created(),
                {"type": "response.output_item.added", "output_index": 7, "item": None},
                {**said(0, "Hi"), "weather": "fine"},
                {"type": "response.output_text.annotation.added", "output_index": 0, "annotation": {}},
                ended(usage={"input_tokens": 1, "output_tokens": 1, "new_tokens": {}}),
            ).replace(b"data: {}\ndata: ", b'data: {"type":"weather"}')
        )
    )
    assert (await ask(chat(fake)))[1].text == "Hi"


async def test_an_empty_reply_is_a_message_without_blocks(fake: FakeProviders) -> None:
    fake.reply("", output_tokens=0)
    chunks, message = await ask(chat(fake))
    assert (chunks, message.blocks, message.stop) == ([], (), StopReason.END)


async def test_nothing_is_waited_for_after_the_closing_event(fake: FakeProviders) -> None:
    fake.reply("Hi.", pieces=1, stall_after=9)  # every event has come; the connection stays open
    fake.reply("Hi.", pieces=1, stall_after=8)
    assert (await ask(chat(fake)))[1].text == "Hi."
    with pytest.raises(ProviderTimeout):
        await ask(chat(fake, timeouts=Timeouts(idle=0.3)))


async def test_a_huge_line_arrives_whole(fake: FakeProviders) -> None:
    words = "x" * 2_000_000
    fake.reply(words, pieces=1)
    assert (await ask(chat(fake)))[1].text == words


async def test_an_endless_line_is_refused(fake: FakeProviders) -> None:
    fake.add(Reply(body=b"data: " + b"x" * 9_000_000))
    with pytest.raises(ProtocolError, match="more than 8388608 bytes in one event"):
        await ask(chat(fake))


async def test_halves_of_a_surrogate_pair_do_not_end_the_reply(fake: FakeProviders) -> None:
    half = b'data: {"type":"response.output_text.delta","output_index":0,"delta":"a\\ud83c"}'
    secret = b'data: {"type":"response.output_item.done","output_index":1,"item":{"type":"reasoning","encrypted_content":"\\ud83c"}}'
    fake.add(Reply(body=sse(created(), added(0, "message"), half, secret, ended())))
    _, message = await ask(chat(fake))
    assert message.text.startswith("a")
    message.text.encode()


# --- what goes wrong ------------------------------------------------------------------------------------------------


async def test_a_stream_broken_at_any_byte_is_an_error_or_the_whole_message(fake: FakeProviders) -> None:
    body = sse(
        created(),
        closed(0, "reasoning", encrypted_content="x"),
        added(1, "message"),
        text(1, "ü"),
        said(1, "ü!"),
        closed(2, "function_call", name="f", call_id="a", arguments='{"x":"ä"}'),
        ended(usage={"input_tokens": 1, "output_tokens": 2}),
    )
    one = chat(fake)
    fake.add(Reply(body=body, write_size=1))
    _, whole = await ask(one)
    assert (whole.text, whole.usage) == ("ü!", Usage(1, 2))
    for size in range(len(body) - 1):
        fake.add(Reply(body=body, break_after_bytes=size))
        with pytest.raises(BrokenStream):
            await ask(one)
    fake.add(Reply(body=body, break_after_bytes=len(body)))
    assert (await ask(one))[1] == whole


async def test_a_stream_that_ends_too_early_is_broken_even_if_it_ends_cleanly(fake: FakeProviders) -> None:
    for n in range(9):
        fake.reply("Hello there.", end_after_events=n)
        with pytest.raises(BrokenStream, match=r"ended without a response\.completed") as caught:
            await ask(chat(fake))
        assert caught.value.retryable
    fake.reply("Hello there.", end_marker=False)
    with pytest.raises(BrokenStream):
        await ask(chat(fake))


@pytest.mark.parametrize(
    ("error", "status", "retryable"),
    [
        ({"code": "rate_limit_exceeded", "message": "slow down"}, 429, True),
        ({"code": "server_error", "message": "oh no"}, 500, True),
        ({"code": "invalid_prompt", "message": "not this"}, 400, False),
        ({"code": None, "message": "???", "type": "invalid_request_error"}, 400, False),
        ({"code": "insufficient_quota", "message": "no money"}, 402, False),
        ({"code": "of the future", "message": "who knows"}, 500, True),
    ],
)
@pytest.mark.parametrize("form", ["failed", "flat", "named", "nested"])
async def test_an_error_inside_a_200_stream_is_a_status_error(
    fake: FakeProviders, error: dict[str, Any], status: int, retryable: bool, form: str
) -> None:
    flat = {**error, "type": "error"} if "type" not in error else {"type": "error", "error": error}
    events: dict[str, Any] = {
        "failed": ended("failed", error=error),
        "flat": flat,
        "named": b"event: error\ndata: " + orjson.dumps(flat),
        "nested": {"type": "error", "error": error},
    }
    fake.add(Reply(body=sse(created(), added(0, "message"), text(0, "Hi"), events[form])))
    with pytest.raises(StatusError) as caught:
        await ask(chat(fake))
    assert (caught.value.status, caught.value.retryable) == (status, retryable)
    assert error["message"] in str(caught.value)
    assert caught.value.kind == (error["code"] or error["type"])


async def test_a_failed_response_without_a_word_can_be_tried_again(fake: FakeProviders) -> None:
    fake.add(Reply(body=sse(created(), ended("failed", error=None))))
    with pytest.raises(StatusError) as caught:
        await ask(chat(fake))
    assert (caught.value.status, caught.value.retryable) == (500, True)


async def test_a_status_is_an_error_with_the_hosts_words_and_no_key(fake: FakeProviders) -> None:
    fake.fail(401, f"Incorrect API key provided: {KEY}")
    fake.reply("Hello", error_event=3, error=f"lost {KEY}")
    for words in ("Incorrect API key provided: ***", "lost ***"):
        with pytest.raises(StatusError) as caught:
            await ask(chat(fake))
        assert words in str(caught.value)
        assert KEY not in str(caught.value)


async def test_an_overloaded_host_says_when_to_come_back(fake: FakeProviders) -> None:
    fake.fail(429, "busy", retry_after=7)
    with pytest.raises(StatusError) as caught:
        await ask(chat(fake))
    assert (caught.value.retryable, caught.value.retry_after) == (True, 7.0)


async def test_a_prompt_that_is_too_long_is_an_error_of_its_own(fake: FakeProviders) -> None:
    words = "Your input exceeds the context window of this model. Please adjust your input and try again."
    fake.fail(400, words)
    fake.add(
        Reply(
            body=sse(created(), ended("failed", error={"code": "context_length_exceeded", "message": "no"}))
        )
    )
    for _ in range(2):
        with pytest.raises(PromptTooLong) as caught:
            await ask(chat(fake))
        assert (caught.value.code, caught.value.retryable) == ("context", False)
        assert "shorten the conversation" in caught.value.hint


@pytest.mark.parametrize(
    ("status", "words", "kind", "hint"),
    [
        (429, "You exceeded your current quota", "insufficient_quota", "no credit left"),
        (
            400,
            "Your organization must be verified to generate reasoning summaries.",
            "invalid_request_error",
            "leave out thinking",
        ),
        (404, "The model 'x' does not exist", "model_not_found", "check the model's name"),
    ],
)
async def test_a_refusal_that_the_user_can_mend_says_how(
    fake: FakeProviders, status: int, words: str, kind: str, hint: str
) -> None:
    fake.fail(status, words, error_kind=kind)
    with pytest.raises(StatusError, match=words) as caught:
        await ask(chat(fake, thinking="low"), Request("", [UserMessage("x")], [READ]))
    assert hint in caught.value.hint
    assert not caught.value.retryable


async def test_a_host_that_has_only_chat_completions_is_said_so(fake: FakeProviders) -> None:
    fake.add(Reply(status=404, body=b'{"detail":"Not Found"}'))
    with pytest.raises(StatusError, match="Not Found") as caught:
        await ask(chat(fake, "vllm:some-model"))
    assert "dialect='chat'" in caught.value.hint


async def test_a_malformed_first_event_is_another_dialect_and_a_later_one_a_broken_stream(
    fake: FakeProviders,
) -> None:
    fake.reply("Hello there.", malformed_event=0)
    with pytest.raises(ProtocolError, match="cannot be read"):
        await ask(chat(fake))
    fake.reply("Hello there.", malformed_event=4)
    with pytest.raises(BrokenStream, match="cannot be read"):
        await ask(chat(fake))


@pytest.mark.parametrize(
    "event",
    [
        b"data: 7",
        b"data: []",
        b"data: {}",
        b'data: {"type": "response.created"}',
        b'data: {"type": "response.output_text.delta", "output_index": 0, "delta": "x"}',
        b'data: {"type": "response.output_item.done", "output_index": 0, "item": 7}',
        b'data: {"type": "response.output_item.done", "output_index": 0, "item": {"id": "x"}}',
        b'data: {"choices": [{"index": 0, "delta": {"content": "x"}}]}',
        pytest.param(b"data: " + b"[" * 99_999, id="deep"),
    ],
)
async def test_events_of_another_shape_are_no_crash(fake: FakeProviders, event: bytes) -> None:
    fake.add(Reply(body=sse(event)))
    with pytest.raises(ProtocolError, match="cannot be read"):
        await ask(chat(fake))


async def test_a_call_of_another_shape_is_no_crash(fake: FakeProviders) -> None:
    fake.add(Reply(body=sse(created(), closed(0, "function_call", arguments="{}"), ended())))
    with pytest.raises(BrokenStream, match="cannot be read"):
        await ask(chat(fake))


async def test_a_redirect_is_refused_and_the_key_stays_here(fake: FakeProviders) -> None:
    async with FakeProviders() as elsewhere:
        fake.add(Reply(status=307, headers={"Location": f"{elsewhere.url}/v1/responses"}))
        with pytest.raises(RedirectRefused, match="wants to send us on to"):
            await ask(chat(fake))
        assert elsewhere.requests == []


async def test_a_model_that_thinks_in_silence_has_the_time_of_a_first_token(fake: FakeProviders) -> None:
    opened = sse(created(), added(0, "reasoning", summary=[]))
    rest = sse(closed(0, "reasoning", summary=[]), said(1, "Yes."), ended())
    fake.add(Reply(body=opened + rest))
    assert (await ask(chat(fake)))[1].text == "Yes."
    # created, in progress, opened, part added, the summary's first piece; then silence
    fake.reply("Yes.", thinking="Hm. Hm.", stall_after=5)
    with pytest.raises(ProviderTimeout) as caught:
        await ask(chat(fake, timeouts=Timeouts(first_token=0.3, idle=60)))
    assert caught.value.limit == "first_token"


async def test_a_slow_first_token_and_a_gap_have_limits_of_their_own(fake: FakeProviders) -> None:
    fake.reply("Hi.", stall_after=2)  # created and in progress, no item yet
    with pytest.raises(ProviderTimeout) as caught:
        await ask(chat(fake, timeouts=Timeouts(first_token=0.3, idle=60)))
    assert caught.value.limit == "first_token"
    fake.reply("Hello there.", stall_after=5)
    with pytest.raises(ProviderTimeout) as caught:
        await ask(chat(fake, timeouts=Timeouts(first_token=60, idle=0.3)))
    assert caught.value.limit == "idle"


async def test_nothing_listening_is_said_with_the_address() -> None:
    async with FakeProviders() as gone:
        one = chat(gone)
    with pytest.raises(ConnectError, match="nothing listens at"):
        await ask(one)


async def test_closing_the_stream_early_cancels_the_request_at_the_host(fake: FakeProviders) -> None:
    fake.reply("Hello there.", stall_after=5)
    stream = chat(fake).stream(HELLO)
    async with aclosing(stream):  # type: ignore[type-var]  # an async generator, by every dialect's word
        assert await anext(stream) == TextChunk("Hel")
        (request,) = await fake.wait_for_requests(1)
    await asyncio.wait_for(request.disconnected.wait(), 30)


async def test_one_chat_serves_several_calls_at_once(fake: FakeProviders) -> None:
    fake.rule(lambda request: Reply(text=f"echo {request.last_user_text}", write_size=7))
    one = chat(fake)
    texts = [f"number {n}" for n in range(10)]
    replies = await asyncio.gather(*(ask(one, Request("", [UserMessage(t)])) for t in texts))
    assert [message.text for _, message in replies] == [f"echo {t}" for t in texts]


async def test_the_fake_refuses_what_openai_refuses(fake: FakeProviders) -> None:
    """The strict fake is the proof that what we send back would be taken: it knows these refusals."""
    one = chat(fake)
    assert isinstance(one, ResponsesChat)
    call = AssistantMessage((ToolCall("f", {}, id="1.0", wire_id="a"),), stop=StopReason.TOOLS)
    stray = ToolResults((ToolResult("1.0", "b", "f", "x"),))
    with pytest.raises(StatusError, match="No tool call found"):
        await ask(one, Request("", [UserMessage("go"), stray]))
    with pytest.raises(StatusError, match="No tool output found for function call a"):
        await ask(one, Request("", [UserMessage("go"), call]))
    bare = AssistantMessage(
        (Thinking("", "openai", b'{"type":"reasoning","id":"rs","summary":[]}'), Text("Hi."))
    )
    with pytest.raises(StatusError, match="'rs' not found"):
        await ask(one, Request("", [UserMessage("go"), bare]))
