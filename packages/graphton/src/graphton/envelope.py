"""Tools for models without dependable native tool calls: each reply is one JSON object, held to a schema.

`EnvelopeChat` wraps a chat that can constrain a reply to a JSON schema (Ollama's `format`, llama.cpp's
`response_format`). The model then writes either `{"tool": NAME, "arguments": {…}}`, with the arguments that this
tool takes, or the same with `reply` and a text; an unknown tool, a missing argument or a wrong type cannot be written.
To the loop it looks like any other chat: calls come out as ToolCall, the reply's text streams as it is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from graphton._envelope_course import Course, course_of
from graphton._envelope_doubts import (
    ANSWER,
    ASKED,
    SUMMARISED,
    Choices,
    Second,
    choices_of,
    doubts_of,
    narrowed,
    said,
    short,
    unused,
    used_by,
)
from graphton._envelope_prompt import addendum
from graphton._reply_schema import TEXT, reply_name, reply_only, reply_schema
from graphton._reply_text import ReplyText
from graphton.chat import _json
from graphton.chat.base import (
    ASKING_AGAIN,
    Chat,
    Chunk,
    Done,
    Preview,
    Request,
    TextChunk,
    ToolSpec,
    WaitChunk,
)
from graphton.messages import (
    AssistantMessage,
    Block,
    Message,
    StopReason,
    Text,
    ToolCall,
    ToolResult,
    ToolResults,
    Usage,
    UserMessage,
)
from graphton.models import ModelSettings
from graphton.recovery import calls_in, streaming

__all__ = ["EnvelopeChat", "enveloped", "opened"]

MAX_RESULT = 4_000
"""Characters of one tool result that the model is shown: up to 2,500 tokens, which is 6 seconds of reading for a model
of 1.5b on two idle cores, and leaves room in a window of 8,192. The journal keeps the whole result."""
CLIPPED_END = 500
LONG_QUESTION = 1_000
"""Characters of a question that is not repeated behind each result."""

NEXT = 'If the task is done, use "{reply}". Else use the next tool.'
FAILED = 'That call did not work. Correct it as the error says. If it cannot be done, say so with "{reply}".'
RETRY = (
    "That call did not work. Correct it as the error says and call again, or look first with another tool."
)
AGAIN = 'You made this call before. If the task is done, use "{reply}". Else use another tool.'
FAILED_AGAIN = 'The same call fails again. Look with another tool, or say with "{reply}" what is wrong.'
ENOUGH = 'Answer that now with "{reply}".'
UNUSED = "No tool has used {names} yet. "
_NO_CHOICES: Choices = {}

MOST_AGAIN = 2
"""So often a reply is asked for once more."""


class EnvelopeChat:
    """A chat whose model answers in envelopes wherever tools are offered; without tools it changes nothing."""

    def __init__(self, chat: Chat, *, several: bool = False) -> None:
        self.chat = chat
        self.ref = chat.ref
        self._several = several

    @property
    def settings(self) -> ModelSettings:
        """The inner chat's, which may change: a window is only known once the model is loaded."""
        return self.chat.settings

    @property
    def notices(self) -> tuple[str, ...]:
        return self.chat.notices

    async def stream(self, request: Request) -> AsyncGenerator[Chunk]:
        """The inner chat's chunks, with the envelope taken off.

        The model is asked once more, twice at most, and all of it counts as one reply, where its call cannot have been
        meant, its reply only repeats what was said, or a file that the question names is left out: see `_envelope_doubts`.
        """
        if not request.tools or request.schema is not None:
            async with streaming(self.chat, request) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        sent = enveloped(request, several=self._several, choices=await choices_of(request))
        doubts, asked, used = await doubts_of(request, sent), list[str](), Usage()

        async def choose(question: Request) -> str:
            nonlocal used
            answer: Any = {}
            async with streaming(self.chat, question) as chunks:
                async for chunk in chunks:
                    if isinstance(chunk, Done):
                        used += chunk.message.usage
                        answer, _ = _json.arguments(chunk.message.text)
            return str(answer.get(ANSWER, "")) if isinstance(answer, dict) else ""

        second: Second | None = None
        while True:
            shown, last = 0, len(asked) == MOST_AGAIN
            held = doubts.holds if not asked else lambda text, last=last: not last
            async with aclosing(self._opened(sent, request.tools, held=held)) as chunks:
                async for chunk in chunks:
                    if isinstance(chunk, TextChunk):
                        shown += len(chunk.text)
                    if not isinstance(chunk, Done):
                        yield chunk
                        continue
                    used += chunk.message.usage
                    second = None if last else await doubts.second(sent, chunk.message, choose, asked=asked)
                    if second is None:
                        if rest := chunk.message.text[shown:]:
                            yield TextChunk(rest)
                        yield Done(replace(chunk.message, usage=used))
            if second is None:
                return
            asked.append(second.kind)
            yield WaitChunk(ASKING_AGAIN, text=second.why)
            sent = second.request

    async def _opened(
        self, sent: Request, tools: Sequence[ToolSpec], *, held: Callable[[str], bool]
    ) -> AsyncGenerator[Chunk]:
        """One call of the inner chat, its reply without its envelope; its text comes once it is not to be `held`.

        What of the text has not come when the reply is done is in the message: also the plain text of a server that
        ignored the schema, which only then is known to be the reply.
        """
        reply, kept, free = ReplyText(reply_name(tools)), "", False
        async with streaming(self.chat, sent) as chunks:
            async for chunk in chunks:
                if isinstance(chunk, TextChunk):
                    kept += reply.feed(chunk.text)
                    free = free or not held(kept)
                    if kept and free:
                        yield TextChunk(kept)
                        kept = ""
                elif isinstance(chunk, Done):
                    yield Done(opened(chunk.message, tools))
                else:
                    yield chunk

    def preview(self, request: Request) -> Preview:
        """The inner chat's request, with the envelope's schema and system text in it."""
        return self.chat.preview(self._sent(request))

    def _sent(self, request: Request) -> Request:
        wrapped = bool(request.tools) and request.schema is None
        return enveloped(request, several=self._several) if wrapped else request

    async def close(self) -> None:
        """Close the inner chat."""
        await self.chat.close()


