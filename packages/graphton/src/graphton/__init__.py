"""graphton: an agent library. One loop, four wire dialects, tools, and a journal that never asks twice.

Names load lazily, so `import graphton` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "Approval",
    "Budget",
    "Chat",
    "Effect",
    "GraphtonError",
    "Journal",
    "MemoryJournal",
    "ModelRef",
    "ModelSettings",
    "Result",
    "Rule",
    "Subagent",
    "Tool",
    "ToolContext",
    "ToolError",
    "ToolOutput",
    "create_chat",
    "create_deep_agent",
    "parse_model_string",
    "tool",
]

_HOME = {
    "Agent": "agent",
    "Approval": "approval",
    "Budget": "budget",
    "Chat": "chat.base",
    "Effect": "tools",
    "GraphtonError": "errors",
    "Journal": "journal",
    "MemoryJournal": "journal",
    "ModelRef": "models",
    "ModelSettings": "models",
    "Result": "loop",
    "Rule": "approval",
    "Subagent": "toolsets.subagents",
    "Tool": "tools",
    "ToolContext": "tools",
    "ToolError": "errors",
    "ToolOutput": "tools",
    "create_chat": "chat",
    "create_deep_agent": "agent",
    "parse_model_string": "chat",
    "tool": "tools",
}

if TYPE_CHECKING:
    from graphton.agent import Agent, create_deep_agent
    from graphton.approval import Approval, Rule
    from graphton.budget import Budget
    from graphton.chat import create_chat, parse_model_string
    from graphton.chat.base import Chat
    from graphton.errors import GraphtonError, ToolError
    from graphton.journal import Journal, MemoryJournal
    from graphton.loop import Result
    from graphton.models import ModelRef, ModelSettings
    from graphton.tools import Effect, Tool, ToolContext, ToolOutput, tool
    from graphton.toolsets.subagents import Subagent


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'graphton' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"graphton.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
