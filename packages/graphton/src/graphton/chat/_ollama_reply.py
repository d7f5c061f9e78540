"""What comes back from Ollama: one JSON object a line, gathered into a message."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from typing import Any

from graphton.chat import _json
from graphton.chat._failures import Peer
from graphton.chat._http import Reply
from graphton.chat._think_tags import ThinkTags, blocks_of
from graphton.chat._window import Prompt
from graphton.chat._wire import call_arguments
from graphton.chat.base import Chunk, TextChunk, ThinkingChunk
from graphton.messages import AssistantMessage, StopReason, ToolCall, Usage

__all__ = ["Collector", "chunks"]

_STOPS = {"stop": StopReason.END, "length": StopReason.LENGTH}


async def chunks(answer: Reply, collector: Collector) -> AsyncGenerator[Chunk]:
    """The chunks of a reply until its last line."""
    async with aclosing(answer.lines()) as lines:
        async for line in lines:
            if not line.strip():
                continue
            for chunk in collector.feed(line, answer.peer):
                yield chunk
            if collector.finished:
                return
            if not collector.began:
                answer.waiting()


class Collector:
    """Gathers one reply."""

    def __init__(self, provider: str) -> None:
        self.began = False
        self.finished = False
        self.evaluated: int | None = None
        """Tokens of the prompt, those that were cached included: Ollama does not say how many those are."""
        self._provider = provider
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._tags = ThinkTags()
        self._calls: list[ToolCall] = []
        self._understood = False
        self._model = ""
        self._last: dict[str, Any] = {}

    def feed(self, line: bytes, peer: Peer) -> Iterable[Chunk]:
        """The chunks in one line."""
        try:
            event = _json.loads(line)
            if event.get("error"):
                raise peer.status(_status_of(event), line)
            found = list(self._event(event))
        except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
            why = f"a line that cannot be read: {line[:300].decode('utf-8', 'replace')!r}"
            raise (peer.broken(why) if self._understood else peer.protocol(why)) from error
        self._understood = True
        return found

    def _event(self, event: dict[str, Any]) -> Iterator[Chunk]:
        message = event.get("message") or {}
        self._model = event.get("model") or self._model
        if thought := message.get("thinking"):
            self.began = True
            self._thinking.append(thought)
            yield ThinkingChunk(thought)
        if text := message.get("content"):
            self.began = True
            yield from self._kept(self._tags.feed(text))
        for call in message.get("tool_calls") or ():
            self.began = True
            arguments, malformed = call_arguments(call["function"].get("arguments"))
            name = call["function"].get("name") or ""
            self._calls.append(ToolCall(name, arguments, wire_id=call.get("id") or "", malformed=malformed))
        if event.get("done"):
            yield from self._kept(self._tags.end())
            self.finished = True
            self.evaluated = event.get("prompt_eval_count")
            self._last = event

    def _kept(self, found: Iterable[TextChunk | ThinkingChunk]) -> Iterator[Chunk]:
        for chunk in found:
            (self._text if isinstance(chunk, TextChunk) else self._thinking).append(chunk.text)
            yield chunk

    @property
    def reading_seconds(self) -> float:
        """How long the server read the prompt, or the part of it that it did not know; 0 where it does not say."""
        return (self._last.get("prompt_eval_duration") or 0) / 1e9

    def filled(self, window: int) -> bool:
        """Whether the reply ended because the context window was full."""
        used = (self.evaluated or 0) + (self._last.get("eval_count") or 0)
        return self._last.get("done_reason") == "length" and used >= window - 2

    def message(self, prompt: Prompt, window: int) -> AssistantMessage:
        """The whole reply. A count that the server leaves out (all of the prompt was cached) is estimated."""
        blocks = blocks_of("".join(self._thinking), "".join(self._text), self._provider)
        blocks.extend(self._calls)
        stop = _STOPS.get(self._last.get("done_reason") or "stop", StopReason.END)
        if self.filled(window):
            stop = StopReason.CONTEXT
        return AssistantMessage(
            tuple(blocks),
            stop=StopReason.TOOLS if self._calls and stop is StopReason.END else stop,
            usage=Usage(
                prompt.tokens if self.evaluated is None else self.evaluated,
                self._last.get("eval_count") or 0,
            ),
            model=self._model,
        )


def _status_of(event: dict[str, Any]) -> int:
    """The status that an error in a stream would have had; Ollama says it in newer versions only."""
    status = event.get("status_code")
    return status if isinstance(status, int) and status >= 400 else 500
