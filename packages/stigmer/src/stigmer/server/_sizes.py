"""How large the parts of a request may be, and which signs and numbers no database takes: one walk over any message."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from stigmer.server.status import Refused

__all__ = ["check_sizes"]

TEXTS = {"task": 4 << 20, "instructions": 1 << 20, "text": 1 << 20, "description": 65_536, "reason": 65_536}
"""Characters, by the field's name. Instructions count together: sub-agents have some, too."""
LONGEST = 4096
"""Characters of any other text: a path may be so long."""
MOST = 1000
"""Entries of a list or a map."""
_LONG = ("events", "live", "appends")
"""What workers send has as many entries as there were events."""
_HIGHEST = (1 << 63) - 1
_NUMBERS = (FieldDescriptor.CPPTYPE_UINT64, FieldDescriptor.CPPTYPE_INT64)


def check_sizes(request: Any) -> None:
    """Raises Refused where a part of the request is larger than it may be, or cannot be kept."""
    instructions = 0
    for field, value in _parts(request):
        if isinstance(value, str):
            limit = TEXTS.get(field.name, LONGEST)
            length = len(value)
            if field.name == "instructions":
                instructions += length
                length = instructions
            if length > limit and field.name != "task":  # A task has words of its own for that.
                raise _refused(f"{field.name} has {length} characters, more than {limit}")
            if field.name not in TEXTS and "\0" in value:
                raise _refused(f"{field.name} holds a zero character")
        elif field.cpp_type in _NUMBERS and value > _HIGHEST:
            raise _refused(f"{field.name} {value} is above {_HIGHEST}")


def _refused(message: str) -> Refused:
    return Refused(message, code="too_large", hint="what a request may hold: docs/access.md")


def _parts(message: Any) -> Iterator[tuple[FieldDescriptor, Any]]:
    """Every value that is set, however deep it stands. Bytes are looked at by whoever reads them."""
    for field, value in message.ListFields():
        several = value if _repeats(value) else [value]
        if len(several) > MOST and field.name not in _LONG:
            raise _refused(f"{field.name} has {len(several)} entries, more than {MOST}")
        if isinstance(several, Mapping):
            several = [part for pair in several.items() for part in pair]
        for one in several:
            if hasattr(one, "ListFields"):
                yield from _parts(one)
            else:
                yield field, one


def _repeats(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, (str, bytes))
