"""What goes out to Anthropic: valid to the official SDK, cached where it pays, and no setting lost silently."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import fields, replace
from typing import Any

import orjson
import pytest
from anthropic._data import DEPRECATED_MODELS
from anthropic.types.message_create_params import MessageCreateParamsStreaming
from graphton.chat import Chat, Request, ToolSpec, create_chat
from graphton.errors import SettingError
from graphton.messages import (
    AssistantMessage,
    Message,
    Opaque,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
    ToolResults,
    UserMessage,
)
from graphton.models import ModelRef, ModelSettings, Timeouts
from graphton.testing import FakeProviders
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

SDK = TypeAdapter(MessageCreateParamsStreaming)
ADAPTIVE, ALWAYS_THINKS, BUDGET, BETWEEN = (
    "claude-haiku-5.5",
    "claude-opus-5.5",
    "claude-haiku-4.5",
    "claude-sonnet-5.5",
)
TOOLS = (
    ToolSpec("read_file", "Read a file.", {"type": "object", "properties": {"path": {"type": "string"}}}),
    ToolSpec("todos", "Keep a list.", {"type": "object", "properties": {}}),
)
SIGNED = b'{"type":"thinking","thinking":"Hm.","signature":"c2ln"}'
TURN: tuple[Message, ...] = (
    UserMessage("What is in a.txt?"),
    AssistantMessage(
        (
            Thinking("Hm.", "anthropic", SIGNED),
            Opaque("anthropic", b'{"type":"redacted_thinking","data":"eHl6"}'),
            Text("I'll look."),
            ToolCall("read_file", {"path": "a.txt"}, id="1.0", wire_id="toolu_1"),
            ToolCall("todos", {}, id="1.1", wire_id="toolu_2", malformed='{"x'),
        )
    ),
    ToolResults(
        (
            ToolResult("1.0", "toolu_1", "read_file", "hello"),
            ToolResult("1.1", "toolu_2", "todos", "not JSON", is_error=True),
        )
    ),
)
CACHE = {"type": "ephemeral"}


def chat_with(model: str = ADAPTIVE, **settings: Any) -> Chat:
    return create_chat(f"anthropic:{model}", ModelSettings(**{"api_key": "test", **settings}))


def body(chat: Chat, request: Request) -> Any:
    return orjson.loads(chat.preview(request).body)


def request(*messages: Message, **fields: Any) -> Request:
    return Request(**{"system": "Be short.", "messages": messages or TURN, "tools": TOOLS, **fields})


def plain(value: Any) -> Any:
    """What pydantic checked, with its lazy iterables read to their end, so that they are checked too."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return [plain(inner) for inner in value]


def without_marks(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_marks(v) for k, v in value.items() if k != "cache_control"}
    return [without_marks(v) for v in value] if isinstance(value, list) else value


# --- valid to the SDK


@pytest.mark.parametrize("model", [ADAPTIVE, ALWAYS_THINKS, BUDGET, BETWEEN])
@pytest.mark.parametrize("thinking", [None, "off", "low", "high"])
@pytest.mark.parametrize(
    "ask",
    [
        request(),
        request(UserMessage("hello"), system="", tools=()),
        request(schema={"type": "object", "properties": {"answer": {"type": "string"}}}),
        request(*TURN, AssistantMessage((Text("It says hello."),)), UserMessage("Thanks.")),
    ],
)
def test_bodies_are_valid_to_the_sdk(model: str, thinking: str | None, ask: Request) -> None:
    sent = body(chat_with(model, thinking=thinking), ask)
    assert sent["model"] not in DEPRECATED_MODELS
    # What the types do not know is dropped by the check, so equality also finds fields with a wrong name.
    assert plain(SDK.validate_python(sent)) == sent


def test_the_sdk_check_finds_a_wrong_field() -> None:
    sent = body(chat_with(), request())
    sent["messages"][0]["content"][0]["txet"] = "x"
    assert plain(SDK.validate_python(sent)) != sent


# --- the conversation


