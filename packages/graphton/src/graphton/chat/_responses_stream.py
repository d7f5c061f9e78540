"""What the stream of a response means: items open, grow and close, and at the end there is a message."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from graphton.chat._failures import Peer
from graphton.chat._openai_stream import Gathering, stream_error
from graphton.chat._wire import call_arguments, call_id, dumps
from graphton.chat.base import Chunk, TextChunk, ThinkingChunk
from graphton.messages import AssistantMessage, Block, Opaque, StopReason, Text, Thinking, ToolCall, Usage

__all__ = ["ResponseGathering"]

_INCOMPLETE = {"content_filter": StopReason.REFUSED}
"""Why a response is incomplete, where it is not for the length."""

_BETWEEN_SUMMARIES = "\n\n"


@dataclass(slots=True)
class _Item:
    """One output item: as it opened, what grew, and as it closed."""

    wire: dict[str, Any]
    grown: list[str] = field(default_factory=list)
    """Text that was streamed: of a message, of a reasoning's summary, of a call's arguments."""
    part: Any = None
    """The last part that grew."""
    closed: bool = False
    raw: bytes = b""
    """Its bytes as it closed; not of messages and calls, which we say in our own words."""

    @property
    def kind(self) -> str:
        return str(self.wire["type"])

    @property
    def streamed(self) -> str:
        return "".join(self.grown)


class ResponseGathering(Gathering):
    """A response; `finished` is set by its closing event."""

    def __init__(self, provider: str, *, prompt_bytes: int) -> None:
        super().__init__(provider, prompt_bytes=prompt_bytes)
        self._items: dict[int, _Item] = {}
        self._refused = False
        self._message: AssistantMessage | None = None
        self._model = ""

    @property
    def finished(self) -> bool:
        return self._message is not None

    def message(self) -> AssistantMessage:
        if self._message is None:
            raise ValueError("the response is not whole yet")
        return self._message

    def _event(self, event: dict[str, Any], data: bytes, peer: Peer) -> Iterable[Chunk]:
        self.progressed = self._thinks()
        if event.get("object") == "response":  # a host that does not stream
            event = {"type": f"response.{event.get('status')}", "response": event}
        kind = str(event["type"])
        if kind == "error":
            raise stream_error(data, peer)
        if kind == "response.failed":
            raise stream_error(dumps({"error": event["response"].get("error") or {}}), peer)
        handle = _EVENTS.get(kind)  # keepalives, closing events of parts, and kinds to come say nothing new
        return handle(self, event, data) if handle else ()

    def _thinks(self) -> bool:
        """Whether the model reasons just now, which it may do for long without a word."""
        return any(item.kind == "reasoning" and not item.closed for item in self._items.values())

    # --- events -------------------------------------------------------------------------------------------------

    def _on_created(self, event: dict[str, Any], data: bytes) -> Iterator[Chunk]:
        self._model = event["response"].get("model") or self._model
        yield from ()

    def _on_added(self, event: dict[str, Any], data: bytes) -> Iterator[Chunk]:
        if item := event.get("item"):
            opened = _Item(item)
            self._items[event["output_index"]] = opened
            self.began = opened.kind != "reasoning"
            self.progressed = True
        yield from ()

    def _on_text(self, event: dict[str, Any], data: bytes) -> Iterator[Chunk]:
        self._items[event["output_index"]].grown.append(event["delta"])
        if event["delta"]:
            yield TextChunk(event["delta"])

    def _on_refusal(self, event: dict[str, Any], data: bytes) -> Iterator[Chunk]:
        self._refused = True
        return self._on_text(event, data)

    def _on_thought(self, event: dict[str, Any], data: bytes) -> Iterator[Chunk]:
        item, delta = self._items[event["output_index"]], event["delta"]
        if not delta:
            return
        part = event.get("summary_index", event.get("content_index"))
        if item.grown and part != item.part:
            delta = _BETWEEN_SUMMARIES + delta
        item.part = part
        item.grown.append(delta)
        yield ThinkingChunk(delta)

    def _on_arguments(self, event: dict[str, Any], data: bytes) -> Iterator[Chunk]:
        self._items[event["output_index"]].grown.append(event["delta"])
        yield from ()

    def _on_arguments_done(self, event: dict[str, Any], data: bytes) -> Iterator[Chunk]:
        self._items[event["output_index"]].grown = [event["arguments"]]
        yield from ()

    def _on_item_done(self, event: dict[str, Any], data: bytes) -> Iterator[Chunk]:
        self.progressed = True
        item = event["item"]
        raw = b"" if item["type"] in ("message", "function_call") else _member(data, "item", item)
        return self._close(event["output_index"], item, raw)

    def _close(self, index: int, wire: dict[str, Any], raw: bytes) -> Iterator[Chunk]:
        """Take a closed item as the last word on itself, and show what of it was not streamed."""
        item = self._items.setdefault(index, _Item(wire))
        item.wire, item.raw, item.closed = wire, raw, True
        self.began = True
        if item.kind not in _SPOKEN:
            return
        chunk, whole = _SPOKEN[item.kind], _said(wire)
        self._refused |= _refuses(wire)
        streamed = item.streamed
        if whole.startswith(streamed):
            item.grown = [whole]
            if len(whole) > len(streamed):
                yield chunk(whole[len(streamed) :])
        elif item.kind == "message":
            item.grown = [whole]

    def _on_end(self, event: dict[str, Any], data: bytes) -> Iterator[Chunk]:
        response = event["response"]
        self._model = response.get("model") or self._model
        if not any(item.closed for item in self._items.values()):
            for index, wire in enumerate(response.get("output") or ()):
                yield from self._close(index, wire, dumps(wire))
        end = {**response, "status": event["type"].removeprefix("response.")}
        blocks = tuple(block for _, item in sorted(self._items.items()) for block in self._blocks(item))
        self._message = AssistantMessage(
            blocks, stop=self._stop(end), usage=self._counted(end), model=self._model
        )
        self.closed = True

    # --- the whole ----------------------------------------------------------------------------------------------

    def _blocks(self, item: _Item) -> Iterator[Block]:
        wire = item.wire
        match item.kind:
            case "message":
                if item.streamed:
                    if phase := wire.get("phase"):
                        # Which part of the work a message belongs to; the model is worse without it.
                        yield Opaque(self._provider, dumps({"phase": phase}))
                    yield Text(item.streamed)
            case "reasoning":
                # Without its content the server would look for the item in its store, where nothing is.
                kept = item.raw if wire.get("encrypted_content") or wire.get("content") else b""
                if kept or item.streamed:
                    yield Thinking(item.streamed, self._provider, kept)
            case "function_call":
                arguments, malformed = call_arguments(
                    (wire.get("arguments") if item.closed else "") or item.streamed
                )
                wire_id = str(wire.get("call_id") or call_id())
                yield ToolCall(str(wire["name"]), arguments, wire_id=wire_id, malformed=malformed)
            case _ if item.raw:
                yield Opaque(self._provider, item.raw)

    def _stop(self, end: Mapping[str, Any]) -> StopReason:
        """Why the model stopped. Calls of a response that is not complete are cut, whatever it says."""
        if self._refused:
            return StopReason.REFUSED
        if end.get("status") != "completed":
            reason = (end.get("incomplete_details") or {}).get("reason")
            return _INCOMPLETE.get(str(reason), StopReason.LENGTH)
        calls = [item for item in self._items.values() if item.kind == "function_call"]
        if any(not item.closed or item.wire.get("status") == "incomplete" for item in calls):
            return StopReason.LENGTH
        return StopReason.TOOLS if calls else StopReason.END

    def _counted(self, end: Mapping[str, Any]) -> Usage:
        """The tokens as the host counted them; reasoning is among the output."""
        usage = end.get("usage")
        if not usage:
            return self._estimated(item.streamed for item in self._items.values())
        details = usage.get("input_tokens_details") or {}
        return Usage(
            usage.get("input_tokens") or 0,
            usage.get("output_tokens") or 0,
            details.get("cached_tokens") or 0,
            details.get("cache_write_tokens") or 0,
        )


_SPOKEN: dict[str, type[TextChunk] | type[ThinkingChunk]] = {
    "message": TextChunk,
    "reasoning": ThinkingChunk,
}

_EVENTS: dict[str, Callable[[ResponseGathering, dict[str, Any], bytes], Iterator[Chunk]]] = {
    "response.created": ResponseGathering._on_created,
    "response.in_progress": ResponseGathering._on_created,
    "response.output_item.added": ResponseGathering._on_added,
    "response.output_text.delta": ResponseGathering._on_text,
    "response.refusal.delta": ResponseGathering._on_refusal,
    "response.reasoning_summary_text.delta": ResponseGathering._on_thought,
    "response.reasoning_text.delta": ResponseGathering._on_thought,
    "response.function_call_arguments.delta": ResponseGathering._on_arguments,
    "response.function_call_arguments.done": ResponseGathering._on_arguments_done,
    "response.output_item.done": ResponseGathering._on_item_done,
    "response.completed": ResponseGathering._on_end,
    "response.incomplete": ResponseGathering._on_end,
}


def _said(wire: Mapping[str, Any]) -> str:
    """The text in a closed item: of a message its words, of a reasoning its summary, else its thoughts."""
    if wire["type"] == "message":
        return "".join(part.get("text") or part.get("refusal") or "" for part in wire.get("content") or ())
    parts = wire.get("summary") or wire.get("content") or ()
    return _BETWEEN_SUMMARIES.join(text for part in parts if (text := part.get("text")))


def _refuses(wire: Mapping[str, Any]) -> bool:
    return wire["type"] == "message" and any(
        part.get("type") == "refusal" for part in wire.get("content") or ()
    )


def _member(data: bytes, name: str, value: Any) -> bytes:
    """The bytes of a member of a JSON object, exactly as they came."""
    text = data.decode()
    decoder = json.JSONDecoder()
    for begin in re.finditer(rf'"{name}"\s*:\s*', text):
        found, end = decoder.raw_decode(text, begin.end())
        if found == value:
            return text[begin.end() : end].encode()
    return dumps(value)
