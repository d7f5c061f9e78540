"""Tools: what the model may call. `@tool` makes one from a typed Python function."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import enum
import functools
import inspect
import json
import re
import threading
import types
import typing
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, ParamSpec, TypeVar, overload

from graphton._arguments import fit
from graphton.errors import ToolDefinitionError, ToolError

__all__ = ["Effect", "Knowledge", "Tool", "ToolContext", "ToolOutput", "check_arguments", "in_thread", "tool"]


class Knowledge:
    """What a tool knows of its world beyond its schema. Small models are led by it; others are not told.

    Each method has an answer that says nothing, so that a tool says what it knows and no more.
    """

    async def doubt(self, arguments: Mapping[str, Any], said: str) -> str:
        """Why a call with these arguments cannot be meant after all that has been said (in lower case); "" where it can."""
        return ""

    async def named(self, text: str) -> Sequence[str]:
        """What of its world a text names, such as files that are there, as the text names it."""
        return ()

    async def choices(self, arguments: Mapping[str, Any]) -> Mapping[str, Sequence[str]]:
        """After a call with these arguments that failed: what can stand in some of them; {} where anything can."""
        return {}


P = ParamSpec("P")
T = TypeVar("T")


class Effect(StrEnum):
    """What running a tool does to the world; decides what happens to a call that a crash left unanswered.

    READ and IDEMPOTENT calls are run again with the same key; a WRITE whose result is lost stays "outcome unknown".
    """

    READ = "read"
    IDEMPOTENT = "idempotent"
    WRITE = "write"


@dataclass(frozen=True, slots=True)
class ToolContext:
    """What a running tool knows about its call."""

    call: str
    """The call's id, `<step>.<index>`."""
    path: str
    """"" for the agent itself, else the sub-agent's path."""
    idempotency_key: str
    """`<execution>:<path>:<call>`: the same in every attempt to run this call."""
    progress: Callable[[str], None] = lambda text: None
    """Shows a short line to the people who watch; never stored."""
    started: Callable[[int, float], None] = lambda pid, start_time: None
    """To be called with pid and start time (seconds since the epoch) of a process that the tool started."""
    tree: object = None
    """What all agents of the run share (`graphton.budget.Tree`); for the task tool, which starts one more."""


@dataclass(frozen=True, slots=True)
class ToolOutput:
    """A result that is more than text: `is_error` tells the model that the call did not do its work."""

    text: str
    is_error: bool = False


@dataclass(frozen=True, slots=True)
class Tool:
    """A named function with a JSON schema. `run` gets the checked arguments and the context."""

    name: str
    description: str
    parameters: dict[str, Any]
    run: Callable[[dict[str, Any], ToolContext], Awaitable[ToolOutput | str]] = field(repr=False)
    effect: Effect = Effect.WRITE
    asks: bool = False
    """Whether a person is asked before each call, where no rule says otherwise."""
    knowledge: Knowledge | None = field(default=None, compare=False, repr=False)


# --- from a function to a tool ---------------------------------------------------------------------------------


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *,
    name: str | None = None,
    effect: Effect | Literal["read", "idempotent", "write"] = Effect.WRITE,
    asks: bool = False,
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    effect: Effect | Literal["read", "idempotent", "write"] = Effect.WRITE,
    asks: bool = False,
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a Tool from a typed function; the schema comes from its signature, the texts from its docstring.

        @tool(effect="read")
        def weather(city: str, days: int = 1) -> str:
            '''Tells the weather in a city.

            Args:
                days: How many days ahead.
            '''

    An `async def` runs on the event loop. A plain `def` runs in a thread (`asyncio.to_thread`), so it may block, and
    must not touch objects that belong to the loop; a cancelled call waits for it to return. A parameter annotated
    `ToolContext` gets the context and is not shown to the model. A `str` is returned as it is, anything else as
    JSON; a raised `ToolError` shows its text to the model.
    """

    def make(function: Callable[..., Any]) -> Tool:
        title = name or str(getattr(function, "__name__", ""))
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,63}", title):
            raise ToolDefinitionError(
                f"{title!r} is no name for a tool",
                hint="use up to 64 letters, digits, _ and -, e.g. @tool(name='count_words')",
            )
        try:
            kind = Effect(effect)
        except ValueError:
            raise ToolDefinitionError(
                f"tool {title!r}: effect {effect!r} is unknown", hint='use "read", "idempotent" or "write"'
            ) from None
        signature = _Signature.of(function, title)
        return Tool(title, signature.description, signature.parameters, signature.run, kind, asks)

    return make if function is None else make(function)


async def in_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run blocking work off the event loop. A cancelled caller waits until the work has ended, then is cancelled.

    A `threading.Event` among the arguments is set on cancellation, so that long work can end early.
    """
    loop = asyncio.get_running_loop()
    call = functools.partial(contextvars.copy_context().run, function, *args, **kwargs)
    work = loop.run_in_executor(None, call)
    ended: asyncio.Future[None] = loop.create_future()  # It may be cancelled; the work may not.

    def tell(work: asyncio.Future[T]) -> None:
        if not ended.done():
            ended.set_result(None)

    work.add_done_callback(tell)
    try:
        await ended
        return work.result()
    except asyncio.CancelledError:
        for value in (*args, *kwargs.values()):
            if isinstance(value, threading.Event):
                value.set()
        while not work.done():
            # A second cancel must not leave the work behind either: cancel reports when the last effect is over.
            try:
                await asyncio.wait({work})
            except asyncio.CancelledError:
                continue
        if not work.cancelled():
            work.exception()  # marks it as seen; the caller is told about the cancellation instead
        raise


