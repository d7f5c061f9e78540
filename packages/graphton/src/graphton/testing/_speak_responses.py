"""How FakeProviders speaks OpenAI's Responses API."""

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
from graphton.testing._fake_script import FakeRequest, Reply
from graphton.testing._speak_common import arguments_text, pieces, sse, usage_numbers
from graphton.testing._speak_openai import KINDS

provider = "openai"
content_type = "text/event-stream; charset=utf-8"
unknown_event = sse(
    "weather.report", {"type": "weather.report", "sequence_number": 0, "sky": ["blue", {"deep": None}]}
)
keep_alive = sse("keepalive", {"type": "keepalive", "sequence_number": 0})

INCOMPLETE = {
    StopReason.LENGTH: "max_output_tokens",
    StopReason.CONTEXT: "max_output_tokens",
    StopReason.REFUSED: "content_filter",
    StopReason.PAUSED: "steered",
}
"""Stop reasons with which a response is not complete, and why it says it is not."""


def streams(body: Mapping[str, Any]) -> bool:
    """Whether the client asked for a stream."""
    return bool(body.get("stream", False))


def read(body: Mapping[str, Any], request: FakeRequest) -> None:
    """Fill in the neutral form of a request."""
    given = body["input"]
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    prompts = [_plain(i["content"]) for i in items if i.get("role") in ("system", "developer")]
    request.system = "\n".join([*filter(None, [body.get("instructions")]), *prompts])
    request.tools = tuple(
        ToolSpec(t["name"], t.get("description") or "", t.get("parameters") or {})
        for t in body.get("tools", ())
        if t.get("type") == "function"
    )
    request.schema = ((body.get("text") or {}).get("format") or {}).get("schema")
    request.messages = tuple(_messages(items))


def _plain(content: Any) -> str:
    if isinstance(content, list):
        return "".join(p.get("text", "") for p in content)
    return content or ""


def _messages(items: list[dict[str, Any]]) -> Iterator[Message]:
    """Items that follow each other and belong to one turn are one message."""
    replied: list[Block] = []
    results: list[ToolResult] = []
    names: dict[str, str] = {}
    for item in items:
        kind = item.get("type", "message")
        if kind != "function_call_output" and results:
            yield ToolResults(tuple(results))
            results = []
        if (kind == "function_call_output" or item.get("role") == "user") and replied:
            yield AssistantMessage(tuple(replied))
            replied = []
        if kind == "function_call_output":
            call = item["call_id"]
            results.append(ToolResult("", call, names.get(call, ""), _plain(item["output"])))
        elif kind != "message":
            replied.append(_block(item))
            names |= {item["call_id"]: item["name"]} if kind == "function_call" else {}
        elif item["role"] == "user":
            yield UserMessage(_plain(item["content"]))
        elif item["role"] == "assistant":
            replied.append(Text(_plain(item["content"])))
    if replied:
        yield AssistantMessage(tuple(replied))
    if results:
        yield ToolResults(tuple(results))


def _block(item: Mapping[str, Any]) -> Block:
    match item["type"]:
        case "reasoning":
            return Thinking("".join(p["text"] for p in item["summary"]), provider, orjson.dumps(item))
        case "function_call":
            try:
                parsed = orjson.loads(item["arguments"])
            except orjson.JSONDecodeError:
                return ToolCall(item["name"], {}, wire_id=item["call_id"], malformed=item["arguments"])
            return ToolCall(item["name"], parsed, wire_id=item["call_id"])
        case _:
            return Opaque(provider, orjson.dumps(item))


def _usage(reply: Reply, request: FakeRequest) -> dict[str, Any]:
    given, made = usage_numbers(reply, request)
    details = {"cached_tokens": reply.cached_tokens, "cache_write_tokens": reply.cache_write_tokens}
    return {
        "input_tokens": given,
        "input_tokens_details": details,
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": len(reply.thinking) // 4},
        "total_tokens": given + made,
    }


def _output(reply: Reply, request: FakeRequest) -> list[dict[str, Any]]:
    """The items of a reply."""
    done = "incomplete" if reply.stop_reason in INCOMPLETE else "completed"
    made: list[dict[str, Any]] = []
    if reply.thinking:
        item: dict[str, Any] = {"id": "rs_fake", "type": "reasoning"}
        item["summary"] = [{"type": "summary_text", "text": reply.thinking}]
        if "reasoning.encrypted_content" in (request.json.get("include") or ()):
            item["encrypted_content"] = reply.signature
        made.append(item)
    if reply.text:
        part = {"type": "output_text", "text": reply.text, "annotations": [], "logprobs": []}
        head = {"id": "msg_fake", "type": "message", "status": done, "role": "assistant"}
        made.append({**head, "content": [part]})
    for index, call in enumerate(reply.calls):
        made.append(
            {
                "id": f"fc_fake_{index}",
                "type": "function_call",
                "status": done,
                "arguments": arguments_text(call.arguments),
                "call_id": f"call_fake_{index}" if call.id is None else call.id,
                "name": call.name,
            }
        )
    return made


def whole(reply: Reply, request: FakeRequest) -> dict[str, Any]:
    """The reply as one JSON object."""
    reason = INCOMPLETE.get(reply.stop_reason)
    return {
        **_started(reply, request),
        "status": "incomplete" if reason else "completed",
        "incomplete_details": {"reason": reason} if reason else None,
        "output": _output(reply, request),
        "usage": _usage(reply, request),
    }


