"""Envelopes: what goes out can only be answered with a valid call or a reply, and comes back as the loop expects it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from graphton._arguments import fit
from graphton._envelope_echo import may_say_back, says_back
from graphton._instructions import DEFAULT_INSTRUCTIONS
from graphton._reply_schema import reply_schema
from graphton._reply_text import ReplyText
from graphton.agent import create_deep_agent
from graphton.catalog import path_of
from graphton.chat import Chunk, Done, Request, TextChunk, ToolSpec
from graphton.chat.base import Preview, ThinkingChunk, WaitChunk
from graphton.envelope import EnvelopeChat, enveloped, opened
from graphton.history import SUMMARY
from graphton.messages import (
    AssistantMessage,
    Message,
    StopReason,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
    ToolResults,
    Usage,
    UserMessage,
)
from graphton.models import ModelRef, ModelSettings
from graphton.tools import Knowledge
from graphton.toolsets import default_tools
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> list[ToolSpec]:
    """The tools of the default agent, as they are offered."""
    folder = tmp_path_factory.mktemp("workspace")
    return [ToolSpec(t.name, t.description, t.parameters) for t in default_tools(folder)]


class Said:
    """A chat that says what the test gives it, in pieces, and keeps the request."""

    ref = ModelRef("ollama", "scripted")
    settings = ModelSettings()
    notices: tuple[str, ...] = ("a notice",)

    def __init__(self, pieces: list[str], message: AssistantMessage) -> None:
        self.pieces, self.message = pieces, message
        self.requests: list[Request] = []
        self.closed = False

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        self.requests.append(request)
        try:
            yield ThinkingChunk("hm")
            for piece in self.pieces:
                yield TextChunk(piece)
            yield Done(self.message)
        finally:
            self.closed = True

    def preview(self, request: Request) -> Preview:
        return Preview("POST", "http://localhost/api/chat", {}, json.dumps(request.schema).encode())

    async def close(self) -> None:
        self.closed = True


HEAD = '{"tool": "reply", "arguments": {"text": '


def reply(text: str) -> str:
    """A reply in its envelope."""
    return HEAD + json.dumps(text, ensure_ascii=False) + "}}"


LIST = ToolSpec(
    "list_files", "List a folder.", {"type": "object", "properties": {"path": {"type": "string"}}}
)


async def talk(
    text: str, cuts: list[int], *, stop: StopReason = StopReason.END, tools: tuple[ToolSpec, ...] = (LIST,)
) -> tuple[list[str], AssistantMessage]:
    """What an EnvelopeChat shows of a text that comes in pieces, and the whole message."""
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges) if a < b]
    chat = EnvelopeChat(Said(pieces, AssistantMessage((Text(text),), stop=stop)))
    chunks = [chunk async for chunk in chat.stream(Request("", [UserMessage("hi")], tools))]
    assert isinstance(chunks[-1], Done)
    return [chunk.text for chunk in chunks if isinstance(chunk, TextChunk)], chunks[-1].message


# --- the reply's text, while it is written ------------------------------------------------------------------------


def escaped(text: str, how: int) -> str:
    """A JSON string of the text; three ways to write it."""
    if how == 0:
        return json.dumps(text)
    if how == 1:
        return json.dumps(text, ensure_ascii=False)
    units = text.encode("utf-16-be", "surrogatepass")
    return '"' + "".join(f"\\u{units[i]:02X}{units[i + 1]:02x}" for i in range(0, len(units), 2)) + '"'


texts = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from('"\\/\n\t\u2028é😀𝒳')), max_size=40)


@given(
    texts, st.sampled_from(["", " ", "\n  "]), st.integers(0, 2), st.lists(st.integers(0, 300), max_size=30)
)
def test_a_reply_decodes_the_same_however_it_is_cut(text: str, blank: str, how: int, cuts: list[int]) -> None:
    written = '{"tool":"reply","arguments":{"text":"…"}}'
    written = written.replace(":", f"{blank}:{blank}").replace(",", f"{blank},{blank}")
    written = written.replace("{", f"{blank}{{{blank}").replace('"…"', escaped(text, how))
    edges = [0, *sorted(min(cut, len(written)) for cut in cuts), len(written)]
    decoder = ReplyText()
    assert "".join(decoder.feed(written[a:b]) for a, b in pairwise(edges)) == text


@given(texts, st.integers(0, 2), st.data())
def test_what_is_shown_of_a_reply_is_always_its_beginning(text: str, how: int, data: st.DataObject) -> None:
    written = HEAD + escaped(text, how)
    at = data.draw(st.integers(0, len(written)))
    shown = ReplyText().feed(written[:at])
    assert text.startswith(shown)
    assert ReplyText().feed(written) == text


@given(st.lists(st.sampled_from(["\\ud83d", "\\ude00", "\\u0041", "a", "\\n", "\\uD83D\\uDE00"]), max_size=8))
async def test_half_a_surrogate_pair_is_shown_as_it_is_stored(parts: list[str]) -> None:
    written = HEAD + '"' + "".join(parts) + '"}}'
    shown, message = await talk(written, list(range(len(written))))
    expected = (
        json.loads(written)["arguments"]["text"].encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    )
    assert "".join(shown) == message.text == expected


@given(st.text(st.sampled_from('{}"\\:,replytou0dDcC89 '), max_size=60))
async def test_garbage_is_shown_as_it_is_stored(written: str) -> None:
    shown, message = await talk(written, list(range(len(written))))
    if not message.calls:
        assert "".join(shown) == message.text


# --- every reply that the schema allows is a valid call -----------------------------------------------------------


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Everything that a schema allows, as far as our reduced schemas go."""
    if "anyOf" in schema:
        return st.one_of([values(option) for option in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "const" in schema:
        return st.just(schema["const"])
    match schema.get("type"):
        case "object":
            fields = {key: values(inner) for key, inner in schema.get("properties", {}).items()}
            needed = set(schema.get("required", ()))
            return st.fixed_dictionaries(
                {key: fields[key] for key in fields if key in needed},
                optional={key: fields[key] for key in fields if key not in needed},
            )
        case "array":
            return st.lists(values(schema.get("items", {})), max_size=3)
        case "string":
            return texts
        case "integer":
            return st.integers(-(2**70), 2**70)
        case "number":
            return st.floats(allow_nan=False, allow_infinity=False)
        case "boolean":
            return st.booleans()
        case _:
            return st.none() | st.booleans() | texts


def allows(schema: dict[str, Any], value: Any) -> bool:
    """Whether a tool's own schema takes a value: types, required fields, enums, nothing unknown."""
    if "enum" in schema:
        return value in schema["enum"]
    if "anyOf" in schema:
        return any(allows(option, value) for option in schema["anyOf"])
    match schema.get("type"):
        case "object":
            properties = schema.get("properties", {})
            return (
                isinstance(value, dict)
                and set(schema.get("required", ())) <= set(value) <= set(properties)
                and all(allows(properties[key], inner) for key, inner in value.items())
            )
        case "array":
            return isinstance(value, list) and all(allows(schema.get("items", {}), one) for one in value)
        case kind:
            kinds: dict[Any, type | tuple[type, ...]] = {
                "string": str,
                "integer": int,
                "boolean": bool,
                "number": (int, float),
                None: object,
            }
            return isinstance(value, kinds[kind])


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.data())
async def test_every_reply_that_the_schema_allows_is_a_reply_or_a_valid_call(
    tools: list[ToolSpec], data: st.DataObject
) -> None:
    envelope = data.draw(values(reply_schema(tools)))
    written = data.draw(
        st.sampled_from([json.dumps(envelope), json.dumps(envelope, indent=2, ensure_ascii=False)])
    )
    cuts = data.draw(st.lists(st.integers(0, len(written)), max_size=5))
    shown, message = await talk(written, cuts, tools=tuple(tools))
    if envelope["tool"] == "reply":
        assert message.calls == ()
        assert "".join(shown) == message.text == envelope["arguments"]["text"]
        assert message.stop is StopReason.END
    else:
        (call,) = message.calls
        offered = {tool.name: tool.parameters for tool in tools}
        assert shown == []
        assert (call.name, call.arguments) == (envelope["tool"], envelope["arguments"])
        assert allows(offered[call.name], call.arguments)
        assert message.stop is StopReason.TOOLS


def test_each_tool_is_bound_to_its_own_arguments(tools: list[ToolSpec]) -> None:
    *calls, answer = reply_schema(tools)["anyOf"]
    assert [call["properties"]["tool"]["const"] for call in calls] == [tool.name for tool in tools]
    assert all(call["required"] == ["tool", "arguments"] for call in calls)
    assert all(call["properties"]["arguments"]["additionalProperties"] is False for call in calls)
    assert answer["properties"]["tool"] == {"const": "reply"}
    assert answer["properties"]["arguments"]["required"] == ["text"]


# --- what comes back otherwise ------------------------------------------------------------------------------------


async def test_a_call_that_was_cut_is_not_executed() -> None:
    written = '{"tool": "list_files", "arguments": {"path": "sr'
    shown, message = await talk(written, [], stop=StopReason.LENGTH)
    assert shown == []
    assert message.stop is StopReason.LENGTH
    assert message.calls == (ToolCall("list_files", {}, malformed=written),)


async def test_a_reply_that_was_cut_is_shown_as_far_as_it_came() -> None:
    shown, message = await talk(HEAD + '"The port is 80\\u00', [5, 14], stop=StopReason.LENGTH)
    assert "".join(shown) == message.text == "The port is 80"
    assert message.stop is StopReason.LENGTH


@pytest.mark.parametrize(
    "text",
    [
        "Plain words.",
        '{"tool": "delete_all", "arguments": {}}',
        '{"answer": 5}',
        "[1, 2]",
        '{"tool": "list_files"}x',
    ],
)
async def test_a_server_that_ignores_the_schema_is_heard_all_the_same(text: str) -> None:
    shown, message = await talk(text, [3])
    assert "".join(shown) == message.text == text
    assert message.calls == ()


async def test_a_call_in_another_spelling_is_a_call() -> None:
    shown, message = await talk('```json\n{"name": "list_files", "arguments": {"path": "src"}}\n```', [4])
    assert shown == []
    assert message.calls == (ToolCall("list_files", {"path": "src"}),)


def test_thinking_usage_and_model_are_kept() -> None:
    thinking, usage = Thinking("hm", "ollama"), Usage(3, 4)
    inner = AssistantMessage((thinking, Text(reply("Yes."))), usage=usage, model="m")
    assert opened(inner, [LIST]) == AssistantMessage((thinking, Text("Yes.")), usage=usage, model="m")


# --- what goes out ------------------------------------------------------------------------------------------------

HISTORY: list[Message] = [
    UserMessage("Which file is the largest?"),
    AssistantMessage(
        (Text("I look."), ToolCall("list_files", {"path": "é"}, "1.0"), ToolCall("list_files", {}, "1.1"))
    ),
    ToolResults(
        (
            ToolResult("1.0", "", "list_files", "no folder 'é'", is_error=True),
            ToolResult("1.1", "", "list_files", "a.txt (3 bytes)"),
        )
    ),
    AssistantMessage((Text("It is a.txt."),)),
    UserMessage("Thanks."),
]


GO_ON = (
    'The user asked: Which file is the largest?\nIf the task is done, use "reply". Else use the next tool.'
)


def test_the_model_sees_its_calls_and_their_results_as_turns() -> None:
    turns = [
        ("user" if isinstance(m, UserMessage) else "model", m.text)  # type: ignore[union-attr]  # no results are left
        for m in enveloped(Request("Be kind.", HISTORY, (LIST,))).messages
    ]
    assert turns == [
        ("user", "Which file is the largest?"),
        ("model", '{"tool": "list_files", "arguments": {"path": "é"}}'),
        ("user", "Result of list_files:\nError: no folder 'é'"),
        ("model", '{"tool": "list_files", "arguments": {}}'),
        ("user", f"Result of list_files:\na.txt (3 bytes)\n\n{GO_ON}"),
        ("model", reply("It is a.txt.")),
        ("user", "Thanks."),
    ]


def test_user_and_model_take_turns_even_after_an_interruption() -> None:
    messages = enveloped(Request("", [*HISTORY[:3], UserMessage("And now?")], (LIST,))).messages
    kinds = [type(message) for message in messages]
    assert all(a is not b for a, b in pairwise(kinds))
    assert messages[-1] == UserMessage(f"Result of list_files:\na.txt (3 bytes)\n\n{GO_ON}\n\nAnd now?")


def test_a_long_result_is_shown_without_its_middle() -> None:
    text = "a" * 9_000 + "b" * 1_000 + "\n(read on with start_line 7)"
    history = [*HISTORY[:2], ToolResults((ToolResult("1.0", "", "list_files", text),))]
    shown = enveloped(Request("", history, (LIST,))).messages[-1]
    assert isinstance(shown, UserMessage)
    assert len(shown.text) < 4_300
    assert shown.text.startswith("Result of list_files:\naaa")
    assert f"({len(text) - 4_000} characters are left out here; ask for a smaller part" in shown.text
    assert shown.text.endswith(f"bbb\n(read on with start_line 7)\n\n{GO_ON}")


def test_after_an_error_the_model_is_told_to_try_differently() -> None:
    failed = ToolResults((ToolResult("1.0", "", "list_files", "no folder 'é'", is_error=True),))
    last = enveloped(Request("", [*HISTORY[:2], failed], (LIST,))).messages[-1]
    assert isinstance(last, UserMessage)
    assert last.text == (
        "Result of list_files:\nError: no folder 'é'\n\nThe user asked: Which file is the largest?\n"
        'That call did not work. Correct it as the error says. If it cannot be done, say so with "reply".'
    )


def test_what_is_repeated_behind_a_result_is_the_question_and_never_a_summary() -> None:
    summary = UserMessage(SUMMARY.format(text="It looked around."))
    last = enveloped(Request("", [HISTORY[0], summary, *HISTORY[1:3]], (LIST,))).messages[-1]
    assert isinstance(last, UserMessage)
    assert last.text.endswith(GO_ON)
    long = UserMessage("a" * 3_000 + "b" * 600)
    last = enveloped(Request("", [long, *HISTORY[1:3]], (LIST,))).messages[-1]
    assert isinstance(last, UserMessage)
    assert f"The user asked: {'a' * 500} […] {'b' * 500}\n" in last.text


def test_a_longer_history_begins_with_the_shorter_one() -> None:
    requests = [enveloped(Request("Be kind.", HISTORY[:n], (LIST,))) for n in (1, 3, 5)]
    assert len({request.system for request in requests}) == 1
    for shorter, longer in pairwise(requests):
        assert list(longer.messages)[: len(shorter.messages)] == list(shorter.messages)


def test_at_most_three_calls_are_shown_each_of_an_offered_tool_and_with_arguments_that_fit(
    tools: list[ToolSpec],
) -> None:
    for offered in (tools, WEATHER, [*WEATHER, *tools], [LIST], [ToolSpec("stop", "Stops.", {})]):
        system = enveloped(Request("", HISTORY, offered)).system
        shown = [json.loads(line[5:]) for line in system.splitlines() if line.startswith("You: ")]
        assert shown[-1] == {"tool": "reply", "arguments": {"text": "Rome."}}
        assert len(shown) <= 4
        by_name = {tool.name: tool.parameters for tool in offered}
        for call in shown[:-1]:
            assert fit(by_name[call["tool"]], call["arguments"]) == (call["arguments"], [])


WEATHER = [
    ToolSpec(
        "get_weather",
        "Get the weather for a city. Only for today.",
        {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "unit": {"enum": ["C", "F"]},
                "days": {"type": "array", "items": {"type": "integer"}},
            },
            "required": ["city", "unit", "days"],
        },
    ),
    ToolSpec(
        "send_email",
        "Send an email.",
        {
            "type": "object",
            "properties": {key: {"type": "string"} for key in ("to", "subject", "text", "cc")},
            "required": ["to", "subject", "text", "cc"],
        },
    ),
]