# --- what goes out ------------------------------------------------------------------------------------------------


def enveloped(request: Request, *, several: bool = False, choices: Choices = _NO_CHOICES) -> Request:
    """The same request in envelopes: tools become system text and a reply schema, history becomes plain turns.

    `several`: the model may make several calls in one envelope.

    What an earlier request began with, a later one of the same run begins with too: prompt caches need it.
    """
    system = "\n\n".join(
        part for part in (request.system.strip(), addendum(request.tools, several=several)) if part
    )
    name, course = reply_name(request.tools), course_of(request.messages, request.tools)
    turns = _turns(request.messages, name, course)
    if course.enough:
        return Request(system, turns, schema=reply_only(request.tools))
    left = [narrowed(tool, choices.get(tool.name, {})) for tool in request.tools if course.offers(tool)]
    schema = reply_schema(left, several=several, reply=None if course.retry else name)
    return Request(system, turns, schema=schema)


def _turns(messages: Sequence[Message], reply: str, course: Course) -> list[Message]:
    """The history as turns of user and model, strictly by turns: some chat templates take nothing else."""
    turns: list[Message] = []
    for turn in _rendered(messages, reply, course):
        last = turns[-1] if turns else None
        if isinstance(last, UserMessage) and isinstance(turn, UserMessage):
            turns[-1] = UserMessage(f"{last.text}\n\n{turn.text}")
        else:
            turns.append(turn)
    return turns


