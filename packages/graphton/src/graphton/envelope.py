"""Tools for models without dependable native tool calls: each reply is one JSON object, held to a schema.

`EnvelopeChat` wraps a chat that can constrain a reply to a JSON schema (Ollama's `format`, llama.cpp's
`response_format`). The model then writes either `{"tool": NAME, "arguments": {…}}`, with the arguments that this
tool takes, or `{"reply": TEXT}`; an unknown tool, a missing argument or a wrong type cannot be written at all.
To the loop it looks like any other chat: calls come out as ToolCall, the reply's text streams as it is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import replace
from typing import Any

from graphton.chat import _json
from graphton.chat.base import Chat, Chunk, Done, Preview, Request, TextChunk, ToolSpec
from graphton.messages import (
    AssistantMessage,
    Block,
    Message,
    StopReason,
    Text,
    ToolCall,
    ToolResult,
    ToolResults,
    UserMessage,
)
from graphton.recovery import calls_in, streaming

__all__ = ["EnvelopeChat", "ReplyText", "enveloped", "goes_round", "opened", "reply_schema"]

TOOL, ARGUMENTS, REPLY = "tool", "arguments", "reply"

HOW = """\
Each message you write is one JSON object.
To use a tool: {"tool": NAME, "arguments": {...}}
To answer the user: {"reply": TEXT}"""

EXAMPLES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("read_file", "What is the name in web/package.json?", {"path": "web/package.json"}),
    ("search_files", "Which file contains the word invoice?", {"text": "invoice"}),
    ("write_file", 'Put "Bye, 2 cats" into old.md', {"path": "old.md", "content": "Bye, 2 cats"}),
)
"""One is shown for each tool of that name which takes these arguments. The folder, the comma and the verb are there
because without them the small models searched for paths, split texts into lines and edited files that did not exist."""

PLAIN_EXAMPLE = ("What is the capital of Italy?", "Rome.")

MAX_RESULT = 4_000
"""Characters of one tool result that the model is shown: up to 2,500 tokens, which is 6 seconds of reading for a model
of 1.5b on two idle cores, and leaves room in a window of 8,192. The journal keeps the whole result."""
CLIPPED_END = 500
LONG_RESULT = 1_000
"""Characters from which on the question is repeated behind a result."""

ENOUGH = "You have seen this before. Answer the user now."

MAX_DEPTH = 8
"""How deep a schema is followed; below, any value goes. A recursive one would never end."""


class EnvelopeChat:
    """A chat whose model answers in envelopes wherever tools are offered; without tools it changes nothing."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.ref = chat.ref
        self.settings = chat.settings
        self.notices = chat.notices

    async def stream(self, request: Request) -> AsyncGenerator[Chunk]:
        """The inner chat's chunks, with the envelope taken off."""
        wrapped = bool(request.tools) and request.schema is None
        reply, shown = ReplyText(), 0
        async with streaming(self.chat, enveloped(request) if wrapped else request) as chunks:
            async for chunk in chunks:
                if isinstance(chunk, TextChunk) and wrapped:
                    if text := reply.feed(chunk.text):
                        shown += len(text)
                        yield TextChunk(text)
                elif isinstance(chunk, Done) and wrapped:
                    message = opened(chunk.message, request.tools)
                    # From a server that ignored the schema comes plain text: only now is it known to be the reply.
                    if rest := message.text[shown:]:
                        yield TextChunk(rest)
                    yield Done(message)
                else:
                    yield chunk

    def preview(self, request: Request) -> Preview:
        """The inner chat's request, with the envelope's schema and system text in it."""
        wrapped = bool(request.tools) and request.schema is None
        return self.chat.preview(enveloped(request) if wrapped else request)

    async def close(self) -> None:
        """Close the inner chat."""
        await self.chat.close()


# --- what goes out ------------------------------------------------------------------------------------------------


def enveloped(request: Request) -> Request:
    """The same request in envelopes: tools become system text and a reply schema, history becomes plain turns.

    What an earlier request began with, a later one of the same run begins with too: prompt caches need it.
    """
    system = "\n\n".join(part for part in (request.system.strip(), addendum(request.tools)) if part)
    turns = _turns(request.messages)
    if not goes_round(request.messages):
        return Request(system, turns, schema=reply_schema(request.tools))
    return Request(system, [*turns[:-1], _told(turns[-1])], schema=_closed({REPLY: {"type": "string"}}))


