"""The few facts that we need from the head of a GGUF model file, without loading the model."""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from graphton.errors import ProviderError

__all__ = ["Head", "check_whole", "read_head"]

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
_ALIGNMENT = 32
"""Of the weights in the file, where its head names no other."""
# Kind of weights -> how many lie in a block, and how many bytes that takes (ggml's types). Of others only their place counts.
_BLOCKS = {
    0: (1, 4),  # F32
    1: (1, 2),  # F16
    2: (32, 18),  # Q4_0
    3: (32, 20),  # Q4_1
    6: (32, 22),  # Q5_0
    7: (32, 24),  # Q5_1
    8: (32, 34),  # Q8_0
    10: (256, 84),  # Q2_K
    11: (256, 110),  # Q3_K
    12: (256, 144),  # Q4_K
    13: (256, 176),  # Q5_K
    14: (256, 210),  # Q6_K
    30: (1, 2),  # BF16
}
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
    except struct.error as error:
        raise _unusable(path, "it is damaged, or cut off in its head") from error
    except (OSError, ValueError) as error:
        raise _unusable(path, str(error)) from error
    return Head(facts.get("context_length", 0), _kv_bytes(facts))


def check_whole(path: Path) -> None:
    """Raise ProviderError where the file ends before the weights that its head lists: a broken copy or download.

    Reads the whole head, which takes some tenths of a second where the vocabulary is large; the weights are not read.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            lacking = _end(data) - len(data)
    except (OSError, ValueError, struct.error) as error:
        raise _unusable(path, "it is damaged, or cut off in its head") from error
    if lacking > 0:
        raise _unusable(path, f"it is cut off: {lacking:,} bytes of its weights are missing")


def _unusable(path: Path, why: str) -> ProviderError:
    return ProviderError(
        f"model file {str(path)!r} cannot be used: {why}",
        hint="give the path of a whole .gguf file that you may read",
        provider="llamacpp",
    )


def _end(data: mmap.mmap) -> int:
    """Where the last of the listed weights ends in the file."""
    if data[:4] != b"GGUF":
        raise ValueError("it is no GGUF file")
    _, tensors, keys = struct.unpack_from("<IQQ", data, 4)
    alignment, at = _ALIGNMENT, 24
    for _ in range(keys):
        start = at + 8
        at = _past(data, at, _STRING)
        (kind,) = struct.unpack_from("<I", data, at)
        if data[start:at] == b"general.alignment":
            (alignment,) = struct.unpack_from("<I", data, at + 4)
        at = _past(data, at + 4, kind)
    last = 0
    for _ in range(tensors):
        at = _past(data, at, _STRING)
        (dimensions,) = struct.unpack_from("<I", data, at)
        *shape, kind, offset = struct.unpack_from(f"<{dimensions}QIQ", data, at + 4)
        at += 16 + 8 * dimensions
        many, size = _BLOCKS.get(kind, (1, 0))
        last = max(last, offset + math.prod(shape) // many * size)
    return (at + alignment - 1) // alignment * alignment + last


def _past(data: mmap.mmap, at: int, kind: int) -> int:
    """Where the value of this kind that begins at `at` ends."""
    if kind in _NUMBERS:
        return at + struct.calcsize(_NUMBERS[kind])
    if kind == _STRING:
        return at + 8 + int(struct.unpack_from("<Q", data, at)[0])
    if kind != _ARRAY:
        raise ValueError(f"it holds a value of the unknown type {kind}")
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner in _NUMBERS:
        return at + int(count) * struct.calcsize(_NUMBERS[inner])
    for _ in range(count):
        at = _past(data, at, inner)
    return at


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
