"""What every dialect promises: a request goes in, chunks come out, the last one is the whole message."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from graphton.messages import AssistantMessage, Message
from graphton.models import ModelRef, ModelSettings

if TYPE_CHECKING:
    from graphton.tools import Knowledge

__all__ = [
    "ASKING_AGAIN",
    "Chat",
    "Chunk",
    "Done",
    "Request",
    "TextChunk",
    "ThinkingChunk",
    "ToolSpec",
    "WaitChunk",
    "chunks_of",
]


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as it is offered to a model."""

    name: str
    description: str
    parameters: dict[str, Any]
    reads: bool = False
    """Whether calling it changes nothing."""
    knowledge: Knowledge | None = field(default=None, compare=False, repr=False)
    """What the tool knows beyond its schema; no server is told of it."""


@dataclass(frozen=True, slots=True)
class Request:
    """One model call. `schema`, where given, constrains the reply's text to that JSON schema (envelope mode).

    `memo` is for the dialects: what they made of these messages, kept from one request of a conversation to the next.
    Who keeps the messages empties it when one of them is replaced; appending is all right.
    """

    system: str
    messages: Sequence[Message]
    tools: Sequence[ToolSpec] = ()
    schema: dict[str, Any] | None = None
    memo: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class TextChunk:
    text: str


@dataclass(frozen=True, slots=True)
class ThinkingChunk:
    text: str


ASKING_AGAIN = "asking again"
"""A reply could not be meant, and the model is asked once more: the chunk's text says why."""


@dataclass(frozen=True, slots=True)
class WaitChunk:
    """The server works but says nothing yet: `what` is server | load | prompt | download; total 0 means unknown."""

    what: str
    done: float = 0.0
    total: float = 0.0
    unit: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Done:
    """The whole reply. Always the last chunk, and exactly one; a stream that ends without it was broken."""

    message: AssistantMessage


Chunk = TextChunk | ThinkingChunk | WaitChunk | Done


class Chat(Protocol):
    """A conversation partner: one model at one address with fixed settings. Safe for several calls at once.

    `stream` asks the model exactly once (in envelopes twice, where its call cannot be meant) and never retries (the
    loop is the one owner of retries); a server on this machine may be measured, and its model loaded, before that. It
    raises the ProviderError family. Closing the iterator early cancels the request at the server. `notices` says which
    settings somebody set and this model does not take, and what else a run should know of it.
    """

    ref: ModelRef

    @property
    def settings(self) -> ModelSettings:
        """What it was made with and what it found out since, such as the window."""
        ...

    @property
    def notices(self) -> tuple[str, ...]: ...

    def stream(self, request: Request) -> AsyncIterator[Chunk]: ...
    def preview(self, request: Request) -> Preview:
        """The HTTP request with which `stream` would ask the model, with secrets masked; sends nothing."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Preview:
    """An HTTP request as it would go out."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes = field(repr=False)


@asynccontextmanager
async def chunks_of(chat: Chat, request: Request) -> AsyncIterator[AsyncIterator[Chunk]]:
    """The stream of one model call, closed at once when the block is left, so that the server stops generating."""
    chunks = chat.stream(request)
    try:
        yield chunks
    finally:
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()
