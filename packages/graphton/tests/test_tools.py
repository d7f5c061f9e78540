"""What `@tool` makes of a function, and what becomes of a model's slips in the arguments."""

from __future__ import annotations

import asyncio
import enum
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest
from graphton.errors import ToolDefinitionError, ToolError
from graphton.tools import Effect, Tool, ToolContext, ToolOutput, check_arguments, in_thread, tool
from hypothesis import given, settings
from hypothesis import strategies as st

CONTEXT = ToolContext("3.0", "", "run-1::3.0")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Point:
    x: int
    y: int = 0
    label: str | None = None
    tags: list[str] = field(default_factory=list)


class Options(TypedDict):
    deep: bool
    limit: NotRequired[int]


@dataclass
class Node:
    children: list[Node]


SCHEMAS: list[tuple[Any, dict[str, Any]]] = [
    (str, {"type": "string"}),
    (int, {"type": "integer"}),
    (float, {"type": "number"}),
    (bool, {"type": "boolean"}),
    (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}),
    (Literal[1, 2], {"type": "integer", "enum": [1, 2]}),
    (Colour, {"type": "string", "enum": ["red", "blue"]}),
    (list[int], {"type": "array", "items": {"type": "integer"}}),
    (list[list[str]], {"type": "array", "items": {"type": "array", "items": {"type": "string"}}}),
    (list[int | None], {"type": "array", "items": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}),
    (dict[str, float], {"type": "object", "additionalProperties": {"type": "number"}}),
    (Annotated[str, "the text"], {"type": "string", "description": "the text"}),
    (
        Point,
        {
            "type": "object",
            "properties": {
                "x": {"type": "integer"},
                "y": {"type": "integer", "default": 0},
                "label": {"type": "string"},
                "tags": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["x"],
        },
    ),
    (
        Options,
        {
            "type": "object",
            "properties": {"deep": {"type": "boolean"}, "limit": {"type": "integer"}},
            "required": ["deep"],
        },
    ),
]


def taking(annotation: Any) -> Tool:
    """A tool with one required parameter of this type, which answers with what it got."""

    async def echo(value: Any) -> str:
        """Echoes."""
        return repr(value)

    echo.__annotations__["value"] = annotation
    return tool(echo)


@pytest.mark.parametrize(("annotation", "schema"), SCHEMAS, ids=lambda one: str(one)[:40])
def test_a_type_becomes_its_schema(annotation: Any, schema: dict[str, Any]) -> None:
    assert taking(annotation).parameters == {
        "type": "object",
        "properties": {"value": schema},
        "required": ["value"],
    }


def test_texts_come_from_the_docstring_and_defaults_make_fields_optional() -> None:
    @tool(effect="read")
    def weather(
        city: str, days: int = 1, unit: str | None = None, place: Annotated[str, "said here"] = ""
    ) -> str:
        """Tells the weather
        in a city.

        Not for the model.

        Args:
            city (str): Its name,
                in English.
            days: How many days ahead.
            place: not this

        Returns:
            Something.
        """
        return city

    assert (weather.name, weather.effect, weather.asks) == ("weather", Effect.READ, False)
    assert weather.description == "Tells the weather in a city."
    assert weather.parameters == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Its name, in English."},
            "days": {"type": "integer", "description": "How many days ahead.", "default": 1},
            "unit": {"type": "string"},
            "place": {"type": "string", "description": "said here", "default": ""},
        },
        "required": ["city"],
    }


def test_a_bare_tool_is_a_write_and_a_name_can_be_given() -> None:
    @tool
    def one() -> str:
        """One."""
        return "1"

    @tool(name="zwei", effect=Effect.IDEMPOTENT, asks=True)
    def two() -> str:
        """Two."""
        return "2"

    assert (one.name, one.effect, one.parameters) == (
        "one",
        Effect.WRITE,
        {"type": "object", "properties": {}},
    )
    assert (two.name, two.effect, two.asks) == ("zwei", Effect.IDEMPOTENT, True)


def no_docstring(a: int) -> None: ...


