"""What the stream of a chat completion means: pieces go in, chunks come out, at the end there is a message."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from graphton.chat import _json
from graphton.chat._failures import Peer
from graphton.chat._think_tags import ThinkTags, blocks_of
from graphton.chat._wire import call_arguments, call_id, dumps
from graphton.chat.base import Chunk, TextChunk, ThinkingChunk, WaitChunk
from graphton.errors import ProviderError
from graphton.messages import AssistantMessage, Block, Opaque, StopReason, ToolCall, Usage

__all__ = ["Collector", "Gathering", "stream_error"]

_STOPS = {
    "stop": StopReason.END,
    "tool_calls": StopReason.TOOLS,
    "function_call": StopReason.TOOLS,
    "length": StopReason.LENGTH,
    "max_tokens": StopReason.LENGTH,
    "content_filter": StopReason.REFUSED,
    "refusal": StopReason.REFUSED,
}
_STATUS_OF = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "context_length_exceeded": 400,
    "invalid_prompt": 400,
    "insufficient_quota": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "overloaded_error": 529,
}
"""The status that an error would have had, had it come before the stream began; anything else is the server's."""


@dataclass(slots=True)
class _Call:
    """One tool call while it grows."""

    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)
    whole: dict[str, Any] | None = None
    """Arguments that came as an object instead of text."""
    extra: Any = None
    """A host's own addition (Gemini's thought signature), which it wants back."""


