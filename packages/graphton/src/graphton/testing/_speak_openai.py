"""How FakeProviders speaks OpenAI chat completions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from graphton.chat.base import ToolSpec
from graphton.messages import (
    AssistantMessage,
    Message,
    StopReason,
    Text,
    ToolCall,
    ToolResult,
    ToolResults,
    UserMessage,
)
from graphton.testing._fake_script import FakeRequest, Reply
from graphton.testing._speak_common import arguments_text, pieces, sse, usage_numbers

provider = "openai"
content_type = "text/event-stream; charset=utf-8"
unknown_event = sse("", {"object": "weather.report", "choices": [], "sky": ["blue", {"deep": None}]})
keep_alive = b": keep-alive\n\n"

STOPS = {
    StopReason.END: "stop",
    StopReason.TOOLS: "tool_calls",
    StopReason.LENGTH: "length",
    StopReason.REFUSED: "content_filter",
    StopReason.CONTEXT: "length",
    StopReason.PAUSED: "stop",
}
KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


def streams(body: Mapping[str, Any]) -> bool:
    """Whether the client asked for a stream."""
    return bool(body.get("stream", False))


def read(body: Mapping[str, Any], request: FakeRequest) -> None:
    """Fill in the neutral form of a request."""
    prompts = [m for m in body["messages"] if m["role"] in ("system", "developer")]
    request.system = "\n".join(_plain(m["content"]) for m in prompts)
    functions = [t["function"] for t in body.get("tools", ()) if t.get("type") == "function"]
    request.tools = tuple(
        ToolSpec(f["name"], f.get("description", ""), f.get("parameters", {})) for f in functions
    )
    request.schema = (body.get("response_format") or {}).get("json_schema", {}).get("schema")
    request.messages = tuple(_messages(body["messages"]))


def _plain(content: Any) -> str:
    if isinstance(content, list):
        return "".join(p.get("text", "") for p in content)
    return content or ""


def _messages(wire: list[dict[str, Any]]) -> Iterator[Message]:
    results: list[ToolResult] = []
    names: dict[str, str] = {}
    for message in wire:
        if message["role"] == "tool":
            call = message["tool_call_id"]
            results.append(ToolResult("", call, names.get(call, ""), _plain(message["content"])))
            continue
        if results:
            yield ToolResults(tuple(results))
            results = []
        if message["role"] == "user":
            yield UserMessage(_plain(message["content"]))
        elif message["role"] == "assistant":
            calls = [_call(c) for c in message.get("tool_calls") or ()]
            names.update((c.wire_id, c.name) for c in calls)
            text = _plain(message.get("content"))
            yield AssistantMessage((*((Text(text),) if text else ()), *calls))
    if results:
        yield ToolResults(tuple(results))


def _call(wire: Mapping[str, Any]) -> ToolCall:
    raw = wire["function"]["arguments"]
    try:
        parsed = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return ToolCall(wire["function"]["name"], {}, wire_id=wire["id"], malformed=raw)
    return ToolCall(wire["function"]["name"], parsed, wire_id=wire["id"])


def _usage(reply: Reply, request: FakeRequest) -> dict[str, Any]:
    given, made = usage_numbers(reply, request)
    return {
        "prompt_tokens": given,
        "completion_tokens": made,
        "total_tokens": given + made,
        "prompt_tokens_details": {"cached_tokens": reply.cached_tokens},
    }


def _calls(reply: Reply) -> Iterator[dict[str, Any]]:
    for index, call in enumerate(reply.calls):
        wire: dict[str, Any] = {
            "type": "function",
            "function": {"name": call.name, "arguments": arguments_text(call.arguments)},
        }
        name = f"call_fake_{index}" if call.id is None else call.id
        yield {"id": name, **wire} if name else wire


def whole(reply: Reply, request: FakeRequest) -> dict[str, Any]:
    """The reply as one JSON object."""
    message: dict[str, Any] = {"role": "assistant", "content": reply.text or None}
    if reply.thinking:
        message["reasoning_content"] = reply.thinking
    if reply.calls:
        message["tool_calls"] = list(_calls(reply))
    return {
        "id": "chatcmpl-fake",
        "object": "chat.completion",
        "created": 1764000000,
        "model": reply.model or request.model,
        "choices": [{"index": 0, "message": message, "finish_reason": STOPS[reply.stop_reason]}],
        "usage": _usage(reply, request),
    }


def events(reply: Reply, request: FakeRequest) -> list[bytes]:
    """The reply as server-sent events."""
    head = {
        "id": "chatcmpl-fake",
        "object": "chat.completion.chunk",
        "created": 1764000000,
        "model": reply.model or request.model,
    }
    made = [
        sse("", {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        for delta in _deltas(reply)
    ]
    end = {"index": 0, "delta": {}, "finish_reason": STOPS[reply.stop_reason]}
    made.append(sse("", {**head, "choices": [end]}))
    if (request.json.get("stream_options") or {}).get("include_usage"):
        made.append(sse("", {**head, "choices": [], "usage": _usage(reply, request)}))
    return [*made, sse("", b"[DONE]")] if reply.end_marker else made


def _deltas(reply: Reply) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant", "content": ""}
    for piece in pieces(reply.thinking, reply.pieces):
        yield {"reasoning_content": piece}
    for piece in pieces(reply.text, reply.pieces):
        yield {"content": piece}
    for index, call in enumerate(_calls(reply)):
        function = call["function"]
        first = {**call, "function": {"name": function["name"], "arguments": ""}}
        yield {"tool_calls": [{"index": index, **first}]}
        for piece in pieces(function["arguments"], reply.pieces):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def error(status: int, kind: str, message: str) -> dict[str, Any]:
    """An error body."""
    usual = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind or usual, "param": None, "code": None}}


def error_event(status: int, kind: str, message: str) -> bytes:
    """An error inside a 200 stream."""
    return sse("", error(status, kind, message))


def problem(request: FakeRequest) -> str:
    """What the real server would refuse about the conversation; "" for nothing."""
    open_ids: list[str] = []
    for message in request.messages:
        given = [r.wire_id for r in message.results] if isinstance(message, ToolResults) else []
        if [i for i in given if i not in open_ids]:
            return "messages with role 'tool' must be a response to a preceeding message with 'tool_calls'."
        if missing := [i for i in open_ids if i not in given]:
            return f"tool_call_ids did not have response messages: {', '.join(missing)}"
        open_ids = [c.wire_id for c in message.calls] if isinstance(message, AssistantMessage) else []
    return f"tool_call_ids did not have response messages: {', '.join(open_ids)}" if open_ids else ""