def test_a_conversation_in_the_wires_words() -> None:
    sent = body(chat_with(), request())
    assert sent["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "What is in a.txt?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
                {"type": "redacted_thinking", "data": "eHl6"},
                {"type": "text", "text": "I'll look."},
                {"type": "tool_use", "id": "toolu_1", "name": "read_file", "input": {"path": "a.txt"}},
                {"type": "tool_use", "id": "toolu_2", "name": "todos", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": "hello"},
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_2",
                    "content": "not JSON",
                    "is_error": True,
                    "cache_control": CACHE,
                },
            ],
        },
    ]


def test_blocks_of_other_providers_are_not_sent() -> None:
    foreign = AssistantMessage(
        (
            Thinking("Hm.", "ollama"),
            Thinking("Hm.", "openai", b'{"x":1}'),
            Opaque("openai", b'{"y":1}'),
            Text("Hi."),
        )
    )
    sent = body(chat_with(), request(UserMessage("hello"), foreign, UserMessage("go on")))
    assert sent["messages"][1] == {"role": "assistant", "content": [{"type": "text", "text": "Hi."}]}


def test_a_reply_that_says_nothing_here_is_left_out() -> None:
    empty = AssistantMessage((Thinking("Hm.", "ollama"), Text(" \n")))
    sent = body(chat_with(), request(UserMessage("hello"), empty, AssistantMessage(()), UserMessage("well?")))
    assert [m["role"] for m in sent["messages"]] == ["user", "user"]


def test_calls_of_other_models_get_ids_and_names_that_are_accepted_here() -> None:
    calls = AssistantMessage(
        (ToolCall("list files!", {}, id="2.0"), ToolCall("", {"a": 1}, id="2.1", wire_id="fc:7/8"))
    )
    results = ToolResults((ToolResult("2.0", "", "list files!", "no"), ToolResult("2.1", "fc:7/8", "", "no")))
    sent = body(chat_with(), request(UserMessage("hello"), calls, results))["messages"]
    assert [(b["id"], b["name"]) for b in sent[1]["content"]] == [
        ("call_2_0", "list_files_"),
        ("fc_7_8", "unnamed"),
    ]
    assert [b["tool_use_id"] for b in sent[2]["content"]] == ["call_2_0", "fc_7_8"]


def test_numbers_of_any_size_keep_their_digits() -> None:
    call = AssistantMessage((ToolCall("f", {"n": 123456789012345678901234567890}, wire_id="toolu_1"),))
    assert b'"n":123456789012345678901234567890' in chat_with().preview(request(UserMessage("x"), call)).body


def test_a_broken_file_name_in_a_result_does_not_end_the_session() -> None:
    results = ToolResults((ToolResult("1.0", "toolu_1", "list_files", "caf\udce9.txt"),))
    sent = body(chat_with(), request(*TURN[:2], results))
    assert sent["messages"][2]["content"][0]["content"] == "caf?.txt"
    assert sent["messages"][1]["content"][0]["signature"] == "c2ln"


# --- the prompt cache


def test_the_cache_is_asked_for_on_system_last_tool_and_last_turn() -> None:
    sent = body(chat_with(), request())
    assert sent["system"] == [{"type": "text", "text": "Be short.", "cache_control": CACHE}]
    assert [t.get("cache_control") for t in sent["tools"]] == [None, CACHE]
    assert orjson.dumps(sent).count(b"cache_control") == 3


def test_the_mark_of_the_last_turn_moves_and_does_not_stick() -> None:
    chat, messages = chat_with(), list(TURN)
    first = body(chat, request(*messages))
    messages += [AssistantMessage((Text("It says hello."),)), UserMessage("Thanks.")]
    second = body(chat, request(*messages))
    marked = [m for m in second["messages"] if any("cache_control" in b for b in m["content"])]
    assert marked == second["messages"][-1:]
    assert without_marks(first["messages"]) == second["messages"][:3]


def test_a_turn_that_ends_in_blocks_which_bear_no_mark_is_marked_before_them() -> None:
    paused = AssistantMessage((Text("Searching."), Opaque("anthropic", b'{"type":"server_tool_use"}')))
    sent = body(chat_with(), request(UserMessage("go"), paused))
    assert sent["messages"][1]["content"] == [
        {"type": "text", "text": "Searching.", "cache_control": CACHE},
        {"type": "server_tool_use"},
    ]


