"""What the dialects of chat completions and Ollama share in saying calls and results."""

from __future__ import annotations

import json
import secrets
from typing import Any

import orjson

from graphton.chat import _json
from graphton.messages import ToolCall, ToolResult

__all__ = [
    "THINKING_LEVELS",
    "Fragment",
    "call_arguments",
    "call_id",
    "dumps",
    "result_text",
    "sent_arguments",
]

Fragment = orjson.Fragment
"""JSON that is encoded already, to be put into a larger body as it is."""

THINKING_LEVELS = ("off", "low", "medium", "high")


def dumps(value: Any) -> bytes:
    """Compact JSON. What orjson refuses (lone surrogates from a file, huge integers) goes the slow way."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def call_arguments(raw: Any) -> tuple[dict[str, Any], str]:
    """A call's arguments, given as an object or as JSON text, and the text as it came where it is no object."""
    if isinstance(raw, dict):
        return raw, ""
    return _json.arguments("" if raw is None else raw if isinstance(raw, str) else dumps(raw).decode())


def sent_arguments(call: ToolCall) -> dict[str, Any]:
    """The arguments as they go back to the model. Servers parse them again, so broken text goes inside an object."""
    return {"malformed": call.malformed} if call.malformed else call.arguments


def call_id() -> str:
    """An id for a call that came without one: nine letters and digits, which every host takes back."""
    return secrets.token_hex(5)[:9]


def result_text(result: ToolResult) -> str:
    """A tool's result for dialects that have no field for "this is an error"."""
    if not result.is_error or result.text.lower().startswith("error"):
        return result.text
    return f"Error: {result.text}"
