"""What is measured on this machine before a run: does Ollama answer, what does it hold, how much memory is free."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from graphton._proxies import is_loopback
from graphton._trust import tls_context

from stigmer.config import Installed

if TYPE_CHECKING:
    from graphton.chat.ollama_facts import ModelFacts, Server

__all__ = ["MOST_DESCRIBED", "free_memory", "installed", "ollama_up", "patience"]

LIMIT_SECONDS = 0.9
BUSY_SECONDS = 3.0
DESCRIBING_SECONDS = 5.0
"""What describing all installed models may take: an Ollama reads 0.4 s for one with a large vocabulary."""
MOST_DESCRIBED = 24
"""The largest so many are looked at."""
SMALL_WINDOW = 8192
"""Tokens of a window that every run fits into at first."""


async def ollama_up(url: str, *, limit: float = LIMIT_SECONDS) -> bool:
    """Whether an Ollama answers `GET /api/version` at this address. Talks to the address itself, never to a proxy."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    try:
        async with asyncio.timeout(limit):
            return await _version(parts.hostname or "", port, parts.path.rstrip("/"), secure=secure)
    except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
        return False


async def _version(host: str, port: int, prefix: str, *, secure: bool) -> bool:
    context = tls_context() if secure else None
    reader, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        shown = f"[{host}]" if ":" in host else host
        request = f"GET {prefix}/api/version HTTP/1.1\r\nHost: {shown}:{port}\r\nConnection: close\r\n\r\n"
        writer.write(request.encode("ascii"))
        await writer.drain()
        answer = await reader.read(4096)
        while answer and b"version" not in answer and len(answer) < 4096:
            more = await reader.read(4096)
            if not more:
                break
            answer += more
        status = answer.split(b" ", 2)
        return len(status) > 1 and status[1] == b"200" and b'"version"' in answer
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def patience(url: str) -> float:
    """Seconds that an Ollama may take to say what it is. On this machine a stopped one is told at once; it may be busy."""
    return BUSY_SECONDS if is_loopback(urlsplit(url).hostname or "") else LIMIT_SECONDS


async def installed(url: str, *, api_key: str | None = None) -> tuple[Installed, ...] | None:
    """What the Ollama there has, as the cascade chooses by it; None where nobody can tell in time.

    Each model is described only where the default is not among them: that takes up to half a second for the first
    time, and is remembered by digest.
    """
    import aiohttp  # noqa: F401  # Before the clock runs: on a busy machine it takes seconds.
    from graphton.chat.ollama_facts import measure
    from graphton.errors import GraphtonError
    from graphton.models import PROVIDERS

    try:
        async with asyncio.timeout(DESCRIBING_SECONDS):
            server = await measure(url, api_key=api_key, seconds=patience(url))
        if server.installed_model(PROVIDERS["ollama"].default_model):
            return tuple(Installed(row.name, row.size) for row in server.installed)
        async with asyncio.timeout(DESCRIBING_SECONDS):
            return await _described(server)
    except (GraphtonError, TimeoutError, ValueError):
        return None  # The run itself says what is wrong with it, at length.


async def _described(server: Server) -> tuple[Installed, ...]:
    from graphton.chat.ollama_facts import model_facts

    here = is_loopback(urlsplit(server.base_url).hostname or "")
    largest = sorted(server.installed, key=lambda row: -row.size)[:MOST_DESCRIBED]
    found = await asyncio.gather(*(model_facts(server, row.name) for row in largest))
    return tuple(
        _as_installed(facts, counts=here and server.loaded_model(facts.name) is None)
        for facts in found
        if facts is not None
    )


def _as_installed(facts: ModelFacts, *, counts: bool) -> Installed:
    """`counts`: it would have to be loaded into the memory of this machine."""
    answers = facts.capabilities is None or "completion" in facts.capabilities
    size = facts.size or 0
    memory = size * 11 // 10 + (facts.kv_bytes or 0) * SMALL_WINDOW + (200 << 20)
    return Installed(
        facts.name,
        size,
        memory if counts and size else 0,
        facts.tools,
        usable=answers and not facts.remote and not facts.bare_template,
    )


def free_memory() -> int:
    """Bytes that a new process can have without swapping."""
    import psutil

    return int(psutil.virtual_memory().available)
