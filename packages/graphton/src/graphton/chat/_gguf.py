"""The few facts that we need from the head of a GGUF model file, without loading the model."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from graphton.errors import ProviderError

__all__ = ["Head", "read_head"]

# value type -> struct format; 8 is a string, 9 an array
_NUMBERS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
_LONGEST_STRING = 1 << 20
_MOST_KEYS = 1 << 16


@dataclass(frozen=True, slots=True)
class Head:
    """What a model's file says of it; 0 where it says nothing."""

    context_window: int
    kv_bytes: int
    """Keys and values of one token, 16 bits each."""


def read_head(path: Path) -> Head:
    """Read the head of the file; one that is no GGUF file is an error that says so."""
    try:
        with path.open("rb") as file:
            facts = _facts(file)
    except (OSError, ValueError, struct.error) as error:
        raise ProviderError(
            f"model file {str(path)!r} cannot be used: {error or 'it ends too early'}",
            hint="give the path of a whole .gguf file that you may read",
            provider="llamacpp",
        ) from error
    return Head(facts.get("context_length", 0), _kv_bytes(facts))


def _kv_bytes(facts: dict[str, int]) -> int:
    heads = facts.get("attention.head_count", 0)
    width = facts.get("embedding_length", 0) // heads if heads else 0
    key = facts.get("attention.key_length", width)
    value = facts.get("attention.value_length", width)
    return facts.get("block_count", 0) * facts.get("attention.head_count_kv", heads) * (key + value) * 2


def _facts(file: BinaryIO) -> dict[str, int]:
    """The whole-number facts of the model's architecture. The tokenizer's long lists come after them: we stop there."""
    if file.read(4) != b"GGUF":
        raise ValueError("it is no GGUF file")
    _, _, keys = struct.unpack("<IQQ", file.read(20))
    if keys > _MOST_KEYS:
        raise ValueError("it is no GGUF file of this machine's byte order")
    facts: dict[str, int] = {}
    for _ in range(keys):
        key = _string(file)
        if key.startswith("tokenizer."):
            break
        value = _value(file, _number(file, 4))
        if isinstance(value, int) and not key.startswith("general."):
            facts[key.partition(".")[2]] = value
    return facts


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        inner, count = _number(file, 4), _number(file, 10)
        return [_value(file, inner) for _ in range(count)]
    return _number(file, kind)


def _number(file: BinaryIO, kind: int) -> Any:
    if kind not in _NUMBERS:
        raise ValueError(f"it holds a value of the unknown type {kind}")
    form = _NUMBERS[kind]
    return struct.unpack(form, file.read(struct.calcsize(form)))[0]


def _string(file: BinaryIO) -> str:
    length = _number(file, 10)
    if length > _LONGEST_STRING:
        raise ValueError("it is damaged: a name in its head is longer than a megabyte")
    return file.read(length).decode("utf-8", "replace")
