"""How a model is brought to use tools: as the run recorded it, as we know it, as its server says, else as it is tried out.

What a trial found is remembered by the model's digest, for the next run.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from graphton import models
from graphton._probe import VERSION, Question, verdict
from graphton.chat._tool_facts import ToolFacts, tool_facts
from graphton.chat.base import Chat, Chunk, Preview, Request
from graphton.envelope import EnvelopeChat
from graphton.journal import Journal
from graphton.models import ModelRef, ModelSettings, ToolMode
from graphton.recovery import RecoveringChat

__all__ = ["Found", "TaughtChat", "ToolModes", "recorded_mode", "settle", "taught", "without_a_trial"]

MODES: tuple[ToolMode, ...] = get_args(ToolMode)

TAUGHT: dict[str, Callable[[Chat], Chat]] = {
    "native": lambda chat: chat,
    "recovery": RecoveringChat,
    "envelope": lambda chat: EnvelopeChat(chat, several=models.several_calls(chat.ref)),
}


def taught(chat: Chat, mode: ToolMode) -> Chat:
    """The chat, brought to use tools in this way."""
    return TAUGHT[mode](chat)


class TaughtChat:
    """A chat for which nobody chose how its model uses tools: the loop settles that before the first request.

    By itself, without a loop, it takes what the model table says, and recovers printed calls of models that are not in it.
    """

    def __init__(self, chat: Chat, modes: ToolModes) -> None:
        self.chat = chat
        self.ref = chat.ref
        self.modes = modes

    @property
    def settings(self) -> ModelSettings:
        return self.chat.settings

    @property
    def notices(self) -> tuple[str, ...]:
        return self.chat.notices

    def _known(self) -> Chat:
        return taught(self.chat, models.tool_mode(self.ref))

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """See `Chat`."""
        return self._known().stream(request)

    def preview(self, request: Request) -> Preview:
        """The request that would go out, as far as that is known before the model was tried out."""
        return self._known().preview(request)

    async def close(self) -> None:
        """Close the inner chat."""
        await self.chat.close()


def recorded_mode(journal: Journal, path: str, model: str) -> ToolMode | None:
    """How this model was brought to use tools so far; None where that is not in the record."""
    return _mode(journal.tool_mode(path, model))


def _mode(word: object) -> ToolMode | None:
    return next((mode for mode in MODES if mode == word), None)


@dataclass(frozen=True, slots=True)
class Found:
    """How a model is brought to use tools; `why` is told to the user, "" where it goes without saying."""

    mode: ToolMode
    why: str = ""


async def settle(chat: TaughtChat, journal: Journal, ask: Callable[[Question], Awaitable[None]]) -> Found:
    """The way for this chat's model. `ask` puts a trial's question to it, and records the reply in the journal."""
    facts = await tool_facts(chat.chat)
    if found := without_a_trial(chat.ref, facts):
        return found
    if (mode := chat.modes.recall(facts.identity)) and not journal.probes(str(chat.ref)):
        return Found(mode, "as an earlier trial showed")
    while isinstance(step := verdict(journal.probes(str(chat.ref))), Question):
        await ask(step)
    if step.sure:
        chat.modes.remember(facts.identity, step.mode, model=str(chat.ref))
    return Found(step.mode, step.why)


def without_a_trial(ref: ModelRef, facts: ToolFacts) -> Found | None:
    """What the model table and the model's own server say."""
    row = models.lookup(ref)
    if facts.bare_template and row.tool_mode != "envelope":
        return Found("envelope", "has no chat template that knows tools")
    if facts.tools is False and row.tool_mode != "envelope":
        return Found("envelope", "takes no tools, its server says")
    return None if row.assumed else Found(row.tool_mode)


@dataclass
class ToolModes:
    """What trials found, by the models' digests: in memory, and in `file` where one is given.

    A file that cannot be read or written costs another trial, never a run.
    """

    file: Path | None = None
    _known: dict[str, str] = field(default_factory=dict)

    def recall(self, identity: str) -> ToolMode | None:
        """The mode that a trial of this very model found."""
        if not identity:
            return None
        return _mode(self._known.get(_key(identity)) or self._read().get(_key(identity), {}).get("mode"))

    def remember(self, identity: str, mode: ToolMode, *, model: str) -> None:
        """Keep what a trial found; a model that nothing identifies is tried again next time."""
        if not identity:
            return
        self._known[_key(identity)] = mode
        if self.file is not None:
            with suppress(OSError):  # A full or read-only disk: then it is tried again next time.
                _write(self.file, self._read() | {_key(identity): {"mode": mode, "model": model}})

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            read = json.loads(self.file.read_text("utf-8")) if self.file else {}
        except (OSError, ValueError):
            return {}
        rows = read.items() if isinstance(read, dict) else ()
        return {key: row for key, row in rows if isinstance(row, dict)}


def _key(identity: str) -> str:
    return f"v{VERSION} {identity}"


def _write(file: Path, rows: dict[str, dict[str, Any]]) -> None:
    """Put the whole file in place at once: a reader sees the old one or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(number, "w", encoding="utf-8") as new:
            json.dump(rows, new, indent=1, sort_keys=True)
        os.replace(name, file)
    except BaseException:
        os.unlink(name)
        raise
