"""The schema of envelopes: whatever it admits, the tool's own check takes as it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from graphton._arguments import fit
from graphton._reply_schema import plain_schema, reply_name, reply_schema
from graphton.catalog import path_of
from graphton.chat import Done, Request, ToolSpec
from graphton.chat.base import Chunk
from graphton.envelope import EnvelopeChat, opened
from graphton.messages import AssistantMessage, Text, ToolCall, UserMessage
from graphton.models import ModelRef, ModelSettings, several_calls
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NAMES = st.sampled_from(["path", "a b", "größe", "n", "deep_one"])
SCALARS = st.sampled_from(
    [
        {"type": "string"},
        {"type": "string", "pattern": "^a", "maxLength": 3},
        {"type": "integer", "minimum": 1},
        {"type": "number"},
        {"type": "boolean"},
        {"type": ["string", "null"]},
        {"type": "string", "enum": ["asc", "desc"]},
        {"enum": [1, "one", None]},
        {"const": "file"},
        {},
        {"type": "object"},
        {"$ref": "#/$defs/Colour"},
        {"$ref": "#/$defs/Tree"},
        {"$ref": "#/$defs/Pair"},
        {"$ref": "https://example.org/schema"},
    ]
)


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    def made(properties: dict[str, Any], some: list[bool], others: Any) -> dict[str, Any]:
        required = [key for key, wanted in zip(properties, some, strict=False) if wanted]
        closing = {} if others is None else {"additionalProperties": others}
        return {"type": "object", "properties": properties, "required": required, **closing}

    fields = st.dictionaries(NAMES, inner, max_size=3)
    return st.builds(
        made, fields, st.lists(st.booleans(), min_size=3, max_size=3), st.sampled_from([None, False])
    )


def compound(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        objects(inner),
        st.builds(lambda items: {"type": "array", "items": items}, inner),
        st.builds(lambda items: {"type": "array", "items": items, "minItems": 1, "maxItems": 2}, inner),
        st.builds(lambda one, two: {"anyOf": [one, two]}, inner, inner),
        st.builds(lambda one, two: {"oneOf": [one, two]}, inner, inner),
        st.builds(lambda one: {"allOf": [one]}, objects(inner)),
        st.builds(lambda value: {"type": "object", "additionalProperties": value}, inner),
    )


DEFS = {
    "Colour": {"enum": ["red", "blue"]},
    "Tree": {
        "type": "object",
        "properties": {
            "value": {"type": "integer"},
            "branches": {"type": "array", "items": {"$ref": "#/$defs/Tree"}},
        },
        "required": ["value"],
    },
    "Pair": {
        "type": "object",
        "properties": {"tree": {"$ref": "#/$defs/Tree"}, "c": {"$ref": "#/$defs/Colour"}},
    },
}
schemas = objects(st.recursive(SCALARS, compound, max_leaves=4)).map(lambda one: {**one, "$defs": DEFS})


def values(schema: dict[str, Any], root: dict[str, Any], depth: int = 0) -> st.SearchStrategy[Any]:
    """Everything that a reduced schema admits."""
    if reference := schema.get("$ref"):
        return st.deferred(lambda: values(root["$defs"][reference.removeprefix("#/$defs/")], root, depth + 1))
    if "anyOf" in schema:
        return st.one_of([values(option, root, depth) for option in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "const" in schema:
        return st.just(schema["const"])
    kinds = schema.get("type")
    if isinstance(kinds, list):
        return st.one_of([values({**schema, "type": kind}, root, depth) for kind in kinds])
    most = 0 if depth > 3 else 2
    match kinds:
        case "object" if "properties" in schema:
            fields = {key: values(inner, root, depth + 1) for key, inner in schema["properties"].items()}
            needed = set(schema["required"])
            return st.fixed_dictionaries(
                {key: fields[key] for key in fields if key in needed},
                optional={key: fields[key] for key in fields if key not in needed} if most else {},
            )
        case "object":
            return st.dictionaries(
                st.text(max_size=3),
                values(schema.get("additionalProperties", {}), root, depth + 1),
                max_size=most,
            )
        case "array":
            low, high = (
                schema.get("minItems", 0),
                min(schema.get("maxItems", 9), schema.get("minItems", 0) + most),
            )
            return st.lists(values(schema.get("items", {}), root, depth + 1), min_size=low, max_size=high)
        case "string":
            return st.text(max_size=5)
        case "integer":
            return st.integers(-(2**70), 2**70)
        case "number":
            return st.floats(allow_nan=False, allow_infinity=False)
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case _:
            return st.none() | st.booleans() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(schemas, min_size=1, max_size=2), st.booleans(), st.data())
def test_whatever_the_schema_admits_the_tools_own_check_takes_as_it_is(
    offered: list[dict[str, Any]], several: bool, data: st.DataObject
) -> None:
    tools = [ToolSpec(f"tool_{n}", "", schema) for n, schema in enumerate(offered)]
    schema = reply_schema(tools, several=several)
    written = json.dumps(data.draw(values(schema, schema)))
    message = opened(AssistantMessage((Text(written),)), tools)
    by_name = {tool.name: tool.parameters for tool in tools}
    assert message.calls or "reply" in written
    for call in message.calls:
        checked, problems = fit(by_name[call.name], call.arguments)
        assert problems == []
        assert checked is call.arguments


def keywords(schema: Any) -> set[str]:
    """Every keyword in a schema, wherever it stands."""
    found: set[str] = set()
    match schema:
        case {"properties": dict(properties), **rest}:
            found |= {"properties", *keywords(rest)}.union(*map(keywords, properties.values()))
        case {"$defs": dict(definitions), **rest}:
            found |= {"$defs", *keywords(rest)}.union(*map(keywords, definitions.values()))
        case dict():
            found |= set(schema).union(
                *(keywords(v) for k, v in schema.items() if k not in ("enum", "const"))
            )
        case list():
            found = found.union(*map(keywords, schema))
    return found


@given(schemas)
def test_only_what_every_server_understands_goes_out(schema: dict[str, Any]) -> None:
    known = {"type", "properties", "required", "additionalProperties", "items", "minItems", "maxItems"}
    known |= {"enum", "const", "anyOf", "$ref", "$defs"}
    assert keywords(reply_schema([ToolSpec("t", "", schema)])) <= known


@given(schemas)
def test_every_reference_leads_somewhere(schema: dict[str, Any]) -> None:
    reduced = reply_schema([ToolSpec("a", "", schema), ToolSpec("b", "", schema)])
    written = json.dumps(reduced)
    for name in {part.split('"')[0] for part in written.split("#/$defs/")[1:]}:
        assert name in reduced["$defs"]


def test_a_schema_is_reduced_to_what_grammars_can_say() -> None:
    schema = {
        "type": "object",
        "$defs": {"Size": {"enum": ["s", "m"], "title": "Size"}, "Node": {"$ref": "#/$defs/Node"}},
        "properties": {
            "size": {"$ref": "#/$defs/Size"},
            "node": {"$ref": "#/$defs/Node"},
            "far": {"$ref": "https://example.org/schema"},
            "mail": {"type": "string", "format": "email", "pattern": ".+@.+", "maxLength": 500},
            "count": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}], "default": None},
            "tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True, "maxItems": 3},
            "free": {"type": "object"},
            "map": {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0}},
        },
        "required": ["mail", "gone"],
    }
    assert plain_schema(schema) == {
        "type": "object",
        "properties": {
            "size": {"enum": ["s", "m"]},
            "node": {},
            "far": {},
            "mail": {"type": "string"},
            "count": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
            "free": {"type": "object"},
            "map": {"type": "object", "additionalProperties": {"type": "integer"}},
        },
        "required": ["mail"],
        "additionalProperties": False,
    }


def test_what_stands_beside_alternatives_holds_for_each_of_them() -> None:
    schema = {
        "type": "object",
        "properties": {"id": {"type": "integer"}, "name": {"type": "string"}},
        "anyOf": [{"required": ["id"]}, {"required": ["name"]}],
    }
    one, two = plain_schema(schema)["anyOf"]
    assert (one["required"], two["required"]) == (["id"], ["name"])
    assert one["properties"] == two["properties"] == {"id": {"type": "integer"}, "name": {"type": "string"}}


def test_parts_of_a_schema_are_put_together() -> None:
    schema = {
        "$defs": {"Base": {"properties": {"id": {"type": "integer"}}, "required": ["id"]}},
        "allOf": [{"$ref": "#/$defs/Base"}, {"properties": {"name": {"type": "string"}}}],
    }
    plain = plain_schema(schema)
    assert plain["properties"] == {"id": {"type": "integer"}, "name": {"type": "string"}}
    assert plain["required"] == ["id"]


def test_a_circle_is_written_once_and_not_for_ever() -> None:
    schema = reply_schema(
        [ToolSpec("plant", "", {"$defs": DEFS, "properties": {"tree": {"$ref": "#/$defs/Tree"}}})]
    )
    assert schema["anyOf"][0]["properties"]["arguments"]["properties"]["tree"] == {"$ref": "#/$defs/t0_0"}
    assert schema["$defs"]["t0_0"]["properties"]["branches"]["items"] == {"$ref": "#/$defs/t0_0"}


@pytest.mark.parametrize("parameters", [{}, {"type": "object"}, {"type": "object", "properties": {}}])
def test_a_tool_without_arguments_gets_none(parameters: dict[str, Any]) -> None:
    arguments = reply_schema([ToolSpec("stop", "", parameters)])["anyOf"][0]["properties"]["arguments"]
    assert (arguments["properties"], arguments["additionalProperties"]) == ({}, False)


def test_the_reply_has_a_name_that_no_tool_has() -> None:
    taken = [ToolSpec(name, "", {}) for name in ("reply", "answer_user")]
    assert reply_name(taken) == "reply_to_user"
    written = '{"tool": "reply_to_user", "arguments": {"text": "Yes."}}'
    assert opened(AssistantMessage((Text(written),)), taken).text == "Yes."
    called = opened(AssistantMessage((Text('{"tool": "reply", "arguments": {}}'),)), taken)
    assert called.calls == (ToolCall("reply", {}),)


def test_only_a_model_of_some_size_may_make_several_calls_at_once() -> None:
    sizes = {"qwen2.5-coder:7b": True, "gemma3:27b-it-qat": True, "x-14B-Instruct-Q4_K_M.gguf": True}
    sizes |= {
        "qwen2.5-coder:1.5b": False,
        "qwen2.5-coder:0.5b": False,
        "codestral": False,
        "phi4-mini": False,
    }
    assert {name: several_calls(ModelRef("ollama", name)) for name in sizes} == sizes


def test_several_calls_in_one_envelope_are_that_many_calls() -> None:
    tools = [ToolSpec("look", "", {"type": "object", "properties": {"at": {"type": "string"}}})]
    alone, together = reply_schema(tools), reply_schema(tools, several=True)
    assert "calls" not in json.dumps(alone)
    (listed,) = (one["properties"]["calls"] for one in together["anyOf"] if "calls" in one["properties"])
    assert listed["items"]["anyOf"] == [alone["anyOf"][0]]
    one = {"tool": "look", "arguments": {"at": "a"}}
    written = json.dumps({"calls": [one, one | {"arguments": {"at": "b"}}]})
    message = opened(AssistantMessage((Text(written),)), tools)
    assert message.calls == (ToolCall("look", {"at": "a"}), ToolCall("look", {"at": "b"}))


# --- the real grammar ---------------------------------------------------------------------------------------------

ODD = [
    ToolSpec(
        "grow_tree",
        "Grows a tree.",
        {
            "type": "object",
            "$defs": DEFS,
            "properties": {"tree": {"$ref": "#/$defs/Tree"}},
            "required": ["tree"],
        },
    ),
    ToolSpec(
        "paint",
        "Paints things in colours.",
        {
            "type": "object",
            "$defs": DEFS,
            "properties": {
                "colours": {
                    "type": "array",
                    "items": {"$ref": "#/$defs/Colour"},
                    "minItems": 1,
                    "maxItems": 2,
                },
                "size": {"anyOf": [{"type": "integer"}, {"enum": ["small", "large"]}]},
                "where": {"type": ["string", "null"]},
                "weights": {"type": "object", "additionalProperties": {"type": "number"}},
            },
            "required": ["colours", "size"],
        },
    ),
]


@pytest.mark.model
@pytest.mark.timeout(600)
async def test_what_llama_cpps_own_grammar_lets_through_fits_the_tools() -> None:
    if path_of("qwen2.5-coder:0.5b") is None:
        pytest.skip("qwen2.5-coder:0.5b is not in the cache; `stigmer models pull qwen2.5-coder:0.5b`")
    from graphton.chat import create_chat

    chat = EnvelopeChat(
        create_chat("llamacpp:qwen2.5-coder:0.5b", ModelSettings(temperature=1.5, max_tokens=120)),
        several=True,
    )
    offered = {tool.name: tool.parameters for tool in ODD}
    made = 0
    try:
        for wish in (
            "Grow a tree with two branches.",
            "Paint the fence red.",
            "Grow and paint, both.",
            "Hello!",
        ):
            last: Chunk | None = None
            async for chunk in chat.stream(Request("", [UserMessage(wish)], ODD)):
                last = chunk
            assert isinstance(last, Done)
            for call in last.message.calls:
                if not call.malformed:  # else it was cut at the limit of tokens
                    made += 1
                    assert fit(offered[call.name], call.arguments) == (call.arguments, [])
    finally:
        await chat.close()
    assert made
