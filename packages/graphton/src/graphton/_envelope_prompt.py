"""What a model is told about envelopes: how one looks, the tools in a line each, and a few examples made of these tools."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from graphton._reply_schema import ARGUMENTS, TEXT, TOOL, plain_schema, reply_name
from graphton.chat import _json
from graphton.chat.base import ToolSpec

__all__ = ["addendum", "dump"]

HOW = """\
Each message you write is one JSON object: {"tool": NAME, "arguments": {...}}
The tool "REPLY" answers the user: {"tool": "REPLY", "arguments": {"text": TEXT}}"""
SEVERAL = 'To use several tools at once: {"calls": [{"tool": NAME, "arguments": {...}}, ...]}'

MOST_EXAMPLES = 3
"""Of calls; one of a reply comes after them."""

Step = tuple[str, dict[str, Any], str]
"""A call in an example: the tool, its arguments, and what it answers ("" where nothing follows)."""

EXAMPLES: tuple[tuple[str, tuple[Step, ...], str], ...] = (
    ("What is the name in web/package.json?", (("read_file", {"path": "web/package.json"}, ""),), ""),
    ("Which file contains the word invoice?", (("search_files", {"text": "invoice"}, ""),), ""),
    (
        'Put "Bye, 2 cats" into old.md',
        (("write_file", {"path": "old.md", "content": "Bye, 2 cats"}, ""),),
        "",
    ),
)
"""One is shown where its tools are offered and take these arguments. The folder, the comma and the second step are there
because without them the small models searched for paths, split texts into lines, and told a file's text instead of
writing it where it was wanted."""

PLAIN_EXAMPLE = ("What is the capital of Italy?", "Rome.")
"""Of general knowledge: with a word to translate in its place, both small models looked for capitals in files."""

WORDS = ("amber", "birch", "cedar")
"""Texts in examples of tools that we know nothing of: words that nobody takes for an answer."""
MOST_FIELDS = 3
"""A tool that needs more is no example: it would be longer than all the rest."""

DEEPEST = 4
"""How deep a tool's arguments are told; the schema holds them at any depth."""


def addendum(tools: Sequence[ToolSpec], *, several: bool = False) -> str:
    """What the model must know about envelopes and tools."""
    how = HOW.replace("REPLY", reply_name(tools))
    lines = [f"{how}\n{SEVERAL}" if several else how, "", "Tools:", *map(_signature, tools), "", "Examples:"]
    return "\n".join([*lines, *(f"{who}: {said}" for who, said in _examples(tools))])


def dump(value: Any) -> str:
    """JSON with blanks, as models write it by themselves."""
    return json.dumps(_json.clean(value), ensure_ascii=False)


# --- examples -----------------------------------------------------------------------------------------------------


def _examples(tools: Sequence[ToolSpec]) -> Iterator[tuple[str, str]]:
    """Lines of short conversations: who speaks, and what."""
    left = MOST_EXAMPLES
    for user, steps, answer in (*EXAMPLES, *_made_examples(tools)):
        if len(steps) > left or not all(_fits(step, tools) for step in steps):
            continue
        left -= len(steps)
        yield "User", user
        for name, arguments, result in steps:
            yield "You", dump({TOOL: name, ARGUMENTS: arguments})
            if result:
                yield "User", f"Result of {name}:\n{result}"
        if answer:
            yield "You", _reply(tools, answer)
    user, answer = PLAIN_EXAMPLE
    yield "User", user
    yield "You", _reply(tools, answer)


def _reply(tools: Sequence[ToolSpec], text: str) -> str:
    return dump({TOOL: reply_name(tools), ARGUMENTS: {TEXT: text}})


def _fits(step: Step, tools: Sequence[ToolSpec]) -> bool:
    name, arguments, _ = step
    schema = next((tool.parameters for tool in tools if tool.name == name), {})
    return set(schema.get("required", ())) <= set(arguments) <= set(schema.get("properties", ()))


def _made_examples(tools: Sequence[ToolSpec]) -> Iterator[tuple[str, tuple[Step, ...], str]]:
    """A request for each tool that we have no example for, made of its own description and schema."""
    known = {name for _, steps, _ in EXAMPLES for name, _, _ in steps}
    for tool in tools:
        schema = plain_schema(tool.parameters)
        required = schema.get("required", ())
        if tool.name in known or not 0 < len(required) <= MOST_FIELDS or not tool.description:
            continue
        words = iter(WORDS)
        arguments = {key: _value(schema["properties"][key], words) for key in required}
        if any(value is None for value in arguments.values()):
            continue
        said = ", ".join(
            str(value) if isinstance(value, str) else dump(value) for value in arguments.values()
        )
        what = tool.description.strip().splitlines()[0].split(". ")[0].rstrip(".:")
        yield f"{what}: {said}", ((tool.name, arguments, ""),), ""


def _value(schema: Mapping[str, Any], words: Iterator[str]) -> Any:
    """A value that fits a schema; None where nothing short does."""
    if "const" in schema:
        return schema["const"]
    if choices := schema.get("enum"):
        return choices[0]
    if options := schema.get("anyOf"):
        return _value(options[0], words)
    match schema.get("type"):
        case "string":
            return next(words, None)
        case "integer":
            return 3
        case "number":
            return 2.5
        case "boolean":
            return True
        case "array":
            one = _value(schema.get("items", {}), words)
            return None if one is None else [one]
        case _:
            return None


# --- tools --------------------------------------------------------------------------------------------------------


def _signature(tool: ToolSpec) -> str:
    """A tool as a line: shorter than its schema, which the reply is held to anyway."""
    described: dict[str, Any] = tool.parameters.get("properties", {})
    plain = plain_schema(tool.parameters)
    required = plain.get("required", ())
    shown = {
        key: schema
        for key, schema in plain.get("properties", {}).items()
        if key in required or not _tunes(schema)
    }
    arguments = ", ".join(_argument(key, schema, key in required) for key, schema in shown.items())
    about = [
        f"    {key}: {described[key]['description']}"
        for key in shown
        if isinstance(described.get(key), Mapping) and described[key].get("description")
    ]
    return "\n".join([f"- {tool.name}({arguments}): {tool.description}".rstrip(": "), *about])


def _tunes(schema: Mapping[str, Any]) -> bool:
    """Whether an optional argument is a number or a switch. Told of `end_line`, the small models read a file line
    by line; not told, they still may use it where a result says so."""
    return schema.get("type") in ("integer", "number", "boolean")


def _argument(key: str, schema: Mapping[str, Any], required: bool) -> str:
    kind = _kind(schema)
    return f"{key}{'' if required else '?'}{'' if kind == 'string' else f': {kind}'}"


def _kind(schema: Mapping[str, Any], depth: int = 0) -> str:
    """A schema in a few characters; a string is what nobody needs to be told."""
    if depth > DEEPEST:
        return "any"
    if "enum" in schema:
        return "|".join(dump(value) for value in schema["enum"])
    if "const" in schema:
        return dump(schema["const"])
    if options := schema.get("anyOf"):
        return "|".join(dict.fromkeys(_kind(option, depth + 1) for option in options))
    kind = schema.get("type", "any")
    if kind == "array":
        return f"[{_kind(schema.get('items', {}), depth + 1)}]"
    if kind == "object" and schema.get("properties"):
        required = schema.get("required", ())
        inner = (
            f"{key}{'' if key in required else '?'}: {_kind(value, depth + 1)}"
            for key, value in schema["properties"].items()
        )
        return "{" + ", ".join(inner) + "}"
    return "|".join(kind) if isinstance(kind, list) else str(kind)