def star(*paths: str) -> None:
    """Stars."""


def double_star(**options: str) -> None:
    """Stars."""


def positional(a: int, /) -> None:
    """Only by place."""


def untyped(a) -> None:  # type: ignore[no-untyped-def]  # the point of the test
    """No type."""


def bare_list(a: list) -> None:  # type: ignore[type-arg]  # the point of the test
    """No item type."""


def bytes_(a: bytes) -> None:
    """Bytes."""


def two_types(a: int | str) -> None:
    """Two types."""


def mixed(a: Literal["a", 1]) -> None:
    """Mixed."""


def unknown_name(a: Nowhere) -> None:  # type: ignore[name-defined]  # noqa: F821  # the point of the test
    """A name that is not there."""


def recursive(a: Node) -> None:
    """Contains itself."""


def stale(a: int) -> None:
    """Stale.

    Args:
        b: Was renamed.
    """


def generator(a: int) -> Any:
    """Yields."""
    yield a


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (no_docstring, "tool 'no_docstring' has no docstring"),
        (star, "parameter 'paths' (*paths) cannot be part of a schema"),
        (double_star, "parameter 'options' (**options) cannot be part of a schema"),
        (positional, "parameter 'a' (/) cannot be part of a schema"),
        (untyped, "tool 'untyped': parameter 'a' has no type\nhint: annotate it, e.g. a: str"),
        (bare_list, "parameter 'a' has the type list, which has no JSON schema"),
        (bytes_, "has the type bytes, which has no JSON schema here\nhint: use str, int"),
        (two_types, "has the type int | str, which has no JSON schema"),
        (mixed, "the choices ['a', 1] are not all of one JSON type"),
        (unknown_name, "an annotation cannot be read: name 'Nowhere' is not defined"),
        (recursive, "Node contains itself"),
        (stale, "the docstring describes 'b', which is no parameter\nhint: its parameters are: a"),
        (generator, "tool 'generator' is a generator\nhint: return the whole result"),
        (lambda: "", "'<lambda>' is no name for a tool"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_what_cannot_be_a_schema_is_refused_with_a_clear_text(
    function: Callable[..., Any], text: str
) -> None:
    with pytest.raises(ToolDefinitionError) as caught:
        tool(function)
    assert text in str(caught.value)


def test_an_unknown_effect_is_refused() -> None:
    with pytest.raises(ToolDefinitionError, match="effect 'reads' is unknown\nhint: use"):
        tool(effect="reads")(star)  # type: ignore[call-overload]  # the point of the test


@pytest.mark.parametrize(
    ("annotation", "given_", "got"),
    [
        (Colour, "blue", "<Colour.BLUE: 'blue'>"),
        (list[Colour], ["red"], "[<Colour.RED: 'red'>]"),
        (Point, {"x": 1, "label": None}, "Point(x=1, y=0, label=None, tags=[])"),
        (dict[str, Point], {"a": {"x": 2, "tags": ["t"]}}, "{'a': Point(x=2, y=0, label=None, tags=['t'])}"),
        (Options, {"deep": True}, "{'deep': True}"),
        (float, 1, "1.0"),
        (list[int | None], [1, None], "[1, None]"),
    ],
)
async def test_the_function_gets_python_values(annotation: Any, given_: Any, got: str) -> None:
    echo = taking(annotation)
    arguments, problems = check_arguments(echo, {"value": given_})
    assert not problems
    assert await echo.run(arguments, CONTEXT) == got


async def test_a_parameter_that_may_be_none_may_be_left_out() -> None:
    @tool
    async def maybe(a: str | None, b: int = 3) -> list[Any]:
        """Maybe."""
        return [a, b]

    assert maybe.parameters.get("required") is None
    assert await maybe.run({}, CONTEXT) == "[null, 3]"
    assert await maybe.run({"a": "x", "b": None}, CONTEXT) == '["x", 3]'


async def test_the_context_is_passed_and_not_shown() -> None:
    @tool
    async def where(ctx: ToolContext | None = None, word: str = "") -> str:
        """Where."""
        return ctx.idempotency_key if ctx else ""

    assert list(where.parameters["properties"]) == ["word"]
    assert await where.run({}, CONTEXT) == "run-1::3.0"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is", "as it is"),
        (None, "null"),
        ({"ä": [1, 2.5, True]}, '{"ä": [1, 2.5, true]}'),
        (Point(1), '{"x": 1, "y": 0, "label": null, "tags": []}'),
        ([Colour.RED], '["red"]'),
    ],
)
async def test_what_is_returned_becomes_text(value: Any, text: str) -> None:
    @tool
    async def give() -> Any:
        """Gives."""
        return value

    assert await give.run({}, CONTEXT) == text