def goes_round(messages: Sequence[Message]) -> bool:
    """Whether the last calls were made before, for this question, and had the same answers.

    A small model that does so does it for ever: the next thing it can write is its answer.
    """
    seen: set[tuple[str, str, str]] = set()
    calls: dict[str, ToolCall] = {}
    repeated = False
    for message in messages:
        match message:
            case UserMessage():
                seen.clear()
                repeated = False
            case AssistantMessage():
                calls = {call.id: call for call in message.calls}
            case ToolResults():
                made = {
                    (r.name, _dump(calls[r.call].arguments) if r.call in calls else "", r.text)
                    for r in message.results
                }
                repeated = made <= seen
                seen |= made
    return repeated


def _told(turn: Message) -> Message:
    return UserMessage(f"{turn.text}\n\n{ENOUGH}") if isinstance(turn, UserMessage) else turn


def addendum(tools: Sequence[ToolSpec]) -> str:
    """What the model must know about envelopes and tools."""
    lines = [HOW, "", "Tools:", *(_signature(tool) for tool in tools), "", "Examples:"]
    for user, envelope in _examples(tools):
        lines += [f"User: {user}", f"You: {envelope}"]
    return "\n".join(lines)


def _examples(tools: Sequence[ToolSpec]) -> Iterator[tuple[str, str]]:
    offered = {tool.name: tool.parameters for tool in tools}
    for name, user, arguments in EXAMPLES:
        schema = offered.get(name, {})
        if set(schema.get("required", ())) <= set(arguments) <= set(schema.get("properties", ())):
            yield user, _dump({TOOL: name, ARGUMENTS: arguments})
    user, answer = PLAIN_EXAMPLE
    yield user, _dump({REPLY: answer})


def _signature(tool: ToolSpec) -> str:
    """A tool as a line: shorter than its schema, which the reply is held to anyway."""
    required = tool.parameters.get("required", ())
    properties: dict[str, Any] = tool.parameters.get("properties", {})
    shown = {k: v for k, v in properties.items() if k in required or not _tunes(v)}
    arguments = ", ".join(_argument(key, schema, key in required) for key, schema in shown.items())
    about = [
        f"    {key}: {schema['description']}"
        for key, schema in shown.items()
        if isinstance(schema, dict) and schema.get("description")
    ]
    return "\n".join([f"- {tool.name}({arguments}): {tool.description}".rstrip(": "), *about])


def _tunes(schema: Any) -> bool:
    """Whether an optional argument is a number or a switch. Told of `end_line`, the small models read a file line
    by line; not told, they still may use it where a result says so."""
    return isinstance(schema, dict) and schema.get("type") in ("integer", "number", "boolean")


def _argument(key: str, schema: Any, required: bool) -> str:
    kind = _kind(schema)
    return f"{key}{'' if required else '?'}{'' if kind == 'string' else f': {kind}'}"


def _kind(schema: Any, depth: int = 0) -> str:
    """A schema in a few characters; a string is what nobody needs to be told."""
    if not isinstance(schema, dict) or depth > MAX_DEPTH:
        return "any"
    if "enum" in schema:
        return "|".join(_dump(value) for value in schema["enum"])
    if "const" in schema:
        return _dump(schema["const"])
    kind = schema.get("type", "any")
    if kind == "array":
        return f"[{_kind(schema.get('items'), depth + 1)}]"
    if kind == "object" and schema.get("properties"):
        inner = (f"{key}: {_kind(value, depth + 1)}" for key, value in schema["properties"].items())
        return "{" + ", ".join(inner) + "}"
    return "|".join(kind) if isinstance(kind, list) else str(kind)


def reply_schema(tools: Sequence[ToolSpec]) -> dict[str, Any]:
    """The schema of an envelope: a call of one of the tools with its own arguments, or a reply."""
    calls = [
        _closed({TOOL: {"const": tool.name}, ARGUMENTS: plain_schema(tool.parameters) | {"type": "object"}})
        for tool in tools
    ]
    return {"anyOf": [*calls, _closed({REPLY: {"type": "string"}})]}


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


