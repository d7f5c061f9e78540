"""What goes out to Ollama: messages and tools in its words, each translated once, with the size that they have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from graphton.chat._window import Prompt
from graphton.chat._wire import Fragment, dumps, fit_id, result_text, sent_arguments
from graphton.chat.base import Request, ToolSpec
from graphton.messages import AssistantMessage, Message, Thinking, ToolCall, ToolResults, UserMessage

__all__ = ["Outgoing", "outgoing"]

_DIGITS = b"0123456789"


@dataclass(frozen=True, slots=True)
class Wire:
    """A message as it goes out, and how many words and digits were said in it."""

    data: bytes
    words: int
    digits: int

    @classmethod
    def of(cls, message: dict[str, Any]) -> Wire:
        data = dumps(message)
        return cls(data, len(message["content"].split()), len(data) - len(data.translate(None, _DIGITS)))


@dataclass(frozen=True, slots=True)
class Outgoing:
    """The parts of a request's body that depend on the request, and their measures."""

    messages: Sequence[bytes]
    tools: Sequence[bytes]
    schema: dict[str, Any] | None
    prompt: Prompt

    @property
    def parts(self) -> Sequence[bytes]:
        """What the server reads, in the order in which it does: it need not read a beginning again that it knows."""
        return (*self.tools, *self.messages)

    def body(self) -> dict[str, Any]:
        """The part of the body that stands before the options."""
        body: dict[str, Any] = {"messages": list(map(Fragment, self.messages))}
        if self.tools:
            body["tools"] = list(map(Fragment, self.tools))
        return body


def outgoing(request: Request, *, reply: int, bytes_per_token: float) -> Outgoing:
    """A request as it goes out; `reply` is the room for the answer, in tokens."""
    system = [Wire.of({"role": "system", "content": request.system})] if request.system.strip() else []
    tools = list(map(_tool, request.tools))
    messages = list(_wire_messages(request.messages))
    prompt = Prompt(
        system=sum(len(w.data) for w in system),
        tools=sum(map(len, tools)),
        messages=sum(len(w.data) for w in messages),
        tool_count=len(tools),
        message_count=len(messages),
        words=sum(w.words for w in (*system, *messages)),
        reply=reply,
        bytes_per_token=bytes_per_token,
        digits=sum(w.digits for w in messages),
    )
    return Outgoing([w.data for w in (*system, *messages)], tools, request.schema, prompt)


def _tool(spec: ToolSpec) -> bytes:
    function = {"name": spec.name, "description": spec.description, "parameters": spec.parameters}
    return dumps({"type": "function", "function": function})


def _wire_messages(messages: Iterable[Message]) -> Iterator[Wire]:
    """Every message as it goes out, each translated once; one that says nothing is left out."""
    for message in messages:
        if "ollama" not in message.wire:
            message.wire["ollama"] = [Wire.of(wire) for wire in _translate(message)]
        yield from message.wire["ollama"]


def _translate(message: Message) -> Iterator[dict[str, Any]]:
    match message:
        case UserMessage():
            yield {"role": "user", "content": message.text}
        case ToolResults():
            for result in message.results:
                told = {"role": "tool", "content": result_text(result), "tool_name": result.name}
                yield told | _id("tool_call_id", result.wire_id, result.call)
        case AssistantMessage() if message.calls:
            # Models that think between calls are shown what they thought; a template without a place for it leaves it out.
            thought = "".join(
                b.text for b in message.blocks if isinstance(b, Thinking) and b.provider == "ollama"
            )
            thinking = {"thinking": thought} if thought else {}
            calls = list(map(_call, message.calls))
            yield {"role": "assistant", "content": message.text, **thinking, "tool_calls": calls}
        case AssistantMessage():
            if message.text:
                yield {"role": "assistant", "content": message.text}


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": sent_arguments(call)}
    return {**_id("id", call.wire_id, call.id), "function": function}


def _id(field: str, wire_id: str, ours: str) -> dict[str, str]:
    """Which call it is. Versions before 0.12.10 know no ids, and read over them."""
    return {field: fit_id(wire_id, ours, None)} if wire_id or ours else {}
