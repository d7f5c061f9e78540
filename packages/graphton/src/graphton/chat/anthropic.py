"""Anthropic Messages: what goes out to /v1/messages, and what the stream that comes back means."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import orjson

from graphton.chat import _json
from graphton.chat._failures import Peer
from graphton.chat._http import HEADERS, Reply, endpoint, limits_for, post
from graphton.chat._keys import check_key
from graphton.chat._sse import events
from graphton.chat.base import Chunk, Done, Preview, Request, TextChunk, ThinkingChunk, ToolSpec
from graphton.errors import ProviderError, SettingError
from graphton.messages import (
    AssistantMessage,
    Block,
    Message,
    Opaque,
    StopReason,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
    ToolResults,
    Usage,
    UserMessage,
)
from graphton.models import Model, ModelRef, ModelSettings, find_provider, lookup, with_defaults

__all__ = ["AnthropicChat"]

_VERSION = "2023-06-01"
_CACHE = {"type": "ephemeral"}
_BUDGETS = {"low": 2048, "medium": 8192, "high": 16_384}
"""Thinking tokens for models that take a budget; those that adapt get the word itself."""
_SMALLEST_BUDGET = 1024
_LEVELS = ("off", *_BUDGETS)

_STOPS = {
    "end_turn": StopReason.END,
    "stop_sequence": StopReason.END,
    "tool_use": StopReason.TOOLS,
    "max_tokens": StopReason.LENGTH,
    "refusal": StopReason.REFUSED,
    "pause_turn": StopReason.PAUSED,
    "model_context_window_exceeded": StopReason.CONTEXT,
}

_STATUS_OF = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""The status that an error would have had, had it come before the stream began."""

_GARBLED = "if it happens again, the server, or a gateway before it, does not speak the Messages API rightly"


