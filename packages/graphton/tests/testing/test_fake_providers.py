"""FakeProviders keeps its promises: to the three official SDKs, about every fault, and about what it records."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import anthropic
import ollama
import openai
import pytest
from graphton.agent import create_deep_agent
from graphton.errors import SettingError
from graphton.messages import AssistantMessage, StopReason, ToolCall, ToolResults, UserMessage
from graphton.models import ModelSettings
from graphton.testing import Call, FakeProviders, FakeRequest, Reply, script_from_json, steps

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}
PATHS = {
    "anthropic": "/v1/messages",
    "openai": "/v1/chat/completions",
    "responses": "/v1/responses",
    "ollama": "/api/chat",
}


@pytest.fixture
async def fake() -> AsyncIterator[FakeProviders]:
    async with FakeProviders() as server:
        yield server


def body(provider: str, text: str = "hello", **more: Any) -> dict[str, Any]:
    limit = {"max_tokens": 100} if provider == "anthropic" else {}
    return {
        "model": "some-model",
        "stream": True,
        **limit,
        "input" if provider == "responses" else "messages": [{"role": "user", "content": text}],
        **more,
    }


async def post(fake: FakeProviders, provider: str, **more: Any) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and whatever arrived of the body."""
    got = b""
    async with (
        aiohttp.ClientSession() as session,
        session.post(fake.url + PATHS[provider], json=body(provider, **more)) as response,
    ):
        headers = {k.lower(): v for k, v in response.headers.items()}
        try:
            async for piece in response.content.iter_any():
                got += piece
        except aiohttp.ClientPayloadError:
            got += b"<cut>"
        return response.status, headers, got


every_dialect = pytest.mark.parametrize("provider", PATHS)


# --- the official SDKs as clients -----------------------------------------------------------------------------------


async def test_the_anthropic_sdk_reads_text_thinking_calls_and_usage(fake: FakeProviders) -> None:
    fake.calls(
        Call("weather", {"city": "Köln"}),
        Call("weather", {"city": "Bonn"}),
        text="Let me look.",
        thinking="Two cities.",
        input_tokens=1000,
        cached_tokens=600,
        cache_write_tokens=100,
        output_tokens=42,
    )
    async with (
        anthropic.AsyncAnthropic(base_url=fake.anthropic_url, api_key="k", max_retries=0) as client,
        client.messages.stream(
            model="claude-sonnet-5.5",
            max_tokens=100,
            system="Be kind.",
            messages=[{"role": "user", "content": "Weather?"}],
            tools=[{"name": "weather", "description": "Tells.", "input_schema": WEATHER}],
        ) as stream,
    ):
        message = await stream.get_final_message()
    thinking, text, first, second = message.content
    assert (thinking.type, text.type, first.type, second.type) == ("thinking", "text", "tool_use", "tool_use")
    assert thinking.type == "thinking"
    assert thinking.thinking == "Two cities."
    assert thinking.signature
    assert text.type == "text"
    assert text.text == "Let me look."
    assert first.type == "tool_use"
    assert first.input == {"city": "Köln"}
    assert second.type == "tool_use"
    assert second.input == {"city": "Bonn"}
    assert second.id != first.id
    assert message.stop_reason == "tool_use"
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (
        300,
        600,
        100,
    )
    assert usage.output_tokens == 42
    (request,) = fake.chats
    assert (request.provider, request.model, request.system) == ("anthropic", "claude-sonnet-5.5", "Be kind.")
    assert request.last_user_text == "Weather?"
    assert [(t.name, t.parameters) for t in request.tools] == [("weather", WEATHER)]
    assert request.headers["authorization"] == "Bearer k"


async def test_the_anthropic_sdk_reads_a_whole_reply_and_the_model_list(fake: FakeProviders) -> None:
    fake.reply("Hi.", stop=StopReason.LENGTH)
    async with anthropic.AsyncAnthropic(base_url=fake.anthropic_url, api_key="k", max_retries=0) as client:
        message = await client.messages.create(
            model="claude-sonnet-5.5", max_tokens=1, messages=[{"role": "user", "content": "hello"}]
        )
        models = await client.models.list()
    assert message.content[0].type == "text"
    assert message.content[0].text == "Hi."
    assert message.stop_reason == "max_tokens"
    assert models.data[0].id == "qwen2.5-coder:7b"


