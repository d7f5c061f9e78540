"""The one place where an agent is assembled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from graphton import models
from graphton._instructions import DEFAULT_INSTRUCTIONS
from graphton._retry import Retry
from graphton._tool_modes import TaughtChat, ToolModes, taught
from graphton.approval import Approval, Waits
from graphton.budget import Budget, Exceeded, Tree
from graphton.chat.base import Chat
from graphton.definition import Definition, OnUnknown
from graphton.errors import GraphtonError, JournalError, OutcomeUnknown, SettingError
from graphton.journal import Event, Journal, Live, MemoryJournal
from graphton.loop import Result, run
from graphton.messages import Message
from graphton.models import ModelRef, ModelSettings, ToolMode
from graphton.tools import Tool, ToolOutput, tool
from graphton.toolsets.subagents import RunChild, Subagent, task_tool

__all__ = ["Agent", "create_deep_agent"]


class Agent(Definition):
    """A definition that can be run. Made by `create_deep_agent`; safe for several runs at once."""

    async def run(
        self,
        task: str,
        *,
        journal: Journal | None = None,
        path: str = "",
        earlier: Sequence[Message] = (),
        spent_seconds: float = 0.0,
    ) -> Result:
        """Run the task to its end; see `graphton.loop.run` for what it raises.

        Without a journal nothing outlives the call. Run again with the same journal to go on after `waiting`. `earlier`
        is the conversation that the task goes on from: `graphton.conversation.conversation(journal, task)` of a run
        that has ended.
        """
        if not task.strip():
            raise SettingError("the task is empty", hint='say what is to be done: agent.run("…")')
        journal = MemoryJournal() if journal is None else journal
        return await run(self, task, journal=journal, path=path, earlier=earlier, spent_seconds=spent_seconds)

    async def stream(self, task: str) -> AsyncIterator[Event | Live | Result]:
        """The same run as it happens: every event, live ones too, and the Result at the end."""
        queue: asyncio.Queue[Event | Live | Result] = asyncio.Queue()
        journal = MemoryJournal(on_event=queue.put_nowait)

        async def whole() -> None:
            queue.put_nowait(await self.run(task, journal=journal))

        running = asyncio.create_task(whole())
        try:
            while True:
                item = asyncio.create_task(queue.get())
                await asyncio.wait({item, running}, return_when=asyncio.FIRST_COMPLETED)
                if not item.done() and queue.empty():
                    item.cancel()
                    await running  # Raises what ended the run before its result.
                event = await item
                yield event
                if isinstance(event, Result):
                    return
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def close(self) -> None:
        """Give back the connections to the models, those of sub-agents too."""
        for chat in {id(chat): chat for chat in _all_chats(self)}.values():
            await chat.close()

    async def __aenter__(self) -> Agent:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def create_deep_agent(
    model: Chat | ModelRef | str,
    *,
    instructions: str | None = None,
    tools: Sequence[Tool | Callable[..., Any]] = (),
    subagents: Sequence[Subagent] = (),
    workspace: Path | str | None = None,
    settings: ModelSettings | None = None,
    fallbacks: Sequence[Chat | ModelRef | str] = (),
    approval: Approval | None = None,
    budget: Budget | None = None,
    retry: Retry | None = None,
    on_unknown: OnUnknown = "tell",
    tool_mode: ToolMode | None = None,
    tool_modes: Path | str | None = None,
    name: str = "",
) -> Agent:
    """An agent from a model and what it may do.

    `model` is a string as `parse_model_string` takes it ("ollama:qwen2.5-coder:7b", "claude-sonnet-5.5"), a
    ModelRef, or a Chat of your own. `workspace` adds the built-in tools (files, shell, todos) for that folder.
    Functions among `tools` become tools as by `@tool`. `subagents` bring the tool `task`, which hands them work.
    `fallbacks` take over, in this order, when the model cannot be reached; give Chats where they need settings of their
    own. `on_unknown` says what follows when a crash cut off a write: the model is told, a person is asked whether to
    run it again, or the run stops. `tool_mode` says how the model is brought to use tools; without it that is known, or
    tried out before the first request, and `tool_modes` is the file in which it is remembered.

        agent = create_deep_agent("ollama:qwen2.5-coder:7b", instructions="Be brief.", tools=[add])
        print((await agent.run("What is 17 + 25?")).text)

    Raises ModelNameError, SettingError or ToolDefinitionError.
    """
    if on_unknown not in get_args(OnUnknown):
        raise SettingError(f"on_unknown {on_unknown!r} is not tell, ask or stop", hint='on_unknown="tell"')
    if instructions is None:
        instructions = DEFAULT_INSTRUCTIONS if workspace is not None else ""
    parts = _Parts(
        chats=(_chat(model, settings), *(_chat(other, None) for other in fallbacks)),
        tools=(*_workspace_tools(workspace), *tools),
        tool_mode=tool_mode,
        tool_modes=_modes(tool_modes),
        shared={
            "approval": approval or Approval(),
            "budget": budget or Budget(),
            "retry": retry or Retry(),
            "on_unknown": on_unknown,
        },
    )
    return _assembled(parts, instructions, subagents, name=name, depth=0)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a sub-agent has from its parent where it brings nothing of its own."""

    chats: tuple[Chat, ...]
    tools: Sequence[Tool | Callable[..., Any]]
    tool_mode: ToolMode | None
    tool_modes: ToolModes
    shared: Mapping[str, Any]
    """Fields of Definition that the whole tree has in common."""


