"""Tools: what the model may call. `@tool` makes one from a typed Python function."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

__all__ = ["Effect", "Tool", "ToolContext", "ToolOutput"]


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