def _rendered(messages: Sequence[Message], reply: str, course: Course) -> Iterator[Message]:
    """Each message as the model wrote it, or would have: one envelope a turn, each call before its result."""
    calls: dict[str, ToolCall] = {}
    asked, used = "", ""
    for message in messages:
        match message:
            case UserMessage():
                asked = asked if message.text.startswith(SUMMARISED) else message.text
                used = ""
                yield message
            case AssistantMessage():
                # Text beside calls (of another model, before a fallback) was talk on the way; envelopes have none.
                calls = {call.id: call for call in message.calls}
                if not calls and message.text:
                    yield said(reply, {TEXT: message.text})
            case ToolResults():
                *_, last = message.results
                for result in message.results:
                    call = calls.get(result.call, ToolCall(result.name, {}))
                    yield said(call.name, call.arguments)
                    told = _told(result, course if message is messages[-1] else Course())
                    used += used_by(call.name, call.arguments)
                    left = unused(asked, used)
                    hint = UNUSED.format(names=" and ".join(left)) if left else ""
                    behind = f"{ASKED.format(asked=short(asked))}{hint}{told.format(reply=reply)}"
                    yield UserMessage(_result(result, behind if result is last else ""))


def _told(result: ToolResult, course: Course) -> str:
    """How to go on from a result."""
    if course.enough:
        return ENOUGH
    if course.retry:
        return RETRY
    if course.again:
        return FAILED_AGAIN if result.is_error else AGAIN
    return FAILED if result.is_error else NEXT


def _result(result: ToolResult, told: str) -> str:
    failed = result.is_error and not result.text.lower().startswith("error")
    shown = f"Result of {result.name}:\n{'Error: ' if failed else ''}{_clipped(result.text)}"
    return f"{shown}\n\n{told}" if told else shown


def _clipped(text: str) -> str:
    """A long result without its middle: its end often says how to see more."""
    if len(text) <= MAX_RESULT:
        return text
    left_out = len(text) - MAX_RESULT
    return (
        f"{text[: -left_out - CLIPPED_END]}\n"
        f"({left_out} characters are left out here; ask for a smaller part to see them)\n"
        f"{text[-CLIPPED_END:]}"
    )


# --- what comes back ----------------------------------------------------------------------------------------------


def opened(message: AssistantMessage, tools: Sequence[ToolSpec]) -> AssistantMessage:
    """The message without its envelope: a call or a text. What is no envelope at all is text, or a printed call."""
    content, stop = _content(message.text, message.stop, tools)
    kept = tuple(block for block in message.blocks if not isinstance(block, Text))
    return replace(message, blocks=(*kept, *content), stop=stop, wire={})


def _content(text: str, stop: StopReason, tools: Sequence[ToolSpec]) -> tuple[tuple[Block, ...], StopReason]:
    reply = ReplyText(reply_name(tools))
    said = reply.feed(text)
    if reply.found:
        return (Text(said),), stop
    envelope, malformed = _json.arguments(text)
    if malformed and stop is StopReason.LENGTH and (head := _CALL_HEAD.match(text)):
        return (ToolCall(json.loads(head.group(1)), {}, malformed=text),), stop
    offered = {tool.name for tool in tools}
    match envelope:
        case {"tool": str(name), "arguments": {"text": str(said), **rest}} if (
            name == reply_name(tools) and not rest
        ):
            return (Text(said),), stop  # The same in another order.
        case {"calls": [*several]} if len(envelope) == 1 and several:
            calls = [_call_of(one, offered) for one in several]
        case _:
            calls = [_call_of(envelope, offered)]
    made = tuple(call for call in calls if call is not None)
    if made and len(made) == len(calls):
        return made, StopReason.TOOLS if stop is StopReason.END else stop
    return _foreign(text, stop, tools)


def _call_of(envelope: Any, offered: Collection[str]) -> ToolCall | None:
    match envelope:
        case {"tool": str(name), "arguments": dict(arguments)} if len(envelope) == 2 and name in offered:
            return ToolCall(name, arguments)
        case _:
            return None


_CALL_HEAD = re.compile(r'\s*\{\s*(?:"calls"\s*:\s*\[\s*\{\s*)?"tool"\s*:\s*("(?:[^"\\]|\\.)*")')
"""A call that was cut names its tool already: it is answered with an error, never run."""


def _foreign(text: str, stop: StopReason, tools: Sequence[ToolSpec]) -> tuple[tuple[Block, ...], StopReason]:
    """What a server wrote that did not keep to the schema."""
    if stop in (StopReason.END, StopReason.TOOLS) and (calls := calls_in(text, tools)):
        return calls, StopReason.TOOLS
    return ((Text(text),) if text else ()), stop
