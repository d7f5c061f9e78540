"""The schema that an envelope is held to: tools' own schemas, reduced to what every server can turn into a grammar.

What the reduced schema admits, the tool's own check of types, fields and choices passes: an unknown tool, a missing
field or a wrong type cannot be written at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graphton._arguments import referred
from graphton.chat.base import ToolSpec

__all__ = [
    "ARGUMENTS",
    "CALLS",
    "TEXT",
    "TOOL",
    "closed",
    "plain_schema",
    "reply_name",
    "reply_only",
    "reply_schema",
]

TOOL, ARGUMENTS, CALLS, TEXT = "tool", "arguments", "calls", "text"
REPLIES = ("reply", "answer_user", "reply_to_user", "final_reply")
"""Names for what is no tool but the reply: the first that no tool has."""
MOST_CALLS = 8
"""So many calls in one envelope, where the model may make several."""

KEPT = ("enum", "const", "minItems", "maxItems")
"""Keywords passed on as they are. Others (patterns, formats, lengths, ranges) are left to the check of the
arguments: as a grammar they are refused by some servers, or slow."""


def reply_name(tools: Sequence[ToolSpec]) -> str:
    """What the reply is called beside these tools: a name like theirs, so that a model chooses among equals.

    With a key of its own for the reply, the 0.5b took 4 of 18 requests that needed a tool for ones that needed none, and
    14 of 18 this way.
    """
    taken = {tool.name for tool in tools}
    return next(
        name for name in (*REPLIES, *(f"reply_{n}" for n in range(len(taken) + 1))) if name not in taken
    )


def reply_schema(
    tools: Sequence[ToolSpec], *, several: bool = False, reply: str | None = ""
) -> dict[str, Any]:
    """The schema of an envelope: a call of one of the tools with its own arguments, several where allowed, or a reply.

    `reply` is what the reply is called, where it is told beside more tools than these; None: there must be a call.
    """
    definitions: dict[str, Any] = {}
    calls = []
    for number, tool in enumerate(tools):
        reduced = _Reducer(tool.parameters, f"t{number}_", definitions)
        calls.append(_call(tool.name, reduced.arguments()))
    listed = {"type": "array", "items": {"anyOf": calls}, "minItems": 2, "maxItems": MOST_CALLS}
    together = [closed({CALLS: listed})] if several and calls else []
    answers = [] if reply is None else [_reply(reply or reply_name(tools))]
    schema: dict[str, Any] = {"anyOf": [*calls, *together, *answers]}
    return schema | ({"$defs": definitions} if definitions else {})


def reply_only(tools: Sequence[ToolSpec]) -> dict[str, Any]:
    """The schema of an envelope that holds no call."""
    return _reply(reply_name(tools))


def _reply(name: str) -> dict[str, Any]:
    return _call(name, closed({TEXT: {"type": "string"}}))


def _call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return closed({TOOL: {"const": name}, ARGUMENTS: arguments})


def closed(properties: dict[str, Any]) -> dict[str, Any]:
    """An object of exactly these fields."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def plain_schema(schema: Any) -> dict[str, Any]:
    """One schema, reduced; definitions that contain references are left where they are named."""
    definitions: dict[str, Any] = {}
    plain = _Reducer(schema, "", definitions).plain(schema)
    return plain | ({"$defs": definitions} if definitions else {})


@dataclass
class _Reducer:
    """Reduces one tool's schema. References to leaves are written out; others, which may be circles, become definitions."""

    root: Any
    prefix: str
    definitions: dict[str, Any]
    _names: dict[str, str] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """The schema of the tool's arguments: always an object, an empty one where the tool takes none."""
        plain = self.plain(self.root)
        if plain.get("type") == "object" or "anyOf" in plain or "$ref" in plain:
            bare = "properties" not in plain and "anyOf" not in plain and "$ref" not in plain
            return closed({}) if bare and "additionalProperties" not in plain else plain
        return closed({})

    def plain(self, schema: Any) -> dict[str, Any]:
        if not isinstance(schema, Mapping):
            return {}
        if isinstance(reference := schema.get("$ref"), str):
            return self._referred(reference)
        if parts := [part for part in schema.get("allOf", ()) if isinstance(part, Mapping)]:
            return self.plain(self._merged([{k: v for k, v in schema.items() if k != "allOf"}, *parts]))
        for word in ("anyOf", "oneOf"):
            if options := schema.get(word):
                rest = {k: v for k, v in schema.items() if k != word}
                return {"anyOf": [self.plain(self._merged([rest, option])) for option in options]}
        return self._leaf(schema)

    def _leaf(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        plain = {key: schema[key] for key in KEPT if key in schema}
        if "enum" in plain or "const" in plain:
            return plain
        if "type" in schema:
            plain["type"] = schema["type"]
        if isinstance(items := schema.get("items"), Mapping):
            plain["items"] = self.plain(items)
        properties, others = schema.get("properties"), schema.get("additionalProperties")
        if isinstance(properties, Mapping):
            plain |= {
                "type": "object",
                "properties": {key: self.plain(value) for key, value in properties.items()},
                "required": [key for key in schema.get("required", ()) if key in properties],
                "additionalProperties": False,
            }
        elif isinstance(others, Mapping):
            plain |= {"type": "object", "additionalProperties": self.plain(others)}
        return plain

    def _merged(self, parts: Iterable[Any]) -> dict[str, Any]:
        """One schema that says what all of these say; of two that disagree the later one counts."""
        merged: dict[str, Any] = {}
        for part in parts:
            part = self._target(part) if isinstance(part, Mapping) else {}
            properties = {**merged.get("properties", {}), **part.get("properties", {})}
            required = list(dict.fromkeys([*merged.get("required", ()), *part.get("required", ())]))
            merged |= part
            merged |= {"properties": properties} if properties else {}
            merged |= {"required": required} if required else {}
        return merged

    def _target(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        """What stands behind a schema's reference, if it is one."""
        for _ in range(20):
            if not isinstance(reference := schema.get("$ref"), str):
                return schema
            found = referred(reference, self.root)
            if not isinstance(found, Mapping):
                return {}
            schema = found
        return {}

    def _referred(self, reference: str) -> dict[str, Any]:
        target = self._target({"$ref": reference})
        if not _refers(target):
            return self._leaf(target) if not _composed(target) else self.plain(target)
        name = self._names.get(reference)
        if name is None:
            name = self._names[reference] = f"{self.prefix}{len(self._names)}"
            self.definitions[name] = self.plain(target)
        return {"$ref": f"#/$defs/{name}"}


def _composed(schema: Mapping[str, Any]) -> bool:
    return any(word in schema for word in ("allOf", "anyOf", "oneOf"))


def _refers(schema: Any) -> bool:
    """Whether a schema holds a reference anywhere."""
    match schema:
        case Mapping():
            return "$ref" in schema or any(_refers(value) for value in schema.values())
        case list():
            return any(_refers(one) for one in schema)
        case _:
            return False
