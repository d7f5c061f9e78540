"""Which installed model takes the place of a default that is not installed. Pure; what is there was measured before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from graphton.models import ModelRef, lookup

__all__ = ["Installed", "best", "has", "why_none"]


class Installed(NamedTuple):
    """A model that an Ollama has, as far as the choice goes by it."""

    name: str
    size: int = 0
    """Bytes on its disk: of two that will do, the larger one gets more done."""
    memory: int = 0
    """Bytes that serving it takes; 0 where it is loaded already, or where that memory is another machine's."""
    tools: bool | None = None
    """Whether the server gives it tools; None: it does not say."""
    usable: bool = True
    """It answers, on that machine itself, and its template lets it see the system's text."""


def has(rows: Sequence[Installed], name: str) -> bool:
    """Whether a model of that name is among them; without a tag it is `:latest`."""
    name = name.lower()
    tagged = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
    return any(row.name.lower() in (name, tagged) for row in rows)


def best(rows: Sequence[Installed], memory: int) -> Installed | None:
    """The model that will do best: one of our table before others, then the largest that fits into `memory`."""
    able = [row for row in rows if _grade(row) and row.memory <= memory]
    return max(able, key=lambda row: (_grade(row), row.size, row.name), default=None)


def why_none(rows: Sequence[Installed], url: str) -> str:
    """Why none of them is taken."""
    if not rows:
        return f"the Ollama at {url} has no model"
    if not any(_grade(row) for row in rows):
        return f"the Ollama at {url} has no model that is known to use tools"
    return f"the Ollama at {url} has no model that can use tools and fits into the free memory"


def _grade(row: Installed) -> int:
    """2: the table knows how it uses tools. 1: the server says that it takes them. 0: neither."""
    if not row.usable:
        return 0
    model = lookup(ModelRef("ollama", row.name))
    if model.assumed:
        return 1 if row.tools else 0
    return 2 if model.tool_mode == "envelope" or row.tools is not False else 0
