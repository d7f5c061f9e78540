"""An event that is too large to be sent is cut to size; the store keeps the original beside it for replay."""

from __future__ import annotations

import json

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from stigmer.api import event_pb2 as pb

__all__ = ["EVENT_LIMIT", "cut"]

EVENT_LIMIT = 256 * 1024
"""Bytes of one encoded event."""
_SMALL = 1024
"""Fields below this are left alone: ids, names, digests."""


def cut(event: pb.Event) -> pb.Event:
    """A copy of at most EVENT_LIMIT bytes: the longest texts lose their ends, and say how long they were."""
    small = pb.Event()
    small.CopyFrom(event)
    room = EVENT_LIMIT // 2
    while small.ByteSize() > EVENT_LIMIT and room >= _SMALL:
        _shorten(small, room)
        room //= 2
    if small.ByteSize() > EVENT_LIMIT:  # Thousands of small parts: the repeated fields themselves must go.
        _drop_lists(small)
    return small


def _shorten(message: Message, room: int) -> None:
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for child in value if field.is_repeated else [value]:
                _shorten(child, room)
        elif field.is_repeated:
            continue
        elif field.type == FieldDescriptor.TYPE_STRING and len(value) > room // 4:
            setattr(message, field.name, _shorter(value, room // 4))
        elif field.type == FieldDescriptor.TYPE_BYTES and len(value) > room:
            setattr(message, field.name, _no_json(len(value)) if field.name in _JSON else b"")


_JSON = frozenset({"arguments", "before", "after"})


def _no_json(size: int) -> bytes:
    return json.dumps({"cut": f"{size} bytes"}).encode()


def _shorter(text: str, room: int) -> str:
    note = text.rfind("\n… [cut: ")
    whole = text[note:] if note >= 0 else f"\n… [cut: {len(text)} characters in all]"
    return text[:room] + whole


def _drop_lists(message: Message) -> None:
    for field, value in message.ListFields():
        if field.is_repeated:
            message.ClearField(field.name)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            _drop_lists(value)
