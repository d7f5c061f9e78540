"""The conversation as the next request will carry it: repaired, measured and digested as it grows.

Nothing here walks all messages at each step: a message is looked at once, when it is added.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import orjson

from graphton.messages import (
    AssistantMessage,
    Block,
    Message,
    Opaque,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
    ToolResults,
    UserMessage,
)

__all__ = ["History", "estimate_tokens"]

INTERRUPTED = "This call was interrupted before it had an answer. It may or may not have done its work."


def estimate_tokens(text: str) -> int:
    """About how many tokens a text takes: a quarter of its UTF-8 bytes, rounded up.

    Good to a fifth for English and code in the tokenizers of the providers we speak to; enough for a budget
    and for noticing a prompt that was cut.
    """
    return -(-len(text.encode("utf-8", "surrogatepass")) // 4)


class History:
    """Messages in the order that every provider accepts: each tool call answered, right after its message.

    `add` mends what an interrupt or a crash left: a call without a result gets an error result, a result
    without a call is dropped, and so is a reply that holds nothing at all.
    """

    def __init__(self, *, system: str = "", tools: Sequence[dict[str, Any]] = (), model: str = "") -> None:
        self.messages: list[Message] = []
        self._digest = hashlib.sha256()
        head = [model, system, list(tools)]
        self._digest.update(orjson.dumps(head))
        self.fixed_tokens = estimate_tokens(system) + estimate_tokens(orjson.dumps(list(tools)).decode())
        self._tokens = 0

    @property
    def tokens(self) -> int:
        """Estimated prompt tokens of a request with all messages, system text and tools."""
        return self.fixed_tokens + self._tokens

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over model, system text, tools and all messages."""
        return self._digest.hexdigest()

    def extend(self, messages: Iterable[Message]) -> None:
        """Add several messages."""
        for message in messages:
            self.add(message)

    def add(self, message: Message) -> None:
        """Add one message, mending the order first."""
        open_calls = self._open_calls()
        match message:
            case ToolResults():
                message = _matching(message, open_calls)
                if not message.results:
                    return
            case AssistantMessage() if not message.blocks:
                return
            case _ if open_calls:
                self._enter(_closed(open_calls))
            case _:
                pass
        self._enter(message)

    def drop_reasoning(self) -> bool:
        """Take the providers' own blocks (reasoning, signatures) out of all messages; False where there were none.

        For a provider that refuses its own blocks: the conversation goes on without them. The digest stays.
        """
        found = False
        for at, message in enumerate(self.messages):
            if isinstance(message, AssistantMessage) and any(_is_reasoning(b) for b in message.blocks):
                found = True
                blocks = tuple(block for block in message.blocks if not _is_reasoning(block))
                self.messages[at] = replace(message, blocks=blocks, wire={})
        return found

    def _open_calls(self) -> tuple[ToolCall, ...]:
        last = self.messages[-1] if self.messages else None
        return last.calls if isinstance(last, AssistantMessage) else ()

    def _enter(self, message: Message) -> None:
        self.messages.append(message)
        parts = _parts(message)
        self._digest.update(orjson.dumps(parts))
        self._tokens += 4 + sum(estimate_tokens(part) for part in parts)


def _is_reasoning(block: Block) -> bool:
    return isinstance(block, Opaque) or (isinstance(block, Thinking) and bool(block.raw))


def _matching(message: ToolResults, calls: tuple[ToolCall, ...]) -> ToolResults:
    """The results that answer `calls`, in call order, with an error for each that is missing."""
    found = {result.call: result for result in message.results}
    results = tuple(found.get(call.id) or _interrupted(call) for call in calls)
    return message if results == message.results else ToolResults(results)


def _closed(calls: tuple[ToolCall, ...]) -> ToolResults:
    return ToolResults(tuple(_interrupted(call) for call in calls))


def _interrupted(call: ToolCall) -> ToolResult:
    return ToolResult(call=call.id, wire_id=call.wire_id, name=call.name, text=INTERRUPTED, is_error=True)


def _parts(message: Message) -> list[str]:
    """What of a message is read by the model, as texts."""
    match message:
        case UserMessage():
            return ["user", message.text]
        case ToolResults():
            return ["tool", *(part for r in message.results for part in (r.wire_id, r.name, r.text))]
        case AssistantMessage():
            return ["assistant", *(part for block in message.blocks for part in _block_parts(block))]


def _block_parts(block: Block) -> list[str]:
    match block:
        case Text():
            return [block.text]
        case Thinking() | Opaque():
            return [block.raw.decode("utf-8", "replace")]
        case ToolCall():
            return [block.name, block.wire_id, block.malformed or orjson.dumps(block.arguments).decode()]
