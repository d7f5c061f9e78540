"""Provider-neutral messages. A provider's own blocks (thinking, signatures) are kept byte for byte."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

__all__ = [
    "AssistantMessage",
    "Block",
    "Message",
    "Opaque",
    "StopReason",
    "Text",
    "Thinking",
    "ToolCall",
    "ToolResult",
    "ToolResults",
    "Usage",
    "UserMessage",
]


class StopReason(StrEnum):
    """Why the model stopped. Checked before a tool runs: a call in a reply cut by `length` is never executed."""

    END = "end"
    TOOLS = "tools"
    LENGTH = "length"
    REFUSED = "refused"
    CONTEXT = "context"
    PAUSED = "paused"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the provider counted them. `input_tokens` counts every prompt token, cached ones included.

    `cached_tokens` were read from the provider's prompt cache, `cache_write_tokens` were written to it;
    both are parts of `input_tokens`.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
        )


@dataclass(frozen=True, slots=True)
class Text:
    """Visible text."""

    text: str


@dataclass(frozen=True, slots=True)
class Thinking:
    """The model's reasoning. `raw` is the provider's own block as JSON bytes, sent back unchanged to `provider` only.

    An empty `raw` means that the provider does not want it back (Ollama, chat completions).
    """

    text: str
    provider: str = ""
    raw: bytes = b""


@dataclass(frozen=True, slots=True)
class Opaque:
    """A block we do not interpret (redacted thinking, server tools): `raw` goes back to `provider` only."""

    provider: str
    raw: bytes


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call of the model.

    `id` is ours, `<step>.<index>`, given by the loop (empty until then); `wire_id` is the provider's, for the wire
    only. `arguments` is the parsed object; where the provider sent something that is no JSON object, `arguments`
    is empty, `malformed` holds the text as it came, and the call is answered with an error instead of being run.
    """

    name: str
    arguments: dict[str, Any]
    id: str = ""
    wire_id: str = ""
    malformed: str = ""


Block = Text | Thinking | Opaque | ToolCall


@dataclass(frozen=True, slots=True)
class UserMessage:
    """What a person, or the caller of a sub-agent, says."""

    text: str
    wire: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class AssistantMessage:
    """One whole reply of a model."""

    blocks: tuple[Block, ...]
    stop: StopReason = StopReason.END
    usage: Usage = Usage()
    model: str = ""
    """The model id that the provider says it used."""
    wire: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """Dialects remember their form of this message here, so that each message is translated once."""

    @property
    def text(self) -> str:
        """All visible text, joined."""
        return "".join(b.text for b in self.blocks if isinstance(b, Text))

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The tool calls, in the model's order."""
        return tuple(b for b in self.blocks if isinstance(b, ToolCall))


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool answered; `call` is the id of the call (ours)."""

    call: str
    wire_id: str
    name: str
    text: str
    is_error: bool = False


@dataclass(frozen=True, slots=True)
class ToolResults:
    """All results of one assistant message, in call order."""

    results: tuple[ToolResult, ...]
    wire: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)


Message = UserMessage | AssistantMessage | ToolResults