class AnthropicChat:
    """One model behind the Messages API. Create it with `create_chat`."""

    def __init__(self, ref: ModelRef, settings: ModelSettings) -> None:
        provider, model = find_provider(ref.provider), lookup(ref)
        self.ref = ref
        self.settings = with_defaults(ref, settings)
        notices: list[str] = []
        self._url = endpoint(_base(self.settings.base_url or provider.base_url, notices), "/v1/messages")
        self._key = check_key(ref.provider, self._url, self.settings.api_key)
        self._limits = limits_for(self.settings.timeouts, local=provider.local)
        self._fixed = _fixed(model, self.settings, settings, notices)
        self.notices = tuple(notices)

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Send the request once; text and thinking as they come, then the whole message."""
        self._key.require()
        reply = _Assembly(self.ref.provider)
        async with (
            post(
                self._url,
                self._body(request),
                headers=self._headers(self._key.value),
                provider=self.ref.provider,
                limits=self._limits,
                secrets=self._key.secrets,
            ) as answer,
            aclosing(events(answer)) as stream,
        ):
            if answer.content_type != "text/event-stream":
                raise await _no_stream(answer)
            async for event in stream:
                for chunk in reply.take(event.data, answer.peer):
                    yield chunk
                if reply.finished:
                    break
                if not reply.parts:
                    answer.waiting()
            if not reply.finished:
                raise answer.peer.broken("the stream ended without message_stop")
        yield Done(reply.message(answer.peer))

    def preview(self, request: Request) -> Preview:
        """The exact request, its key masked."""
        return Preview("POST", self._url, self._headers(self._key.masked), self._body(request))

    async def close(self) -> None:
        """Nothing is held: connections belong to the event loop, and close with it."""

    def _headers(self, key: str) -> dict[str, str]:
        headers = {**HEADERS, "accept": "text/event-stream", "anthropic-version": _VERSION}
        return {**headers, "x-api-key": key} if key else headers

    def _body(self, request: Request) -> bytes:
        # Always in this order, and without anything that changes between turns before the messages: the provider
        # caches prompts by their beginning.
        body: dict[str, Any] = {**self._fixed}
        if request.schema is not None:
            schema = {"format": {"type": "json_schema", "schema": request.schema}}
            body["output_config"] = {**body.get("output_config", {}), **schema}
        if request.tools:
            tools = [_tool(spec) for spec in request.tools]
            body["tools"] = [*tools[:-1], {**tools[-1], "cache_control": _CACHE}]
        if request.system.strip():
            body["system"] = [{"type": "text", "text": request.system, "cache_control": _CACHE}]
        messages = [*_wire_messages(request.messages, self.ref.provider)]
        if body.get("thinking", {}).get("type") == "enabled" and not _may_think(messages):
            del body["thinking"]
        body["messages"] = _with_cache_mark(messages)
        try:
            return orjson.dumps(body)
        except TypeError:
            return orjson.dumps(_json.clean(body))


# --- settings ---------------------------------------------------------------------------------------------------------


def _base(url: str, notices: list[str]) -> str:
    """The base URL as the official SDK takes it, without the /v1 that we append."""
    url = url.strip().rstrip("/")
    if url.endswith("/v1"):
        notices.append(f"base URL {url!r} ends in /v1, which anthropic's requests bring themselves: left out")
        return url.removesuffix("/v1")
    return url


def _fixed(model: Model, settings: ModelSettings, said: ModelSettings, notices: list[str]) -> dict[str, Any]:
    """The part of the body that is the same for every request; what was said and is not sent becomes a notice."""
    body: dict[str, Any] = {"model": model.id, "max_tokens": settings.max_tokens, "stream": True}
    body |= _thinking(model, settings, notices)
    thinks = body.get("thinking", {}).get("type") in ("adaptive", "enabled")
    if settings.temperature is not None:
        if not 0 <= settings.temperature <= 1:
            raise SettingError(
                f"temperature {settings.temperature!r} is outside of what {model.id} takes, 0..1",
                hint="for example temperature=0.7",
            )
        if not model.sampling:
            notices.append(f"temperature {settings.temperature:g} is not sent: {model.id} takes none")
        elif thinks:
            notices.append(f"temperature {settings.temperature:g} is not sent: thinking models take none")
        else:
            body["temperature"] = settings.temperature
    if said.context_window not in (None, model.context_window):
        notices.append(
            f"context_window {said.context_window} is not sent: the window of {model.id} is the provider's"
        )
    return body


def _thinking(model: Model, settings: ModelSettings, notices: list[str]) -> dict[str, Any]:
    """How this model is told to think as much as `settings.thinking` says."""
    level = settings.thinking
    if level is None:
        return {}
    if level not in _LEVELS:
        raise SettingError(
            f"thinking {level!r} is not known",
            hint=f"one of {', '.join(_LEVELS)}, for example thinking='low'",
        )
    if level == "off":
        return _thinking_off(model, notices)
    if model.thinking == "adaptive":
        # Some models leave their thinking out of the stream unless they are asked to summarise it.
        return {
            "thinking": {"type": "adaptive", "display": "summarized"},
            "output_config": {"effort": level},
        }
    room = (settings.max_tokens or 0) - _SMALLEST_BUDGET
    if model.thinking == "budget" and room >= _SMALLEST_BUDGET:
        return {"thinking": {"type": "enabled", "budget_tokens": min(_BUDGETS[level], room)}}
    why = f"{model.id} does not think"
    if model.thinking == "budget":
        why = f"max_tokens {settings.max_tokens} leaves no room for it, {2 * _SMALLEST_BUDGET} would"
    notices.append(f"thinking {level} is not sent: {why}")
    return {}


def _thinking_off(model: Model, notices: list[str]) -> dict[str, Any]:
    if model.thinking_off == "never":
        notices.append(f"thinking off is not sent: {model.id} always thinks")
        return {}
    return {"thinking": {"type": model.thinking_off}} if model.thinking_off else {}


# --- what goes out ----------------------------------------------------------------------------------------------------


def _tool(spec: ToolSpec) -> dict[str, Any]:
    return {"name": spec.name, "description": spec.description, "input_schema": spec.parameters}


def _wire_messages(messages: Sequence[Message], provider: str) -> Iterator[dict[str, Any]]:
    """Every message in the wire's form, each translated once; one that says nothing to this provider is left out."""
    key = f"anthropic:{provider}"
    for message in messages:
        if key not in message.wire:
            message.wire[key] = _translate(message, provider)
        if message.wire[key] is not None:
            yield message.wire[key]


def _translate(message: Message, provider: str) -> dict[str, Any] | None:
    match message:
        case UserMessage():
            return {"role": "user", "content": [{"type": "text", "text": message.text}]}
        case ToolResults():
            return {"role": "user", "content": [_result(r) for r in message.results]}
        case AssistantMessage():
            content = [wire for b in message.blocks if (wire := _block(b, provider)) is not None]
            return {"role": "assistant", "content": content} if content else None


def _result(result: ToolResult) -> dict[str, Any]:
    wire: dict[str, Any] = {
        "type": "tool_result",
        "tool_use_id": _call_id(result.wire_id, result.call),
        "content": result.text,
    }
    return {**wire, "is_error": True} if result.is_error else wire


