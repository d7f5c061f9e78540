"""Trying out how a model uses tools: one or two tiny requests, and what their replies mean.

    match verdict(replies):          # none so far
        case Question() as question: # ask it, append its reply, and look again
        case Verdict() as found:     # found.mode

Pure: the replies come from the journal, so a run that is cut off goes on where it was and decides the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import orjson

from graphton._arguments import fit
from graphton._reply_schema import reply_name
from graphton._reply_text import ReplyText
from graphton.chat import _json
from graphton.chat.base import Chat, Chunk, Done, Preview, Request, TextChunk, ThinkingChunk, ToolSpec
from graphton.envelope import enveloped, opened
from graphton.errors import StatusError
from graphton.history import estimate_tokens
from graphton.messages import AssistantMessage, StopReason, Text, Thinking, ToolCall, Usage, UserMessage
from graphton.models import ModelRef, ModelSettings, ToolMode
from graphton.recovery import recovered, streaming

__all__ = ["VERSION", "Question", "ShortChat", "Verdict", "estimated", "verdict"]

VERSION = 1
"""Raised when other questions, or another reading of the replies, could find another way for the same model."""

MAX_TEXT = 400
MAX_THOUGHT = 2_000
MAX_SECONDS = 20.0
"""A reply that is longer, in characters or from its first word on, is cut: a call is over in 100 characters."""

_CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
_NOTE = {
    "type": "object",
    "properties": {"name": {"type": "string", "description": "The note's name."}},
    "required": ["name"],
    "additionalProperties": False,
}
TOOLS = (
    ToolSpec("get_time", "Tells what time it is in a city.", _CITY),
    ToolSpec("read_note", "Reads one of the user's notes.", _NOTE),
)
SYSTEM = "You are a helpful assistant. Use a tool for whatever you cannot know."
NOTE = "What does my note groceries say?"


@dataclass(frozen=True, slots=True)
class Question:
    """The next thing to ask. It goes out as it stands, whatever mode the model will be used in."""

    request: Request


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the model is brought to use tools from now on."""

    mode: ToolMode
    why: str
    """In words that follow the model's name."""
    sure: bool = True
    """Whether it holds for the next run too; a model that was cut while it thought has shown nothing."""


def verdict(replies: Sequence[AssistantMessage]) -> Question | Verdict:
    """What these replies, in the order of their questions, say; or what must be asked first.

    A model that prints its calls is held to a schema where it makes a call that way: of 16 requests qwen2.5-coder got 4
    and 8 right by recovery (0.5b, 1.5b), 12 and 13 by a schema.
    """
    if not replies:
        return Question(_request())
    first, *more = replies
    made = _made(first)
    if made == "call":
        return Verdict("native", "answered a trial with a valid tool call")
    if made == "cut":
        return Verdict("recovery", "thought longer than a trial lasts", sure=False)
    if not more:
        return Question(enveloped(_request()))
    held = _held(more[0])
    if held == "call" or (held == "reply" and made != "printed"):
        return Verdict("envelope", "makes no tool call that its server understands, and keeps to a schema")
    if made == "printed":
        return Verdict("recovery", "prints its tool calls as text")
    return Verdict("recovery", "made no usable tool call in a trial: do not rely on its tools", sure=False)


def _request() -> Request:
    return Request(SYSTEM, [UserMessage(NOTE)], TOOLS)


def _made(reply: AssistantMessage) -> str:
    """What a reply to a native request holds: call | printed | cut | nothing."""
    if _valid(reply.calls):
        return "call"
    if not reply.calls and _valid(recovered(reply, TOOLS).calls):
        return "printed"
    thought = any(isinstance(block, Thinking) for block in reply.blocks)
    return "cut" if reply.stop is StopReason.LENGTH and thought and not reply.text else "nothing"


def _valid(calls: Sequence[ToolCall]) -> bool:
    """Whether these are calls, and each is one that its tool would take as it is."""
    offered = {tool.name: tool for tool in TOOLS}
    return bool(calls) and all(
        call.name in offered
        and not call.malformed
        and not fit(offered[call.name].parameters, call.arguments)[1]
        for call in calls
    )


def _held(reply: AssistantMessage) -> str:
    """What a reply that was held to the schema holds: call | reply | nothing (the server has no such thing)."""
    if _valid(opened(reply, TOOLS).calls):
        return "call"
    text = ReplyText(reply_name(TOOLS))
    text.feed(reply.text)
    _, malformed = _json.arguments(reply.text)
    return "reply" if text.found and not malformed else "nothing"


class ShortChat:
    """A chat for trials: a reply that takes too long is cut, and a server that refuses tools has said so.

    What was cut is counted by the pieces that came.
    """

    def __init__(self, chat: Chat, *, seconds: float = MAX_SECONDS) -> None:
        self.chat = chat
        self.ref = chat.ref
        self._seconds = seconds

    @property
    def settings(self) -> ModelSettings:
        return self.chat.settings

    @property
    def notices(self) -> tuple[str, ...]:
        return self.chat.notices

    async def stream(self, request: Request) -> AsyncGenerator[Chunk]:
        """The inner chat's chunks, up to the limits."""
        text, thought, pieces, deadline = "", "", 0, 0.0
        now = asyncio.get_running_loop().time
        try:
            async with streaming(self.chat, request) as chunks:
                async for chunk in chunks:
                    yield chunk
                    match chunk:
                        case TextChunk():
                            text += chunk.text
                        case ThinkingChunk():
                            thought += chunk.text
                        case _:
                            continue
                    pieces += 1
                    deadline = deadline or now() + self._seconds
                    if len(text) > MAX_TEXT or len(thought) > MAX_THOUGHT or now() > deadline:
                        yield Done(_cut(self.ref, text, thought, Usage(estimated(request), pieces)))
                        return
        except StatusError as error:
            if error.status != 400 or "tool" not in error.message.lower():
                raise
            yield Done(AssistantMessage((), stop=StopReason.REFUSED, model=self.ref.model))

    def preview(self, request: Request) -> Preview:
        """The inner chat's request: nothing of it changes."""
        return self.chat.preview(request)

    async def close(self) -> None:
        """Close the inner chat."""
        await self.chat.close()


def estimated(request: Request) -> int:
    """About how many tokens a trial's request takes."""
    tools = orjson.dumps([tool.parameters for tool in request.tools]).decode()
    said = (message.text for message in request.messages if isinstance(message, UserMessage))
    return estimate_tokens("\n".join((request.system, tools, *said)))


def _cut(ref: ModelRef, text: str, thought: str, usage: Usage) -> AssistantMessage:
    blocks = ((Thinking(thought, ref.provider),) if thought else ()) + ((Text(text),) if text else ())
    return AssistantMessage(blocks, stop=StopReason.LENGTH, usage=usage, model=ref.model)
