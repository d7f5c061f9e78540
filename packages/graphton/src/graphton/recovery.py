"""Tool calls that a model printed as text, taken for what they were meant to be.

Some models, or their chat templates, write a call into the message instead of calling. It counts as a call only
if the whole message is nothing but calls and each names an offered tool; text that merely holds JSON is shown as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from graphton.chat import _json
from graphton.chat.base import Chat, Chunk, Done, Preview, Request, TextChunk, ToolSpec
from graphton.messages import AssistantMessage, StopReason, Text, ToolCall
from graphton.models import ModelSettings

__all__ = ["RecoveringChat", "calls_in", "may_become_calls", "streaming"]

NAME_KEYS = ("name", "function", "tool", "tool_name")
ARGUMENT_KEYS = ("arguments", "parameters", "args", "input")
OTHER_KEYS = ("type", "id")
"""What may stand beside them in a call, as some APIs write it."""

TAGS = ("tool_call", "tool_calls", "tools", "tool", "function_call")
PREFIXES = ("[TOOL_CALLS]", "<|python_tag|>", "<|tool_call|>")
"""What families write before bare calls, where their server does not take it away."""

_TAGGED = re.compile(rf"\s*<({'|'.join(TAGS)})>(.*?)</\1>\s*", re.DOTALL)
_FENCED = re.compile(r"\s*```(?:json|tool_call|tool_code)?[ \t]*\r?\n(.*?)\r?\n?[ \t]*```\s*", re.DOTALL)
_FENCE_HEADS = tuple(f"```{word}\n" for word in ("", "json", "tool_call", "tool_code"))


class RecoveringChat:
    """A chat whose model's printed calls come out as ToolCall; everything else goes through unchanged.

    Text that may still become a call is held back while it streams, and shown as soon as it is something else.
    """

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.ref = chat.ref

    @property
    def settings(self) -> ModelSettings:
        """The inner chat's, which may change: a window is only known once the model is loaded."""
        return self.chat.settings

    @property
    def notices(self) -> tuple[str, ...]:
        return self.chat.notices

    async def stream(self, request: Request) -> AsyncGenerator[Chunk]:
        """The inner chat's chunks; a held text is let go, or turned into calls, before the last one."""
        names = {tool.name for tool in request.tools}
        held = ""
        deciding = bool(names)
        async with streaming(self.chat, request) as chunks:
            async for chunk in chunks:
                if isinstance(chunk, TextChunk) and deciding:
                    held += chunk.text
                    deciding = may_become_calls(held, names)
                    if not deciding:
                        yield TextChunk(held)
                elif isinstance(chunk, Done):
                    message = recovered(chunk.message, request.tools)
                    if deciding and held and message is chunk.message:
                        yield TextChunk(held)
                    yield Done(message)
                else:
                    yield chunk

    def preview(self, request: Request) -> Preview:
        """The inner chat's request: nothing of it changes."""
        return self.chat.preview(request)

    async def close(self) -> None:
        """Close the inner chat."""
        await self.chat.close()


@asynccontextmanager
async def streaming(chat: Chat, request: Request) -> AsyncGenerator[AsyncIterator[Chunk]]:
    """The chunks of one request; closed at the end of the block, which cancels what is still under way."""
    chunks = chat.stream(request)
    try:
        yield chunks
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()


def recovered(message: AssistantMessage, tools: Sequence[ToolSpec]) -> AssistantMessage:
    """The message with its printed calls as calls; the same object where there are none.

    A message with real calls has no printed ones, and one that was cut may be half of something else.
    """
    if message.calls or message.stop not in (StopReason.END, StopReason.TOOLS):
        return message
    calls = calls_in(message.text, tools)
    if not calls:
        return message
    kept = tuple(block for block in message.blocks if not isinstance(block, Text))
    return replace(message, blocks=(*kept, *calls), stop=StopReason.TOOLS, wire={})


def calls_in(text: str, tools: Sequence[ToolSpec]) -> tuple[ToolCall, ...]:
    """The calls that a text consists of; none where anything in it is not a call of an offered tool.

    >>> calls_in('{"name": "read_file", "arguments": {"path": "a.txt"}}', [read_file])
    (ToolCall(name='read_file', arguments={'path': 'a.txt'}, ...),)
    """
    offered = {tool.name: tool for tool in tools}
    try:
        values = [value for part in _parts(text.strip()) for value in _values(_mended(part))]
    except (ValueError, RecursionError):
        return ()
    calls = [_call(value, offered) for value in values]
    return tuple(call for call in calls if call is not None) if None not in calls else ()