def _block(block: Block, provider: str) -> dict[str, Any] | orjson.Fragment | None:
    match block:
        case Text():
            # The API refuses text blocks of blanks only.
            return {"type": "text", "text": block.text} if block.text.strip() else None
        case ToolCall():
            return {
                "type": "tool_use",
                "id": _call_id(block.wire_id, block.id),
                "name": re.sub(r"[^a-zA-Z0-9_-]", "_", block.name)[:128] or "unnamed",
                "input": orjson.Fragment(_json.encode(block.arguments)),
            }
        case Thinking() | Opaque():
            return orjson.Fragment(block.raw) if block.raw and block.provider == provider else None


def _call_id(wire_id: str, ours: str) -> str:
    """An id that the API accepts: calls of other providers' models may have none, or other signs in it."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", wire_id or f"call_{ours}")


def _may_think(messages: list[dict[str, Any]]) -> bool:
    """Whether a thinking budget is accepted now: not while calls are answered that began without thinking.

    That happens when another model made the calls, before this one took over. It thinks again with the next task.
    """
    last: list[Any] = next((m["content"] for m in reversed(messages) if m["role"] == "assistant"), [])
    calls = any(isinstance(block, dict) and block["type"] == "tool_use" for block in last)
    return not calls or isinstance(last[0], orjson.Fragment)


def _with_cache_mark(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same messages, the last block that can bear it marked as the end of what is worth caching.

    The mark moves with every turn, so it goes onto copies, never onto the remembered form of a message.
    """
    for m in range(len(messages) - 1, -1, -1):
        content = messages[m]["content"]
        for b in range(len(content) - 1, -1, -1):
            if isinstance(content[b], dict) and content[b].get("text") != "":
                marked = [*content[:b], {**content[b], "cache_control": _CACHE}, *content[b + 1 :]]
                return [*messages[:m], {**messages[m], "content": marked}, *messages[m + 1 :]]
    return messages


# --- what comes back --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Part:
    """A content block while it arrives: as it began, and the pieces of its growing field."""

    start: dict[str, Any]
    raw: bytes
    pieces: list[str] = field(default_factory=list)
    signature: str = ""


