"""What a run is made of: the models, the system text, the tools, and the limits. Only values; `agent.py` makes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from graphton._retry import Retry
from graphton.approval import Approval
from graphton.budget import Budget
from graphton.chat.base import Chat, ToolSpec
from graphton.tools import Effect, Tool

__all__ = ["Definition", "OnUnknown"]

OnUnknown = Literal["ask", "tell", "stop"]
"""What follows when a crash cut off a write: a person is asked whether to run it again, the model is told, the run ends."""


@dataclass(frozen=True)
class Definition:
    """Everything a run needs but the task. Safe for several runs at once."""

    chat: Chat
    system: str
    tools: Mapping[str, Tool]
    fallbacks: tuple[Chat, ...] = ()
    """Chats that take over, in this order, when the one before cannot be reached."""
    name: str = ""
    approval: Approval = Approval()
    budget: Budget = Budget()
    retry: Retry = Retry()
    on_unknown: OnUnknown = "tell"
    children: tuple[Definition, ...] = ()
    """The sub-agents that its task tool may start."""
    max_result_chars: int = 60_000
    """A longer tool result is shown to the model without its middle."""
    tool_specs: tuple[ToolSpec, ...] = field(init=False, repr=False)
    tool_schemas: tuple[dict[str, Any], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        specs = tuple(
            ToolSpec(t.name, t.description, t.parameters, t.effect is Effect.READ, t.knowledge)
            for t in self.tools.values()
        )
        object.__setattr__(self, "tool_specs", specs)
        schemas = tuple(
            {"name": s.name, "description": s.description, "parameters": s.parameters} for s in specs
        )
        object.__setattr__(self, "tool_schemas", schemas)

    @property
    def chats(self) -> tuple[Chat, ...]:
        """The chat and its fallbacks."""
        return (self.chat, *self.fallbacks)