def _parts(text: str) -> list[str]:
    """The text without its wrapping: what stands in the tags or fences that it consists of, or all of it."""
    for prefix in PREFIXES:
        text = text.removeprefix(prefix)
    for wrapping in (_TAGGED, _FENCED):
        parts, end = [], 0
        while match := wrapping.match(text, end):
            parts.append(match.group(match.lastindex or 0))
            end = match.end()
        if parts and end == len(text):
            return parts
    return [text]


_STRING = r'"(?:[^"\\]|\\.)*"'
_COMMA_TOO_MANY = re.compile(rf"({_STRING})|,(\s*[}}\]])", re.DOTALL)
_BRACKETS = re.compile(rf"{_STRING}|[{{}}\[\]]|\"", re.DOTALL)
MOST_CLOSED = 2
"""So many brackets may be missing at the end of a text that its model ended by itself; more is half of something."""


def _mended(text: str) -> str:
    """JSON without a comma before a closing bracket, and with the last brackets, where nothing else is missing."""
    text = _COMMA_TOO_MANY.sub(lambda found: found[1] or found[2], text.strip())
    open_: list[str] = []
    for found in _BRACKETS.findall(text):
        if found == '"':
            return text  # A string that does not end.
        if found in "{[":
            open_.append("}" if found == "{" else "]")
        elif found in "}]" and (not open_ or open_.pop() != found):
            return text
    closing = "".join(reversed(open_))
    return text + closing if len(closing) <= MOST_CLOSED and text[-1:] in ("}", "]", '"') else text


def _values(text: str) -> list[Any]:
    """The JSON values in a text, one after the other or in one list. Line breaks inside strings are forgiven."""
    decoder, values, at = json.JSONDecoder(strict=False, parse_constant=_no_constant), list[Any](), 0
    text = text.strip()
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        values += value if isinstance(value, list) else [value]
        while at < len(text) and text[at] in " \t\r\n,;":
            at += 1
    return values


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _call(value: Any, offered: Mapping[str, ToolSpec]) -> ToolCall | None:
    """The call that a JSON value describes, in any of the spellings that models use."""
    if not isinstance(value, dict):
        return None
    if isinstance(inner := value.get("function"), dict) and set(value) <= {"function", *OTHER_KEYS}:
        return _call(inner, offered)  # {"type": "function", "function": {"name": …, "arguments": …}}
    named = [key for key in NAME_KEYS if key in value]
    given = [key for key in ARGUMENT_KEYS if key in value]
    if len(named) != 1 or len(given) > 1 or not set(value) <= {*named, *given, *OTHER_KEYS}:
        return None
    name = value[named[0]]
    if not isinstance(name, str) or name not in offered:
        return None
    if not given:
        return None if offered[name].parameters.get("required") else ToolCall(name, {})
    arguments = value[given[0]]
    if isinstance(arguments, str):
        arguments, malformed = _json.arguments(arguments)
        return None if malformed else ToolCall(name, arguments)
    return ToolCall(name, _json.clean(arguments)) if isinstance(arguments, dict) else None


def may_become_calls(text: str, names: Collection[str]) -> bool:
    """Whether a text that is still being written may turn out to be calls and nothing else."""
    text = _unwrapped(text.lstrip())
    while text[:1] in ("[", "{") and text[1:].lstrip()[:1] in ("{", "["):
        text = text[1:].lstrip()
    if text in ("", "["):
        return True
    if not text.startswith("{"):
        return False
    key, colon, value = text[1:].lstrip().partition(":")
    if not colon:
        known = (f'"{word}"' for word in (*NAME_KEYS, *ARGUMENT_KEYS, *OTHER_KEYS))
        return any(word.startswith(key.rstrip()) for word in known)
    key, value = key.rstrip(), value.lstrip()
    if key.strip('"') in (*ARGUMENT_KEYS, *OTHER_KEYS) or value.startswith("{"):
        return key.strip('"') in (*NAME_KEYS, *ARGUMENT_KEYS, *OTHER_KEYS)
    wanted = [f'"{name}"' for name in names]
    return key.strip('"') in NAME_KEYS and any(w.startswith(value) or value.startswith(w) for w in wanted)


def _unwrapped(text: str) -> str:
    """The text behind an opening tag, fence or prefix; "" while that itself is only begun."""
    for head in (*(f"<{tag}>" for tag in TAGS), *PREFIXES, *_FENCE_HEADS):
        if text and head.startswith(text):
            return ""
    for head in (*(f"<{tag}>" for tag in TAGS), *PREFIXES, *_FENCE_HEADS):
        if text.startswith(head):
            return text[len(head) :].lstrip()
    return text