def test_a_tool_of_somebody_elses_is_shown_by_its_own_words_and_schema() -> None:
    system = enveloped(Request("", HISTORY, WEATHER)).system
    assert (
        "User: Get the weather for a city: amber, C, [3]\n"
        'You: {"tool": "get_weather", "arguments": {"city": "amber", "unit": "C", "days": [3]}}\n'
    ) in system
    assert '"tool": "send_email"' not in system  # It needs more than an example may be long.


def test_a_tool_is_told_as_a_line_with_what_its_arguments_mean() -> None:
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "A town's name."},
            "unit": {"enum": ["C", "F"]},
            "days": {"type": "integer"},
        },
        "required": ["city"],
    }
    system = enveloped(Request("", HISTORY, [ToolSpec("weather", "The weather.", schema)])).system
    assert '- weather(city, unit?: "C"|"F"): The weather.\n    city: A town\'s name.\n' in system


def test_the_default_agent_stays_small(tmp_path: Path) -> None:
    chat = Said([], AssistantMessage(()))
    agent = create_deep_agent(chat, workspace=tmp_path, tool_mode="envelope")
    system = enveloped(Request(agent.system, HISTORY[:1], agent.tool_specs)).system
    schemas = json.dumps([{"name": t.name, "parameters": t.parameters} for t in agent.tool_specs])
    assert len(system + schemas) / 4 < 900


