"""What FakeProviders is told to answer: replies with their faults, rules, and the same as JSON."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from graphton.chat.base import ToolSpec
from graphton.errors import SettingError
from graphton.messages import Message, StopReason, ToolResult, ToolResults, UserMessage

__all__ = ["Call", "FakeRequest", "Reply", "Rule", "script_from_json", "steps"]


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call to answer with. `arguments` as text goes out as it stands, so that it may be broken JSON."""

    name: str
    arguments: Mapping[str, Any] | str = field(default_factory=dict)
    id: str | None = None
    """The provider's id; None: one is made. "" leaves it out, as some compatible hosts do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer, and what goes wrong with it. Every number of seconds or events may be left out.

    Content: `text`, `thinking` (with `signature`, Anthropic only), `calls`, `stop` (None: "tools" when there are
    calls, else "end"), `model` (None: the one asked for), and the usage numbers (None: estimated from the sizes).
    An "event" is one thing on the wire: an SSE event or an NDJSON line, counted from 0.
    """

    text: str = ""
    thinking: str = ""
    signature: str = "c2lnbmVkIGJ5IHRoZSBmYWtl"
    calls: tuple[Call, ...] = ()
    stop: StopReason | None = None
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    pieces: int = 4
    """Text, thinking and arguments are streamed in about this many pieces each."""

    status: int = 200
    """400 and more answer with an error in the dialect's own form; 3xx needs a `headers["Location"]`."""
    error: str = ""
    """The error's message."""
    error_kind: str = ""
    """The error's type, as the dialect names it; "": the usual one for the status."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """More response headers."""
    retry_after: float | None = None
    body: bytes | None = None
    """Exactly this body instead of a reply of the dialect."""

    delay: float = 0.0
    """Seconds before the status line."""
    first_token_delay: float = 0.0
    """Seconds between the headers and the first event."""
    stall_after: int | None = None
    """Wait before this event …"""
    stall: float | None = None
    """… for so many seconds; None: until the client goes away."""
    break_after_bytes: int | None = None
    """The connection is cut after so many bytes of the body."""
    break_after_events: int | None = None
    """The connection is cut before this event."""
    end_after_events: int | None = None
    """The body ends cleanly before this event, as if it were whole."""
    malformed_event: int | None = None
    """This event's JSON is cut in half."""
    error_event: int | None = None
    """An error (`error`, `error_kind`) stands in place of this event, inside the 200 stream, which then ends."""
    unknown_events: bool = False
    """Events and fields of types that nobody has heard of are mixed in."""
    keep_alives: bool = False
    """Comments, pings or blank lines are mixed in."""
    write_size: int | None = None
    """The body is written in pieces of so many bytes, each flushed, wherever they cut."""
    end_marker: bool = True
    """False: the last event (`data: [DONE]`, `message_stop`) is missing. On Ollama there is none to leave out."""

    @property
    def stop_reason(self) -> StopReason:
        """The stop reason that goes out."""
        return self.stop or (StopReason.TOOLS if self.calls else StopReason.END)


@dataclass(slots=True, kw_only=True, eq=False)
class FakeRequest:
    """A request as it arrived, raw and, for a model call, in neutral form."""

    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes
    time: float
    """Seconds since the epoch."""
    json: Any = None
    """The parsed body; None where it is no JSON."""
    provider: str = ""
    """anthropic | openai | ollama for a model call, else ""."""
    model: str = ""
    stream: bool = False
    system: str = ""
    messages: tuple[Message, ...] = ()
    tools: tuple[ToolSpec, ...] = ()
    schema: dict[str, Any] | None = None
    """The JSON schema that the reply's text must follow."""
    disconnected: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    """Set when the client went away before the reply was whole."""
    answered: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    """Set when the whole reply is written, faults included."""

    @property
    def last_user_text(self) -> str:
        """What the user said last; "" when nobody said anything."""
        said = [m.text for m in self.messages if isinstance(m, UserMessage)]
        return said[-1] if said else ""

    @property
    def tool_results(self) -> tuple[ToolResult, ...]:
        """The results that came after what the user said last, in order."""
        results: list[ToolResult] = []
        for message in self.messages:
            if isinstance(message, UserMessage):
                results.clear()
            elif isinstance(message, ToolResults):
                results.extend(message.results)
        return tuple(results)