async def test_the_openai_sdk_reads_text_calls_and_usage(fake: FakeProviders) -> None:
    fake.calls(
        Call("weather", {"city": "Köln"}),
        Call("weather", {"city": "Bonn"}, id="call_mine"),
        text="Let me look.",
        input_tokens=1000,
        cached_tokens=600,
        output_tokens=42,
    )
    async with (
        openai.AsyncOpenAI(base_url=fake.openai_url, api_key="k", max_retries=0) as client,
        client.chat.completions.stream(
            model="gpt-4.1",
            messages=[{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Weather?"}],
            tools=[{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}],
            stream_options={"include_usage": True},
        ) as stream,
    ):
        completion = await stream.get_final_completion()
    (choice,) = completion.choices
    assert choice.message.content == "Let me look."
    assert choice.finish_reason == "tool_calls"
    calls = choice.message.tool_calls or []
    assert [json.loads(c.function.arguments) for c in calls] == [{"city": "Köln"}, {"city": "Bonn"}]
    assert calls[1].id == "call_mine"
    usage = completion.usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (1000, 42)
    assert usage.prompt_tokens_details.cached_tokens == 600
    (request,) = fake.chats
    assert (request.provider, request.system, request.last_user_text) == ("openai", "Be kind.", "Weather?")


async def test_the_openai_sdk_reads_a_whole_reply_and_the_model_list(fake: FakeProviders) -> None:
    fake.reply("Hi.")
    async with openai.AsyncOpenAI(base_url=fake.openai_url, api_key="k", max_retries=0) as client:
        completion = await client.chat.completions.create(
            model="gpt-4.1", messages=[{"role": "user", "content": "hello"}]
        )
        models = [m.id async for m in client.models.list()]
    assert completion.choices[0].message.content == "Hi."
    assert "qwen2.5-coder:7b" in models


async def test_the_ollama_sdk_reads_text_thinking_calls_and_usage(fake: FakeProviders) -> None:
    fake.calls(
        Call("weather", {"city": "Köln"}),
        text="Let me look.",
        thinking="Hm.",
        input_tokens=90,
        output_tokens=7,
    )
    client = ollama.AsyncClient(host=fake.ollama_url)
    parts = [
        part
        async for part in await client.chat(
            model="qwen3:8b",
            messages=[{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Weather?"}],
            tools=[{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}],
            stream=True,
            options={"num_ctx": 8192},
        )
    ]
    await client.close()
    assert "".join(p.message.content or "" for p in parts) == "Let me look."
    assert "".join(p.message.thinking or "" for p in parts) == "Hm."
    calls = [c for p in parts for c in p.message.tool_calls or ()]
    assert [(c.function.name, c.function.arguments) for c in calls] == [("weather", {"city": "Köln"})]
    assert (parts[-1].done_reason, parts[-1].prompt_eval_count, parts[-1].eval_count) == ("stop", 90, 7)
    (request,) = fake.chats
    assert (request.provider, request.system, request.last_user_text) == ("ollama", "Be kind.", "Weather?")


async def test_the_ollama_sdk_lists_shows_and_sees_what_is_loaded(fake: FakeProviders) -> None:
    fake.reply("Hi.")
    client = ollama.AsyncClient(host=fake.ollama_url)
    reply = await client.chat(
        model="qwen2.5-coder:7b", messages=[{"role": "user", "content": "x"}], options={"num_ctx": 16384}
    )
    listed, shown, loaded = await client.list(), await client.show("qwen2.5-coder:7b"), await client.ps()
    await client.close()
    assert reply.message.content == "Hi."
    assert listed.models[0].model == "qwen2.5-coder:7b"
    assert "tools" in (shown.capabilities or ())
    assert loaded.models[0].context_length == 16384


async def test_tool_results_are_seen_by_the_same_names_in_every_dialect(fake: FakeProviders) -> None:
    fake.rule(lambda request: Reply(text="ok"))
    await post(
        fake,
        "responses",
        input=[
            {"role": "user", "content": "go"},
            {"type": "function_call", "call_id": "t1", "name": "look", "arguments": '{"a": 1}'},
            {"type": "function_call_output", "call_id": "t1", "output": "seen"},
        ],
    )
    await post(
        fake,
        "anthropic",
        messages=[
            {"role": "user", "content": "go"},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "t1", "name": "look", "input": {"a": 1}}],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "seen"}]},
        ],
    )
    function = {"name": "look", "arguments": '{"a": 1}'}
    await post(
        fake,
        "openai",
        messages=[
            {"role": "user", "content": "go"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "t1", "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": "t1", "content": "seen"},
        ],
    )
    await post(
        fake,
        "ollama",
        messages=[
            {"role": "user", "content": "go"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"function": {"name": "look", "arguments": {"a": 1}}}],
            },
            {"role": "tool", "tool_name": "look", "content": "seen"},
        ],
    )
    for request in fake.chats:
        said, called, results = request.messages
        assert isinstance(said, UserMessage)
        assert said.text == "go"
        assert isinstance(called, AssistantMessage)
        assert isinstance(results, ToolResults)
        (call,) = called.blocks
        assert isinstance(call, ToolCall)
        assert (call.name, call.arguments) == ("look", {"a": 1})
        assert [(r.name, r.text) for r in request.tool_results] == [("look", "seen")]


