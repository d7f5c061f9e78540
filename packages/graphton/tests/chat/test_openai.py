"""Chat completions: what goes out for every setting, and what comes back, however the host says it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import fields
from typing import Any

import orjson
import pytest
from graphton.chat.base import Chunk, Done, Request, TextChunk, ThinkingChunk, ToolSpec, WaitChunk
from graphton.chat.openai import OpenAIChat
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


@pytest.fixture
async def fake() -> AsyncIterator[FakeProviders]:
    async with FakeProviders() as server:
        yield server


def chat(fake: FakeProviders, model: str = "openai:gpt-6-luna", **settings: Any) -> OpenAIChat:
    provider, _, name = model.partition(":")
    settings = {"base_url": fake.openai_url, "api_key": KEY, **settings}
    return OpenAIChat(ModelRef(provider, name), ModelSettings(**settings))


async def ask(one: OpenAIChat, request: Request = HELLO) -> tuple[list[Chunk], AssistantMessage]:
    chunks = [chunk async for chunk in one.stream(request)]
    assert [isinstance(c, Done) for c in chunks] == [False] * (len(chunks) - 1) + [True]
    last = chunks[-1]
    assert isinstance(last, Done)
    return chunks[:-1], last.message


def sse(*events: Any) -> bytes:
    """A stream of these events, with its end mark."""
    lines = [e if isinstance(e, bytes) else b"data: " + orjson.dumps(e) for e in (*events, b"data: [DONE]")]
    return b"".join(line + b"\n\n" for line in lines)


def delta(finish: str | None = None, /, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


# --- what goes out --------------------------------------------------------------------------------------------------


async def test_the_body_holds_model_tools_messages_and_settings_in_one_stable_order(
    fake: FakeProviders,
) -> None:
    fake.reply("Hi.")
    await ask(
        chat(fake, max_tokens=500, thinking="low"), Request("Be brief.", [UserMessage("Hello")], [READ])
    )
    (request,) = fake.chats
    assert request.json == {
        "model": "gpt-6-luna",
        "tools": [
            {
                "type": "function",
                "function": {"name": "read_file", "description": "Reads a file.", "parameters": SCHEMA},
            }
        ],
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello"},
        ],
        "max_completion_tokens": 500,
        "reasoning_effort": "low",
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert list(request.json) == [
        "model",
        "tools",
        "messages",
        "max_completion_tokens",
        "reasoning_effort",
        "stream",
        "stream_options",
    ]


async def test_a_conversation_goes_out_in_the_hosts_words(fake: FakeProviders) -> None:
    fake.reply("Done.")
    history = [
        UserMessage("Read both."),
        AssistantMessage(
            (
                Thinking("secret thoughts"),
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
    broken = '{"malformed":"{\\"path\\": \\"b"}'
    assert fake.chats[0].json["messages"] == [
        {"role": "user", "content": "Read both."},
        {
            "role": "assistant",
            "content": "Sure.",
            "tool_calls": [
                {
                    "id": "call_a",
                    "type": "function",
                    "function": {"name": "read_file", "arguments": '{"path":"a"}'},
                },
                {"id": "call_b", "type": "function", "function": {"name": "read_file", "arguments": broken}},
            ],
        },
        {"role": "tool", "tool_call_id": "call_a", "content": "text of a"},
        {"role": "tool", "tool_call_id": "call_b", "content": "Error: arguments are no JSON"},
    ]


async def test_calls_without_a_provider_id_go_out_under_ours_and_match_their_results(
    fake: FakeProviders,
) -> None:
    fake.reply("Done.")
    history = [
        UserMessage("Read."),
        AssistantMessage((ToolCall("read_file", {"path": "a"}, id="1.0"),), stop=StopReason.TOOLS),
        ToolResults((ToolResult("1.0", "", "read_file", "text"),)),
    ]
    await ask(chat(fake), Request("", history))
    _, call, result = fake.chats[0].json["messages"]
    assert call["tool_calls"][0]["id"] == result["tool_call_id"] == "call_1.0"


async def test_deepseek_gets_the_thinking_that_led_to_a_call_back(fake: FakeProviders) -> None:
    fake.call("f", {}, thinking="I need f.")
    fake.rule(lambda request: Reply(text="ok") if request.tool_results else None)
    one = chat(fake, "deepseek-api:deepseek-flash", thinking="high")
    _, message = await ask(one)
    results = ToolResults((ToolResult("1.0", "call_fake_0", "f", "done"),))
    request = Request("", [UserMessage("go"), message, results])
    await ask(one, request)
    await ask(chat(fake), request)
    first, same, other = fake.chats
    assert (first.json["thinking"], first.json["reasoning_effort"]) == ({"type": "enabled"}, "high")
    assert same.json["messages"][1]["reasoning_content"] == "I need f."
    assert "reasoning_content" not in other.json["messages"][1]


async def test_mistral_gets_no_field_and_no_call_id_that_it_refuses(fake: FakeProviders) -> None:
    fake.reply("ok")
    history = [
        UserMessage("go"),
        AssistantMessage(
            (
                ToolCall("f", {}, id="1.0", wire_id="toolu_01"),
                ToolCall("f", {}, id="1.1", wire_id="abcDEF123"),
            ),
            stop=StopReason.TOOLS,
        ),
        ToolResults((ToolResult("1.0", "toolu_01", "f", "a"), ToolResult("1.1", "abcDEF123", "f", "b"))),
    ]
    await ask(chat(fake, "mistral-api:mistral-small-latest"), Request("", history))
    body = fake.chats[0].json
    assert "stream_options" not in body
    _, calls, first, second = body["messages"]
    ids = [c["id"] for c in calls["tool_calls"]]
    assert [first["tool_call_id"], second["tool_call_id"]] == ids
    assert all(len(i) == 9 and i.isalnum() for i in ids)
    assert ids[1] == "abcDEF123"


async def test_names_and_ids_of_other_models_calls_are_made_fit(fake: FakeProviders) -> None:
    fake.reply("ok")
    long = "chatcmpl-tool-" + "0" * 40
    history = [
        UserMessage("go"),
        AssistantMessage((ToolCall("read file!", {}, id="1.0", wire_id=long), ToolCall("", {}, id="1.1"))),
        ToolResults((ToolResult("1.0", long, "read file!", "no"), ToolResult("1.1", "", "", "no"))),
    ]
    await ask(chat(fake), Request("", history))
    _, calls, first, second = fake.chats[0].json["messages"]
    assert [c["function"]["name"] for c in calls["tool_calls"]] == ["read_file_", "unnamed"]
    assert [c["id"] for c in calls["tool_calls"]] == [first["tool_call_id"], second["tool_call_id"]]
    assert len(first["tool_call_id"]) <= 40


async def test_every_message_is_translated_once(fake: FakeProviders) -> None:
    said = UserMessage("Hello")
    one = chat(fake)
    first = one.preview(Request("", [said])).body
    kept = next(iter(said.wire.values()))
    assert one.preview(Request("", [said])).body == first
    assert next(iter(said.wire.values())) is kept


async def test_text_that_is_no_unicode_and_huge_numbers_still_go_out(fake: FakeProviders) -> None:
    fake.reply("Hi.")
    history = [
        UserMessage("bad \udcff byte"),
        AssistantMessage((ToolCall("f", {"n": 2**80}, id="1.0", wire_id="c"),), stop=StopReason.TOOLS),
        ToolResults((ToolResult("1.0", "c", "f", "ok"),)),
    ]
    await ask(chat(fake), Request("", history))
    said, call, _ = fake.chats[0].json["messages"]
    assert said["content"] == "bad ? byte"
    assert json.loads(call["tool_calls"][0]["function"]["arguments"]) == {"n": 2**80}


@pytest.mark.parametrize(
    ("model", "settings", "seen"),
    [
        ("openai:gpt-6-luna", {"max_tokens": 77}, {"max_completion_tokens": 77}),
        ("openrouter:some/model", {"max_tokens": 77}, {"max_tokens": 77}),
        ("vllm:some-model", {"max_tokens": 77}, {"max_tokens": 77}),
        ("openrouter:some/model", {"temperature": 0.0}, {"temperature": 0.0}),
        ("openai:gpt-6-luna", {"thinking": "high"}, {"reasoning_effort": "high"}),
        ("openai:gpt-6-luna", {"thinking": "off"}, {"reasoning_effort": "none"}),
        ("openrouter:some/model", {"thinking": "medium"}, {"reasoning_effort": "medium"}),
        ("deepseek-api:deepseek-flash", {"thinking": "off"}, {"thinking": {"type": "disabled"}}),
        ("llamacpp:qwen3:8b", {"thinking": "off"}, {"chat_template_kwargs": {"enable_thinking": False}}),
        ("llamacpp:qwen3:8b", {"thinking": "low"}, {"chat_template_kwargs": {"enable_thinking": True}}),
        ("llamacpp:qwen3:8b", {}, {"return_progress": True, "temperature": 0.0}),
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
            "reasoning_effort",
            "thinking off is not sent: gpt-6.2-sol always thinks",
        ),
        (
            "mistral-api:mistral-small-latest",
            {"thinking": "low"},
            "reasoning_effort",
            "thinking low is not sent: mistral-small-latest does not think",
        ),
        (
            "openrouter:some/model",
            {"thinking": "off"},
            "reasoning_effort",
            "thinking off is not sent: nothing is known that turns it off at openrouter",
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
    assert set(fake.chats[0].json) == {
        "model",
        "messages",
        "max_completion_tokens",
        "stream",
        "stream_options",
    }
    assert one.notices == ()


def test_no_setting_is_forgotten_here() -> None:
    """A new setting needs its own wire test above, or the test of its notice; then it is added to this list."""
    assert {f.name for f in fields(ModelSettings)} == {
        *("max_tokens", "temperature", "context_window", "thinking", "base_url", "api_key", "timeouts"),
        "dialect",  # chooses this class; see create_chat
    }


def test_an_unknown_thinking_level_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SettingError, match="thinking 'hard' is not known") as caught:
        OpenAIChat(ModelRef("openai", "gpt-6-luna"), ModelSettings(thinking="hard"))
    assert "off, low, medium, high" in str(caught.value)


@pytest.mark.parametrize("strict", [True, False])
async def test_a_reply_schema_is_strict_where_openai_can_keep_it(fake: FakeProviders, strict: bool) -> None:
    fake.reply('{"path": "a"}')
    schema = {**SCHEMA, "additionalProperties": False} if strict else SCHEMA
    await ask(chat(fake), Request("", [UserMessage("Which?")], schema=schema))
    assert fake.chats[0].json["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "reply", "schema": schema, "strict": strict},
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
    assert (preview.method, preview.url) == ("POST", f"{fake.openai_url}/chat/completions")
    assert preview.headers["authorization"] == "Bearer ***"
    assert KEY not in repr(preview)


async def test_a_missing_key_for_the_providers_own_host_is_said_before_anything_is_sent() -> None:
    one = OpenAIChat(ModelRef("openai", "gpt-6-luna"), ModelSettings())
    with pytest.raises(SettingError, match="no API key for openai") as caught:
        await ask(one)
    assert "OPENAI_API_KEY" in str(caught.value)


async def test_a_doubled_v1_is_corrected_and_said(fake: FakeProviders) -> None:
    fake.reply("Hi.")
    one = chat(fake, base_url=f"{fake.openai_url}/v1/")
    await ask(one)
    assert one.notices == (f"base URL '{fake.openai_url}/v1' ends in /v1 twice: one is left out",)


async def test_a_provider_without_an_address_says_how_to_give_one() -> None:
    one = OpenAIChat(ModelRef("azure", "my-deployment"), ModelSettings(api_key=KEY))
    with pytest.raises(SettingError, match="'azure' has no address of its own") as caught:
        await ask(one)
    assert "set base_url" in str(caught.value)


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
        output_tokens=9,
    )
    chunks, message = await ask(chat(fake))
    assert "".join(c.text for c in chunks if isinstance(c, TextChunk)) == "Let me look."
    assert "".join(c.text for c in chunks if isinstance(c, ThinkingChunk)) == "Two files."
    assert sum(isinstance(c, TextChunk) for c in chunks) > 1
    assert message == AssistantMessage(
        (
            Thinking("Two files.", "openai"),
            Text("Let me look."),
            ToolCall("read_file", {"path": "ä"}, wire_id="call_fake_0"),
            ToolCall("read_file", {"path": "b"}, wire_id="call_fake_1"),
        ),
        stop=StopReason.TOOLS,
        usage=Usage(100, 9, cached_tokens=60),
        model="gpt-6-luna-2026",
    )


@pytest.mark.parametrize(
    ("finish", "calls", "stop"),
    [
        ("stop", False, StopReason.END),
        ("stop", True, StopReason.TOOLS),
        ("tool_calls", True, StopReason.TOOLS),
        ("tool_calls", False, StopReason.END),
        ("function_call", True, StopReason.TOOLS),
        ("length", False, StopReason.LENGTH),
        ("length", True, StopReason.LENGTH),
        ("content_filter", False, StopReason.REFUSED),
        ("content_filter", True, StopReason.REFUSED),
        ("something_new", False, StopReason.END),
        ("something_new", True, StopReason.LENGTH),
    ],
)
async def test_the_finish_reason_says_whether_calls_may_run(
    fake: FakeProviders, finish: str, calls: bool, stop: StopReason
) -> None:
    piece = {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}
    fields: dict[str, Any] = {"tool_calls": [piece]} if calls else {"content": "x"}
    fake.add(Reply(body=sse(delta(**fields), delta(finish))))
    assert (await ask(chat(fake)))[1].stop is stop


async def test_a_refusal_is_text_and_ends_the_turn(fake: FakeProviders) -> None:
    fake.add(Reply(body=sse(delta(refusal="I can"), delta(refusal="not."), delta("stop"))))
    _, message = await ask(chat(fake))
    assert (message.text, message.stop) == ("I cannot.", StopReason.REFUSED)


ODD_CALLS: dict[str, tuple[list[dict[str, Any]], list[ToolCall]]] = {
    "interleaved by index": (
        [
            {"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x"'}},
            {"index": 1, "id": "b", "function": {"name": "g", "arguments": ""}},
            {"index": 0, "function": {"arguments": ": 1}"}},
            {"index": 1, "function": {"arguments": '{"y": 2}'}},
        ],
        [ToolCall("f", {"x": 1}, wire_id="a"), ToolCall("g", {"y": 2}, wire_id="b")],
    ),
    "all with index 0 but other ids": (
        [
            {"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x": 1}'}},
            {"index": 0, "id": "b", "function": {"name": "f", "arguments": '{"x": 2}'}},
        ],
        [ToolCall("f", {"x": 1}, wire_id="a"), ToolCall("f", {"x": 2}, wire_id="b")],
    ),
    "without any index": (
        [
            {"id": "a", "function": {"name": "f", "arguments": '{"x"'}},
            {"function": {"arguments": ": 1}"}},
            {"id": "b", "function": {"name": "f", "arguments": '{"x": 2}'}},
        ],
        [ToolCall("f", {"x": 1}, wire_id="a"), ToolCall("f", {"x": 2}, wire_id="b")],
    ),
    "id and name repeated in every piece": (
        [
            {"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x"'}},
            {"index": 0, "id": "a", "function": {"name": "f", "arguments": ": 1}"}},
        ],
        [ToolCall("f", {"x": 1}, wire_id="a")],
    ),
    "arguments as an object": (
        [{"index": 0, "id": "a", "function": {"name": "f", "arguments": {"x": 1}}}],
        [ToolCall("f", {"x": 1}, wire_id="a")],
    ),
    "no arguments at all": (
        [
            {"index": 0, "id": "a", "function": {"name": "f"}},
            {"index": 1, "id": "b", "function": {"name": "g", "arguments": None}},
        ],
        [ToolCall("f", {}, wire_id="a"), ToolCall("g", {}, wire_id="b")],
    ),
    "arguments that are no JSON": (
        [{"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x": '}}],
        [ToolCall("f", {}, wire_id="a", malformed='{"x": ')],
    ),
    "arguments that are no object": (
        [{"index": 0, "id": "a", "function": {"name": "f", "arguments": "[1]"}}],
        [ToolCall("f", {}, wire_id="a", malformed="[1]")],
    ),
}


@pytest.mark.parametrize("odd", ODD_CALLS)
async def test_calls_are_put_together_however_a_host_sends_them(fake: FakeProviders, odd: str) -> None:
    pieces, calls = ODD_CALLS[odd]
    fake.add(Reply(body=sse(*(delta(tool_calls=[p]) for p in pieces), delta("tool_calls"))))
    _, message = await ask(chat(fake))
    assert list(message.calls) == calls


async def test_a_call_without_an_id_gets_one_of_its_own(fake: FakeProviders) -> None:
    fake.calls(Call("f", {"x": 1}, id=""), Call("f", {"x": 2}, id=""))
    _, message = await ask(chat(fake))
    first, second = message.calls
    assert first.wire_id.isalnum()
    assert len(first.wire_id) == 9
    assert first.wire_id != second.wire_id


async def test_what_a_host_adds_to_a_call_goes_back_with_it(fake: FakeProviders) -> None:
    extra = {"google": {"thought_signature": "c2ln"}}
    piece = {"index": 0, "id": "a", "extra_content": extra, "function": {"name": "f", "arguments": "{}"}}
    fake.add(Reply(body=sse(delta(tool_calls=[piece]), delta("stop"))), Reply(text="ok"), Reply(text="ok"))
    _, message = await ask(chat(fake, "gemini:gemini-3.8-flash"))
    assert any(isinstance(b, Opaque) for b in message.blocks)
    results = ToolResults((ToolResult("1.0", "a", "f", "done"),))
    request = Request("", [UserMessage("go"), message, results])
    await ask(chat(fake, "gemini:gemini-3.8-flash"), request)
    await ask(chat(fake), request)
    same, other = fake.chats[1:]
    assert same.json["messages"][1]["tool_calls"][0]["extra_content"] == extra
    assert "extra_content" not in other.json["messages"][1]["tool_calls"][0]


async def test_thinking_in_tags_is_thinking(fake: FakeProviders) -> None:
    fake.reply("<think>\nHm.\n</think>\n\nYes.", pieces=9)
    chunks, message = await ask(chat(fake, "vllm:some-model"))
    assert message.blocks == (Thinking("Hm.", "vllm"), Text("Yes."))
    assert "".join(c.text for c in chunks if isinstance(c, TextChunk)) == "Yes."


async def test_thinking_whose_tag_the_template_opened_is_no_part_of_the_answer(fake: FakeProviders) -> None:
    fake.reply("Hm.\n</think>\n\nYes.", pieces=9)
    _, message = await ask(chat(fake, "vllm:some-model"))
    assert message.blocks == (Thinking("Hm.", "vllm"), Text("Yes."))


async def test_typed_content_parts_are_text_and_thinking(fake: FakeProviders) -> None:
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
        {"type": "text", "text": "Yes."},
    ]
    fake.add(Reply(body=sse(delta(content=parts), delta("stop"))))
    _, message = await ask(chat(fake))
    assert message.blocks == (Thinking("Hm.", "openai"), Text("Yes."))


async def test_reasoning_by_either_name_is_thinking(fake: FakeProviders) -> None:
    body = sse(delta(reasoning="a"), delta(reasoning_content="b"), delta("stop", content="c"))
    fake.add(Reply(body=body))
    _, message = await ask(chat(fake))
    assert message.blocks == (Thinking("ab", "openai"), Text("c"))


async def test_llama_cpp_tells_how_far_it_has_read_the_prompt_and_counts_in_its_own_way(
    fake: FakeProviders,
) -> None:
    progress = {"total": 100, "cache": 10, "processed": 60, "time_ms": 5}
    timings = {"cache_n": 10, "prompt_n": 90, "predicted_n": 3, "prompt_ms": 1.0}
    fake.add(
        Reply(
            body=sse(
                {**delta(role="assistant", content=None), "prompt_progress": progress},
                delta(content="Hi"),
                {**delta("stop"), "timings": timings},
            )
        )
    )
    chunks, message = await ask(chat(fake, "llamacpp:qwen2.5-coder:1.5b", api_key=None))
    assert chunks[0] == WaitChunk("prompt", 60, 100, "tokens")
    assert message.usage == Usage(100, 3, cached_tokens=10)


async def test_a_host_that_does_not_stream_is_understood(fake: FakeProviders) -> None:
    body = {
        "model": "m",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "Hi."}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2},
    }
    fake.add(Reply(body=orjson.dumps(body), headers={"Content-Type": "application/json"}))
    _, message = await ask(chat(fake))
    assert (message.text, message.usage) == ("Hi.", Usage(5, 2))


async def test_usage_that_a_host_does_not_count_is_estimated(fake: FakeProviders) -> None:
    fake.add(Reply(body=sse(delta(content="twelve bytes"), delta("stop"))))
    _, message = await ask(chat(fake))
    assert message.usage == Usage(len(fake.chats[0].body) // 4 + 1, 4)


async def test_comments_unknown_events_and_fields_say_nothing(fake: FakeProviders) -> None:
    fake.reply("Hello there.", unknown_events=True, keep_alives=True)
    fake.add(
        Reply(
            body=sse(
                b": comment",
                b"event: weather\ndata: {}",
                {**delta(content="Hi", weather="fine", tool_calls=None), "sky": ["blue"]},
                {"choices": [{"index": 1, "delta": {"content": "another choice"}}]},
                delta("stop"),
                {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1, "new_tokens": {}}},
            )
        )
    )
    assert (await ask(chat(fake)))[1].text == "Hello there."
    assert (await ask(chat(fake)))[1].text == "Hi"


async def test_an_empty_reply_is_a_message_without_blocks(fake: FakeProviders) -> None:
    fake.reply("", output_tokens=0)
    chunks, message = await ask(chat(fake))
    assert (chunks, message.blocks, message.stop) == ([], (), StopReason.END)


async def test_a_missing_end_mark_does_not_lose_a_whole_reply(fake: FakeProviders) -> None:
    fake.reply("Hi.", end_marker=False)
    assert (await ask(chat(fake)))[1].text == "Hi."


async def test_a_host_that_stays_silent_after_the_last_word_does_not_lose_it(fake: FakeProviders) -> None:
    fake.reply("Hi.", pieces=1, stall_after=3)  # role, text, finish reason; then nothing
    one = chat(fake, timeouts=Timeouts(idle=0.3))
    assert (await ask(one))[1].text == "Hi."


async def test_a_huge_line_arrives_whole(fake: FakeProviders) -> None:
    text = "x" * 2_000_000
    fake.reply(text, pieces=1)
    assert (await ask(chat(fake)))[1].text == text


async def test_an_endless_line_is_refused(fake: FakeProviders) -> None:
    fake.add(Reply(body=b"data: " + b"x" * 9_000_000))
    with pytest.raises(ProtocolError, match="more than 8388608 bytes in one event"):
        await ask(chat(fake))


async def test_halves_of_a_surrogate_pair_do_not_end_the_reply(fake: FakeProviders) -> None:
    events = [b'data: {"choices":[{"index":0,"delta":{"content":"a\\ud83c"}}]}', delta("stop")]
    fake.add(Reply(body=sse(*events)))
    (chunk,), message = await ask(chat(fake))
    assert isinstance(chunk, TextChunk)
    assert message.text.startswith("a")
    message.text.encode()


# --- what goes wrong ------------------------------------------------------------------------------------------------


async def test_a_stream_broken_at_any_byte_is_an_error_or_the_whole_message(fake: FakeProviders) -> None:
    reply = {"calls": (Call("f", {"x": "ä"}),), "text": "Hi ü", "pieces": 2, "output_tokens": 5}
    one = chat(fake)
    whole_body = sse_of(fake, reply)
    fake.add(Reply(**reply))
    _, whole = await ask(one)
    outcomes = []
    for size in range(len(whole_body)):
        fake.add(Reply(**reply, break_after_bytes=size))
        try:
            _, message = await ask(one)
        except BrokenStream:
            outcomes.append(False)
        else:
            assert (message.blocks, message.stop) == (whole.blocks, whole.stop)
            outcomes.append(True)
    # Once the reply is whole, it stays so: the first success comes with the stop reason, and none fails after it.
    first = outcomes.index(True)
    assert all(outcomes[first:])
    assert whole_body[:first].endswith(b'"finish_reason":"tool_calls"}]}\n\n')


def sse_of(fake: FakeProviders, reply: dict[str, Any]) -> bytes:
    """The body that the fake streams for a reply to HELLO."""
    from graphton.testing import FakeRequest, _speak_openai

    body = chat(fake).preview(HELLO).body
    request = FakeRequest(method="POST", path="", headers={}, body=body, time=0.0, json=orjson.loads(body))
    request.model = "gpt-6-luna"
    return b"".join(_speak_openai.events(Reply(**reply), request))


async def test_a_stream_that_ends_too_early_is_broken_even_if_it_ends_cleanly(fake: FakeProviders) -> None:
    for n in range(5):
        fake.reply("Hello there.", end_after_events=n)
        with pytest.raises(BrokenStream, match="ended before it was whole") as caught:
            await ask(chat(fake))
        assert caught.value.retryable


@pytest.mark.parametrize(
    ("error", "status", "retryable"),
    [
        ({"message": "slow down", "type": "rate_limit_error"}, 429, True),
        ({"message": "no", "code": "rate_limit_exceeded"}, 429, True),
        ({"message": "no", "type": "invalid_request_error"}, 400, False),
        ({"message": "upstream failed", "code": 502}, 502, True),
        ({"message": "???"}, 500, True),
        ("just words", 500, True),
    ],
)
async def test_an_error_inside_a_200_stream_is_a_status_error(
    fake: FakeProviders, error: Any, status: int, retryable: bool
) -> None:
    fake.add(Reply(body=sse(delta(content="Hi"), {"error": error})))
    with pytest.raises(StatusError) as caught:
        await ask(chat(fake))
    assert (caught.value.status, caught.value.retryable) == (status, retryable)
    assert (error if isinstance(error, str) else error["message"]) in str(caught.value)


async def test_an_event_named_error_is_one_whatever_it_holds(fake: FakeProviders) -> None:
    fake.add(Reply(body=sse(b'event: error\ndata: {"message": "lost my way", "code": 503}')))
    with pytest.raises(StatusError, match="lost my way") as caught:
        await ask(chat(fake))
    assert caught.value.status == 503


async def test_a_finish_reason_error_can_be_tried_again(fake: FakeProviders) -> None:
    fake.add(Reply(body=sse(delta(content="Hi"), delta("error"))))
    with pytest.raises(BrokenStream, match="finish_reason 'error'"):
        await ask(chat(fake))


async def test_a_status_is_an_error_with_the_hosts_words_and_no_key(fake: FakeProviders) -> None:
    fake.fail(401, f"Incorrect API key provided: {KEY}")
    with pytest.raises(StatusError) as caught:
        await ask(chat(fake))
    assert (caught.value.status, caught.value.retryable) == (401, False)
    assert "Incorrect API key provided: ***" in str(caught.value)
    assert KEY not in str(caught.value)


async def test_an_overloaded_host_says_when_to_come_back(fake: FakeProviders) -> None:
    fake.fail(429, "busy", retry_after=7)
    with pytest.raises(StatusError) as caught:
        await ask(chat(fake))
    assert (caught.value.retryable, caught.value.retry_after) == (True, 7.0)


async def test_a_prompt_that_is_too_long_is_an_error_of_its_own(fake: FakeProviders) -> None:
    fake.fail(400, "This model's maximum context length is 128000 tokens. However, your messages are longer.")
    with pytest.raises(PromptTooLong, match="maximum context length is 128000 tokens") as caught:
        await ask(chat(fake))
    assert (caught.value.code, caught.value.retryable) == ("context", False)
    assert "shorten the conversation" in caught.value.hint


async def test_an_empty_account_is_not_tried_again(fake: FakeProviders) -> None:
    fake.fail(429, "You exceeded your current quota", error_kind="insufficient_quota")
    with pytest.raises(StatusError, match="exceeded your current quota") as caught:
        await ask(chat(fake))
    assert not caught.value.retryable
    assert "no credit left" in caught.value.hint


async def test_a_model_that_refuses_tools_here_is_said_with_one_that_takes_them(fake: FakeProviders) -> None:
    fake.fail(400, "Function tools are not supported with this model in v1/chat/completions")
    with pytest.raises(StatusError, match="not supported with this model") as caught:
        await ask(chat(fake), Request("", [UserMessage("x")], [READ]))
    assert "gpt-4.1" in caught.value.hint


async def test_a_malformed_first_event_is_another_dialect_and_a_later_one_a_broken_stream(
    fake: FakeProviders,
) -> None:
    fake.reply("Hello there.", malformed_event=0)
    with pytest.raises(ProtocolError, match="cannot be read"):
        await ask(chat(fake))
    fake.reply("Hello there.", malformed_event=2)
    with pytest.raises(BrokenStream, match="cannot be read"):
        await ask(chat(fake))


@pytest.mark.parametrize(
    "event",
    [
        b"data: 7",
        b"data: []",
        b'data: {"choices": [7]}',
        b'data: {"choices": 7}',
        pytest.param(b"data: " + b"[" * 99_999, id="deep"),
    ],
)
async def test_events_of_another_shape_are_no_crash(fake: FakeProviders, event: bytes) -> None:
    fake.add(Reply(body=sse(event)))
    with pytest.raises(ProtocolError, match="cannot be read"):
        await ask(chat(fake))


async def test_a_web_page_is_no_reply(fake: FakeProviders) -> None:
    fake.add(Reply(body=b"<html>Sign in</html>", headers={"Content-Type": "text/html"}))
    with pytest.raises(ProtocolError, match="a web page instead") as caught:
        await ask(chat(fake))
    assert "check that the base URL" in str(caught.value)


async def test_a_redirect_is_refused_and_the_key_stays_here(fake: FakeProviders) -> None:
    async with FakeProviders() as elsewhere:
        fake.add(Reply(status=307, headers={"Location": f"{elsewhere.url}/v1/chat/completions"}))
        with pytest.raises(RedirectRefused, match="wants to send us on to"):
            await ask(chat(fake))
        assert elsewhere.requests == []


async def test_a_slow_first_token_and_a_gap_have_limits_of_their_own(fake: FakeProviders) -> None:
    fake.reply("Hi.", stall_after=1)  # the role has come, no word yet
    with pytest.raises(ProviderTimeout) as caught:
        await ask(chat(fake, timeouts=Timeouts(first_token=0.3, idle=60)))
    assert caught.value.limit == "first_token"
    fake.reply("Hello there.", stall_after=2)
    with pytest.raises(ProviderTimeout) as caught:
        await ask(chat(fake, timeouts=Timeouts(first_token=60, idle=0.3)))
    assert caught.value.limit == "idle"


async def test_nothing_listening_is_said_with_the_address() -> None:
    async with FakeProviders() as gone:
        one = chat(gone)
    with pytest.raises(ConnectError, match="nothing listens at"):
        await ask(one)


async def test_closing_the_stream_early_cancels_the_request_at_the_host(fake: FakeProviders) -> None:
    fake.reply("Hello there.", stall_after=3)
    async with aclosing(chat(fake).stream(HELLO)) as stream:
        assert await anext(stream) == TextChunk("Hel")
        (request,) = await fake.wait_for_requests(1)
    await asyncio.wait_for(request.disconnected.wait(), 30)


async def test_one_chat_serves_several_calls_at_once(fake: FakeProviders) -> None:
    fake.rule(lambda request: Reply(text=f"echo {request.last_user_text}", write_size=7))
    one = chat(fake)
    texts = [f"number {n}" for n in range(10)]
    replies = await asyncio.gather(*(ask(one, Request("", [UserMessage(t)])) for t in texts))
    assert [message.text for _, message in replies] == [f"echo {t}" for t in texts]


# --- as a base class ------------------------------------------------------------------------------------------------


async def test_a_subclass_starts_its_server_tells_and_adds_fields(fake: FakeProviders) -> None:
    class Lazy(OpenAIChat):
        extra_body = {"cache_prompt": True}  # noqa: RUF012 (the base declares it)
        pending_url = "http://127.0.0.1:PORT/v1/chat/completions"

        async def prepare(self):  # type: ignore[no-untyped-def]
            yield WaitChunk("load", text="starting")
            self.base_url = fake.openai_url

    fake.reply("Hi.")
    one = Lazy(ModelRef("llamacpp", "qwen2.5-coder:1.5b"), ModelSettings(context_window=8192))
    assert one.preview(HELLO).url == "http://127.0.0.1:PORT/v1/chat/completions"
    chunks, message = await ask(one)
    assert (chunks[0], message.text) == (WaitChunk("load", text="starting"), "Hi.")
    assert fake.chats[0].json["cache_prompt"] is True
    assert "authorization" not in fake.chats[0].headers
    assert one.notices == ()