class SaysInTurn(Said):
    """A chat that gives one reply after the other."""

    def __init__(self, *replies: str) -> None:
        super().__init__([], AssistantMessage(()))
        self.replies = iter(replies)

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        self.requests.append(request)
        text = next(self.replies)
        yield TextChunk(text)
        yield Done(AssistantMessage((Text(text),), usage=Usage(input_tokens=100, output_tokens=10)))


def call(name: str, **arguments: Any) -> str:
    return json.dumps({"tool": name, "arguments": arguments})


async def first_turn(
    folder: Path, question: str, *replies: str, system: str = ""
) -> tuple[SaysInTurn, list[Chunk]]:
    """What comes of the first turn after a question, with the file tools of this folder."""
    inner = SaysInTurn(*replies)
    agent = create_deep_agent(inner, instructions=system, workspace=folder, tool_mode="native")
    request = Request(system, [UserMessage(question)], agent.tool_specs)
    return inner, [chunk async for chunk in EnvelopeChat(inner).stream(request)]


async def test_a_first_call_for_a_file_that_is_not_there_and_nobody_spoke_of_is_asked_again(
    tmp_path: Path,
) -> None:
    question = "What colour is the sky on a clear day?"
    inner, chunks = await first_turn(tmp_path, question, call("read_file", path="sky.png"), reply("Blue."))
    assert [chunk.text for chunk in chunks if isinstance(chunk, TextChunk)] == ["Blue."]
    assert isinstance(chunks[0], WaitChunk)
    assert chunks[0].text == 'There is no "sky.png", and nobody spoke of it.'
    done = chunks[-1]
    assert isinstance(done, Done)
    assert (done.message.text, done.message.calls) == ("Blue.", ())
    assert done.message.usage == Usage(input_tokens=200, output_tokens=20)
    first, again = inner.requests
    assert again.system == first.system
    assert list(again.messages[: len(first.messages)]) == list(first.messages)  # A prompt cache still fits.
    assert question in again.messages[-1].text
    assert "read_file" not in json.dumps(again.schema)
    assert "search_files" in json.dumps(again.schema)