def test_each_message_is_translated_once() -> None:
    chat = chat_with()
    message = UserMessage("hello")
    chat.preview(request(message))
    before = dict(message.wire)
    chat.preview(request(message))
    assert message.wire["anthropic:anthropic"] is before["anthropic:anthropic"]
    assert len(message.wire) == 1


texts = st.text(min_size=1).filter(str.strip)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
def test_a_longer_conversation_begins_with_the_bytes_of_the_shorter(turns: list[tuple[str, str]]) -> None:
    chat, messages = chat_with(), list[Message]()
    before = b""
    mark = b',"cache_control":{"type":"ephemeral"}}]}]}'
    for said, answered in turns:
        messages.append(UserMessage(said))
        sent = chat.preview(request(*messages)).body
        assert sent.endswith(mark)
        assert sent.startswith(before)
        before = sent.removesuffix(mark)
        messages.append(AssistantMessage((Text(answered),)))


# --- settings


@pytest.fixture
async def fake() -> AsyncIterator[FakeProviders]:
    async with FakeProviders() as server:
        yield server


VALUES: dict[str, Any] = {
    "max_tokens": 1234,
    "temperature": 0.25,
    "context_window": 50_000,
    "thinking": "medium",
    "api_key": "sk-mine",
    "dialect": "anthropic",
    "timeouts": Timeouts(connect=1, first_token=2, idle=3),
}
SEEN = {"max_tokens": '"max_tokens":1234', "temperature": '"temperature":0.25', "api_key": "sk-mine"}


@pytest.mark.parametrize("name", [f.name for f in fields(ModelSettings) if f.name != "base_url"])
@pytest.mark.parametrize("model", [ADAPTIVE, BUDGET])
async def test_every_setting_is_on_the_wire_or_announced(fake: FakeProviders, model: str, name: str) -> None:
    given = replace(ModelSettings(base_url=fake.anthropic_url), **{name: VALUES[name]})
    chat = create_chat(f"anthropic:{model}", given)
    fake.reply("ok")
    async for _ in chat.stream(Request("", [UserMessage("hello")])):
        pass
    sent = f"{fake.chats[0].body.decode()} {fake.chats[0].headers}"
    match name:
        case "timeouts":
            assert chat.settings.timeouts == VALUES[name]
        case "dialect":
            assert fake.chats[0].provider == "anthropic"
        case "thinking":
            assert '"thinking":{' in sent
        case _:
            announced = any(notice.startswith(name) for notice in chat.notices)
            assert (SEEN.get(name, "\0") in sent) is not announced


async def test_the_preview_is_what_goes_out_with_the_key_masked(fake: FakeProviders) -> None:
    chat = create_chat(
        "anthropic:claude-haiku-5.5", ModelSettings(base_url=fake.anthropic_url, api_key=" sk-mine\r\n")
    )
    seen = chat.preview(request())
    fake.reply("ok")
    async for _ in chat.stream(request()):
        pass
    sent = fake.chats[0]
    assert (seen.method, seen.url, seen.body) == ("POST", f"{fake.url}/v1/messages", sent.body)
    assert sent.headers["x-api-key"] == "sk-mine"
    assert seen.headers == {
        "content-type": "application/json",
        "user-agent": "graphton",
        "accept": "text/event-stream",
        "anthropic-version": "2023-06-01",
        "x-api-key": "***",
    }
    assert set(sent.headers) - set(seen.headers) == {"host", "content-length"}


def test_max_tokens_has_a_default_and_a_limit() -> None:
    assert body(chat_with(), request())["max_tokens"] == 20_000
    with pytest.raises(
        SettingError, match="max_tokens 999999 is above what claude-haiku-5-5 can write, 128000"
    ):
        chat_with(max_tokens=999_999)


