"""What is measured on this machine, in under a second: does Ollama answer, what does it hold, how much memory is free."""

from __future__ import annotations

import asyncio
import json
import ssl
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import urlsplit

__all__ = ["OllamaModel", "free_memory", "ollama_models", "ollama_up"]

LIMIT_SECONDS = 0.9
_TAGS_LIMIT = 8_000_000
"""Bytes of a list of models that are read at most."""


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
    context = ssl.create_default_context() if secure else None
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


class OllamaModel(NamedTuple):
    """A model that an Ollama has installed."""

    name: str
    size: int


def ollama_models(url: str, *, limit: float = LIMIT_SECONDS) -> list[OllamaModel] | None:
    """What the Ollama at this address has installed (`GET /api/tags`), by name; None where none answers."""
    import http.client

    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(
        parts.hostname or "", parts.port, timeout=limit
    )  # Talks to the address, never to a proxy.
    try:
        connection.request("GET", f"{parts.path.rstrip('/')}/api/tags")
        reply = connection.getresponse()
        found = json.loads(reply.read(_TAGS_LIMIT)) if reply.status == 200 else None
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    listed = found.get("models") if isinstance(found, dict) else None
    if not isinstance(listed, list):
        return None
    rows = [row for row in listed if isinstance(row, dict) and isinstance(row.get("name"), str)]
    sizes = [row["size"] if isinstance(row.get("size"), int) else 0 for row in rows]
    return sorted(OllamaModel(row["name"], size) for row, size in zip(rows, sizes, strict=True))


def free_memory() -> int:
    """Bytes that a new process can have without swapping."""
    import psutil

    return int(psutil.virtual_memory().available)