async def test_a_file_that_is_there_or_was_spoken_of_is_read(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("heron\n")
    for question, path, system in (
        ("Which bird was it?", "notes.txt", ""),
        ("What do I like?", "likes.md", "What the user likes stands in likes.md."),
    ):
        inner, chunks = await first_turn(tmp_path, question, call("read_file", path=path), system=system)
        assert isinstance(chunks[-1], Done)
        assert chunks[-1].message.calls[0].arguments == {"path": path}
        assert len(inner.requests) == 1


async def test_a_search_in_a_made_up_folder_is_made_where_the_text_is_found_anyway(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("a heron\n")
    made = call("search_files", text="heron", path="web")
    inner, _ = await first_turn(tmp_path, "Which file mentions a heron?", made)
    assert len(inner.requests) == 1
    for text in ("*.txt", "notes.txt"):  # Such a search is answered with the files of that name.
        inner, _ = await first_turn(tmp_path, "Find my texts", call("search_files", text=text))
        assert len(inner.requests) == 1
    made = call("search_files", text="compiler", path="bin")
    inner, chunks = await first_turn(tmp_path, "What is a compiler?", made, reply("It translates code."))
    assert len(inner.requests) == 2
    assert isinstance(chunks[0], WaitChunk)
    assert chunks[0].text == 'There is no "bin", and nobody spoke of it. No file holds "compiler".'


async def test_where_a_file_was_named_it_may_be_read_the_second_time(tmp_path: Path) -> None:
    (tmp_path / "forest.txt").write_text("badger\n")
    inner, chunks = await first_turn(
        tmp_path,
        "What stands in forest.txt?",
        call("read_file", path="web/package.json"),
        call("read_file", path="forest.txt"),
    )
    assert isinstance(chunks[-1], Done)
    assert chunks[-1].message.calls[0].arguments == {"path": "forest.txt"}
    assert len(inner.requests) == 2


async def test_a_reply_that_only_repeats_the_question_is_not_shown_and_asked_for_again(
    tmp_path: Path,
) -> None:
    echo = "The user asked: Which file is the largest? If the task is done, use 'reply'."
    inner = SaysInTurn(reply(echo), reply("a.txt"))
    *chunks, done = [c async for c in EnvelopeChat(inner).stream(Request("", HISTORY[:3], (LIST,)))]
    assert [chunk.text for chunk in chunks if isinstance(chunk, TextChunk)] == ["a.txt"]
    assert isinstance(done, Done)
    assert (done.message.text, done.message.usage.output_tokens) == ("a.txt", 20)
    first, again = inner.requests
    assert (
        first.messages[-1].text.partition("The user asked:")[0]
        == again.messages[-1].text.partition("Say what")[0]
    )
    assert again.messages[-1].text.endswith("about this question: Which file is the largest?")


async def test_an_echo_that_comes_twice_is_shown_and_a_text_that_begins_like_one_at_once(
    tmp_path: Path,
) -> None:
    echo = "The user asked: hm"
    inner = SaysInTurn(reply(echo), reply(echo))
    chunks = [c async for c in EnvelopeChat(inner).stream(Request("", HISTORY[:3], (LIST,)))]
    assert [chunk.text for chunk in chunks if isinstance(chunk, TextChunk)] == [echo]
    inner = SaysInTurn(reply(echo))  # Behind no result it is an answer like others.
    chunks = [c async for c in EnvelopeChat(inner).stream(Request("", HISTORY[:1], (LIST,)))]
    assert [chunk.text for chunk in chunks if isinstance(chunk, TextChunk)] == [echo]
    shown, message = await talk(reply("The user agrees."), [42, 45, 50, 54])
    assert ("".join(shown), message.text) == ("The user agrees.", "The user agrees.")
    assert len(shown) > 1


@pytest.mark.parametrize(
    "echo",
    [
        "If the task is done use reply, now. Else the next tool.",
        "The user asked: which file is it?",
        "reply",
        "Rome.",
    ],
)
async def test_a_reply_out_of_our_own_words_is_not_shown(echo: str) -> None:
    inner = SaysInTurn(reply(echo), reply("a.txt"))
    chunks = [c async for c in EnvelopeChat(inner).stream(Request("", HISTORY[:3], (LIST,)))]
    assert [chunk.text for chunk in chunks if isinstance(chunk, TextChunk)] == ["a.txt"]
    assert why(chunks) == ["the reply only repeats the question"]


async def test_a_word_that_was_spoken_of_is_an_answer() -> None:
    history = [UserMessage("Is the capital Rome or Milan?"), *HISTORY[1:3]]
    inner = SaysInTurn(reply("Rome."))
    chunks = [c async for c in EnvelopeChat(inner).stream(Request("", history, (LIST,)))]
    assert [chunk.text for chunk in chunks if isinstance(chunk, TextChunk)] == ["Rome."]


async def test_an_answer_comes_piece_by_piece_once_it_is_no_echo() -> None:
    answer = "The largest of them is a.txt, and the user may open it. " * 3
    written = reply(answer)
    pieces = [written[at : at + 10] for at in range(0, len(written), 10)]
    inner = Said(pieces, AssistantMessage((Text(written),)))
    chunks = [c async for c in EnvelopeChat(inner).stream(Request("", HISTORY[:3], (LIST,)))]
    shown = [chunk.text for chunk in chunks if isinstance(chunk, TextChunk)]
    assert "".join(shown) == answer
    assert len(shown) > 10
    assert len(shown[0].split()) < 7


@given(st.lists(st.sampled_from("ab"), max_size=12), st.lists(st.sampled_from("ab"), max_size=9))
def test_what_is_shown_of_a_reply_is_never_asked_for_again(said: list[str], told: list[str]) -> None:
    text, heard = " ".join(said), " ".join(told)
    beginnings = [text[:end] for end in range(len(text))]
    if says_back(text, heard):
        assert all(may_say_back(one, heard) for one in beginnings)
    assert may_say_back(text, heard) or not says_back(text, heard)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bill.txt").write_text("tea 4\ncake 9\ntotal: 13\n")
    (tmp_path / "a.txt").write_text("bread\n")
    return tmp_path


def calls_of(chunks: list[Chunk]) -> list[tuple[str, dict[str, Any]]]:
    *_, done = chunks
    assert isinstance(done, Done)
    return [(call.name, call.arguments) for call in done.message.calls]


def why(chunks: list[Chunk]) -> list[str]:
    return [chunk.text for chunk in chunks if isinstance(chunk, WaitChunk)]


LOOK = call("read_file", path="bill.txt")


@pytest.mark.parametrize(
    ("question", "first"),
    [
        ("What is the total in bill.txt?", reply("The total is 12.")),
        (
            "Copy the total from bill.txt to sum.txt",
            call("write_file", path="sum.txt", content="from bill.txt"),
        ),
        ("Look into bill.txt and run what it says", call("run_command", command="echo total")),
        ("Set the total in bill.txt to 14", call("edit_file", path="bill.txt", old="", new="total: 14")),
        ("Set the total in bill.txt to 14", call("edit_file", path="bill.txt", old="total=12", new="14")),
    ],
    ids=[
        "told from nothing",
        "written from nothing",
        "run from nothing",
        "added to what nobody saw",
        "replaced what is not there",
    ],
)
async def test_a_file_that_the_user_named_is_looked_at_before_anything_is_made_of_it(
    folder: Path, question: str, first: str
) -> None:
    inner, chunks = await first_turn(folder, question, first, LOOK)
    assert why(chunks) == ["bill.txt was not looked at"]
    assert calls_of(chunks) == [("read_file", {"path": "bill.txt"})]
    assert [chunk for chunk in chunks if isinstance(chunk, TextChunk)] == []
    assert inner.requests[1].schema is not None
    (only,) = inner.requests[1].schema["anyOf"]
    assert only["properties"]["tool"] == {"const": "read_file"}
    assert only["properties"]["arguments"]["properties"]["path"] == {"enum": ["bill.txt"]}


@pytest.mark.parametrize(
    ("question", "first"),
    [
        ("What is the total in bill.txt?", call("search_files", text="total")),
        ("Set the total in bill.txt to 14", call("edit_file", path="bill.txt", old="13", new="14")),
        ("Print bill.txt with cat", call("run_command", command="cat bill.txt")),
    ],
    ids=["another look", "an edit of it", "a command with it"],
)
async def test_what_is_about_that_file_or_looks_at_files_is_taken_at_once(
    folder: Path, question: str, first: str
) -> None:
    inner, chunks = await first_turn(folder, question, first)
    assert why(chunks) == []
    assert len(inner.requests) == 1


def meant(answer: str) -> str:
    return json.dumps({"answer": answer})


async def after_a_look(folder: Path, question: str, *replies: str) -> tuple[SaysInTurn, list[Chunk]]:
    """What comes of the turn after bill.txt has been read."""
    inner = SaysInTurn(*replies)
    agent = create_deep_agent(inner, workspace=folder, tool_mode="native")
    history = [
        UserMessage(question),
        AssistantMessage((ToolCall("read_file", {"path": "bill.txt"}, "1.0"),)),
        ToolResults((ToolResult("1.0", "", "read_file", "total: 13"),)),
    ]
    request = Request("", history, agent.tool_specs)
    return inner, [chunk async for chunk in EnvelopeChat(inner).stream(request)]


SAVE = "Save the total of bill.txt in sum.txt"


async def test_a_file_that_was_to_be_written_is_written_and_no_other(folder: Path) -> None:
    written = call("write_file", path="sum.txt", content="13")
    inner, chunks = await after_a_look(folder, SAVE, reply("It is 13."), meant("write"), written)
    assert why(chunks) == ["sum.txt was not written"]
    assert calls_of(chunks) == [("write_file", {"path": "sum.txt", "content": "13"})]
    assert [chunk for chunk in chunks if isinstance(chunk, TextChunk)] == []
    assert isinstance(chunks[-1], Done)
    assert chunks[-1].message.usage == Usage(input_tokens=300, output_tokens=30)
    first, asked, again = inner.requests
    assert "No tool has used sum.txt yet." in first.messages[-1].text
    assert "done with sum.txt" in asked.messages[-1].text
    assert again.schema is not None
    tools = {
        one["properties"]["tool"]["const"]: one["properties"]["arguments"] for one in again.schema["anyOf"]
    }
    assert "reply" not in tools
    for name in ("write_file", "edit_file"):
        assert tools[name]["properties"]["path"] == {"enum": ["sum.txt"]}
    assert tools["read_file"]["properties"]["path"] == {"type": "string"}


async def test_a_file_that_was_only_spoken_of_is_not_written(folder: Path) -> None:
    question = "Does bill.txt mention sum.txt?"
    inner, chunks = await after_a_look(folder, question, reply("No, it does not."), meant("nothing"))
    assert why(chunks) == []
    assert [chunk.text for chunk in chunks if isinstance(chunk, TextChunk)] == ["No, it does not."]
    assert isinstance(chunks[-1], Done)
    assert chunks[-1].message.usage == Usage(input_tokens=200, output_tokens=20)
    assert len(inner.requests) == 2


async def test_a_named_file_that_is_there_is_read_at_most(folder: Path) -> None:
    question = "Compare bill.txt and a.txt"
    second = call("read_file", path="a.txt")
    inner, chunks = await after_a_look(folder, question, reply("They differ."), meant("write"), second)
    assert why(chunks) == ["a.txt was not looked at"]
    assert calls_of(chunks) == [("read_file", {"path": "a.txt"})]
    assert "write_file" not in json.dumps(inner.requests[2].schema)
    assert "reply" in json.dumps(inner.requests[2].schema)


CHANGE = "En bill.txt cambia el total a 14."


async def test_a_request_that_is_only_said_again_is_carried_out(folder: Path) -> None:
    edit = call("edit_file", path="bill.txt", old="13", new="14")
    inner, chunks = await after_a_look(folder, CHANGE, reply(CHANGE), meant("write"), edit)
    assert why(chunks) == ["bill.txt was not written"]
    assert calls_of(chunks) == [("edit_file", {"path": "bill.txt", "old": "13", "new": "14"})]
    assert [chunk for chunk in chunks if isinstance(chunk, TextChunk)] == []
    assert "bill.txt has not been changed." in inner.requests[2].messages[-1].text
    assert '"reply"' not in json.dumps(inner.requests[2].schema)


@pytest.mark.parametrize(
    ("question", "answers"),
    [
        ("Which line of bill.txt holds the total?", []),
        ("Put the total of bill.txt behind all in a.txt", ["nothing"]),
        (CHANGE, ["read"]),
    ],
    ids=["a question", "two files", "not to be written"],
)
async def test_nobody_is_pressed_to_change_a_file_that_may_not_be_meant(
    folder: Path, question: str, answers: list[str]
) -> None:
    asked = [meant(answer) for answer in answers]
    replies = [reply(question), *asked, reply("Line 3."), *asked]
    inner, chunks = await after_a_look(folder, question, *replies)
    assert why(chunks) == ["the reply only repeats the question"]
    assert [chunk.text for chunk in chunks if isinstance(chunk, TextChunk)] == ["Line 3."]
    again = next(one for one in inner.requests if "says the request again" in one.messages[-1].text)
    assert '"reply"' in json.dumps(again.schema)


async def test_what_was_done_may_be_told_in_the_words_of_the_request(folder: Path) -> None:
    inner = SaysInTurn(reply(CHANGE))
    agent = create_deep_agent(inner, workspace=folder, tool_mode="native")
    edit = ToolCall("edit_file", {"path": "bill.txt", "old": "13", "new": "14"}, "1.0")
    history = [
        UserMessage(CHANGE),
        AssistantMessage((edit,)),
        ToolResults((ToolResult("1.0", "", "edit_file", "edited bill.txt at line 3"),)),
    ]
    chunks = [c async for c in EnvelopeChat(inner).stream(Request("", history, agent.tool_specs))]
    assert [chunk.text for chunk in chunks if isinstance(chunk, TextChunk)] == [CHANGE]
    assert why(chunks) == []


async def test_a_file_that_is_to_be_made_is_not_looked_for(folder: Path) -> None:
    look, written = call("read_file", path="new.md"), call("write_file", path="new.md", content="x")
    _, chunks = await first_turn(folder, "Make new.md with x in it", look, meant("write"), written)
    assert calls_of(chunks) == [("write_file", {"path": "new.md", "content": "x"})]
    _, chunks = await first_turn(folder, "What is in new.md?", look, meant("read"))
    assert calls_of(chunks) == [("read_file", {"path": "new.md"})]  # The error says what there is.


async def test_who_repeats_why_it_is_asked_again_is_asked_without_these_words(folder: Path) -> None:
    look = call("search_files", text="python")
    echo = reply("No file holds 'python'. The user asked: Find all Python files.")
    found = call("find_files", pattern="*.py")
    inner, chunks = await first_turn(folder, "Find all Python files.", look, echo, found)
    assert why(chunks) == ['No file holds "python".', "the reply only repeats the question"]
    assert calls_of(chunks) == [("find_files", {"pattern": "*.py"})]
    assert [chunk for chunk in chunks if isinstance(chunk, TextChunk)] == []
    first, _, third = inner.requests
    assert third.messages == list(first.messages)
    assert "search_files" not in json.dumps(third.schema)


async def test_a_file_to_be_made_is_made_whatever_else_came_first(folder: Path) -> None:
    question = "Write a script run.sh that prints done"
    written = call("write_file", path="run.sh", content="echo done")
    for first in (call("run_command", command="echo done"), reply("Here it is: echo done")):
        _, chunks = await first_turn(folder, question, first, meant("write"), written)
        assert calls_of(chunks) == [("write_file", {"path": "run.sh", "content": "echo done"})]
        assert [chunk for chunk in chunks if isinstance(chunk, TextChunk)] == []
    inner, chunks = await first_turn(folder, question, written)
    assert len(inner.requests) == 1


async def test_of_tools_that_know_no_files_nothing_is_asked() -> None:
    upload = ToolSpec(
        "upload", "Upload a file.", {"type": "object", "properties": {"path": {"type": "string"}}}
    )
    inner = SaysInTurn(reply("Which one?"))
    request = Request("", [UserMessage("Upload run.sh")], (upload,))
    chunks = [chunk async for chunk in EnvelopeChat(inner).stream(request)]
    assert [chunk.text for chunk in chunks if isinstance(chunk, TextChunk)] == ["Which one?"]
    assert len(inner.requests) == 1


async def test_a_first_reply_that_only_repeats_the_question_becomes_a_look(folder: Path) -> None:
    question = "I wrote something about a compass somewhere. In which file?"
    echo = reply("I wrote something about a compass somewhere.")
    inner, chunks = await first_turn(folder, question, echo, call("search_files", text="compass"))
    assert calls_of(chunks) == [("search_files", {"text": "compass"})]
    assert [chunk for chunk in chunks if isinstance(chunk, TextChunk)] == []
    assert "write_file" not in json.dumps(inner.requests[1].schema)


async def test_after_an_edit_that_failed_the_old_text_is_chosen_from_the_file(folder: Path) -> None:
    inner = SaysInTurn(call("edit_file", path="bill.txt", old="cake 9", new="cake 8"))
    agent = create_deep_agent(inner, workspace=folder, tool_mode="native")
    made = ToolCall("edit_file", {"path": "bill.txt", "old": "the cake: 9", "new": "cake 8"}, "1.0")
    history = [
        UserMessage("The cake in bill.txt is 8"),
        AssistantMessage((made,)),
        ToolResults((ToolResult("1.0", "", "edit_file", "old does not occur", is_error=True),)),
    ]
    _ = [chunk async for chunk in EnvelopeChat(inner).stream(Request("", history, agent.tool_specs))]
    assert inner.requests[0].schema is not None
    for one in inner.requests[0].schema["anyOf"]:
        if one["properties"]["tool"] == {"const": "edit_file"}:
            given = one["properties"]["arguments"]["properties"]
            assert given["path"] == {"enum": ["bill.txt"]}
            assert given["old"] == {"enum": ["tea 4", "cake 9", "total: 13"]}


async def test_a_pasted_text_with_many_names_is_not_looked_through(folder: Path) -> None:
    pasted = "What does this mean? File bill.txt, File a.txt, File b.py, File c.py, File d.py"
    inner, chunks = await first_turn(folder, pasted, reply("It is a list of files."))
    assert why(chunks) == []
    assert len(inner.requests) == 1


async def test_a_summary_of_the_earlier_conversation_is_no_question(folder: Path) -> None:
    inner = SaysInTurn(reply("It is 13."))
    agent = create_deep_agent(inner, workspace=folder, tool_mode="native")
    history: list[Message] = [
        UserMessage("What is the total in bill.txt?"),
        AssistantMessage((ToolCall("read_file", {"path": "bill.txt"}, "1.0"),)),
        ToolResults((ToolResult("1.0", "", "read_file", "total: 13"),)),
        UserMessage(SUMMARY.format(text="sum.txt was to be written, other.txt was read.")),
        AssistantMessage((ToolCall("read_file", {"path": "bill.txt"}, "2.0"),)),
        ToolResults((ToolResult("2.0", "", "read_file", "total: 13"),)),
    ]
    _ = [c async for c in EnvelopeChat(inner).stream(Request("", history, agent.tool_specs))]
    assert len(inner.requests) == 1


def test_an_edit_chooses_lines_and_for_one_word_the_words_like_it(folder: Path) -> None:
    def old(text: str, given: str) -> list[str]:
        (folder / "x.json").write_text(text)
        tools = {tool.name: tool for tool in default_tools(folder)}
        knowledge = tools["edit_file"].knowledge
        assert knowledge is not None
        arguments = {"path": "x.json", "old": given, "new": "n"}
        return list(asyncio.run(_choices(knowledge, arguments)).get("old", []))

    plan = "Meeting at 14:00\nRoom 3\n"
    assert old(plan, "16:00") == ["14:00", "Meeting at 14:00", "Room 3"]
    assert old(plan, "at 16:00") == ["at 14:00", "Meeting at 14:00", "Room 3"]
    assert old("room 12, 9:00\n", "Room 12") == ["room 12", "room 12, 9:00"]
    assert old('{"language": "en"}\n', "language: en") == ['{"language": "en"}']
    assert old("a\na\nb\n", "c") == ["b"]
    assert old("a\na\nb\n", "a") == []  # Which of the two is meant, lines around it tell.
    assert old(plan, "Room 3") == []  # It is there once: something else was wrong.
    assert len(old("".join(f"line {n} of many\n" for n in range(500)), "lines 77 of many")) == 30


async def _choices(knowledge: Knowledge, arguments: dict[str, Any]) -> Mapping[str, Sequence[str]]:
    return await knowledge.choices(arguments)


async def test_only_a_file_of_the_same_name_is_taken_for_one_that_is_not_there(folder: Path) -> None:
    (folder / "docs").mkdir()
    (folder / "docs" / "plan9.md").write_text("x")
    tools = {tool.name: tool for tool in default_tools(folder)}
    knowledge = tools["read_file"].knowledge
    assert knowledge is not None
    assert await knowledge.choices({"path": "plan9.md"}) == {"path": ["docs/plan9.md"]}
    assert await knowledge.choices({"path": "plan2.md"}) == {}
    assert await knowledge.choices({"path": "bill.txt"}) == {}


async def test_a_file_that_was_only_found_has_not_been_used(folder: Path) -> None:
    inner = SaysInTurn(reply("None."), meant("read"), LOOK)
    agent = create_deep_agent(inner, workspace=folder, tool_mode="native")
    history = [
        UserMessage("How many cakes are in bill.txt?"),
        AssistantMessage((ToolCall("find_files", {"pattern": "bill.txt"}, "1.0"),)),
        ToolResults((ToolResult("1.0", "", "find_files", "bill.txt"),)),
    ]
    chunks = [c async for c in EnvelopeChat(inner).stream(Request("", history, agent.tool_specs))]
    assert calls_of(chunks) == [("read_file", {"path": "bill.txt"})]


async def test_after_a_result_every_call_is_made_and_its_error_told(tmp_path: Path) -> None:
    inner = SaysInTurn(call("read_file", path="made/up.txt"))
    agent = create_deep_agent(inner, workspace=tmp_path, tool_mode="native")
    request = Request("", HISTORY[:3], agent.tool_specs)
    *_, done = [chunk async for chunk in EnvelopeChat(inner).stream(request)]
    assert isinstance(done, Done)
    assert done.message.calls[0].arguments == {"path": "made/up.txt"}


async def test_without_tools_nothing_changes() -> None:
    inner = Said(['{"reply": 1}'], AssistantMessage((Text('{"reply": 1}'),)))
    request = Request("", [UserMessage("JSON, please")])
    chunks = [chunk async for chunk in EnvelopeChat(inner).stream(request)]
    assert chunks == [ThinkingChunk("hm"), TextChunk('{"reply": 1}'), Done(inner.message)]
    assert inner.requests == [request]


async def test_it_speaks_for_the_chat_inside() -> None:
    inner = Said([], AssistantMessage(()))
    chat = EnvelopeChat(inner)
    request = Request("", [UserMessage("hi")], (LIST,))
    assert (chat.ref, chat.settings, chat.notices) == (inner.ref, inner.settings, inner.notices)
    assert json.loads(chat.preview(request).body) == reply_schema((LIST,))
    await chat.close()
    assert inner.closed


async def test_leaving_early_cancels_the_request() -> None:
    inner = Said([HEAD + '"one', ' two"}}'], AssistantMessage((Text(reply("one two")),)))
    stream = EnvelopeChat(inner).stream(Request("", [UserMessage("hi")], (LIST,)))
    assert await anext(stream) == ThinkingChunk("hm")
    assert await anext(stream) == TextChunk("one")
    await stream.aclose()
    assert inner.closed


@pytest.mark.model
@pytest.mark.timeout(600)
async def test_the_smallest_real_model_makes_a_valid_call(tools: list[ToolSpec]) -> None:
    if path_of("qwen2.5-coder:0.5b") is None:
        pytest.skip("qwen2.5-coder:0.5b is not in the cache; `stigmer models pull qwen2.5-coder:0.5b`")
    from graphton.chat import create_chat

    inner = create_chat("llamacpp:qwen2.5-coder:0.5b", ModelSettings(temperature=0, max_tokens=200))
    chat = EnvelopeChat(inner)
    question = Request(DEFAULT_INSTRUCTIONS, [UserMessage("Read the file settings.ini.")], tools)
    try:
        chunks = [chunk async for chunk in chat.stream(question)]
    finally:
        await chat.close()
    assert isinstance(chunks[-1], Done)
    assert 300 < chunks[-1].message.usage.input_tokens < 900, (
        "the default agent's first request, really counted"
    )
    (call,) = chunks[-1].message.calls
    offered = {tool.name: tool.parameters for tool in tools}
    assert allows(offered[call.name], call.arguments)
