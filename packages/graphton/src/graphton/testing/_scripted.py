"""A model that says what it was told to say: for tests of agents, without any server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from graphton.chat.base import Chunk, Done, Preview, Request, TextChunk, ThinkingChunk
from graphton.errors import GraphtonError
from graphton.messages import AssistantMessage, Block, StopReason, Text, Thinking, ToolCall, Usage
from graphton.models import ModelRef, ModelSettings

__all__ = ["ScriptedModel", "calls", "says"]


def says(text: str, *, stop: StopReason = StopReason.END, usage: Usage | None = None) -> AssistantMessage:
    """A reply of plain text."""
    return AssistantMessage((Text(text),), stop=stop, usage=usage or Usage(10, 5))


def calls(
    *wanted: tuple[str, dict[str, Any]],
    text: str = "",
    stop: StopReason = StopReason.TOOLS,
    usage: Usage | None = None,
) -> AssistantMessage:
    """A reply that calls tools: `calls(("read_file", {"path": "a.txt"}), ("list_files", {}))`."""
    blocks: list[Block] = [Text(text)] if text else []
    blocks += [ToolCall(name, arguments, wire_id=f"wire_{n}") for n, (name, arguments) in enumerate(wanted)]
    return AssistantMessage(tuple(blocks), stop=stop, usage=usage or Usage(10, 5))


Line = str | AssistantMessage | Exception | Callable[[Request], "str | AssistantMessage"]


class ScriptedModel:
    """A Chat that answers with its lines in order, and keeps every Request in `requests`.

    A line is a text, a whole AssistantMessage (`says`, `calls`), an exception to raise, or a function of the
    request. When the lines are used up it raises GraphtonError, so a loop that asks too often fails its test.

        model = ScriptedModel([calls(("add", {"a": 1, "b": 2})), "3"])
        agent = create_deep_agent(model, tools=[add])
    """

    def __init__(
        self, lines: Iterable[Line], *, ref: ModelRef | None = None, settings: ModelSettings | None = None
    ) -> None:
        self.ref = ref or ModelRef("scripted", "model")
        self.settings = settings or ModelSettings(max_tokens=1024)
        self.notices: tuple[str, ...] = ()
        self.requests: list[Request] = []
        self.closed = False
        self._lines = iter(lines)

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """The next line, its text word by word."""
        self.requests.append(
            Request(request.system, tuple(request.messages), tuple(request.tools), request.schema)
        )
        message = self._next(request)
        for block in message.blocks:
            match block:
                case Text():
                    for word in block.text.splitlines(keepends=True) or [""]:
                        yield TextChunk(word)
                case Thinking():
                    yield ThinkingChunk(block.text)
                case _:
                    pass
        yield Done(message)

    def _next(self, request: Request) -> AssistantMessage:
        try:
            line = next(self._lines)
        except StopIteration:
            raise GraphtonError(
                f"the script has no line for request {len(self.requests)}",
                hint="give ScriptedModel one line for each model call",
            ) from None
        if isinstance(line, Exception):
            raise line
        if callable(line):
            line = line(request)
        return says(line) if isinstance(line, str) else line

    def preview(self, request: Request) -> Preview:
        """There is no HTTP request."""
        return Preview("NONE", "scripted:", {}, b"")

    async def close(self) -> None:
        self.closed = True