async def test_an_output_passes_through_and_what_is_no_json_is_an_error() -> None:
    @tool
    async def fails() -> ToolOutput:
        """Fails."""
        return ToolOutput("no", is_error=True)

    @tool
    async def odd() -> object:
        """Odd."""
        return {"a": object()}

    assert await fails.run({}, CONTEXT) == ToolOutput("no", is_error=True)
    with pytest.raises(ToolError, match="tool 'odd' returned a object, which is no JSON"):
        await odd.run({}, CONTEXT)


async def test_a_plain_function_runs_off_the_event_loop() -> None:
    @tool
    def thread() -> str:
        """Thread."""
        return threading.current_thread().name

    assert await thread.run({}, CONTEXT) != threading.current_thread().name


async def test_cancelling_waits_until_a_plain_function_has_returned() -> None:
    loop, entered, release = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    stop, effects = threading.Event(), []

    def work(stop: threading.Event) -> None:
        loop.call_soon_threadsafe(entered.set)
        assert release.wait(30)
        effects.append("done")

    task = asyncio.ensure_future(in_thread(work, stop))
    await asyncio.wait_for(entered.wait(), 30)
    for _ in range(3):
        task.cancel()
        await asyncio.wait({task}, timeout=0.01)
        assert not task.done()
    assert stop.is_set()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert effects == ["done"]


# --- arguments -------------------------------------------------------------------------------------------------


@tool
async def sample(
    path: str,
    count: int = 0,
    ratio: float = 0,
    deep: bool = False,
    order: Literal["asc", "desc"] = "asc",
    names: list[str] | None = None,
    point: Point | None = None,
    extra: dict[str, int] | None = None,
) -> str:
    """A sample."""
    return path


@pytest.mark.parametrize(
    ("field_", "given_", "mended"),
    [
        ("count", "5", 5),
        ("count", " -12 ", -12),
        ("count", "5.0", 5),
        ("count", 5.0, 5),
        ("ratio", "0.25", 0.25),
        ("ratio", "1e3", 1000.0),
        ("deep", "true", True),
        ("deep", "False", False),
        ("order", "DESC", "desc"),
        ("names", '["a", "b"]', ["a", "b"]),
        ("point", '{"x": "3"}', {"x": 3}),
        ("extra", {"a": "1"}, {"a": 1}),
        ("path", 12, "12"),
    ],
)
def test_an_obvious_slip_is_mended_and_reported(field_: str, given_: Any, mended: Any) -> None:
    arguments = {"path": "a"} | {field_: given_}
    checked, problems = check_arguments(sample, arguments)
    assert problems == []
    assert checked is not arguments
    assert json.dumps(checked[field_]) == json.dumps(mended)
    assert arguments[field_] == given_


def test_a_null_for_a_field_that_may_be_left_out_is_left_out() -> None:
    assert check_arguments(sample, {"path": "a", "count": None, "names": None}) == ({"path": "a"}, [])