# --- faults ---------------------------------------------------------------------------------------------------------


@every_dialect
async def test_an_error_status_comes_in_the_dialects_own_form(fake: FakeProviders, provider: str) -> None:
    fake.fail(529, "too busy", retry_after=1.5)
    status, headers, got = await post(fake, provider)
    said = json.loads(got)["error"]
    assert (status, headers["retry-after"]) == (529, "1.5")
    assert (said if provider == "ollama" else said["message"]) == "too busy"


@every_dialect
async def test_text_arrives_in_several_pieces(fake: FakeProviders, provider: str) -> None:
    fake.reply("one two three four")
    _, headers, got = await post(fake, provider)
    # The Responses API says all of it again at the end.
    assert b"one two three four" not in got.partition(b"response.output_text.done")[0]
    assert headers["content-type"].startswith(
        "application/x-ndjson" if provider == "ollama" else "text/event-stream"
    )


@every_dialect
async def test_a_body_breaks_after_exactly_so_many_bytes(fake: FakeProviders, provider: str) -> None:
    fake.reply("hello")
    _, _, whole = await post(fake, provider)
    for size in (0, 1, len(whole) // 2, len(whole)):
        fake.reply("hello", break_after_bytes=size)
        _, _, got = await post(fake, provider)
        assert got == whole[:size] + b"<cut>"


@every_dialect
async def test_a_body_breaks_or_ends_before_an_event(fake: FakeProviders, provider: str) -> None:
    fake.reply("hello")
    _, _, whole = await post(fake, provider)
    fake.reply("hello", break_after_events=2)
    _, _, cut = await post(fake, provider)
    fake.reply("hello", end_after_events=2)
    _, _, ended = await post(fake, provider)
    assert cut == ended + b"<cut>"
    assert whole.startswith(ended)
    assert 0 < len(ended) < len(whole)


@every_dialect
async def test_an_error_event_ends_a_stream_that_began_well(fake: FakeProviders, provider: str) -> None:
    fake.reply("hello", error_event=2, error="lost my way")
    status, _, got = await post(fake, provider)
    assert status == 200
    assert b"lost my way" in got.splitlines()[-2 if provider != "ollama" else -1]


@every_dialect
async def test_an_event_can_be_malformed(fake: FakeProviders, provider: str) -> None:
    fake.reply("hello", malformed_event=1)
    _, _, got = await post(fake, provider)
    mark = b"" if provider == "ollama" else b"data: "
    lines = [line.removeprefix(mark) for line in got.splitlines() if line.startswith(mark) and line]
    with pytest.raises(json.JSONDecodeError):
        json.loads(lines[1])
    json.loads(lines[2])


@every_dialect
async def test_unknown_events_and_keep_alives_are_mixed_in(fake: FakeProviders, provider: str) -> None:
    fake.reply("hello", unknown_events=True, keep_alives=True)
    _, _, got = await post(fake, provider)
    assert b"weather" in got
    mark = {
        "anthropic": b"event: ping",
        "openai": b": keep-alive",
        "responses": b"event: keepalive",
        "ollama": b"\n\n",
    }
    assert mark[provider] in got


@every_dialect
async def test_an_empty_reply_is_a_reply(fake: FakeProviders, provider: str) -> None:
    fake.reply("")
    status, _, got = await post(fake, provider)
    assert status == 200
    assert got


@every_dialect
async def test_a_raw_body_goes_out_as_it_is(fake: FakeProviders, provider: str) -> None:
    fake.add(Reply(body=b"\xff\x00 no dialect at all", status=502))
    assert (await post(fake, provider))[::2] == (502, b"\xff\x00 no dialect at all")


@every_dialect
async def test_a_small_write_size_changes_nothing_but_the_pieces(fake: FakeProviders, provider: str) -> None:
    fake.reply("grüße 🎈")
    fake.reply("grüße 🎈", write_size=1)
    _, _, plain = await post(fake, provider)
    _, _, sliced = await post(fake, provider)
    assert plain == sliced


@every_dialect
async def test_a_stalled_stream_notices_that_the_client_went_away(fake: FakeProviders, provider: str) -> None:
    fake.reply("hello", stall_after=2)
    async with aiohttp.ClientSession() as session:
        response = await session.post(fake.url + PATHS[provider], json=body(provider))
        await response.content.readany()
        (request,) = await fake.wait_for_requests(1)
        assert not request.disconnected.is_set()
        response.close()
        await asyncio.wait_for(request.disconnected.wait(), 30)
    assert not request.answered.is_set()


@every_dialect
async def test_headers_come_before_a_slow_first_token(fake: FakeProviders, provider: str) -> None:
    fake.reply("hello", first_token_delay=3600)
    async with aiohttp.ClientSession() as session:
        response = await asyncio.wait_for(session.post(fake.url + PATHS[provider], json=body(provider)), 30)
        assert response.status == 200
        response.close()


async def test_a_malformed_call_keeps_its_text(fake: FakeProviders) -> None:
    fake.call("look", '{"path": ')
    _, _, got = await post(fake, "openai", stream=False)
    call = json.loads(got)["choices"][0]["message"]["tool_calls"][0]
    assert call["function"]["arguments"] == '{"path": '


# --- rules and scripts ----------------------------------------------------------------------------------------------


@every_dialect
async def test_an_unscripted_request_is_told_what_was_missing(fake: FakeProviders, provider: str) -> None:
    status, headers, got = await post(fake, provider, text="anyone there?")
    assert (status, headers["x-should-retry"]) == (500, "false")
    assert f"no reply for POST {PATHS[provider]}" in got.decode()
    assert "'some-model'" in got.decode()
    assert "'anyone there?'" in got.decode()
    assert "fake.reply(...)" in got.decode()


async def test_a_rule_is_asked_first_and_may_leave_it_to_the_script(fake: FakeProviders) -> None:
    def rule(request: FakeRequest) -> Reply | None:
        return Reply(text="from the rule") if "rule" in request.last_user_text else None

    fake.rule(rule)
    fake.reply("from the script")
    assert b"from the rule" in (await post(fake, "ollama", text="rule please", stream=False))[2]
    assert b"from the script" in (await post(fake, "ollama", text="script please", stream=False))[2]
    assert fake.pending == ()


async def test_a_rule_that_fails_says_so_to_the_client(fake: FakeProviders) -> None:
    def rule(request: FakeRequest) -> Reply | None:
        raise ValueError("no such city")

    fake.rule(rule)
    status, _, got = await post(fake, "openai")
    assert status == 500
    assert b"a rule of FakeProviders failed: ValueError: no such city" in got


@every_dialect
async def test_the_steps_rule_calls_a_matching_tool_until_n_results_exist(
    fake: FakeProviders, provider: str
) -> None:
    fake.rule(steps("^read", arguments={"path": "."}, answer="did {n}"))
    tools: dict[str, Any] = {
        "anthropic": [{"name": n, "input_schema": {}} for n in ("write_file", "read_file")],
        "responses": [{"type": "function", "name": n} for n in ("write_file", "read_file")],
    }
    functions = [{"type": "function", "function": {"name": n}} for n in ("write_file", "read_file")]
    offered = tools.get(provider, functions)
    _, _, first = await post(fake, provider, text="go STEPS=0", tools=offered, stream=False)
    assert b"did 0" in first
    _, _, second = await post(fake, provider, text="go STEPS=1", tools=offered, stream=False)
    assert b"read_file" in second
    _, _, wrong = await post(fake, provider, text="go STEPS=1", stream=False)
    assert b"needs a tool that matches '^read'; offered: none" in wrong


async def test_waiting_for_requests_says_what_came_instead(fake: FakeProviders) -> None:
    fake.reply("x")
    await post(fake, "ollama")
    with pytest.raises(TimeoutError, match=r"waited 0 s for 2 requests; came: POST /api/chat"):
        await fake.wait_for_requests(2, 0)
    assert await fake.wait_for_requests(1, path="/api/chat") == fake.chats


def test_a_script_with_an_unknown_key_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SettingError, match=r"replies\[0\] has an unknown key 'txet'") as caught:
        script_from_json({"replies": [{"txet": "hello"}]})
    assert "known keys: body, break_after_bytes" in str(caught.value)


