"""What the dialects of FakeProviders share: pieces of text, SSE framing, estimated usage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from graphton.testing._fake_script import FakeRequest, Reply


def pieces(text: str, count: int) -> list[str]:
    """`text` in about `count` pieces, in order; none is empty."""
    size = max(1, -(-len(text) // max(1, count)))
    return [text[i : i + size] for i in range(0, len(text), size)]


def arguments_text(arguments: Mapping[str, Any] | str) -> str:
    """A call's arguments as they stand on the wire."""
    return arguments if isinstance(arguments, str) else orjson.dumps(dict(arguments)).decode()


def sse(event: str, data: Any) -> bytes:
    """One server-sent event; without a name where `event` is ""."""
    name = f"event: {event}\n".encode() if event else b""
    return name + b"data: " + (data if isinstance(data, bytes) else orjson.dumps(data)) + b"\n\n"


def usage_numbers(reply: Reply, request: FakeRequest) -> tuple[int, int]:
    """Input and output tokens: as ordered, else about four bytes to a token."""
    made = reply.text + reply.thinking + "".join(arguments_text(c.arguments) for c in reply.calls)
    given = len(request.body) // 4 + 1 if reply.input_tokens is None else reply.input_tokens
    return given, len(made) // 4 + 1 if reply.output_tokens is None else reply.output_tokens