@dataclass(frozen=True, slots=True)
class _Form:
    """A type as the model sees it (`schema`) and as the function gets it (`build`, from checked JSON)."""

    schema: dict[str, Any]
    build: Callable[[Any], Any] = lambda value: value


@dataclass(frozen=True, slots=True)
class _Signature:
    """A function taken apart: what the model is told about it, and how it is called."""

    description: str
    parameters: dict[str, Any]
    run: Callable[[dict[str, Any], ToolContext], Awaitable[ToolOutput | str]]

    @classmethod
    def of(cls, function: Callable[..., Any], title: str) -> _Signature:
        where = f"tool {title!r}"
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ToolDefinitionError(
                f"{where} is a generator", hint="return the whole result instead of yielding"
            )
        description, texts = _docstring(function, where)
        hints = _hints(function, where)
        fields: dict[str, _Field] = {}
        context = ""
        for parameter in inspect.signature(function).parameters.values():
            if _is_context(hints.get(parameter.name)):
                context = parameter.name
            else:
                fields[parameter.name] = _parameter(parameter, hints, texts, where)
        if unknown := sorted(set(texts) - set(fields) - {context}):
            raise ToolDefinitionError(
                f"{where}: the docstring describes {unknown[0]!r}, which is no parameter",
                hint=f"its parameters are: {', '.join(fields) or 'none'}",
            )
        return cls(description, _object(fields), _runner(function, title, fields, context))


@dataclass(frozen=True, slots=True)
class _Field:
    """One field of an object: its form, and whether it may be left out."""

    form: _Form
    required: bool
    default: Any = None
    text: str = ""
    fill: bool = False
    """May be None and has no default: left out by the model, it is given as None."""


def _runner(
    function: Callable[..., Any], title: str, fields: Mapping[str, _Field], context: str
) -> Callable[[dict[str, Any], ToolContext], Awaitable[ToolOutput | str]]:
    is_async = inspect.iscoroutinefunction(function)

    async def run(arguments: dict[str, Any], ctx: ToolContext) -> ToolOutput | str:
        values = _build(fields, arguments)
        if context:
            values[context] = ctx
        result = await function(**values) if is_async else await in_thread(function, **values)
        if isinstance(result, ToolOutput):
            return dataclasses.replace(result, text=_sendable(result.text))
        return _sendable(result if isinstance(result, str) else _as_json(result, title))

    return run


def _sendable(text: str) -> str:
    """Half a surrogate pair (Python's stand-in for a byte in a file name) fits in no journal and no request."""
    return text.encode(errors="replace").decode()