class _Assembly:
    """The message while its events arrive."""

    def __init__(self, provider: str) -> None:
        self.finished = False
        self.parts: dict[int, _Part] = {}
        self._provider = provider
        self._began = False
        self._model = ""
        self._stop: str | None = None
        self._usage: dict[str, Any] = {}

    def take(self, data: bytes, peer: Peer) -> tuple[Chunk, ...]:
        """Enter one event; what of it can be shown at once."""
        try:
            event = _json.loads(data)
        except (
            ValueError
        ) as error:  # In a stream that began well, a gateway or the line cut it: worth another try.
            why = f"an event that cannot be read: {peer.excerpt(data)}"
            raise (peer.broken(why) if self._began else peer.protocol(why, hint=_GARBLED)) from error
        try:
            kind = event["type"]
            if kind == "error":
                raise _stream_error(event, data, peer)
            handle = _EVENTS.get(kind)  # new kinds may come at any time, and pings mean nothing
            return handle(self, event, data) if handle else ()
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise peer.protocol(
                f"an event that is none of its dialect: {peer.excerpt(data)}", hint=_GARBLED
            ) from error

    def message(self, peer: Peer) -> AssistantMessage:
        """The whole message, once it is finished."""
        try:
            blocks = tuple(self._block(part) for _, part in sorted(self.parts.items()))
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise peer.protocol(
                f"a content block that is none of its dialect: {error}", hint=_GARBLED
            ) from error
        usage = {k: v for k, v in self._usage.items() if isinstance(v, int)}
        cached = usage.get("cache_read_input_tokens", 0)
        written = usage.get("cache_creation_input_tokens", 0)
        return AssistantMessage(
            tuple(b for b in blocks if b != Text("")),
            stop=_stop(self._stop, any(isinstance(b, ToolCall) for b in blocks)),
            usage=Usage(
                input_tokens=usage.get("input_tokens", 0) + cached + written,
                output_tokens=usage.get("output_tokens", 0),
                cached_tokens=cached,
                cache_write_tokens=written,
            ),
            model=self._model,
        )

    def _on_start(self, event: dict[str, Any], data: bytes) -> tuple[Chunk, ...]:
        message = event["message"]
        self._model = message.get("model") or ""
        self._began = True
        self._usage |= message.get("usage") or {}
        return ()

    def _on_block(self, event: dict[str, Any], data: bytes) -> tuple[Chunk, ...]:
        block = event["content_block"]
        self.parts[event["index"]] = _Part(block, data)
        if block["type"] == "text" and block.get("text"):
            return (TextChunk(block["text"]),)
        if block["type"] == "thinking" and block.get("thinking"):
            return (ThinkingChunk(block["thinking"]),)
        return ()

    def _on_delta(self, event: dict[str, Any], data: bytes) -> tuple[Chunk, ...]:
        part, delta = self.parts[event["index"]], event["delta"]
        match delta["type"]:
            case "text_delta":
                part.pieces.append(delta["text"])
                return (TextChunk(delta["text"]),) if delta["text"] else ()
            case "thinking_delta":
                part.pieces.append(delta["thinking"])
                return (ThinkingChunk(delta["thinking"]),) if delta["thinking"] else ()
            case "signature_delta":
                part.signature = delta["signature"]
            case "input_json_delta":
                part.pieces.append(delta["partial_json"])
            case _:
                pass  # citations, and kinds to come: nothing that we asked for
        return ()

    def _on_message_delta(self, event: dict[str, Any], data: bytes) -> tuple[Chunk, ...]:
        self._stop = event["delta"].get("stop_reason") or self._stop
        # The counts are totals; one that is absent or null leaves the earlier one standing.
        self._usage |= {k: v for k, v in (event.get("usage") or {}).items() if v is not None}
        return ()

    def _on_stop(self, event: dict[str, Any], data: bytes) -> tuple[Chunk, ...]:
        self.finished = True
        return ()

    def _block(self, part: _Part) -> Block:
        start, grown = part.start, "".join(part.pieces)
        match start["type"]:
            case "text":
                return Text(start.get("text", "") + grown)
            case "thinking":
                return self._thinking(part, start.get("thinking", "") + grown)
            case "tool_use":
                arguments, malformed = _json.arguments(grown) if grown else (start.get("input") or {}, "")
                return ToolCall(start["name"], arguments, wire_id=start["id"], malformed=malformed)
            case _ if grown:  # a tool that runs at the provider: its input grew
                return Opaque(self._provider, _json.encode({**start, "input": _json.loads(grown)}))
            case _:
                return Opaque(self._provider, _content_block(part.raw))

    def _thinking(self, part: _Part, text: str) -> Thinking:
        signature = part.signature or part.start.get("signature") or ""
        # A block that was cut before it was signed would be refused: it is shown, and not sent back.
        raw = {**part.start, "thinking": text, "signature": signature}
        return Thinking(text, self._provider, orjson.dumps(raw) if signature else b"")


_EVENTS: dict[str, Callable[[_Assembly, dict[str, Any], bytes], tuple[Chunk, ...]]] = {
    "message_start": _Assembly._on_start,
    "content_block_start": _Assembly._on_block,
    "content_block_delta": _Assembly._on_delta,
    "message_delta": _Assembly._on_message_delta,
    "message_stop": _Assembly._on_stop,
}


def _stream_error(event: dict[str, Any], data: bytes, peer: Peer) -> ProviderError:
    kind = str((event.get("error") or {}).get("type", ""))
    return peer.status(_STATUS_OF.get(kind, 500), data, kind=kind)


async def _no_stream(answer: Reply) -> ProviderError:
    """The error for a 200 that is no stream: some gateways put their errors there."""
    body = await answer.body()
    try:
        event = _json.loads(body)
        if event["type"] == "error":
            return _stream_error(event, body, answer.peer)
    except (LookupError, TypeError, ValueError):
        pass  # not even that: shown as it came
    return answer.peer.protocol(
        f"{answer.content_type!r} instead of a stream of events: {answer.peer.excerpt(body)}"
    )


def _stop(reason: str | None, has_calls: bool) -> StopReason:
    """Why the model stopped. For a reason that we do not know, calls count as cut: they are not run."""
    if reason is None:
        return StopReason.TOOLS if has_calls else StopReason.END
    return _STOPS.get(reason, StopReason.LENGTH if has_calls else StopReason.END)


def _content_block(event: bytes) -> bytes:
    """The bytes of `content_block` in an event, exactly as they came."""
    text = event.decode()
    begin = re.search(r'"content_block"\s*:\s*', text)
    if begin is None:
        raise ValueError("no content_block")
    _, end = json.JSONDecoder().raw_decode(text, begin.end())
    return text[begin.end() : end].encode()