def _started(reply: Reply, request: FakeRequest) -> dict[str, Any]:
    asked = request.json
    return {
        "id": "resp_fake",
        "object": "response",
        "created_at": 1764000000,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": asked.get("instructions"),
        "max_output_tokens": asked.get("max_output_tokens"),
        "model": reply.model or request.model,
        "output": [],
        "parallel_tool_calls": True,
        "store": asked.get("store", True),
        "temperature": asked.get("temperature"),
        "tool_choice": "auto",
        "tools": asked.get("tools") or [],
        "usage": None,
    }


def events(reply: Reply, request: FakeRequest) -> list[bytes]:
    """The reply as server-sent events."""
    return [sse(e["type"], {**e, "sequence_number": n}) for n, e in enumerate(_events(reply, request))]


def _events(reply: Reply, request: FakeRequest) -> Iterator[dict[str, Any]]:
    started = _started(reply, request)
    yield {"type": "response.created", "response": started}
    yield {"type": "response.in_progress", "response": started}
    for index, item in enumerate(_output(reply, request)):
        at = {"output_index": index, "item_id": item["id"]}
        yield from (
            {**e, **at} if "item" not in e else e for e in _GROWTH[item["type"]](item, index, reply.pieces)
        )
    if reply.end_marker:
        end = whole(reply, request)
        yield {"type": f"response.{end['status']}", "response": end}


def _opened(item: dict[str, Any], index: int, **empty: Any) -> dict[str, Any]:
    opened = {**item, **empty} | ({"status": "in_progress"} if "status" in item else {})
    return {"type": "response.output_item.added", "output_index": index, "item": opened}


def _closed(item: dict[str, Any], index: int) -> dict[str, Any]:
    return {"type": "response.output_item.done", "output_index": index, "item": item}


def _message(item: dict[str, Any], index: int, count: int) -> Iterator[dict[str, Any]]:
    (part,) = item["content"]
    yield _opened(item, index, content=[])
    yield {"type": "response.content_part.added", "content_index": 0, "part": {**part, "text": ""}}
    for piece in pieces(part["text"], count):
        yield {"type": "response.output_text.delta", "content_index": 0, "delta": piece, "logprobs": []}
    yield {"type": "response.output_text.done", "content_index": 0, "text": part["text"], "logprobs": []}
    yield {"type": "response.content_part.done", "content_index": 0, "part": part}
    yield _closed(item, index)


def _reasoning(item: dict[str, Any], index: int, count: int) -> Iterator[dict[str, Any]]:
    (part,) = item["summary"]
    yield _opened(item, index, summary=[])
    empty = {**part, "text": ""}
    yield {"type": "response.reasoning_summary_part.added", "summary_index": 0, "part": empty}
    for piece in pieces(part["text"], count):
        yield {"type": "response.reasoning_summary_text.delta", "summary_index": 0, "delta": piece}
    yield {"type": "response.reasoning_summary_text.done", "summary_index": 0, "text": part["text"]}
    yield {"type": "response.reasoning_summary_part.done", "summary_index": 0, "part": part}
    yield _closed(item, index)


def _function_call(item: dict[str, Any], index: int, count: int) -> Iterator[dict[str, Any]]:
    yield _opened(item, index, arguments="")
    for piece in pieces(item["arguments"], count):
        yield {"type": "response.function_call_arguments.delta", "delta": piece}
    done = {"type": "response.function_call_arguments.done", "name": item["name"]}
    yield {**done, "arguments": item["arguments"]}
    yield _closed(item, index)


_GROWTH = {"message": _message, "reasoning": _reasoning, "function_call": _function_call}


def error(status: int, kind: str, message: str) -> dict[str, Any]:
    """An error body."""
    usual = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind or usual, "param": None, "code": kind or None}}


def error_event(status: int, kind: str, message: str) -> bytes:
    """An error inside a 200 stream."""
    code = kind or "server_error"
    return sse(
        "error", {"type": "error", "code": code, "message": message, "param": None, "sequence_number": 0}
    )


def problem(request: FakeRequest) -> str:
    """What the real server would refuse about the conversation; "" for nothing."""
    items = request.json["input"] if isinstance(request.json["input"], list) else []
    made = [i["call_id"] for i in items if i.get("type") == "function_call"]
    answered = [i["call_id"] for i in items if i.get("type") == "function_call_output"]
    if stray := [i for i in answered if i not in made]:
        return f"No tool call found for function call output with call_id {stray[0]}."
    if missing := [i for i in made if i not in answered]:
        return f"No tool output found for function call {missing[0]}."
    stored = request.json.get("store", True)
    for number, item in enumerate(items):
        if item.get("type") != "reasoning":
            continue
        if not stored and not item.get("encrypted_content"):
            return (
                f"Item with id '{item['id']}' not found. Items are not persisted when `store` is set to false. "
                "Try again with `store` set to true, or remove this item from your input."
            )
        following = items[number + 1] if number + 1 < len(items) else {"role": "user"}
        if following.get("role") == "user" or following.get("type") == "function_call_output":
            return (
                f"Item '{item['id']}' of type 'reasoning' was provided without its required following item."
            )
    return ""
