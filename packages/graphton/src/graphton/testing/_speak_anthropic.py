"""How FakeProviders speaks Anthropic Messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from graphton.chat.base import ToolSpec
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
    UserMessage,
)
from graphton.testing._fake_script import Call, FakeRequest, Reply
from graphton.testing._speak_common import arguments_text, pieces, sse, usage_numbers

provider = "anthropic"
content_type = "text/event-stream; charset=utf-8"
unknown_event = sse("weather_report", {"type": "weather_report", "sky": ["blue", {"deep": None}]})
keep_alive = sse("ping", {"type": "ping"})

STOPS = {
    StopReason.END: "end_turn",
    StopReason.TOOLS: "tool_use",
    StopReason.LENGTH: "max_tokens",
    StopReason.REFUSED: "refusal",
    StopReason.CONTEXT: "model_context_window_exceeded",
    StopReason.PAUSED: "pause_turn",
}
KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def streams(body: Mapping[str, Any]) -> bool:
    """Whether the client asked for a stream."""
    return bool(body.get("stream", False))


def read(body: Mapping[str, Any], request: FakeRequest) -> None:
    """Fill in the neutral form of a request."""
    request.system = _plain(body.get("system", ""))
    request.tools = tuple(
        ToolSpec(t["name"], t.get("description", ""), t.get("input_schema", {}))
        for t in body.get("tools", ())
        if "name" in t
    )
    request.schema = body.get("output_config", {}).get("format", {}).get("schema")
    names: dict[str, str] = {}
    request.messages = tuple(m for wire in body["messages"] for m in _messages(wire, names))


def _plain(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(b.get("text", "") for b in content if b.get("type") == "text")


def _messages(wire: Mapping[str, Any], names: dict[str, str]) -> Iterator[Message]:
    content = wire["content"]
    if wire["role"] == "assistant":
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        names.update((b["id"], b["name"]) for b in parts if b["type"] == "tool_use")
        yield AssistantMessage(tuple(_block(b) for b in parts))
        return
    results = [b for b in content if b.get("type") == "tool_result"] if isinstance(content, list) else []
    if results:
        yield ToolResults(
            tuple(
                ToolResult(
                    "",
                    r["tool_use_id"],
                    names.get(r["tool_use_id"], ""),
                    _plain(r.get("content", "")),
                    bool(r.get("is_error", False)),
                )
                for r in results
            )
        )
    text = _plain(content)
    if text or not results:
        yield UserMessage(text)


def _block(wire: Mapping[str, Any]) -> Block:
    match wire["type"]:
        case "text":
            return Text(wire["text"])
        case "thinking":
            return Thinking(wire["thinking"], provider, orjson.dumps(wire))
        case "tool_use":
            return ToolCall(wire["name"], wire["input"], wire_id=wire["id"])
        case _:
            return Opaque(provider, orjson.dumps(wire))


def _usage(reply: Reply, request: FakeRequest) -> dict[str, Any]:
    given, made = usage_numbers(reply, request)
    return {
        "input_tokens": given - reply.cached_tokens - reply.cache_write_tokens,
        "cache_creation_input_tokens": reply.cache_write_tokens,
        "cache_read_input_tokens": reply.cached_tokens,
        "output_tokens": made,
    }


def _content(reply: Reply) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if reply.thinking:
        blocks.append({"type": "thinking", "thinking": reply.thinking, "signature": reply.signature})
    if reply.text:
        blocks.append({"type": "text", "text": reply.text})
    for i, call in enumerate(reply.calls):
        blocks.append({"type": "tool_use", "id": _id(call, i), "name": call.name, "input": call.arguments})
    return blocks


def _id(call: Call, index: int) -> str:
    return f"toolu_fake_{index}" if call.id is None else call.id


def whole(reply: Reply, request: FakeRequest) -> dict[str, Any]:
    """The reply as one JSON object."""
    return {
        "id": "msg_fake",
        "type": "message",
        "role": "assistant",
        "model": reply.model or request.model,
        "content": _content(reply),
        "stop_reason": STOPS[reply.stop_reason],
        "stop_sequence": None,
        "usage": _usage(reply, request),
    }


def events(reply: Reply, request: FakeRequest) -> list[bytes]:
    """The reply as server-sent events."""
    return [sse(e["type"], e) for e in _events(reply, request)]


def _events(reply: Reply, request: FakeRequest) -> Iterator[dict[str, Any]]:
    usage = _usage(reply, request)
    start = {
        **whole(reply, request),
        "content": [],
        "stop_reason": None,
        "usage": {**usage, "output_tokens": 1},
    }
    yield {"type": "message_start", "message": start}
    for index, block in enumerate(_content(reply)):
        empty, deltas = _streamed(block, reply.pieces)
        yield {"type": "content_block_start", "index": index, "content_block": empty}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    yield {
        "type": "message_delta",
        "delta": {"stop_reason": STOPS[reply.stop_reason], "stop_sequence": None},
        "usage": {"output_tokens": usage["output_tokens"]},
    }
    if reply.end_marker:
        yield {"type": "message_stop"}


def _streamed(block: Mapping[str, Any], count: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    match block["type"]:
        case "text":
            deltas = [{"type": "text_delta", "text": p} for p in pieces(block["text"], count)]
            return {"type": "text", "text": ""}, deltas
        case "thinking":
            deltas = [{"type": "thinking_delta", "thinking": p} for p in pieces(block["thinking"], count)]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
            return {"type": "thinking", "thinking": "", "signature": ""}, deltas
        case _:
            raw = arguments_text(block["input"])
            deltas = [{"type": "input_json_delta", "partial_json": p} for p in ["", *pieces(raw, count)]]
            return {**block, "input": {}}, deltas


def error(status: int, kind: str, message: str) -> dict[str, Any]:
    """An error body."""
    return {"type": "error", "error": {"type": kind or KINDS.get(status, "api_error"), "message": message}}


def error_event(status: int, kind: str, message: str) -> bytes:
    """An error inside a 200 stream."""
    return sse("error", error(status, kind, message))


def problem(request: FakeRequest) -> str:
    """What the real server would refuse about the conversation; "" for nothing."""
    open_ids: list[str] = []
    for number, message in enumerate(request.messages):
        given = [r.wire_id for r in message.results] if isinstance(message, ToolResults) else []
        if stray := [i for i in given if i not in open_ids]:
            return f"messages.{number}: unexpected `tool_use_id` found in `tool_result` blocks: {stray[0]}"
        if missing := [i for i in open_ids if i not in given]:
            return f"messages.{number}: `tool_use` ids were found without `tool_result` blocks: {missing[0]}"
        open_ids = [c.wire_id for c in message.calls] if isinstance(message, AssistantMessage) else []
    return f"messages: `tool_use` without `tool_result` at the end: {open_ids[0]}" if open_ids else ""
