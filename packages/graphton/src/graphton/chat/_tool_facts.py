"""What a model's own server says that decides how the model is brought to use tools."""

from __future__ import annotations

from dataclasses import dataclass

from graphton.catalog import CATALOG
from graphton.chat.base import Chat
from graphton.errors import GraphtonError

__all__ = ["ToolFacts", "tool_facts"]


@dataclass(frozen=True, slots=True)
class ToolFacts:
    """None, False and "" where nobody says."""

    identity: str = ""
    """Names these very weights with this very template: what was found out about them holds as long as it does."""
    tools: bool | None = None
    """Whether the server would offer tools to the model."""
    bare_template: bool = False
    """The model sees neither system text nor tools, only what the user says."""


async def tool_facts(chat: Chat) -> ToolFacts:
    """What is known of a chat's model. A server or file that cannot be asked says nothing: the request will tell why."""
    try:
        match chat.ref.provider:
            case "ollama":
                return await _of_ollama(chat)
            case "llamacpp" if not chat.settings.base_url:
                return _of_file(chat.ref.model)
            case _:
                return ToolFacts()
    except (GraphtonError, OSError):
        return ToolFacts()


async def _of_ollama(chat: Chat) -> ToolFacts:
    from graphton.chat.ollama import OllamaChat

    facts = await chat.facts() if isinstance(chat, OllamaChat) else None
    if facts is None:
        return ToolFacts()
    return ToolFacts(f"ollama {facts.digest}" if facts.digest else "", facts.tools, facts.bare_template)


def _of_file(model: str) -> ToolFacts:
    known = next((entry for entry in CATALOG if entry.name == model.lower()), None)
    if known is not None:
        return ToolFacts(f"gguf {known.sha256}")
    from graphton.chat.llamacpp import locate

    file = locate(model)
    stat = file.path.stat()
    return ToolFacts(f"gguf {file.path} {stat.st_size} {stat.st_mtime_ns}")
