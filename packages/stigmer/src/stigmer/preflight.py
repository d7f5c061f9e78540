"""What is measured before a run, in under a second: does Ollama answer, and how much memory is free."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from urllib.parse import urlsplit

__all__ = ["free_memory", "ollama_up"]

LIMIT_SECONDS = 0.9


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


def free_memory() -> int:
    """Bytes that a new process can have without swapping."""
    import psutil

    return int(psutil.virtual_memory().available)