def test_right_arguments_come_back_as_the_same_object() -> None:
    arguments = {"path": "5", "count": 5, "deep": True, "names": ["1"], "point": {"x": 1}, "extra": {}}
    checked, problems = check_arguments(sample, arguments)
    assert checked is arguments
    assert problems == []


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, "missing field 'path' (string)"),
        ({"path": None}, "field 'path' must be a string, not null"),
        ({"path": ["a"]}, "field 'path' must be a string, not [\"a\"]"),
        ({"path": "a", "counts": 1}, "unknown field 'counts'; did you mean 'count'?"),
        (
            {"path": "a", "zzz": 1},
            "unknown field 'zzz'; the fields are: path, count, ratio, deep, order, names, point, extra",
        ),
        ({"path": "a", "count": "five"}, "field 'count' must be an integer, not \"five\""),
        ({"path": "a", "count": True}, "field 'count' must be an integer, not true"),
        ({"path": "a", "count": 1.5}, "field 'count' must be an integer, not 1.5"),
        ({"path": "a", "ratio": "nan"}, "field 'ratio' must be a number, not \"nan\""),
        ({"path": "a", "deep": 1}, "field 'deep' must be a boolean, not 1"),
        ({"path": "a", "order": "up"}, 'field \'order\' must be one of "asc", "desc", not "up"'),
        ({"path": "a", "names": "a, b"}, "field 'names' must be an array, not \"a, b\""),
        ({"path": "a", "names": ["a", {}]}, "field 'names[1]' must be a string, not {}"),
        ({"path": "a", "point": {}}, "missing field 'point.x' (integer)"),
        (
            {"path": "a", "point": {"x": 1, "z": 2}},
            "unknown field 'point.z'; the fields are: x, y, label, tags",
        ),
        ({"path": "a", "extra": {"k": "v"}}, "field 'extra.k' must be an integer, not \"v\""),
    ],
)
def test_what_cannot_be_mended_is_named_for_the_model(arguments: dict[str, Any], problem: str) -> None:
    assert check_arguments(sample, arguments)[1] == [problem]


def test_all_problems_are_told_at_once() -> None:
    _, problems = check_arguments(sample, {"count": "x", "zzz": 1})
    assert len(problems) == 3


def test_schemas_of_others_are_taken_as_far_as_they_are_understood() -> None:
    foreign = Tool(
        "foreign",
        "From a tool server.",
        {
            "type": "object",
            "properties": {
                "id": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
                "size": {"type": ["string", "null"]},
                "ref": {"$ref": "#/$defs/x"},
                "free": {"type": "object"},
            },
            "additionalProperties": True,
        },
        sample.run,
    )
    arguments = {"id": None, "size": None, "ref": [1], "free": {"a": {"b": 1}}, "more": 1}
    assert check_arguments(foreign, arguments)[0] is arguments
    assert check_arguments(foreign, {"id": "7"}) == ({"id": 7}, [])


INTEGERS = st.integers(-(10**17), 10**17)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.fixed_dictionaries(
    {"path": st.text()},
    optional={
        "count": INTEGERS,
        "ratio": FLOATS,
        "deep": st.booleans(),
        "order": st.sampled_from(["asc", "desc"]),
        "names": st.lists(st.text()),
        "point": st.fixed_dictionaries({"x": INTEGERS}, optional={"tags": st.lists(st.text())}),
        "extra": st.dictionaries(st.text(), INTEGERS),
    },
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@settings(deadline=None)
@given(VALUES)
def test_right_arguments_are_never_changed(arguments: dict[str, Any]) -> None:
    checked, problems = check_arguments(sample, arguments)
    assert checked is arguments
    assert not problems


@settings(deadline=None)
@given(VALUES)
def test_values_written_as_json_strings_are_read_back(arguments: dict[str, Any]) -> None:
    written = {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in arguments.items()
    }
    checked, problems = check_arguments(sample, written)
    assert not problems
    assert checked == arguments


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(list(sample.parameters["properties"])) | st.text(), JSON))
def test_any_arguments_are_answered_and_mending_twice_changes_nothing(arguments: dict[str, Any]) -> None:
    before = json.dumps(arguments)
    checked, problems = check_arguments(sample, arguments)
    assert json.dumps(arguments) == before
    if not problems:
        assert check_arguments(sample, checked) == (checked, [])
        assert check_arguments(sample, checked)[0] is checked