def test_a_rule_without_a_reply_is_refused_with_an_example() -> None:
    with pytest.raises(SettingError, match=r"rules\[0\] is no rule") as caught:
        script_from_json({"rules": [{"match": "x"}]})
    assert '{"steps": "TOOL REGEX"}' in str(caught.value)


# --- what real servers refuse ---------------------------------------------------------------------------------------


async def test_a_call_without_its_result_is_refused_as_the_real_servers_do(fake: FakeProviders) -> None:
    asks = {"role": "user", "content": "go"}
    uses = {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "look", "input": {}}]}
    status, _, got = await post(fake, "anthropic", messages=[asks, uses, asks])
    assert status == 400
    assert b"`tool_use` ids were found without `tool_result` blocks: t1" in got
    call = {"id": "t1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    calls = {"role": "assistant", "content": None, "tool_calls": [call]}
    status, _, got = await post(fake, "openai", messages=[asks, calls, asks])
    assert status == 400
    assert b"did not have response messages: t1" in got


async def test_a_body_that_is_no_request_is_refused_and_recorded(fake: FakeProviders) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(fake.url + "/api/chat", data=b"{nope") as response,
    ):
        assert response.status == 400
    assert fake.requests[0].body == b"{nope"
    assert fake.requests[0].json is None


async def test_ollama_models_have_the_capabilities_that_they_were_given() -> None:
    async with FakeProviders(models={"gemma3:4b": ["completion"]}) as fake:
        tool = {"type": "function", "function": {"name": "look"}}
        status, _, got = await post(fake, "ollama", model="gemma3:4b", tools=[tool])
        assert status == 400
        assert b"does not support tools" in got
        status, _, got = await post(fake, "ollama", model="gemma3:4b", think=True)
        assert status == 400
        assert b"does not support thinking" in got
        status, _, got = await post(fake, "ollama", model="qwen3:8b")
        assert status == 404
        assert json.loads(got) == {"error": "model 'qwen3:8b' not found"}