def _build(fields: Mapping[str, _Field], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values as the function wants them; a null for a field with another default means "left out"."""
    values: dict[str, Any] = {name: None for name, item in fields.items() if item.fill}
    for key, value in arguments.items():
        if value is not None:
            values[key] = fields[key].form.build(value)
    return values


def _as_json(value: Any, title: str) -> str:
    def plain(item: Any) -> Any:
        if dataclasses.is_dataclass(item) and not isinstance(item, type):
            return dataclasses.asdict(item)
        if isinstance(item, enum.Enum):
            return item.value
        raise ToolError(f"tool {title!r} returned a {type(item).__name__}, which is no JSON")

    return json.dumps(value, ensure_ascii=False, default=plain)


def _docstring(function: Callable[..., Any], where: str) -> tuple[str, dict[str, str]]:
    """The first paragraph, and the parameter lines of an `Args:` section."""
    text = inspect.getdoc(function) or ""
    if not text.strip():
        raise ToolDefinitionError(
            f"{where} has no docstring, so the model would not know what it is for",
            hint='begin the function with one sentence, e.g. """Counts the words in a text."""',
        )
    paragraph = " ".join(text.strip().split("\n\n", 1)[0].split())
    section = re.search(r"^Args:[ \t]*\n((?:[ \t]+.*(?:\n|$)|[ \t]*\n)+)", text, re.MULTILINE)
    texts: dict[str, str] = {}
    if section:
        lines = [line for line in section[1].splitlines() if line.strip()]
        indent = len(lines[0]) - len(lines[0].lstrip())
        name = ""
        for line in lines:
            head = re.match(r"\s*\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)", line)
            if head and len(line) - len(line.lstrip()) == indent:
                name = head[1]
                texts[name] = head[2].strip()
            elif name:
                texts[name] = f"{texts[name]} {line.strip()}".strip()
    return paragraph, texts


def _hints(function: Any, where: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, SyntaxError) as error:
        raise ToolDefinitionError(
            f"{where}: an annotation cannot be read: {error}",
            hint="types in annotations must be defined at the top level of their module",
        ) from error


def _parameter(
    parameter: inspect.Parameter, hints: Mapping[str, Any], texts: Mapping[str, str], where: str
) -> _Field:
    name, kind = parameter.name, parameter.kind
    if kind in (kind.VAR_POSITIONAL, kind.VAR_KEYWORD, kind.POSITIONAL_ONLY):
        shown = "/" if kind is kind.POSITIONAL_ONLY else str(parameter.replace(annotation=parameter.empty))
        raise ToolDefinitionError(
            f"{where}: parameter {name!r} ({shown}) cannot be part of a schema",
            hint="give every parameter a name and a type, e.g. paths: list[str]",
        )
    if name not in hints:
        raise ToolDefinitionError(
            f"{where}: parameter {name!r} has no type", hint=f"annotate it, e.g. {name}: str"
        )
    has_default = parameter.default is not parameter.empty
    default = parameter.default if has_default else None
    return _field(hints[name], f"{where}: parameter {name!r}", texts.get(name, ""), not has_default, default)


def _field(
    annotation: Any, where: str, text: str, required: bool, default: Any, seen: tuple[Any, ...] = ()
) -> _Field:
    inner, note = _unwrap(annotation)
    optional, bare = _without_none(inner)
    form = _form(bare, where, seen)
    return _Field(form, required and not optional, default, note or text, fill=required and optional)


def _object(fields: Mapping[str, _Field]) -> dict[str, Any]:
    """The schema of an object with these fields; small, because every model call carries it."""
    properties: dict[str, Any] = {}
    for name, item in fields.items():
        schema = dict(item.form.schema)
        if item.text:
            schema["description"] = item.text
        default = item.default.value if isinstance(item.default, enum.Enum) else item.default
        if isinstance(default, str | int | float | bool):
            schema["default"] = default
        properties[name] = schema
    required = [name for name, item in fields.items() if item.required]
    return {"type": "object", "properties": properties} | ({"required": required} if required else {})


_SCALARS: dict[Any, _Form] = {
    str: _Form({"type": "string"}),
    int: _Form({"type": "integer"}),
    float: _Form({"type": "number"}, float),
    bool: _Form({"type": "boolean"}),
}
_JSON_NAMES = {str: "string", int: "integer", bool: "boolean", float: "number"}


def _form(annotation: Any, where: str, seen: tuple[Any, ...] = ()) -> _Form:
    """How a type looks in JSON, or a ToolDefinitionError that names the types that do."""
    annotation, _ = _unwrap(annotation)
    if annotation in seen:
        raise ToolDefinitionError(
            f"{where}: {annotation.__name__} contains itself", hint="use a flat list instead"
        )
    optional, bare = _without_none(annotation)
    if optional:
        form = _form(bare, where, seen)
        return _Form(
            {"anyOf": [form.schema, {"type": "null"}]},
            lambda value: None if value is None else form.build(value),
        )
    if isinstance(annotation, typing.Hashable) and annotation in _SCALARS:
        return _SCALARS[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return _choice(list(arguments), where)
    if origin is list and arguments:
        item = _form(arguments[0], where, seen)
        return _Form(
            {"type": "array", "items": item.schema}, lambda value: [item.build(one) for one in value]
        )
    if origin is dict and arguments and arguments[0] is str:
        item = _form(arguments[1], where, seen)
        return _Form(
            {"type": "object", "additionalProperties": item.schema},
            lambda value: {key: item.build(one) for key, one in value.items()},
        )
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return dataclasses.replace(_choice([member.value for member in annotation], where), build=annotation)
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return _dataclass(annotation, where, (*seen, annotation))
    if typing.is_typeddict(annotation):
        return _typed_dict(annotation, where, (*seen, annotation))
    raise ToolDefinitionError(
        f"{where} has the type {_type_name(annotation)}, which has no JSON schema here",
        hint="use str, int, float, bool, Literal, an Enum, list[...], dict[str, ...], a dataclass, a TypedDict, "
        "or one of them with | None",
    )


def _choice(values: list[Any], where: str) -> _Form:
    kinds = {type(value) for value in values}
    if len(kinds) != 1 or not kinds <= set(_JSON_NAMES):
        raise ToolDefinitionError(
            f"{where}: the choices {values!r} are not all of one JSON type",
            hint='e.g. Literal["asc", "desc"]',
        )
    return _Form({"type": _JSON_NAMES[kinds.pop()], "enum": values})


def _dataclass(annotation: Any, where: str, seen: tuple[Any, ...]) -> _Form:
    hints = _hints(annotation, where)
    fields: dict[str, _Field] = {}
    for item in dataclasses.fields(annotation):
        if item.init:
            plain = item.default is not dataclasses.MISSING
            required = not plain and item.default_factory is dataclasses.MISSING
            default = item.default if plain else None
            label = f"{where}: field {item.name!r} of {annotation.__name__}"
            fields[item.name] = _field(hints[item.name], label, "", required, default, seen)
    return _Form(_object(fields), lambda value: annotation(**_build(fields, value)))


def _typed_dict(annotation: Any, where: str, seen: tuple[Any, ...]) -> _Form:
    fields: dict[str, _Field] = {}
    for name, hint in _hints(annotation, where).items():
        label = f"{where}: field {name!r} of {annotation.__name__}"
        required = name in annotation.__required_keys__
        # Where annotations are strings, the class itself does not know about these marks.
        if (mark := typing.get_origin(hint)) in (typing.Required, typing.NotRequired):
            hint, required = typing.get_args(hint)[0], mark is typing.Required
        fields[name] = _field(hint, label, "", required, None, seen)
    return _Form(_object(fields), lambda value: _build(fields, value))


def _unwrap(annotation: Any) -> tuple[Any, str]:
    """`Annotated[X, "text"]` as (X, text)."""
    if typing.get_origin(annotation) is not typing.Annotated:
        return annotation, ""
    inner, *notes = typing.get_args(annotation)
    return inner, next((note for note in notes if isinstance(note, str)), "")


def _without_none(annotation: Any) -> tuple[bool, Any]:
    """Whether None is allowed, and the type without it."""
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return False, annotation
    members = typing.get_args(annotation)
    others = [member for member in members if member is not type(None)]
    return (True, others[0]) if len(others) == 1 and len(others) < len(members) else (False, annotation)


def _is_context(annotation: Any) -> bool:
    return _without_none(_unwrap(annotation)[0])[1] is ToolContext


def _type_name(annotation: Any) -> str:
    return (
        annotation.__name__
        if isinstance(annotation, type) and not typing.get_args(annotation)
        else str(annotation)
    )


def check_arguments(tool: Tool, arguments: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The arguments as the tool takes them, and what is wrong with them in words for the model; see `_arguments.fit`.

    Where something was mended, the returned object is another one than the given one; else it is the same object (`is`).
    With problems the call must not be run.
    """
    return fit(tool.parameters, arguments, drops=tool.effect is Effect.READ)
