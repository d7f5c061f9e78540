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
SUMMARY = "What was said and done before this point, in summary; the messages themselves are left out here:\n\n{text}"


def estimate_tokens(text: str) -> int:
    """About how many tokens a text takes: a quarter of its UTF-8 bytes, rounded up.

    Good to a fifth for English and code in the tokenizers of the providers we speak to; enough for a budget
    and for noticing a prompt that was cut.
    """
    return -(-len(text.encode("utf-8", "surrogatepass")) // 4)


class History:
    """Messages in the order that every provider accepts: each tool call answered, right after its message.

    `add` mends what an interrupt or a crash left: a call without a result gets an error result, a result
    without a call is dropped, and so is a reply that holds nothing at all. `compact` puts a summary in the place of
    the older messages; the task, the latest messages and the system text stay.
    """

    def __init__(self, *, system: str = "", tools: Sequence[dict[str, Any]] = (), model: str = "") -> None:
        self.messages: list[Message] = []
        self.memo: dict[str, Any] = {}
        """What the dialects keep of these messages: see `Request.memo`."""
        self.system_tokens = estimate_tokens(system)
        self.tools_tokens = estimate_tokens(orjson.dumps(list(tools)).decode())
        self._head = orjson.dumps([model, system, list(tools)])
        self._digest = hashlib.sha256(self._head)
        self._sizes: list[int] = []
        """The estimated tokens of each message."""
        self._tokens = 0
        self._task = -1
        """Where the task stands; -1: there is none."""
        self._summary: Message | None = None

    @property
    def tokens(self) -> int:
        """Estimated prompt tokens of a request with all messages, system text and tools."""
        return self.system_tokens + self.tools_tokens + self._tokens

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over model, system text, tools and all messages."""
        return self._digest.hexdigest()

    def extend(self, messages: Iterable[Message]) -> None:
        """Add several messages."""
        for message in messages:
            self.add(message)

    def add(self, message: Message, *, task: bool = False) -> None:
        """Add one message, mending the order first. `task` marks what the run is about: it is never left out."""
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
        if task:
            self._task = len(self.messages)
        self._enter(message)

    def latest(self, room: int) -> int:
        """How many of the last messages make whole groups (a reply and its results) of at most `room` tokens; one group at least."""
        kept = size = 0
        for count, (message, tokens) in enumerate(
            zip(reversed(self.messages), reversed(self._sizes), strict=True), 1
        ):
            size += tokens
            if isinstance(message, ToolResults):
                continue
            if kept and size > room:
                break
            kept = count
        return kept

    def older(self, kept: int) -> list[Message]:
        """What a summary would replace, if the last `kept` messages stay; nothing where it would gain nothing."""
        end = self._first_kept(kept)
        found = [message for at, message in enumerate(self.messages[:end]) if at != self._task]
        return [] if found == [self._summary] else found

    def compact(self, kept: int, text: str) -> None:
        """Put a summary in the place of all but the task and the last `kept` messages."""
        end = self._first_kept(kept)
        task = [self.messages[self._task]] if 0 <= self._task < end else []
        self._summary = UserMessage(SUMMARY.format(text=text))
        messages = [*task, self._summary, *self.messages[end:]]
        if self._task >= 0:
            self._task = 0 if task else self._task - end + 1
        self.messages, self._sizes, self._tokens = [], [], 0
        self.memo.clear()
        self._digest = hashlib.sha256(self._head)
        for message in messages:
            self._enter(message)

    def _first_kept(self, kept: int) -> int:
        """Where the last `kept` messages begin; results never begin them, for their call would be missing."""
        at = max(0, len(self.messages) - kept)
        while at < len(self.messages) and isinstance(self.messages[at], ToolResults):
            at += 1
        return at

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
        self.memo.clear()
        return found

    def _open_calls(self) -> tuple[ToolCall, ...]:
        last = self.messages[-1] if self.messages else None
        return last.calls if isinstance(last, AssistantMessage) else ()

    def _enter(self, message: Message) -> None:
        self.messages.append(message)
        parts = _parts(message)
        self._digest.update(orjson.dumps(parts))
        self._sizes.append(4 + sum(estimate_tokens(part) for part in parts))
        self._tokens += self._sizes[-1]


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