@pytest.mark.parametrize(
    ("model", "settings", "sent", "notices"),
    [
        (ADAPTIVE, {}, {}, ()),
        (
            ADAPTIVE,
            {"thinking": "low"},
            {"thinking": {"type": "adaptive", "display": "summarized"}, "output_config": {"effort": "low"}},
            (),
        ),
        (ADAPTIVE, {"thinking": "off"}, {"thinking": {"type": "disabled"}}, ()),
        (BETWEEN, {"thinking": "off"}, {"thinking": {"type": "between_tools"}}, ()),
        (
            ALWAYS_THINKS,
            {"thinking": "off"},
            {},
            ("thinking off is not sent: claude-opus-5-5 always thinks",),
        ),
        (BUDGET, {"thinking": "off"}, {}, ()),
        (BUDGET, {"thinking": "high"}, {"thinking": {"type": "enabled", "budget_tokens": 16384}}, ()),
        (
            BUDGET,
            {"thinking": "high", "max_tokens": 8000},
            {"thinking": {"type": "enabled", "budget_tokens": 6976}},
            (),
        ),
        (
            BUDGET,
            {"thinking": "low", "max_tokens": 2000},
            {},
            ("thinking low is not sent: max_tokens 2000 leaves no room for it, 2048 would",),
        ),
        (BUDGET, {"temperature": 0.5}, {"temperature": 0.5}, ()),
        (
            BUDGET,
            {"temperature": 0.5, "thinking": "low"},
            {"thinking": {"type": "enabled", "budget_tokens": 2048}},
            ("temperature 0.5 is not sent: thinking models take none",),
        ),
        (ADAPTIVE, {"temperature": 0.0}, {}, ("temperature 0 is not sent: claude-haiku-5-5 takes none",)),
    ],
)
def test_thinking_and_temperature(
    model: str, settings: dict[str, Any], sent: dict[str, Any], notices: tuple[str, ...]
) -> None:
    chat = chat_with(model, **settings)
    found = body(chat, request())
    assert {k: found[k] for k in ("thinking", "output_config", "temperature") if k in found} == sent
    assert chat.notices == notices


def test_a_budget_waits_while_calls_of_another_model_are_answered() -> None:
    chat = chat_with(BUDGET, thinking="low")
    foreign = AssistantMessage((Thinking("Hm.", "ollama"), ToolCall("todos", {}, id="1.0")))
    results = ToolResults((ToolResult("1.0", "", "todos", "ok"),))
    turns: list[Message] = [UserMessage("go"), foreign, results]
    assert "thinking" not in body(chat, request(*turns))
    assert "thinking" in body(
        chat, request(*turns, AssistantMessage((Text("Done."),)), UserMessage("And now?"))
    )
    assert "thinking" in body(chat, request(*TURN))


def test_a_schema_and_an_effort_go_out_together() -> None:
    schema = {"type": "object"}
    assert body(chat_with(thinking="high"), request(schema=schema))["output_config"] == {
        "effort": "high",
        "format": {"type": "json_schema", "schema": schema},
    }


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"temperature": 1.5}, "temperature 1.5 is outside of what claude-haiku-4-5-20251001 takes, 0..1"),
        ({"thinking": "very"}, "thinking 'very' is not known"),
        ({"base_url": "anthropic"}, "base URL 'anthropic' needs http:// or https:// and a host"),
        ({"api_key": "sk-\u20ac"}, "the API key for anthropic holds a sign that no key has, at place 4 of 4"),
        ({"api_key": "sk-a\nb"}, "the API key for anthropic holds a sign that no key has, at place 5 of 6"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingError) as caught:
        chat_with(BUDGET, **settings)
    assert caught.value.message == problem
    assert caught.value.hint


def test_a_base_url_with_v1_is_corrected_with_a_notice() -> None:
    chat = chat_with(base_url="https://gateway.example/anthropic/v1/")
    assert chat.preview(request()).url == "https://gateway.example/anthropic/v1/messages"
    assert "ends in /v1" in chat.notices[0]


async def test_a_missing_key_is_said_before_anything_is_sent() -> None:
    chat = create_chat(ModelRef("anthropic", "claude-haiku-5-5"))
    assert "x-api-key" not in chat.preview(request()).headers
    with pytest.raises(SettingError) as caught:
        async for _ in chat.stream(request()):
            pass
    assert caught.value.message == "there is no API key for anthropic at 'https://api.anthropic.com'"
    assert "ANTHROPIC_API_KEY" in caught.value.hint
