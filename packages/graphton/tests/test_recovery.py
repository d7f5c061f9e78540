"""Printed tool calls become calls, and nothing else does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
from graphton.chat import Chunk, Done, Request, TextChunk, ToolSpec
from graphton.chat.base import Preview
from graphton.messages import AssistantMessage, StopReason, Text, Thinking, ToolCall, Usage, UserMessage
from graphton.models import ModelRef, ModelSettings
from graphton.recovery import RecoveringChat, calls_in, may_become_calls, recovered
from hypothesis import given
from hypothesis import strategies as st

READ = ToolSpec(
    "read_file",
    "Read a text file.",
    {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
)
LIST = ToolSpec(
    "list_files", "List a folder.", {"type": "object", "properties": {"path": {"type": "string"}}}
)
TOOLS = (READ, LIST)
A = ToolCall("read_file", {"path": "a.txt"})
B = ToolCall("list_files", {"path": "src"})

CALLS = {
    "bare": ('{"name": "read_file", "arguments": {"path": "a.txt"}}', [A]),
    "bare, over several lines": (
        '\n{\n  "name": "read_file",\n  "arguments": {\n    "path": "a.txt"\n  }\n}\n',
        [A],
    ),
    "fenced": ('```json\n{"name": "read_file", "arguments": {"path": "a.txt"}}\n```', [A]),
    "fenced without a language": ('```\n{"name": "read_file", "arguments": {"path": "a.txt"}}\n```\n', [A]),
    "tagged": ('<tool_call>\n{"name": "read_file", "arguments": {"path": "a.txt"}}\n</tool_call>', [A]),
    "in the tags of the offer": ('<tools>{"name": "read_file", "arguments": {"path": "a.txt"}}</tools>', [A]),
    "two tagged": (
        '<tool_call>{"name": "read_file", "arguments": {"path": "a.txt"}}</tool_call>\n'
        '<tool_call>{"name": "list_files", "arguments": {"path": "src"}}</tool_call>',
        [A, B],
    ),
    "two on lines": (
        '{"name": "read_file", "arguments": {"path": "a.txt"}}\n{"name": "list_files", "arguments": {"path": "src"}}',
        [A, B],
    ),
    "a list": (
        '[{"name": "read_file", "arguments": {"path": "a.txt"}}, {"name": "list_files", "arguments": {"path": "src"}}]',
        [A, B],
    ),
    "two fences": (
        '```json\n{"name": "read_file", "arguments": {"path": "a.txt"}}\n```\n'
        '```json\n{"name": "list_files", "arguments": {"path": "src"}}\n```',
        [A, B],
    ),
    "arguments as a string": ('{"name": "read_file", "arguments": "{\\"path\\": \\"a.txt\\"}"}', [A]),
    "parameters": ('{"name": "read_file", "parameters": {"path": "a.txt"}}', [A]),
    "function and parameters": ('{"function": "read_file", "parameters": {"path": "a.txt"}}', [A]),
    "as the API writes it": (
        '{"type": "function", "id": "call_1", "function": {"name": "read_file", "arguments": "{\\"path\\": \\"a.txt\\"}"}}',
        [A],
    ),
    "Mistral's mark": ('[TOOL_CALLS][{"name": "read_file", "arguments": {"path": "a.txt"}}]', [A]),
    "Llama's mark": ('<|python_tag|>{"name": "read_file", "parameters": {"path": "a.txt"}}', [A]),
    "a comma too many": ('{"name": "read_file", "arguments": {"path": "a.txt",},}', [A]),
    "the last bracket left out": ('{"name": "read_file", "arguments": {"path": "a.txt"}', [A]),
    "the last two brackets left out": (
        '```json\n{"name": "read_file", "arguments": {"path": "a.txt"\n```',
        [A],
    ),
    "commas and brackets in a text": (
        '{"name": "read_file", "arguments": {"path": "a,}]{\\" ,]"}}',
        [ToolCall("read_file", {"path": 'a,}]{" ,]'})],
    ),
    "no arguments where none are needed": ('{"name": "list_files"}', [ToolCall("list_files", {})]),
    "a line break inside a string": (
        '{"name": "read_file", "arguments": {"path": "a\nb"}}',
        [ToolCall("read_file", {"path": "a\nb"})],
    ),
    "half a surrogate pair": (
        '{"name": "read_file", "arguments": {"path": "a\\ud83d"}}',
        [ToolCall("read_file", {"path": "a?"})],
    ),
}

TEXTS = {
    "words": "The port is 8080.",
    "nothing": "",
    "a call with words before it": 'I will read it: {"name": "read_file", "arguments": {"path": "a.txt"}}',
    "a call with words behind it": '{"name": "read_file", "arguments": {"path": "a.txt"}}\nThat reads the file.',
    "a fenced call in a text": 'Use this:\n```json\n{"name": "read_file", "arguments": {"path": "a.txt"}}\n```',
    "a tool that is not offered": '{"name": "delete_all", "arguments": {"path": "a.txt"}}',
    "one of two not offered": '[{"name": "read_file", "arguments": {"path": "a"}}, {"name": "x", "arguments": {}}]',
    "half a call": '{"name": "read_file", "arguments": {"path": "a.t',
    "three brackets left out": '[{"name": "read_file", "arguments": {"path": "a.txt"',
    "a bracket of another kind": '{"name": "read_file", "arguments": {"path": "a.txt"]}',
    "a value left out": '{"name": "read_file", "arguments": {"path":',
    "other JSON": '{"name": "Ada", "born": 1815}',
    "other JSON with a tool's name": '{"name": "read_file", "description": "Reads a file."}',
    "a call with a note in it": '{"name": "read_file", "arguments": {"path": "a"}, "why": "to see"}',
    "no arguments where some are needed": '{"name": "read_file"}',
    "arguments that are no object": '{"name": "read_file", "arguments": ["a.txt"]}',
    "arguments that do not parse": '{"name": "read_file", "arguments": "a.txt"}',
    "two names": '{"name": "read_file", "tool": "list_files", "arguments": {}}',
    "a number": "5",
    "no JSON number": '{"name": "read_file", "arguments": {"path": NaN}}',
    "a tag that is not closed": '<tool_call>{"name": "read_file", "arguments": {"path": "a.txt"}}',
    "an empty list": "[]",
    "code": "```python\nprint({})\n```",
    "deep nesting": "[" * 100_000,
}


class Said:
    """A chat that says what the test gives it, in pieces."""

    ref = ModelRef("ollama", "scripted")
    settings = ModelSettings()
    notices: tuple[str, ...] = ()

    def __init__(self, pieces: list[str], message: AssistantMessage) -> None:
        self.pieces, self.message = pieces, message
        self.closed = False

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        try:
            for piece in self.pieces:
                yield TextChunk(piece)
            yield Done(self.message)
        finally:
            self.closed = True

    def preview(self, request: Request) -> Preview:
        return Preview("POST", "http://localhost/api/chat", {}, request.system.encode())

    async def close(self) -> None:
        self.closed = True


async def talk(
    text: str, cuts: list[int], stop: StopReason = StopReason.END
) -> tuple[list[str], AssistantMessage]:
    """What a RecoveringChat shows of a text that comes in pieces, and the whole message."""
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges) if a < b]
    chat = RecoveringChat(Said(pieces, AssistantMessage((Text(text),), stop=stop)))
    chunks = [chunk async for chunk in chat.stream(Request("", [UserMessage("hi")], TOOLS))]
    assert isinstance(chunks[-1], Done)
    return [chunk.text for chunk in chunks if isinstance(chunk, TextChunk)], chunks[-1].message


@pytest.mark.parametrize(("text", "calls"), CALLS.values(), ids=CALLS.keys())
def test_a_message_that_is_nothing_but_calls_becomes_calls(text: str, calls: list[ToolCall]) -> None:
    assert list(calls_in(text, TOOLS)) == calls


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_anything_else_stays_text(text: str) -> None:
    assert calls_in(text, TOOLS) == ()


@pytest.mark.parametrize(("text", "calls"), CALLS.values(), ids=CALLS.keys())
async def test_a_printed_call_is_never_shown_while_it_streams(text: str, calls: list[ToolCall]) -> None:
    shown, message = await talk(text, list(range(len(text))))
    assert shown == []
    assert list(message.calls) == calls
    assert message.stop is StopReason.TOOLS
    assert message.text == ""


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
async def test_other_text_is_shown_whole_and_unchanged(text: str) -> None:
    shown, message = await talk(text, list(range(min(len(text), 200))))
    assert "".join(shown) == text
    assert message.text == text
    assert message.stop is StopReason.END


@given(st.text(), st.lists(st.integers(0, 60)))
async def test_no_text_is_lost_however_it_is_cut(text: str, cuts: list[int]) -> None:
    shown, message = await talk(text, cuts)
    assert "".join(shown) == message.text


@given(st.sampled_from(list(CALLS.values())), st.integers(0, 200))
def test_the_beginning_of_a_call_is_held_back(case: tuple[str, list[ToolCall]], cut: int) -> None:
    assert may_become_calls(case[0][:cut], {"read_file", "list_files"})


@pytest.mark.parametrize(
    "begin",
    [
        "The",
        "{}",
        '{"city',
        '{"name": "Ada',
        "```python\n",
        "<b>",
        "[1",
        "[]",
        '{"name": "read_files',
        "<tool_box>",
    ],
)
def test_text_that_cannot_become_a_call_is_let_go_at_once(begin: str) -> None:
    assert not may_become_calls(begin, {"read_file", "list_files"})


def test_a_message_with_real_calls_is_left_alone() -> None:
    message = AssistantMessage((Text('{"name": "list_files"}'), A), stop=StopReason.TOOLS)
    assert recovered(message, TOOLS) is message


async def test_a_call_that_was_cut_is_never_executed() -> None:
    text = '{"name": "list_files"}'
    shown, message = await talk(text, [], stop=StopReason.LENGTH)
    assert message.calls == ()
    assert "".join(shown) == text


def test_thinking_and_usage_are_kept() -> None:
    thinking, usage = Thinking("hm", "ollama"), Usage(3, 4)
    message = recovered(AssistantMessage((thinking, Text('{"name": "list_files"}')), usage=usage), TOOLS)
    assert message.blocks == (thinking, ToolCall("list_files", {}))
    assert message.usage == usage


async def test_without_tools_nothing_is_held_back() -> None:
    text = '{"name": "list_files"}'
    chat = RecoveringChat(Said([text], AssistantMessage((Text(text),))))
    chunks = [chunk async for chunk in chat.stream(Request("", [UserMessage("hi")]))]
    assert chunks == [TextChunk(text), Done(AssistantMessage((Text(text),)))]


async def test_leaving_early_cancels_the_request() -> None:
    inner = Said(["one ", "two"], AssistantMessage((Text("one two"),)))
    stream = RecoveringChat(inner).stream(Request("", [UserMessage("hi")], TOOLS))
    await anext(stream)
    await stream.aclose()
    assert inner.closed
