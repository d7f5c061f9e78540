"""The todos tool: a short list that the model keeps while it works."""

from __future__ import annotations

from typing import Literal, TypedDict

from graphton.tools import Effect, Tool, tool

__all__ = ["todos_tool"]


class Item(TypedDict):
    """One line of the list."""

    text: str
    status: Literal["todo", "doing", "done"]


_MARKS = {"todo": "[ ]", "doing": "[>]", "done": "[x]"}


def todos_tool() -> Tool:
    """A list without a memory of its own: each call brings the whole list, and the recorded results replay it."""

    @tool(effect=Effect.READ)
    async def todos(items: list[Item]) -> str:
        """Keep a plan for long work: send the whole list each time."""
        done = sum(item["status"] == "done" for item in items)
        lines = [f"{_MARKS[item['status']]} {item['text']}" for item in items]
        return "\n".join([*lines, f"{done} of {len(items)} done"])

    return todos
