"""The task tool: hands a part of the work to a sub-agent, which has its own instructions, tools and model."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from graphton.approval import Waits
from graphton.budget import Tree, child_path
from graphton.chat.base import Chat
from graphton.errors import SettingError
from graphton.journal import SubagentFinished
from graphton.models import ModelRef, ModelSettings, ToolMode
from graphton.tools import Effect, Tool, ToolContext, ToolOutput

__all__ = ["RunChild", "Subagent", "task_tool"]

TASK = "task"

RunChild = Callable[[str, str, str, Tree], Awaitable[ToolOutput]]
"""Runs the named sub-agent on a task at a path: `run_child(name, task, path, tree)`."""


@dataclass(frozen=True, slots=True)
class Subagent:
    """An agent that another one may hand work to. It sees its task and nothing of its parent's conversation.

    `description` is what the parent's model reads to choose. Without a `model` it asks its parent's; without `tools`
    it has its parent's tools, but not the task tool: a sub-agent starts others only where it has `subagents` of its
    own. Approval rules, retries and what happens to lost calls are the parent's.

        Subagent("researcher", "Finds facts in files.", "Read, then answer in one sentence.")
    """

    name: str
    description: str
    instructions: str
    model: Chat | ModelRef | str | None = None
    tools: Sequence[Tool | Callable[..., Any]] | None = None
    settings: ModelSettings | None = None
    fallbacks: Sequence[Chat | ModelRef | str] = ()
    tool_mode: ToolMode | None = None
    subagents: Sequence[Subagent] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,63}", self.name):
            raise SettingError(
                f"{self.name!r} is no name for a sub-agent",
                hint="use up to 64 letters, digits, _ and -, e.g. Subagent('researcher', …)",
            )
        if not self.description.strip():
            raise SettingError(
                f"sub-agent {self.name!r} has no description, so the model would not know when to call it",
                hint="say in one sentence what it does, e.g. 'Finds facts in files.'",
            )


def task_tool(subagents: Sequence[Subagent], run_child: RunChild) -> Tool:
    """The tool `task(agent, task)` over these sub-agents.

    Its effect is idempotent: a call that a crash cut off is run again, and the child walks over its own record, whose
    steps protect themselves. The child's limits are recorded when it starts.
    """
    names = [one.name for one in subagents]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise SettingError(f"two sub-agents are called {twice!r}", hint="give one of them another name")

    async def run(arguments: dict[str, Any], context: ToolContext) -> ToolOutput:
        tree = context.tree
        assert isinstance(tree, Tree), "only the loop runs the task tool"
        journal, parent, call, name = tree.journal, context.path, context.call, arguments["agent"]
        path = child_path(parent, name, call)
        async with tree.slot(parent):
            started = journal.subagent(parent, call)
            if started is None and journal.pausing:
                raise Waits((), paused=True)
            if started is None:
                started = tree.share(parent, call, name, TASK)
                journal.append(started)
            tree.admit(started, path)
            output = await run_child(name, arguments["task"], path, tree)
        if not journal.subagent_finished(parent, call):
            journal.append(SubagentFinished(parent, call))
        return output

    return Tool(TASK, _description(subagents), _parameters(names), run, Effect.IDEMPOTENT)


def _description(subagents: Sequence[Subagent]) -> str:
    lines = [f"- {one.name}: {one.description.strip()}" for one in subagents]
    head = "Hand a piece of work to another agent, which answers when it is done. Call it several times in one reply for work side by side. Agents:"
    return "\n".join([head, *lines])


def _parameters(names: Sequence[str]) -> dict[str, Any]:
    task = "All that it must know: it does not see this conversation."
    return {
        "type": "object",
        "properties": {
            "agent": {"type": "string", "enum": list(names)},
            "task": {"type": "string", "description": task},
        },
        "required": ["agent", "task"],
    }