class Gathering(ABC):
    """One reply while its events arrive, in either of OpenAI's dialects. `began` is set by its first token."""

    def __init__(self, provider: str, *, prompt_bytes: int) -> None:
        self.began = False
        self.progressed = False
        """Whether the last event said that the model gets on, though nothing can be shown yet."""
        self.closed = False
        """Whether nothing can follow."""
        self._provider = provider
        self._prompt_bytes = prompt_bytes
        self._understood = False

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether the reply is whole."""

    @abstractmethod
    def message(self) -> AssistantMessage:
        """The whole reply."""

    def feed(self, data: bytes, peer: Peer) -> Iterable[Chunk]:
        """The chunks in one event of the stream, or in a whole reply of a host that does not stream."""
        try:
            event = _json.loads(data)
            if event.get("error"):
                raise stream_error(data, peer)
            chunks = list(self._event(event, data, peer))
        except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
            why = f"an event that cannot be read: {data[:300].decode('utf-8', 'replace')!r}"
            raise (peer.broken(why) if self._understood else peer.protocol(why)) from error
        self._understood = True
        return chunks

    @abstractmethod
    def _event(self, event: dict[str, Any], data: bytes, peer: Peer) -> Iterable[Chunk]:
        """Enter one event; raises KeyError and the like where it is none of the dialect."""

    def _estimated(self, made: Iterable[str]) -> Usage:
        """Tokens where the host counts nothing: about four bytes to one."""
        return Usage(
            self._prompt_bytes // 4 + 1, sum(len(m.encode("utf-8", "replace")) for m in made) // 4 + 1
        )


class Collector(Gathering):
    """A chat completion; `finished` is set by its stop reason."""

    def __init__(self, provider: str, *, prompt_bytes: int) -> None:
        super().__init__(provider, prompt_bytes=prompt_bytes)
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._tags = ThinkTags()
        self._calls: list[_Call] = []
        self._slots: dict[int, _Call] = {}
        self._refused = False
        self._stop = ""
        self._usage: Mapping[str, Any] = {}
        self._timings: Mapping[str, Any] = {}
        self._model = ""

    @property
    def finished(self) -> bool:
        return self._stop != ""

    def _event(self, event: dict[str, Any], data: bytes, peer: Peer) -> Iterator[Chunk]:
        self.progressed = False
        self._model = event.get("model") or self._model
        self._usage = event.get("usage") or (event.get("x_groq") or {}).get("usage") or self._usage
        self._timings = event.get("timings") or self._timings
        if progress := event.get("prompt_progress"):
            self.progressed = True
            yield WaitChunk("prompt", progress.get("processed") or 0, progress.get("total") or 0, "tokens")
        for choice in event.get("choices") or ():
            if not choice.get("index"):
                if choice.get("finish_reason") == "error":
                    raise peer.broken("the host ended it with finish_reason 'error'")
                yield from self._choice(choice)

    def _choice(self, choice: dict[str, Any]) -> Iterator[Chunk]:
        delta = choice.get("delta") or choice.get("message") or {}
        if thought := delta.get("reasoning_content") or delta.get("reasoning"):
            yield from self._think(thought)
        if content := delta.get("content"):
            for part in content if isinstance(content, list) else (content,):
                yield from self._part(part)
        if refusal := delta.get("refusal"):
            self._refused = True
            yield from self._say(refusal)
        for call in delta.get("tool_calls") or ():
            self._call(call)
        if reason := choice.get("finish_reason"):
            yield from self._kept(self._tags.end())
            self._stop = str(reason)

    def _part(self, part: str | dict[str, Any]) -> Iterator[Chunk]:
        """One part of the content: plain text, or Mistral's typed parts, some of which hold thinking."""
        if isinstance(part, str):
            yield from self._say(part)
        elif part.get("type") == "thinking":
            for inner in part.get("thinking") or ():
                yield from self._think(inner.get("text") or "")
        else:
            yield from self._say(part.get("text") or "")

    def _say(self, text: str) -> Iterator[Chunk]:
        if text:
            self.began = True
            yield from self._kept(self._tags.feed(text))

    def _kept(self, chunks: Iterable[TextChunk | ThinkingChunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            (self._text if isinstance(chunk, TextChunk) else self._thinking).append(chunk.text)
            yield chunk

    def _think(self, text: str) -> Iterator[Chunk]:
        if text:
            self.began = True
            self._thinking.append(text)
            yield ThinkingChunk(text)

    def _call(self, piece: dict[str, Any]) -> None:
        self.began = True
        function = piece.get("function") or {}
        call = self._slot(piece, function)
        call.id = call.id or piece.get("id") or ""
        call.name = call.name or function.get("name") or ""
        call.extra = piece.get("extra_content") or call.extra
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            call.arguments.append(arguments)
        elif isinstance(arguments, dict):
            call.whole = arguments

    def _slot(self, piece: dict[str, Any], function: dict[str, Any]) -> _Call:
        """The call that a piece belongs to. Some hosts give every call of a reply index 0, or none at all."""
        index = piece.get("index")
        known = self._slots.get(index) if index is not None else (self._calls[-1] if self._calls else None)
        begins = bool(function.get("name")) and known is not None and bool(known.name)
        if known is None or (begins and (index is None or piece.get("id", "") not in ("", None, known.id))):
            known = _Call()
            self._calls.append(known)
            if index is not None:
                self._slots[index] = known
        return known

    def message(self) -> AssistantMessage:
        blocks = blocks_of("".join(self._thinking), "".join(self._text), self._provider)
        blocks.extend(self._call_blocks())
        return AssistantMessage(tuple(blocks), stop=self._reason(), usage=self._counted(), model=self._model)

    def _call_blocks(self) -> Iterator[Block]:
        taken: set[str] = set()
        for call in self._calls:
            wire_id = call.id if call.id and call.id not in taken else call_id()
            taken.add(wire_id)
            raw = "".join(call.arguments) if call.whole is None else call.whole
            arguments, malformed = call_arguments(raw)
            yield ToolCall(call.name, arguments, wire_id=wire_id, malformed=malformed)
            if call.extra is not None:
                yield Opaque(self._provider, dumps({"tool_call": wire_id, "extra_content": call.extra}))

    def _reason(self) -> StopReason:
        """Why the model stopped. Hosts say "stop" beside calls; for a reason unknown to us, calls count as cut."""
        if self._refused:
            return StopReason.REFUSED
        known = _STOPS.get(self._stop)
        if not self._calls:
            return StopReason.END if known in (None, StopReason.TOOLS) else known
        return StopReason.TOOLS if known is StopReason.END else known or StopReason.LENGTH

    def _counted(self) -> Usage:
        """The tokens as the host counted them."""
        usage, timings = self._usage, self._timings
        details = usage.get("prompt_tokens_details") or {}
        if usage:
            return Usage(
                usage.get("prompt_tokens") or 0,
                usage.get("completion_tokens") or 0,
                details.get("cached_tokens") or usage.get("prompt_cache_hit_tokens") or 0,
                details.get("cache_write_tokens") or 0,
            )
        if timings:
            cached = timings.get("cache_n") or 0
            return Usage(cached + (timings.get("prompt_n") or 0), timings.get("predicted_n") or 0, cached)
        made = [*self._text, *self._thinking, *(p for c in self._calls for p in (c.name, *c.arguments))]
        return self._estimated(made)


def stream_error(data: bytes, peer: Peer) -> ProviderError:
    """The error that stands in an event of a stream which began well."""
    try:
        event = _json.loads(data)
    except ValueError:
        event = {}  # the words are shown as they came
    said = event.get("error", event) if isinstance(event, dict) else {}
    if not isinstance(said, dict):
        return peer.status(500, data)
    code, kind = said.get("code"), said.get("type")
    # The event's own type says no more than that it is an error.
    kind = str(kind if kind not in (None, "error") else code or "")
    known = code if isinstance(code, int) and 400 <= code < 600 else _STATUS_OF.get(str(code))
    return peer.status(known or _STATUS_OF.get(kind, 500), dumps(said) if said else data, kind=kind)