KEPT = ("enum", "const", "minItems", "maxItems")
"""Keywords passed on as they are. Others (patterns, formats, lengths, ranges) are left to the check of the
arguments: as a grammar they are refused by some servers, or slow."""


def plain_schema(schema: Any, root: Any = None, depth: int = 0) -> dict[str, Any]:
    """A schema reduced to what every server can turn into a grammar; references are written out."""
    root = schema if root is None else root
    if not isinstance(schema, dict) or depth > MAX_DEPTH:
        return {}
    if isinstance(reference := schema.get("$ref"), str):
        return plain_schema(_referred(reference, root), root, depth + 1)
    for word in ("anyOf", "oneOf"):
        if options := schema.get(word):
            return {"anyOf": [plain_schema(option, root, depth + 1) for option in options]}
    parts = schema.get("allOf", ())
    if len(parts) == 1:
        return plain_schema(parts[0], root, depth + 1)
    plain = {key: schema[key] for key in KEPT if key in schema}
    if "enum" in plain or "const" in plain:
        return plain
    if "type" in schema:
        plain["type"] = schema["type"]
    if isinstance(items := schema.get("items"), dict):
        plain["items"] = plain_schema(items, root, depth + 1)
    properties = schema.get("properties")
    if isinstance(properties, dict):
        plain |= {
            "type": "object",
            "properties": {k: plain_schema(v, root, depth + 1) for k, v in properties.items()},
            "required": [key for key in schema.get("required", ()) if key in properties],
            "additionalProperties": False,
        }
    return plain


def _referred(reference: str, root: Any) -> Any:
    """What a reference inside the same schema points to; nothing for any other."""
    found = root
    for step in reference.removeprefix("#/").split("/"):
        found = found.get(step) if isinstance(found, dict) else None
    return found


def _turns(messages: Sequence[Message]) -> list[Message]:
    """The history as turns of user and model, strictly by turns: some chat templates take nothing else."""
    turns: list[Message] = []
    for turn in _rendered(messages):
        last = turns[-1] if turns else None
        if isinstance(last, UserMessage) and isinstance(turn, UserMessage):
            turns[-1] = UserMessage(f"{last.text}\n\n{turn.text}")
        else:
            turns.append(turn)
    return turns


def _rendered(messages: Sequence[Message]) -> Iterator[Message]:
    """Each message as the model wrote it, or would have: one envelope a turn, each call before its result."""
    calls: dict[str, ToolCall] = {}
    asked = ""
    for message in messages:
        match message:
            case UserMessage():
                asked = message.text
                yield message
            case AssistantMessage():
                # Text beside calls (of another model, before a fallback) was talk on the way; envelopes have none.
                calls = {call.id: call for call in message.calls}
                if not calls and message.text:
                    yield _said({REPLY: message.text})
            case ToolResults():
                for result in message.results:
                    call = calls.get(result.call, ToolCall(result.name, {}))
                    yield _said({TOOL: call.name, ARGUMENTS: call.arguments})
                    yield UserMessage(_result(result, asked))


def _said(envelope: dict[str, Any]) -> AssistantMessage:
    return AssistantMessage((Text(_dump(envelope)),))


def _result(result: ToolResult, asked: str) -> str:
    failed = result.is_error and not result.text.lower().startswith("error")
    shown = f"Result of {result.name}:\n{'Error: ' if failed else ''}{_clipped(result.text)}"
    # Behind a long text the small models forget what it was for.
    remind = len(shown) > LONG_RESULT and 0 < len(asked) <= LONG_RESULT
    return f"{shown}\n\nThe user asked: {asked}" if remind else shown


def _clipped(text: str) -> str:
    """A long result without its middle: its end often says how to see more."""
    if len(text) <= MAX_RESULT:
        return text
    left_out = len(text) - MAX_RESULT
    return (
        f"{text[: -left_out - CLIPPED_END]}\n"
        f"({left_out} characters are left out here; ask for a smaller part to see them)\n"
        f"{text[-CLIPPED_END:]}"
    )


def _dump(value: Any) -> str:
    """JSON with blanks, as models write it by themselves."""
    return json.dumps(_json.clean(value), ensure_ascii=False)


# --- what comes back ----------------------------------------------------------------------------------------------


