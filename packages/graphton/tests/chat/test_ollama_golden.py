"""Recorded traffic of the real Ollama (tests/golden_ollama): we read it as it was meant, and FakeProviders speaks alike."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from graphton.chat import ollama_facts
from graphton.chat.base import Done, Request, ToolSpec
from graphton.chat.ollama import OllamaChat
from graphton.chat.ollama_facts import measure, model_facts
from graphton.errors import PromptTooLong, StatusError
from graphton.messages import AssistantMessage, Block, StopReason, Text, Thinking, ToolCall, UserMessage
from graphton.models import ModelRef, ModelSettings
from graphton.testing import Call, FakeProviders, Reply

FOLDER = Path(__file__).parents[1] / "golden_ollama"
MODELS = {
    "qwen2.5-coder:0.5b": ["completion", "tools"],
    "qwen2.5-coder:1.5b": ["completion", "tools"],
    "bare:0.5b": ["completion"],
    "thinker:1.5b": ["completion", "tools", "thinking"],
    "caller:1.5b": ["completion", "tools"],
}


@dataclass(frozen=True)
class Recording:
    """A request, and what the server said to it."""

    request: dict[str, Any]
    status: int
    content_type: str
    body: bytes

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]


def recording(name: str) -> Recording:
    head, _, body = (FOLDER / f"{name}.jsonl").read_bytes().partition(b"\n")
    about = json.loads(head)
    assert about["ollama"] == "0.17.4"
    return Recording(about["request"], about["status"], about["content_type"], body)


@pytest.fixture
async def fake() -> AsyncIterator[FakeProviders]:
    async with FakeProviders(models=MODELS) as server:
        yield server


# --- we read it -----------------------------------------------------------------------------------------------------


async def read(fake: FakeProviders, name: str, **settings: Any) -> AssistantMessage:
    """The message that our client makes of a recorded reply."""
    told = recording(name)
    fake.add(Reply(body=told.body, status=told.status))
    model = told.request["json"]["model"]
    one = OllamaChat(
        ModelRef("ollama", model), ModelSettings(base_url=fake.ollama_url, context_window=2048, **settings)
    )
    chunks = [chunk async for chunk in one.stream(Request("", [UserMessage("…")]))]
    last = chunks[-1]
    assert isinstance(last, Done)
    return last.message


def weather(city: str, wire_id: str) -> ToolCall:
    return ToolCall("get_weather", {"city": city}, wire_id=wire_id)


@pytest.mark.parametrize(
    ("name", "blocks", "stop", "tokens"),
    [
        ("text", (Text("Paris"),), StopReason.END, (28, 2)),
        ("text_again", (Text("Paris"),), StopReason.END, (28, 2)),  # cached, and counted all the same
        ("text_whole", (Text("Paris"),), StopReason.END, (28, 2)),
        ("length", (Text("Paris"),), StopReason.LENGTH, (20, 1)),
        ("tool_call", (weather("Oslo", "call_z051x8pm"),), StopReason.TOOLS, (164, 27)),
    ],
)
async def test_a_recorded_reply_is_read(
    fake: FakeProviders, name: str, blocks: tuple[Block, ...], stop: StopReason, tokens: tuple[int, int]
) -> None:
    message = await read(fake, name)
    assert (message.blocks, message.stop) == (blocks, stop)
    assert (message.usage.input_tokens, message.usage.output_tokens) == tokens
    assert message.usage.cached_tokens == 0  # Ollama does not say how many those are


async def test_a_call_in_the_last_frame_is_read(fake: FakeProviders) -> None:
    (frame,) = recording("tool_call_whole").lines
    assert frame["done"]
    message = await read(fake, "tool_call_whole")
    assert [(c.name, c.arguments) for c in message.calls] == [("get_weather", {"city": "Oslo"})]
    assert message.stop is StopReason.TOOLS


async def test_parallel_calls_are_read_with_an_id_each(fake: FakeProviders) -> None:
    message = await read(fake, "tool_calls")
    assert [c.arguments for c in message.calls] == [{"city": "Rome"}, {"city": "Paris"}]
    ids = {c.wire_id for c in message.calls}
    assert len(ids) == 2
    assert all(one.startswith("call_") for one in ids)


async def test_a_reply_held_to_a_schema_is_json(fake: FakeProviders) -> None:
    assert json.loads((await read(fake, "format")).text) == {"city": "Paris"}


async def test_native_thinking_is_no_part_of_the_answer(fake: FakeProviders) -> None:
    message = await read(fake, "think")
    thought, said = message.blocks
    assert thought == Thinking("Hm.\n", "ollama")
    assert isinstance(said, Text)
    assert "Yes" in said.text


async def test_thinking_that_the_model_printed_is_no_part_of_the_answer(fake: FakeProviders) -> None:
    message = await read(fake, "think_tags")
    assert message.blocks == (Thinking("Hm.,", "ollama"), Text("<yes>Yes.</yes>\n```"))


async def test_a_reply_that_filled_the_window_says_so(fake: FakeProviders) -> None:
    told = recording("filled")
    fake.add(Reply(body=told.body))
    one = OllamaChat(
        ModelRef("ollama", told.request["json"]["model"]),
        ModelSettings(base_url=fake.ollama_url, context_window=64),
    )
    chunks = [chunk async for chunk in one.stream(Request("", [UserMessage("…")]))]
    assert isinstance(chunks[-1], Done)
    assert chunks[-1].message.stop is StopReason.CONTEXT


@pytest.mark.parametrize(
    ("name", "says", "hint"),
    [
        ("missing", "model 'nothing:1b' not found", "ollama pull nothing:1b; installed are"),
        ("no_tools", "does not support tools", "envelope"),
        ("think_refused", "does not support thinking", "thinking='off'"),
        ("bad_option", 'option "num_ctx" must be of type integer', "update it"),
        ("bad_format", "invalid format", "update it"),
        ("no_route", "404 page not found", "may be no Ollama"),
    ],
)
async def test_a_recorded_refusal_comes_with_a_way_out(
    fake: FakeProviders, name: str, says: str, hint: str
) -> None:
    told = recording(name)
    fake.add(Reply(body=told.body, status=told.status))
    model = (told.request["json"] or {}).get("model", "qwen2.5-coder:1.5b")
    fake.library.become(models={**MODELS, model: ["completion", "tools"]})
    one = OllamaChat(ModelRef("ollama", model), ModelSettings(base_url=fake.ollama_url, context_window=2048))
    with pytest.raises(StatusError) as caught:
        async for _ in one.stream(Request("", [UserMessage("…")])):
            pass
    assert says in caught.value.message
    assert hint in caught.value.hint
    assert (caught.value.status, caught.value.retryable) == (told.status, False)


async def test_a_recorded_refusal_for_its_length_is_a_prompt_too_long(fake: FakeProviders) -> None:
    with pytest.raises(PromptTooLong, match="does not fit the context window"):
        await read(fake, "too_long")


def test_recorded_facts_are_read() -> None:
    shown = recording("show").lines[0]
    facts = ollama_facts._facts(ollama_facts.Installed("m", "d", 1_117_320_768), shown)
    assert (facts.tools, facts.thinks, facts.bare_template) == (True, False, False)
    assert (facts.context_length, facts.kv_bytes) == (32_768, 28 * 2 * (128 + 128) * 2)
    assert (facts.family, facts.quantization) == ("qwen2", "Q4_K_M")
    (loaded,) = map(ollama_facts._loaded, recording("ps").lines[0]["models"])
    assert (loaded.name, loaded.window, loaded.vram) == ("qwen2.5-coder:1.5b", 2048, 0)
    assert loaded.expires is not None
    assert recording("ps_empty").lines == [{"models": []}]


# --- FakeProviders speaks alike -------------------------------------------------------------------------------------


def shape(value: Any) -> Any:
    """The fields of a JSON value and their types, without the values."""
    if isinstance(value, dict):
        return {name: shape(part) for name, part in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return (
        "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
    )


def frames(lines: list[Any]) -> list[Any]:
    """The shapes of lines, in order; many of one shape count as one."""
    shapes = list(map(shape, lines))
    return [one for index, one in enumerate(shapes) if index == 0 or one != shapes[index - 1]]


async def said_by(fake: FakeProviders, told: Recording) -> tuple[int, str, list[Any]]:
    request = told.request
    async with (
        aiohttp.ClientSession() as session,
        session.request(request["method"], fake.url + request["path"], json=request["json"]) as reply,
    ):
        lines = [json.loads(line) for line in (await reply.read()).splitlines()]
        return reply.status, reply.content_type, lines


def media_type(text: str) -> str:
    return text.partition(";")[0]


WEATHER_CALL = Call("get_weather", {"city": "Oslo"}, id="call_1")


@pytest.mark.parametrize(
    ("name", "reply"),
    [
        ("text", Reply(text="Paris")),
        ("text_whole", Reply(text="Paris")),
        ("format", Reply(text='{"city": "Paris"}')),
        ("think", Reply(thinking="Hm.", text="Yes.")),
        ("tool_call", Reply(calls=(WEATHER_CALL,))),
        ("tool_call_whole", Reply(calls=(WEATHER_CALL,))),
        ("tool_calls", Reply(calls=(WEATHER_CALL, WEATHER_CALL))),
        ("tool_results", Reply(text="Snow, and sun.")),
        ("load", None),
        ("unload", None),
        ("version", None),
        ("tags", None),
        ("ps_empty", None),
        ("show_missing", None),
        ("pull_missing", None),
        ("missing", None),
        ("no_tools", None),
        ("think_refused", None),
        ("too_long", Reply(text="never said")),
    ],
)
async def test_the_fake_answers_in_the_same_form(fake: FakeProviders, name: str, reply: Reply | None) -> None:
    told = recording(name)
    if reply is not None:
        fake.add(reply)
    status, kind, lines = await said_by(fake, told)
    assert (status, kind) == (told.status, media_type(told.content_type))
    assert frames(lines) == frames(told.lines)
    if status >= 400:
        assert lines == told.lines


async def test_the_fake_lists_what_is_loaded_in_the_same_form(fake: FakeProviders) -> None:
    await said_by(fake, recording("load"))
    _, _, lines = await said_by(fake, told := recording("ps"))
    assert frames(lines) == frames(told.lines)
    assert lines[0]["models"][0]["context_length"] == told.lines[0]["models"][0]["context_length"]


async def test_the_fake_describes_a_model_in_the_same_form(fake: FakeProviders) -> None:
    _, kind, (said,) = await said_by(fake, told := recording("show"))
    (real,) = told.lines
    assert kind == media_type(told.content_type)
    assert set(said) == set(real)
    assert set(said["model_info"]) <= set(real["model_info"])
    for part in ("details", "capabilities", "tensors", "modified_at"):
        assert shape(said[part]) == shape(real[part])


async def test_the_fakes_models_are_measured_like_real_ones(fake: FakeProviders) -> None:
    facts = await model_facts(await measure(fake.ollama_url), "thinker:1.5b")
    assert facts is not None
    assert (facts.tools, facts.thinks, facts.context_length) == (True, True, 32_768)


def test_what_we_offer_stands_in_the_recordings_as_we_send_it() -> None:
    """The recorded requests have our fields in our words, so that the server's answer is one to us."""
    sent = recording("tool_call").request["json"]
    tool = ToolSpec(
        "get_weather", "Tells the weather of one city.", sent["tools"][0]["function"]["parameters"]
    )
    one = OllamaChat(ModelRef("ollama", "m"), ModelSettings(temperature=0.0, base_url="http://localhost:1"))
    ours = json.loads(one.preview(Request("", [UserMessage("x")], [tool])).body)
    assert ours["tools"] == sent["tools"]
    assert set(ours) == set(sent)
    assert set(ours["options"]) <= set(sent["options"])
