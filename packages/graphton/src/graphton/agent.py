"""The one place where an agent is assembled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from graphton import models
from graphton._instructions import DEFAULT_INSTRUCTIONS
from graphton._retry import Retry
from graphton.approval import Approval
from graphton.budget import Budget
from graphton.chat.base import Chat
from graphton.definition import Definition
from graphton.errors import SettingError
from graphton.journal import Event, Journal, Live, MemoryJournal
from graphton.loop import Result, run
from graphton.models import ModelRef, ModelSettings, ToolMode
from graphton.tools import Tool, tool

__all__ = ["Agent", "create_deep_agent"]


class Agent(Definition):
    """A definition that can be run. Made by `create_deep_agent`; safe for several runs at once."""

    async def run(
        self, task: str, *, journal: Journal | None = None, path: str = "", spent_seconds: float = 0.0
    ) -> Result:
        """Run the task to its end; see `graphton.loop.run` for what it raises.

        Without a journal nothing outlives the call. Run again with the same journal to go on after `waiting`.
        """
        if not task.strip():
            raise SettingError("the task is empty", hint='say what is to be done: agent.run("…")')
        journal = MemoryJournal() if journal is None else journal
        return await run(self, task, journal=journal, path=path, spent_seconds=spent_seconds)

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
        """Give back the connections to the models."""
        for chat in self.chats:
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
    workspace: Path | str | None = None,
    settings: ModelSettings | None = None,
    fallbacks: Sequence[Chat | ModelRef | str] = (),
    approval: Approval | None = None,
    budget: Budget | None = None,
    retry: Retry | None = None,
    tool_mode: ToolMode | None = None,
    name: str = "",
) -> Agent:
    """An agent from a model and what it may do.

    `model` is a string as `parse_model_string` takes it ("ollama:qwen2.5-coder:7b", "claude-sonnet-5.5"), a
    ModelRef, or a Chat of your own. `workspace` adds the built-in tools (files, shell, todos) for that folder.
    Functions among `tools` become tools as by `@tool`. `fallbacks` take over, in this order, when the model cannot be
    reached; give Chats where they need settings of their own. `tool_mode` overrides how the model is brought to use tools.

        agent = create_deep_agent("ollama:qwen2.5-coder:7b", instructions="Be brief.", tools=[add])
        print((await agent.run("What is 17 + 25?")).text)

    Raises ModelNameError, SettingError or ToolDefinitionError.
    """
    chats = [_chat(model, settings), *(_chat(other, None) for other in fallbacks)]
    named = _named([*_workspace_tools(workspace), *tools])
    if named:
        chats = [_taught(chat, tool_mode or models.tool_mode(chat.ref)) for chat in chats]
    if instructions is None:
        instructions = DEFAULT_INSTRUCTIONS if workspace is not None else ""
    return Agent(
        chat=chats[0],
        fallbacks=tuple(chats[1:]),
        system=instructions,
        tools=named,
        name=name,
        approval=approval or Approval(),
        budget=budget or Budget(),
        retry=retry or Retry(),
    )


def _chat(model: Chat | ModelRef | str, settings: ModelSettings | None) -> Chat:
    from graphton.chat import create_chat, parse_model_string

    if isinstance(model, str) and settings is None:
        return parse_model_string(model)
    if isinstance(model, (ModelRef, str)):
        return create_chat(model, settings or ModelSettings())
    if settings is not None:
        raise SettingError("settings were given beside a Chat, which has its own", hint="pass one of the two")
    return model


def _taught(chat: Chat, mode: ToolMode) -> Chat:
    """The chat, brought to use tools in the way that is proven for its model."""
    if mode == "envelope":
        from graphton.envelope import EnvelopeChat

        return EnvelopeChat(chat)
    if mode == "recovery":
        from graphton.recovery import RecoveringChat

        return RecoveringChat(chat)
    return chat


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
