"""Who may do what: a rule allows, asks or denies a tool call before it is dispatched."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from graphton.journal import ApprovalRequested
from graphton.messages import ToolCall
from graphton.tools import Tool

__all__ = ["Answer", "Approval", "Verdict"]

Verdict = Literal["allow", "ask", "deny"]


@dataclass(frozen=True, slots=True)
class Answer:
    """A person's decision, `by` whom, and why: the model reads the reason of a rejection."""

    approved: bool
    by: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Approval:
    """How questions are answered.

    A tool with `asks=True` needs a decision before each call. With `approve_all` every question is answered with
    yes; with `ask` the loop awaits your function; with neither the run ends as `waiting`, and goes on when it is
    run again with the same journal and a recorded decision.
    """

    approve_all: bool = False
    ask: Callable[[ApprovalRequested], Awaitable[Answer]] | None = None

    def verdict(self, tool: Tool, call: ToolCall) -> Verdict:
        """What the rules say about this call."""
        return "ask" if tool.asks and not self.approve_all else "allow"