def _assembled(
    parts: _Parts, instructions: str, subagents: Sequence[Subagent], *, name: str, depth: int
) -> Agent:
    """The agent of these parts, its sub-agents below it."""
    limit = parts.shared["budget"].depth
    if subagents and depth >= limit:
        raise SettingError(
            f"sub-agent {subagents[0].name!r} is {depth + 1} levels below the agent, and the limit is {limit}",
            hint=f"give its work to the level above, or allow it: Budget(depth={depth + 1})",
        )
    children = {one.name: _child(one, parts, depth=depth + 1) for one in subagents}
    own = [task_tool(subagents, _child_runner(children))] if subagents else []
    named = _named([*parts.tools, *own])
    chats = parts.chats
    if named:
        chats = tuple(_taught(chat, parts) for chat in chats)
    return Agent(
        chat=chats[0],
        fallbacks=chats[1:],
        system=instructions,
        tools=named,
        name=name,
        children=tuple(children.values()),
        **parts.shared,
    )


def _child(one: Subagent, parent: _Parts, *, depth: int) -> Agent:
    chats, mode = parent.chats, one.tool_mode or parent.tool_mode
    if one.model is not None:
        chats = (_chat(one.model, one.settings), *(_chat(other, None) for other in one.fallbacks))
        mode = one.tool_mode
    elif one.settings is not None or one.fallbacks:
        raise SettingError(
            f"sub-agent {one.name!r} has settings or fallbacks but no model of its own",
            hint="give it a model too: Subagent(…, model='ollama:qwen2.5-coder:7b')",
        )
    tools = parent.tools if one.tools is None else one.tools
    parts = _Parts(chats, tools, mode, parent.tool_modes, parent.shared)
    return _assembled(parts, one.instructions, one.subagents, name=one.name, depth=depth)


def _child_runner(children: Mapping[str, Agent]) -> RunChild:
    """The function that runs one of these sub-agents; its failure is an error result, not its parent's end."""

    async def run_child(name: str, task: str, path: str, tree: Tree) -> ToolOutput:
        if not task.strip():
            return ToolOutput("The task is empty: say what the agent is to do.", is_error=True)
        try:
            result = await run(children[name], task, journal=tree.journal, path=path, tree=tree)
        except (JournalError, OutcomeUnknown):
            raise
        except GraphtonError as error:
            return ToolOutput(f"The agent {name!r} failed: {error.message}", is_error=True)
        if result.outcome == "completed":
            return ToolOutput(result.text)
        if result.outcome == "waiting":
            raise Waits(result.waiting, paused=result.paused)
        if result.limit_path != path:
            raise Waits((), Exceeded(result.limit, result.value, result.limit_path))
        text = f"The agent {name!r} was stopped by its limit of {result.value:g} {result.limit}, its part of yours."
        return ToolOutput(text, is_error=True)

    return run_child


def _all_chats(agent: Definition) -> list[Chat]:
    return [*agent.chats, *(chat for child in agent.children for chat in _all_chats(child))]


def _chat(model: Chat | ModelRef | str, settings: ModelSettings | None) -> Chat:
    from graphton.chat import create_chat, parse_model_string

    if isinstance(model, str) and settings is None:
        return parse_model_string(model)
    if isinstance(model, (ModelRef, str)):
        return create_chat(model, settings or ModelSettings())
    if settings is not None:
        raise SettingError("settings were given beside a Chat, which has its own", hint="pass one of the two")
    return model


def _taught(chat: Chat, parts: _Parts) -> Chat:
    """The chat, brought to use tools as somebody said, or as the table says of a provider whose models are all known."""
    if parts.tool_mode is not None:
        return taught(chat, parts.tool_mode)
    provider = models.PROVIDERS.get(chat.ref.provider)
    if provider is None or not provider.local:
        return taught(chat, models.tool_mode(chat.ref))
    return TaughtChat(chat, parts.tool_modes)


_MODES = ToolModes()
"""Where no file is given, what was tried out holds as long as this process."""


def _modes(file: Path | str | None) -> ToolModes:
    return _MODES if file is None else ToolModes(Path(file))


def _workspace_tools(workspace: Path | str | None) -> list[Tool]:
    if workspace is None:
        return []
    from graphton.toolsets import default_tools

    return default_tools(workspace)


def _named(tools: Sequence[Tool | Callable[..., Any]]) -> dict[str, Tool]:
    """Tools by name; two of one name are an error."""
    named: dict[str, Tool] = {}
    for item in tools:
        made = item if isinstance(item, Tool) else tool(item)
        if made.name in named:
            raise SettingError(
                f"two tools are called {made.name!r}", hint="give one another name: @tool(name=…)"
            )
        named[made.name] = made
    return named
