"""How FakeProviders speaks Ollama's native chat: one JSON object a line."""

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
    Thinking,
    ToolCall,
    ToolResult,
    ToolResults,
    UserMessage,
)
from graphton.testing._fake_script import FakeRequest, Reply
from graphton.testing._speak_common import pieces, usage_numbers

provider = "ollama"
content_type = "application/x-ndjson"
keep_alive = b"\n"

NOW = "2026-11-25T01:02:03.456789Z"
unknown_event = (
    orjson.dumps({"model": "fake", "created_at": NOW, "weather": {"sky": ["blue"]}, "done": False}) + b"\n"
)


def streams(body: Mapping[str, Any]) -> bool:
    """Whether the client asked for a stream; Ollama streams when nobody says."""
    return bool(body.get("stream", True))


def read(body: Mapping[str, Any], request: FakeRequest) -> None:
    """Fill in the neutral form of a request."""
    request.system = "\n".join(m.get("content", "") for m in body["messages"] if m["role"] == "system")
    functions = [t["function"] for t in body.get("tools") or () if t.get("type") == "function"]
    request.tools = tuple(
        ToolSpec(f["name"], f.get("description", ""), f.get("parameters", {})) for f in functions
    )
    wanted = body.get("format")
    request.schema = wanted if isinstance(wanted, dict) else None
    request.messages = tuple(_messages(body["messages"]))


def _messages(wire: list[dict[str, Any]]) -> Iterator[Message]:
    results: list[ToolResult] = []
    for message in wire:
        text = message.get("content") or ""
        if message["role"] == "tool":
            call = message.get("tool_call_id", "")
            results.append(ToolResult("", call, message.get("tool_name", ""), text))
            continue
        if results:
            yield ToolResults(tuple(results))
            results = []
        if message["role"] == "user":
            yield UserMessage(text)
        elif message["role"] == "assistant":
            thought = message.get("thinking") or ""
            functions = [c["function"] for c in message.get("tool_calls") or ()]
            yield AssistantMessage(
                (
                    *((Thinking(thought),) if thought else ()),
                    *((Text(text),) if text else ()),
                    *(ToolCall(f["name"], f["arguments"]) for f in functions),
                )
            )
    if results:
        yield ToolResults(tuple(results))


def loaded(request: FakeRequest) -> dict[str, Any]:
    """The answer to a chat without messages."""
    end = {"done": True, "done_reason": "unload" if request.json.get("keep_alive") == 0 else "load"}
    return _line(Reply(), request, {"content": ""}, end)


def _calls(reply: Reply) -> Iterator[dict[str, Any]]:
    for index, call in enumerate(reply.calls):
        function = {"index": index, "name": call.name, "arguments": call.arguments}
        yield {"id": call.id, "function": function} if call.id else {"function": function}


def is_too_long(request: FakeRequest, reply: Reply) -> bool:
    """Whether the real server would refuse the prompt: it may not cut it, and it does not fit its window."""
    if reply.input_tokens is not None or reply.body is not None or reply.status >= 300:
        return False
    window = (request.json.get("options") or {}).get("num_ctx")
    if request.json.get("truncate") is not False or not window:
        return False
    said = sum(len(message.get("content") or "") for message in request.json["messages"])
    return bool(said // 4 > window)


def _end(reply: Reply, request: FakeRequest) -> dict[str, Any]:
    given, made = usage_numbers(reply, request)
    window = (request.json.get("options") or {}).get("num_ctx")
    # The real server drops the front of a prompt that is too long, and says nothing.
    evaluated = min(given, window) if window and reply.input_tokens is None else given
    return {
        "done": True,
        "done_reason": "length" if reply.stop_reason is StopReason.LENGTH else "stop",
        "total_duration": 2_000_000,
        "load_duration": 500_000,
        "prompt_eval_count": evaluated,
        "prompt_eval_duration": 500_000,
        "eval_count": made,
        "eval_duration": 1_000_000,
    }


def _line(
    reply: Reply, request: FakeRequest, message: Mapping[str, Any], end: Mapping[str, Any]
) -> dict[str, Any]:
    model = reply.model or request.model
    return {"model": model, "created_at": NOW, "message": {"role": "assistant", **message}, **end}


def whole(reply: Reply, request: FakeRequest) -> dict[str, Any]:
    """The reply as one JSON object."""
    message: dict[str, Any] = {"content": reply.text}
    if reply.thinking:
        message["thinking"] = reply.thinking
    if reply.calls:
        message["tool_calls"] = list(_calls(reply))
    return _line(reply, request, message, _end(reply, request))


def events(reply: Reply, request: FakeRequest) -> list[bytes]:
    """The reply as lines."""
    made: list[dict[str, Any]] = [
        *({"content": "", "thinking": p} for p in pieces(reply.thinking, reply.pieces)),
        *({"content": p} for p in pieces(reply.text, reply.pieces)),
        *({"content": "", "tool_calls": [c]} for c in _calls(reply)),
    ]
    lines = [_line(reply, request, message, {"done": False}) for message in made]
    lines.append(_line(reply, request, {"content": ""}, _end(reply, request)))
    return [orjson.dumps(line) + b"\n" for line in lines]


def error(status: int, kind: str, message: str) -> dict[str, Any]:
    """An error body; Ollama's has neither type nor code."""
    return {"error": message}


def error_event(status: int, kind: str, message: str) -> bytes:
    """An error inside a 200 stream."""
    return orjson.dumps(error(status, kind, message)) + b"\n"


def problem(request: FakeRequest) -> str:
    """What the real server would refuse about the conversation: nothing, it takes any order."""
    return ""
