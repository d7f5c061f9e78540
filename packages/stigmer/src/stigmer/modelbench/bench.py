"""A bench from outside: what is tried, and the process that tries it, as a stream of what it says."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from graphton._child import start, stop

from stigmer import __version__
from stigmer.errors import StigmerError
from stigmer.modelbench.results import Try, try_from_json

__all__ = ["BenchError", "Setup", "today", "tried"]

MAX_TOKENS = 512
"""Of one reply: no task needs half of it, and a model that talks without an end costs minutes otherwise."""

_PASSED = ("STIGMER_MODELS", "XDG_CACHE_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR")


class BenchError(StigmerError):
    """The model cannot be tried: no server, no model, or its process ended."""

    code = "bench"


@dataclass(frozen=True, slots=True)
class Setup:
    """Which model, where, and how it is brought to use tools (None: as a run would)."""

    provider: str
    model: str
    base_url: str | None = None
    tool_mode: str | None = None
    context_window: int | None = None

    @property
    def name(self) -> str:
        return f"{self.provider}:{self.model}"

    @property
    def file_name(self) -> str:
        """A name for its results: two models never share one."""
        mode = f"-{self.tool_mode}" if self.tool_mode else ""
        place = f"-{self.base_url}" if self.base_url else ""
        return re.sub(r"[^A-Za-z0-9.]+", "-", f"{self.name}{place}{mode}").strip("-") + ".jsonl"

    def head(self, form: str) -> dict[str, Any]:
        """What a broken-off bench must have in common with this one to go on."""
        return {
            "bench": form,
            "model": self.name,
            "base_url": self.base_url,
            "tool_mode": self.tool_mode,
            "context_window": self.context_window,
            "version": __version__,
        }


def today() -> str:
    """The date for a table."""
    return datetime.now(UTC).date().isoformat()


async def tried(setup: Setup, ids: Sequence[str]) -> AsyncGenerator[str | Try]:
    """First the server with its version, then each try as it ends. Raises BenchError when no try can work."""
    passed = {name: os.environ[name] for name in _PASSED if name in os.environ}
    child = await start("stigmer.modelbench", _config(setup, ids), extra_environment=passed)
    try:
        said_last = False
        async with aclosing(child.lines()) as lines:
            async for said in lines:
                if "try" in said:
                    yield try_from_json(said["try"])
                elif "error" in said:
                    raise BenchError(said["error"], hint=said.get("hint", ""))
                elif "server" in said:
                    yield str(said["server"])
                said_last = "done" in said
        if not said_last:
            await child.process.wait()
            raise BenchError(
                f"the process that tried {setup.name} {child.ended}",
                hint="the same command goes on where it was; if it ends again, the machine may be out of memory",
            )
    finally:
        await stop(child)


def _config(setup: Setup, ids: Sequence[str]) -> dict[str, Any]:
    return {
        "provider": setup.provider,
        "model": setup.model,
        "tool_mode": setup.tool_mode,
        "settings": {
            "base_url": setup.base_url,
            "context_window": setup.context_window,
            "max_tokens": MAX_TOKENS,
            "temperature": 0.0,
        },
        "tries": list(ids),
    }