async def test_ollama_evaluates_no_more_of_the_prompt_than_the_window_holds(fake: FakeProviders) -> None:
    fake.reply("ok")
    _, _, got = await post(fake, "ollama", text="x" * 40_000, options={"num_ctx": 4096})
    assert json.loads(got.splitlines()[-1])["prompt_eval_count"] == 4096


async def test_an_address_that_no_provider_has_is_a_404(fake: FakeProviders) -> None:
    async with aiohttp.ClientSession() as session, session.get(fake.url + "/v2/nothing") as response:
        assert response.status == 404
        assert "serves no GET /v2/nothing" in await response.text()


async def test_an_agent_runs_against_it_as_the_docstring_shows(fake: FakeProviders) -> None:
    def add(a: int, b: int) -> str:
        """Adds two numbers."""
        return str(a + b)

    fake.call("add", {"a": 17, "b": 25})
    fake.fail(529, retry_after=0.01)
    fake.reply("It is 42.", input_tokens=120)
    settings = ModelSettings(base_url=fake.ollama_url)
    agent = create_deep_agent("ollama:qwen3:8b", tools=[add], settings=settings)
    assert (await agent.run("What is 17 + 25?")).text == "It is 42."
    assert fake.chats[-1].tool_results[0].text == "42"


@pytest.mark.parametrize("model", ["anthropic:claude-sonnet-5.5", "openai:gpt-6-luna", "ollama:qwen3:8b"])
async def test_an_agent_takes_the_same_steps_in_every_dialect(fake: FakeProviders, model: str) -> None:
    seen: list[str] = []

    def look(place: str) -> str:
        """Looks at a place."""
        seen.append(place)
        return f"nothing at {place}, time {len(seen)}"  # Else it is told that it repeats itself.

    fake.rule(steps("look", arguments={"place": "here"}))
    url = fake.openai_url if model.startswith("openai") else fake.url
    agent = create_deep_agent(model, tools=[look], settings=ModelSettings(base_url=url, api_key="test"))
    assert (await agent.run("Look around. STEPS=5")).text == "Done after 5 steps."
    assert seen == ["here"] * 5
    assert [len(r.tool_results) for r in fake.chats] == [0, 1, 2, 3, 4, 5]
    assert {r.name for r in fake.chats[-1].tool_results} == {"look"}