Rule = Callable[[FakeRequest], Reply | None]
"""Looks at a model call and answers it, or says None and leaves it to the next rule and the script."""


def steps(
    tool: str = "", *, arguments: Mapping[str, Any] | None = None, answer: str = "Done after {n} steps."
) -> Rule:
    """A rule for a user text with `STEPS=n`: call the first tool offered whose name matches until n results exist.

    `tool` is a regular expression ("" matches any name). Then `answer`, with `{n}` filled in, ends the turn.
    """

    def rule(request: FakeRequest) -> Reply | None:
        wanted = re.search(r"STEPS=(\d+)", request.last_user_text)
        if wanted is None:
            return None
        n = int(wanted[1])
        if len(request.tool_results) >= n:
            return Reply(text=answer.replace("{n}", str(n)))
        name = next((t.name for t in request.tools if re.search(tool, t.name)), None)
        if name is None:
            offered = ", ".join(t.name for t in request.tools) or "none"
            return Reply(
                status=500, error=f"STEPS={n} needs a tool that matches {tool!r}; offered: {offered}"
            )
        return Reply(calls=(Call(name, arguments or {}),))

    return rule


def matching(pattern: str, reply: Reply) -> Rule:
    """A rule that gives `reply` whenever the last user text matches the regular expression."""
    return lambda request: reply if re.search(pattern, request.last_user_text) else None


def script_from_json(script: Mapping[str, Any]) -> tuple[list[Reply], list[Rule]]:
    """The replies and rules of a JSON script.

    ```json
    {"replies": [{"calls": [{"name": "read_file", "arguments": {"path": "a.txt"}}]},
                 {"status": 529, "retry_after": 1},
                 {"text": "It says hello.", "break_after_bytes": 100},
                 {"text": "It says hello."}],
     "rules": [{"steps": "list_files|read_file", "arguments": {"path": "."}, "answer": "Done."},
               {"match": "(?i)weather", "reply": {"text": "Rain."}}]}
    ```
    A reply has the fields of `Reply`, by the same names and meanings. Rules are asked first, in order.
    """
    _only(script, {"replies", "rules"}, "the script")
    replies = [reply_from_json(r, f"replies[{i}]") for i, r in enumerate(script.get("replies", ()))]
    rules = [_rule_from_json(r, f"rules[{i}]") for i, r in enumerate(script.get("rules", ()))]
    return replies, rules


def reply_from_json(given: Mapping[str, Any], where: str) -> Reply:
    """One reply from its JSON object."""
    _only(given, {f.name for f in fields(Reply)}, where)
    values = dict(given)
    if "calls" in values:
        values["calls"] = tuple(_call_from_json(c, f"{where}.calls") for c in values["calls"])
    if values.get("stop") is not None:
        values["stop"] = StopReason(values["stop"])
    if values.get("body") is not None:
        values["body"] = str(values["body"]).encode()
    return Reply(**values)


def _call_from_json(given: Mapping[str, Any], where: str) -> Call:
    _only(given, {f.name for f in fields(Call)}, where)
    return Call(**given)


def _rule_from_json(given: Mapping[str, Any], where: str) -> Rule:
    if "steps" in given:
        _only(given, {"steps", "arguments", "answer"}, where)
        return steps(given["steps"], **{k: v for k, v in given.items() if k != "steps"})
    _only(given, {"match", "reply"}, where)
    if "match" not in given or "reply" not in given:
        raise SettingError(
            f"{where} is no rule: {dict(given)!r}",
            hint='write {"steps": "TOOL REGEX"} or {"match": "REGEX", "reply": {"text": "…"}}',
        )
    return matching(given["match"], reply_from_json(given["reply"], f"{where}.reply"))


def _only(given: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(given) - known)
    if unknown:
        raise SettingError(
            f"{where} has an unknown key {unknown[0]!r}", hint=f"known keys: {', '.join(sorted(known))}"
        )
