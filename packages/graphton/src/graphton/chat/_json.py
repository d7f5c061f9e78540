"""JSON that models wrote: parsed fast where it is clean, and with care where it is not."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

__all__ = ["arguments", "clean", "encode", "loads"]

_LONG_NUMBER = re.compile(r"\d{19}")
"""orjson reads integers beyond 64 bits as floats; where there may be one, the standard library reads instead."""


def loads(data: bytes | str) -> Any:
    """The value of a JSON text; half a surrogate pair in it becomes U+FFFD. Raises ValueError."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return _careful(data)


def arguments(text: str) -> tuple[dict[str, Any], str]:
    """A tool call's arguments, and "" or the text as it came where it is no JSON object.

    >>> arguments('{"path": "a.txt"}'), arguments('{"path": "a.t')
    (({'path': 'a.txt'}, ''), ({}, '{"path": "a.t'))
    """
    if not text.strip():
        return {}, ""  # a tool without parameters, as most providers say it
    try:
        value = _careful(text) if _LONG_NUMBER.search(text) else loads(text)
    except (ValueError, RecursionError):
        return {}, text
    return (value, "") if isinstance(value, dict) else ({}, text)


def encode(value: Any) -> bytes:
    """`value` as JSON; integers of any size keep their digits."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(clean(value), ensure_ascii=False, separators=(",", ":")).encode()


def clean(value: Any) -> Any:
    """The same value, every text in it fit for the wire: half a surrogate pair (from a file's name) becomes `?`."""
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case dict():
            return {clean(k): clean(v) for k, v in value.items()}
        case list() | tuple():
            return [clean(v) for v in value]
        case _:
            return value


def _careful(data: bytes | str) -> Any:
    value = json.loads(data, parse_constant=_no_constant)
    text = json.dumps(value, ensure_ascii=False)
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value if whole == text else json.loads(whole)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
