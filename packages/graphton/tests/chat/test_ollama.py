"""Ollama's native chat: every setting on the wire, one window for the whole chat, and no prompt cut unnoticed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import fields
from typing import Any

import orjson
import pytest
from graphton.chat._window import LADDER, Prompt, rung, was_cut
from graphton.chat.base import Chunk, Done, Request, TextChunk, ThinkingChunk, ToolSpec, WaitChunk
from graphton.chat.ollama import OllamaChat
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
from graphton.testing import Call, FakeProviders, FakeRequest, Reply, _speak_ollama

SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
READ = ToolSpec("read_file", "Reads a file.", SCHEMA)
HELLO = Request("Be brief.", [UserMessage("Hello")])


@pytest.fixture
async def fake() -> AsyncIterator[FakeProviders]:
    async with FakeProviders() as server:
        yield server


def chat(fake: FakeProviders, model: str = "qwen2.5-coder:7b", **settings: Any) -> OllamaChat:
    return OllamaChat(ModelRef("ollama", model), ModelSettings(**{"base_url": fake.ollama_url, **settings}))


async def ask(one: OllamaChat, request: Request = HELLO) -> tuple[list[Chunk], AssistantMessage]:
    chunks = [chunk async for chunk in one.stream(request)]
    assert [isinstance(c, Done) for c in chunks] == [False] * (len(chunks) - 1) + [True]
    last = chunks[-1]
    assert isinstance(last, Done)
    return chunks[:-1], last.message


def lines(*events: dict[str, Any]) -> bytes:
    return b"".join(orjson.dumps(e) + b"\n" for e in events)


def piece(**message: Any) -> dict[str, Any]:
    return {"model": "m", "message": {"role": "assistant", "content": "", **message}, "done": False}


def end(reason: str = "stop", **counts: Any) -> dict[str, Any]:
    return {**piece(), "done": True, "done_reason": reason, "prompt_eval_count": 9, "eval_count": 3, **counts}


# --- what goes out --------------------------------------------------------------------------------------------------


async def test_the_body_holds_everything_in_one_stable_order(fake: FakeProviders) -> None:
    fake.reply("Hi.")
    request = Request("Be brief.", [UserMessage("Hello")], [READ], SCHEMA)
    await ask(
        chat(fake, "qwen3:8b", max_tokens=500, temperature=0.5, context_window=8192, thinking="low"), request
    )
    (seen,) = fake.chats
    assert seen.json == {
        "model": "qwen3:8b",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
        "tools": [
            {
                "type": "function",
                "function": {"name": "read_file", "description": "Reads a file.", "parameters": SCHEMA},
            }
        ],
        "format": SCHEMA,
        "options": {"num_ctx": 8192, "num_predict": 500, "temperature": 0.5, "repeat_penalty": 1.0},
        "think": True,
        "truncate": False,
        "shift": False,
        "stream": True,
        "keep_alive": "30m",
    }
    assert list(seen.json) == [
        *(
            "model",
            "messages",
            "tools",
            "format",
            "options",
            "think",
            "truncate",
            "shift",
            "stream",
            "keep_alive",
        )
    ]


async def test_the_providers_defaults_go_out_when_nobody_said_anything(fake: FakeProviders) -> None:
    fake.reply("Hi.")
    one = chat(fake)
    await ask(one)
    assert fake.chats[0].json["options"] == {"num_ctx": 16384, "num_predict": 8192, "temperature": 0.0}
    assert "think" not in fake.chats[0].json
    assert one.notices == ()


async def test_a_conversation_goes_out_in_ollamas_words(fake: FakeProviders) -> None:
    fake.reply("Done.")
    history = [
        UserMessage("Read both."),
        AssistantMessage(
            (
                Thinking("Two files.", "ollama"),
                Thinking("secret thoughts", "anthropic"),
                Text("Sure."),
                ToolCall("read_file", {"path": "a"}, id="1.0", wire_id="call_abcd1234"),
                ToolCall("read_file", {}, id="1.1", malformed="[1"),
            ),
            stop=StopReason.TOOLS,
        ),
        ToolResults(
            (
                ToolResult("1.0", "call_abcd1234", "read_file", "text of a"),
                ToolResult("1.1", "", "read_file", "no object", is_error=True),
            )
        ),
    ]
    await ask(chat(fake), Request("", history))
    assert fake.chats[0].json["messages"] == [
        {"role": "user", "content": "Read both."},
        {
            "role": "assistant",
            "content": "Sure.",
            "thinking": "Two files.",
            "tool_calls": [
                {"id": "call_abcd1234", "function": {"name": "read_file", "arguments": {"path": "a"}}},
                {"id": "call_1.1", "function": {"name": "read_file", "arguments": {"malformed": "[1"}}},
            ],
        },
        {
            "role": "tool",
            "content": "text of a",
            "tool_name": "read_file",
            "tool_call_id": "call_abcd1234",
        },
        {
            "role": "tool",
            "content": "Error: no object",
            "tool_name": "read_file",
            "tool_call_id": "call_1.1",
        },
    ]


@pytest.mark.parametrize(
    ("model", "level", "sent"),
    [
        ("qwen3:8b", "off", False),
        ("qwen3:8b", "low", True),
        ("qwen3:8b", "high", True),
        ("gpt-oss:20b", "low", "low"),
        ("gpt-oss:20b", "high", "high"),
    ],
)
async def test_thinking_is_sent_as_the_model_takes_it(
    fake: FakeProviders, model: str, level: str, sent: bool | str
) -> None:
    fake.reply("Hi.")
    one = chat(fake, model, thinking=level)
    await ask(one)
    assert fake.chats[0].json["think"] == sent
    assert one.notices == ()


@pytest.mark.parametrize(
    ("model", "level", "notice"),
    [
        ("qwen2.5-coder:7b", "low", "thinking low is not sent: qwen2.5-coder:7b does not think"),
        ("gpt-oss:20b", "off", "thinking off is not sent: gpt-oss:20b always thinks"),
    ],
)
async def test_thinking_that_is_not_sent_is_announced(
    fake: FakeProviders, model: str, level: str, notice: str
) -> None:
    fake.reply("Hi.")
    one = chat(fake, model, thinking=level)
    await ask(one)
    assert "think" not in fake.chats[0].json
    assert one.notices == (notice,)


async def test_a_model_that_says_it_thinks_is_told_to_whatever_the_table_says() -> None:
    async with FakeProviders(models={"qwen2.5-coder:7b": ["completion", "thinking"]}) as fake:
        fake.reply("Hi.", thinking="Hm.")
        one = chat(fake, thinking="high")
        _, message = await ask(one)
    assert fake.chats[0].json["think"] is True
    assert one.notices == ()
    assert message.blocks == (Thinking("Hm.", "ollama"), Text("Hi."))


async def test_an_ollama_on_this_machine_is_never_reached_through_a_proxy(
    fake: FakeProviders, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    fake.reply("Hi.")
    _, message = await ask(chat(fake))
    assert message.text == "Hi."


def test_no_setting_is_forgotten_here() -> None:
    """A new setting needs its own wire test above, or the test of its notice; then it is added to this list."""
    assert {f.name for f in fields(ModelSettings)} == {
        *("max_tokens", "temperature", "context_window", "thinking", "base_url", "api_key", "timeouts"),
        "dialect",  # chooses this class; see create_chat
    }


def test_an_unknown_thinking_level_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SettingError, match="thinking 'hard' is not known") as caught:
        OllamaChat(ModelRef("ollama", "qwen3:8b"), ModelSettings(thinking="hard"))
    assert "off, low, medium, high" in str(caught.value)


async def test_a_base_url_with_v1_is_corrected_and_said(fake: FakeProviders) -> None:
    fake.reply("Hi.")
    one = chat(fake, base_url=f"{fake.url}/v1/")
    await ask(one)
    assert fake.chats[0].path == "/api/chat"
    assert one.notices == (
        f"base URL '{fake.url}/v1' ends in /v1, where Ollama ignores the context window: left out",
    )


async def test_a_preview_is_the_request_with_the_key_masked(fake: FakeProviders) -> None:
    fake.reply("Hi.")
    one = chat(fake, api_key="sentinel-key-0123456789")
    preview = one.preview(HELLO)
    await ask(one)
    assert preview.body == fake.chats[0].body
    assert (preview.method, preview.url) == ("POST", f"{fake.url}/api/chat")
    assert fake.chats[0].headers["authorization"] == "Bearer sentinel-key-0123456789"
    assert preview.headers["authorization"] == "Bearer ***"


# --- the window -----------------------------------------------------------------------------------------------------


def test_a_rung_holds_the_need_and_stays_within_the_model() -> None:
    assert [rung(n, None) for n in (1, 4096, 4097, 130_000, 10**9)] == [4096, 4096, 8192, 131_072, 131_072]
    assert rung(50_000, 32_768) == 32_768
    assert rung(1, 2048) == 2048
    assert all(size in LADDER for size in (rung(n, None) for n in range(1, 200_000, 999)))


async def test_the_window_is_chosen_once_and_stays_while_the_conversation_fits(fake: FakeProviders) -> None:
    fake.rule(lambda request: Reply(text="ok"))
    one = chat(fake, max_tokens=1000)
    history: list[Any] = []
    for _ in range(5):
        history.append(UserMessage("tell me more, " * 20))
        _, message = await ask(one, Request("", history))
        history.append(message)
    assert {r.json["options"]["num_ctx"] for r in fake.chats} == {4096}
    assert one.notices == ()


async def test_the_window_grows_once_and_says_so(fake: FakeProviders) -> None:
    fake.rule(lambda request: Reply(text="ok"))
    one = chat(fake, max_tokens=1000)
    await ask(one)
    chunks, _ = await ask(one, Request("", [UserMessage("some words " * 1600)]))
    said = "context window raised from 4096 to 8192 tokens; qwen2.5-coder:7b is loaded again"
    assert chunks[0] == WaitChunk("load", text=said)
    assert one.notices == (said,)
    await ask(one, Request("", [UserMessage("wordwords " * 2900)]))
    assert [r.json["options"]["num_ctx"] for r in fake.chats] == [4096, 8192, 8192]


async def test_a_window_that_somebody_set_never_changes(fake: FakeProviders) -> None:
    fake.reply("ok", input_tokens=4000)  # fewer than we estimate, so that it fits
    one = chat(fake, context_window=5000, max_tokens=100)
    await ask(one, Request("", [UserMessage("bytes" * 5000)]))
    assert fake.chats[0].json["options"]["num_ctx"] == 5000
    assert one.window == 5000


async def test_a_window_above_what_is_known_of_the_model_is_sent_and_announced(fake: FakeProviders) -> None:
    fake.reply("Hi.")
    one = chat(fake, context_window=65_536)
    await ask(one)
    assert fake.chats[0].json["options"]["num_ctx"] == 65_536
    assert one.notices == (
        "context_window 65536 is above the 32768 tokens known for qwen2.5-coder:7b: Ollama may give less",
        "Ollama gave qwen2.5-coder:7b a context window of 32768 tokens, not the 65536 asked for",
    )
    assert (one.window, one.largest_window) == (32_768, 32_768)


async def test_a_prompt_that_cannot_fit_is_refused_before_it_is_sent(fake: FakeProviders) -> None:
    one = chat(fake, context_window=2048, max_tokens=500)
    request = Request("Be brief. " * 40, [UserMessage("word " * 3000)], [READ])
    with pytest.raises(PromptTooLong) as caught:
        await ask(one, request)
    assert fake.chats == []
    assert fake.library.loads == []
    assert not caught.value.retryable
    text = str(caught.value)
    assert "the prompt does not fit the context window of qwen2.5-coder:7b" in text
    for part in ("system text", "tools (1)", "messages (1)", "room for the reply", "context window"):
        assert part in text
    assert "hint: allow a larger window: context_window=8192" in text


async def test_a_prompt_that_the_server_finds_too_long_raises_the_window_for_the_next_try(
    fake: FakeProviders,
) -> None:
    fake.fail(400, "the input length exceeds the context length")
    fake.reply("ok")
    one = chat(fake, max_tokens=1000)
    with pytest.raises(PromptTooLong, match="does not fit the context window") as caught:
        await ask(one)
    assert caught.value.retryable
    await ask(one)
    assert [r.json["options"]["num_ctx"] for r in fake.chats] == [4096, 8192]
    assert one.notices == (
        "context window raised from 4096 to 8192 tokens; qwen2.5-coder:7b is loaded again",
    )


async def test_with_the_largest_window_too_small_the_hint_is_to_shorten(fake: FakeProviders) -> None:
    fake.fail(400, "the input length exceeds the context length")
    with pytest.raises(PromptTooLong) as caught:
        await ask(chat(fake, context_window=32_768))
    assert not caught.value.retryable
    assert "hint: shorten the conversation" in str(caught.value)


async def test_a_prompt_that_was_cut_in_silence_is_an_error_with_a_budget(fake: FakeProviders) -> None:
    # As measured with a server that knows no `truncate`: 15,750 tokens sent, 2,051 evaluated.
    fake.reply("What was the question?", input_tokens=2051)
    one = chat(fake, context_window=4096, max_tokens=500)
    with pytest.raises(PromptTooLong, match="cut off its beginning") as caught:
        await ask(one, Request("", [UserMessage("abcd," * 12_600)]))
    assert "read 2,051 tokens of a prompt of about 15,7" in str(caught.value)
    assert "allow a larger window: context_window=32768" in str(caught.value)


@pytest.mark.parametrize(
    ("size", "words", "evaluated", "window", "cut"),
    [
        (16_000, 3000, 3900, 4096, False),  # fits by the estimate: whatever was counted, nothing was cut
        (16_000, 3000, 50, 4096, False),  # an old server that counts only what its cache did not hold
        (20_000, 3000, 3900, 4096, False),  # the estimate was a little high
        (63_000, 10, 2051, 4096, True),  # far below the estimate in a window half full
        (63_000, 10, 600, 4096, False),  # blanks: few tokens, and not half of the window
        (63_000, 12_000, 600, 4096, True),  # fewer tokens than words
        (63_000, 12_000, 12_500, 4096, False),
    ],
)
def test_a_cut_prompt_is_told_from_a_wrong_estimate(
    size: int, words: int, evaluated: int, window: int, cut: bool
) -> None:
    prompt = Prompt(0, 0, size, 0, 1, words, 100)
    assert was_cut(prompt, evaluated, window) is cut


async def test_a_reply_that_fills_the_window_gets_a_larger_one_or_stops_for_lack_of_context(
    fake: FakeProviders,
) -> None:
    fake.add(*[Reply(text="…", stop=StopReason.LENGTH, input_tokens=4000, output_tokens=96)] * 2)
    one = chat(fake, max_tokens=1000)
    with pytest.raises(PromptTooLong, match="filled the context window before it was whole") as caught:
        await ask(one)
    assert caught.value.retryable
    assert one.window == 8192
    _, message = await ask(chat(fake, max_tokens=1000, context_window=4096))
    assert message.stop is StopReason.CONTEXT


async def test_the_loaded_window_is_the_servers_own_word(fake: FakeProviders) -> None:
    one = chat(fake, context_window=8192)
    assert await one.loaded_window() is None
    fake.reply("Hi.")
    await ask(one)
    assert await one.loaded_window() == 8192


# --- what comes back ------------------------------------------------------------------------------------------------


async def test_text_thinking_calls_and_usage_arrive(fake: FakeProviders) -> None:
    fake.calls(
        Call("read_file", {"path": "ä"}),
        Call("read_file", {"path": "b"}),
        text="Let me look.",
        thinking="Two files.",
        input_tokens=100,
        output_tokens=9,
    )
    chunks, message = await ask(chat(fake, "qwen3:8b"))
    assert "".join(c.text for c in chunks if isinstance(c, TextChunk)) == "Let me look."
    assert "".join(c.text for c in chunks if isinstance(c, ThinkingChunk)) == "Two files."
    assert sum(isinstance(c, TextChunk) for c in chunks) > 1
    assert message == AssistantMessage(
        (
            Thinking("Two files.", "ollama"),
            Text("Let me look."),
            ToolCall("read_file", {"path": "ä"}),
            ToolCall("read_file", {"path": "b"}),
        ),
        stop=StopReason.TOOLS,
        usage=Usage(100, 9),
        model="qwen3:8b",
    )


async def test_thinking_in_tags_is_thinking(fake: FakeProviders) -> None:
    fake.reply("<think>\nHm.\n</think>\n\nYes.", pieces=9)
    _, message = await ask(chat(fake))
    assert message.blocks == (Thinking("Hm.", "ollama"), Text("Yes."))


async def test_thinking_whose_tag_the_template_opened_is_no_part_of_the_answer(fake: FakeProviders) -> None:
    fake.reply("Hm.\n</think>\n\nYes.", pieces=9)
    _, message = await ask(chat(fake))
    assert message.blocks == (Thinking("Hm.", "ollama"), Text("Yes."))


@pytest.mark.parametrize(
    ("reason", "calls", "stop"),
    [
        ("stop", False, StopReason.END),
        ("stop", True, StopReason.TOOLS),
        ("length", False, StopReason.LENGTH),
        ("length", True, StopReason.LENGTH),
        ("load", False, StopReason.END),
        (None, False, StopReason.END),
    ],
)
async def test_the_done_reason_says_whether_calls_may_run(
    fake: FakeProviders, reason: str, calls: bool, stop: StopReason
) -> None:
    call = {"function": {"name": "f", "arguments": {}}}
    fake.add(Reply(body=lines(*([piece(tool_calls=[call])] if calls else []), end(reason))))
    assert (await ask(chat(fake)))[1].stop is stop


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        ({"x": 1}, ToolCall("f", {"x": 1})),
        ('{"x": 1}', ToolCall("f", {"x": 1})),
        (None, ToolCall("f", {})),
        ([1], ToolCall("f", {}, malformed="[1]")),
        ("{x", ToolCall("f", {}, malformed="{x")),
    ],
)
async def test_arguments_of_any_form_are_an_object_or_malformed(
    fake: FakeProviders, arguments: Any, call: ToolCall
) -> None:
    wire = {"function": {"name": "f", "arguments": arguments}}
    fake.add(Reply(body=lines(piece(tool_calls=[wire]), end())))
    assert (await ask(chat(fake)))[1].calls == (call,)


async def test_a_count_that_the_server_leaves_out_is_estimated(fake: FakeProviders) -> None:
    last = end()
    del last["prompt_eval_count"]
    fake.add(Reply(body=lines(piece(content="Hi"), last)))
    _, message = await ask(chat(fake))
    assert 10 < message.usage.input_tokens < 40
    assert message.usage.output_tokens == 3


async def test_blank_lines_unknown_lines_and_fields_say_nothing(fake: FakeProviders) -> None:
    fake.reply("Hello there.", unknown_events=True, keep_alives=True)
    assert (await ask(chat(fake)))[1].text == "Hello there."


async def test_an_empty_reply_is_a_message_without_blocks(fake: FakeProviders) -> None:
    fake.reply("")
    _, message = await ask(chat(fake))
    assert (message.blocks, message.stop) == ((), StopReason.END)


async def test_a_huge_line_arrives_whole_and_an_endless_one_is_refused(fake: FakeProviders) -> None:
    text = "x" * 2_000_000
    fake.reply(text, pieces=1)
    assert (await ask(chat(fake)))[1].text == text
    fake.add(Reply(body=b'{"message": "' + b"x" * 9_000_000))
    with pytest.raises(ProtocolError, match="more than 8388608 bytes"):
        await ask(chat(fake))


async def test_the_first_request_loads_the_model_and_says_so(fake: FakeProviders) -> None:
    fake.add(Reply(text="a"), Reply(text="b"))
    one = chat(fake)
    chunks, _ = await ask(one)
    assert chunks == [WaitChunk("load", text="qwen2.5-coder:7b (1.1 GB), window 16,384"), TextChunk("a")]
    chunks, _ = await ask(one)
    assert chunks == [TextChunk("b")]
    assert fake.library.loads == [("qwen2.5-coder:7b", 16_384)]


# --- what goes wrong ------------------------------------------------------------------------------------------------


async def test_a_stream_broken_at_any_byte_is_an_error_or_the_whole_message(fake: FakeProviders) -> None:
    reply: dict[str, Any] = {
        "calls": (Call("f", {"x": "ä"}),),
        "text": "Hi ü",
        "pieces": 2,
        "output_tokens": 5,
    }
    one = chat(fake)
    sent = one.preview(HELLO).body
    request = FakeRequest(method="POST", path="", headers={}, body=sent, time=0.0, json=orjson.loads(sent))
    request.model = "qwen2.5-coder:7b"
    whole_body = b"".join(_speak_ollama.events(Reply(**reply), request))
    fake.add(Reply(**reply))
    _, whole = await ask(one)
    for size in range(len(whole_body) - 1):
        fake.add(Reply(**reply, break_after_bytes=size))
        with pytest.raises((BrokenStream, ProtocolError), match=r"ended before it was whole|cannot be read"):
            await ask(one)
    fake.add(Reply(**reply, break_after_bytes=len(whole_body)))
    assert (await ask(one))[1] == whole


async def test_a_stream_that_ends_too_early_is_broken_even_if_it_ends_cleanly(fake: FakeProviders) -> None:
    for n in range(4):
        fake.reply("Hello there.", end_after_events=n)
        with pytest.raises(BrokenStream, match="ended before it was whole"):
            await ask(chat(fake))


async def test_an_error_inside_a_200_stream_is_a_status_error(fake: FakeProviders) -> None:
    fake.reply("Hello there.", error_event=2, error="an error was encountered while running the model")
    with pytest.raises(StatusError, match="while running the model") as caught:
        await ask(chat(fake))
    assert (caught.value.status, caught.value.retryable) == (500, True)
    fake.add(Reply(body=lines(piece(content="Hi"), {"error": "no such key", "status_code": 401})))
    with pytest.raises(StatusError, match="no such key") as caught:
        await ask(chat(fake))
    assert (caught.value.status, caught.value.retryable) == (401, False)


async def test_a_model_that_is_not_there_is_said_with_the_command_that_fetches_it() -> None:
    async with FakeProviders(models={"qwen3:8b": ["completion"]}) as fake:
        with pytest.raises(StatusError, match=r"model 'qwen2\.5-coder:7b' not found") as caught:
            await ask(chat(fake))
        assert "hint: fetch the model: ollama pull qwen2.5-coder:7b; installed are qwen3:8b" in str(
            caught.value
        )
        assert (caught.value.status, caught.value.retryable) == (404, False)


async def test_a_model_without_tools_or_thinking_is_said_with_a_way_out() -> None:
    async with FakeProviders(models={"gemma3:4b": ["completion"], "qwen3:8b": ["completion"]}) as fake:
        with pytest.raises(StatusError, match="gemma3:4b does not support tools") as caught:
            await ask(chat(fake, "gemma3:4b"), Request("", [UserMessage("x")], [READ]))
        assert "envelope" in caught.value.hint
        assert (caught.value.status, caught.value.retryable) == (400, False)
        assert fake.library.loads == []
        fake.reply("Hi.")
        one = chat(fake, "qwen3:8b", thinking="low")
        await ask(one)
        assert "think" not in fake.chats[0].json
        assert one.notices == ("thinking low is not sent: qwen3:8b does not think",)


async def test_a_server_that_refuses_tools_or_thinking_is_said_with_a_way_out(fake: FakeProviders) -> None:
    fake.fail(400, "registry.ollama.ai/library/m:latest does not support tools")
    fake.fail(400, '"m" does not support thinking')
    for words, hint in (("support tools", "envelope"), ("support thinking", "thinking='off'")):
        with pytest.raises(StatusError, match=words) as caught:
            await ask(chat(fake))
        assert hint in caught.value.hint
        assert not caught.value.retryable


async def test_too_little_memory_is_said_with_a_way_out_and_not_tried_again(fake: FakeProviders) -> None:
    fake.fail(500, "model requires more system memory (9.2 GiB) than is available (3.1 GiB)")
    with pytest.raises(StatusError, match=r"9\.2 GiB") as caught:
        await ask(chat(fake))
    assert not caught.value.retryable
    assert "a smaller window than context_window=16384" in caught.value.hint


async def test_no_ollama_is_said_with_the_command_that_starts_it() -> None:
    async with FakeProviders() as gone:
        one = chat(gone)
    with pytest.raises(ConnectError, match="nothing listens at") as caught:
        await ask(one)
    assert "`ollama serve`" in caught.value.hint


async def test_a_malformed_first_line_is_another_dialect_and_a_later_one_a_broken_stream(
    fake: FakeProviders,
) -> None:
    fake.reply("Hello there.", malformed_event=0)
    with pytest.raises(ProtocolError, match="cannot be read"):
        await ask(chat(fake))
    fake.reply("Hello there.", malformed_event=2)
    with pytest.raises(BrokenStream, match="cannot be read"):
        await ask(chat(fake))


@pytest.mark.parametrize(
    "line",
    [
        b"7",
        b"[]",
        b'{"message": 7}',
        b'{"message": {"tool_calls": [7]}}',
        b"<html>",
        pytest.param(b"[" * 99_999, id="deep"),
    ],
)
async def test_lines_of_another_shape_are_no_crash(fake: FakeProviders, line: bytes) -> None:
    fake.add(Reply(body=line + b"\n"))
    with pytest.raises(ProtocolError, match="cannot be read"):
        await ask(chat(fake))


async def test_a_redirect_is_refused(fake: FakeProviders) -> None:
    async with FakeProviders() as elsewhere:
        fake.add(Reply(status=308, headers={"Location": f"{elsewhere.url}/api/chat"}))
        with pytest.raises(RedirectRefused):
            await ask(chat(fake))
        assert elsewhere.requests == []


async def test_a_slow_first_token_and_a_gap_have_limits_of_their_own(fake: FakeProviders) -> None:
    fake.reply("Hi.", first_token_delay=3600)
    with pytest.raises(ProviderTimeout) as caught:
        await ask(chat(fake, timeouts=Timeouts(first_token=0.3, idle=60)))
    assert caught.value.limit == "first_token"
    fake.reply("Hello there.", stall_after=2)
    with pytest.raises(ProviderTimeout) as caught:
        await ask(chat(fake, timeouts=Timeouts(first_token=60, idle=0.3)))
    assert caught.value.limit == "idle"


async def test_closing_the_stream_early_cancels_the_request_at_the_server(fake: FakeProviders) -> None:
    fake.reply("Hello there.", stall_after=3)
    async with aclosing(chat(fake).stream(HELLO)) as stream:
        assert isinstance(await anext(stream), WaitChunk)
        assert await anext(stream) == TextChunk("Hel")
        (request,) = fake.chats
    await asyncio.wait_for(request.disconnected.wait(), 30)


async def test_one_chat_serves_several_calls_at_once(fake: FakeProviders) -> None:
    fake.rule(lambda request: Reply(text=f"echo {request.last_user_text}", write_size=7))
    one = chat(fake)
    texts = [f"number {n}" for n in range(10)]
    replies = await asyncio.gather(*(ask(one, Request("", [UserMessage(t)])) for t in texts))
    assert [message.text for _, message in replies] == [f"echo {t}" for t in texts]