def opened(message: AssistantMessage, tools: Sequence[ToolSpec]) -> AssistantMessage:
    """The message without its envelope: a call or a text. What is no envelope at all is text, or a printed call."""
    content, stop = _content(message.text, message.stop, tools)
    kept = tuple(block for block in message.blocks if not isinstance(block, Text))
    return replace(message, blocks=(*kept, *content), stop=stop, wire={})


def _content(text: str, stop: StopReason, tools: Sequence[ToolSpec]) -> tuple[tuple[Block, ...], StopReason]:
    reply = ReplyText()
    said = reply.feed(text)
    if reply.found:
        return (Text(said),), stop
    envelope, malformed = _json.arguments(text)
    if malformed and stop is StopReason.LENGTH and (head := _CALL_HEAD.match(text)):
        return (ToolCall(json.loads(head.group(1)), {}, malformed=text),), stop
    match envelope:
        case {"tool": str(name), "arguments": dict(arguments), **rest} if not rest:
            if name in {tool.name for tool in tools}:
                return (ToolCall(name, arguments),), StopReason.TOOLS if stop is StopReason.END else stop
    return _foreign(text, stop, tools)


_CALL_HEAD = re.compile(r'\s*\{\s*"tool"\s*:\s*("(?:[^"\\]|\\.)*")')
"""A call that was cut names its tool already: it is answered with an error, never run."""


def _foreign(text: str, stop: StopReason, tools: Sequence[ToolSpec]) -> tuple[tuple[Block, ...], StopReason]:
    """What a server wrote that did not keep to the schema."""
    if stop in (StopReason.END, StopReason.TOOLS) and (calls := calls_in(text, tools)):
        return calls, StopReason.TOOLS
    return ((Text(text),) if text else ()), stop


_HEX = re.compile(r"[0-9a-fA-F]{4}")
_PAIR = re.compile(r"\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")
_HALF = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}(\\(u([dD]([c-fC-F][0-9a-fA-F]?)?)?)?)?")
"""The first half of a pair, and the second not there or only begun."""
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


class ReplyText:
    """Decodes the text of `{"reply": "…"}` while it is written, however it is cut into pieces.

    `feed` returns what became readable with this piece; anything but a reply yields nothing. Half a surrogate
    pair becomes U+FFFD, as when the whole text is parsed.
    """

    _HEAD = re.compile(r'\s*\{\s*"reply"\s*:\s*"')

    def __init__(self) -> None:
        self.found = False
        """Whether the reply's text has begun."""
        self._ended = False
        self._rest = ""
        """What cannot be decided yet: the head before the text, or the beginning of an escape."""

    def feed(self, piece: str) -> str:
        """The text that `piece` adds to the reply."""
        if self._ended:
            return ""
        self._rest += piece
        if not self.found:
            head = self._HEAD.match(self._rest)
            if head is None:
                return ""
            self.found, self._rest = True, self._rest[head.end() :]
        return "".join(self._decoded())

    def _decoded(self) -> Iterator[str]:
        """Take from the rest what is whole: plain text up to an escape, then the escape, and again."""
        while self._rest and not self._ended:
            plain = re.match(r'[^"\\]*', self._rest)
            at = plain.end() if plain else 0
            if at:
                yield self._rest[:at]
                self._rest = self._rest[at:]
            elif self._rest[0] == '"':
                self._ended = True
            else:
                text, length = _escape(self._rest)
                if not length:
                    return
                yield text
                self._rest = self._rest[length:]


def _escape(text: str) -> tuple[str, int]:
    """The character of the escape that a text begins with, and the escape's length; 0 while it is not whole."""
    if len(text) < 2 or (text[1] == "u" and len(text) < 6):
        return "", 0
    if text[1] != "u":
        return _ESCAPES.get(text[1], text[1]), 2
    if (pair := _PAIR.match(text)) is not None:
        high, low = (int(half, 16) for half in pair.groups())
        return chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00)), 12
    if _HALF.fullmatch(text):
        return "", 0
    code = int(text[2:6], 16) if _HEX.fullmatch(text[2:6]) else 0xFFFD
    return ("\ufffd" if 0xD800 <= code <= 0xDFFF else chr(code)), 6
