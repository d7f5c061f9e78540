"""Liveness, readiness and metrics over HTTP, for whatever looks after a server or a worker. Nothing else is served here.

`/livez` answers 200 as long as the process answers at all. `/readyz` answers 200 only when it can really take work, else
503; both say so in JSON. `/metrics` is Prometheus's, where OTEL_METRICS_EXPORTER asks for it, else 404.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from aiohttp import web

from stigmer import __version__, telemetry
from stigmer.errors import StigmerError

__all__ = ["Check", "health_at"]

Check = Callable[[], Awaitable[None]]
"""Returns when what it looks at is there; raises, in words for people, when it is not."""

LIMIT_SECONDS = 2.0
"""So long a check may take."""
FRESH_SECONDS = 1.0
"""So long its outcome is believed: whoever asks often costs nothing."""


class _Readiness:
    def __init__(self, checks: Mapping[str, Check]) -> None:
        self._checks = checks
        self._looked = float("-inf")
        self._found: dict[str, str] = {}
        self._looking = asyncio.Lock()

    async def answer(self, request: web.Request) -> web.Response:
        async with self._looking:
            if time.monotonic() - self._looked >= FRESH_SECONDS:
                outcomes = await asyncio.gather(*(_outcome(check) for check in self._checks.values()))
                self._found = dict(zip(self._checks, outcomes, strict=True))
                self._looked = time.monotonic()
        ready = not any(self._found.values())
        checks = {name: why or "ok" for name, why in self._found.items()}
        return web.json_response(
            {"ready": ready, "version": __version__, "checks": checks}, status=200 if ready else 503
        )


async def _outcome(check: Check) -> str:
    """Why it is not ready; "" when it is."""
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            await check()
    except TimeoutError:
        return f"no answer within {LIMIT_SECONDS:.0f} s"
    except Exception as error:  # Whatever it is: not ready, and this is where it is told.
        return str(error) or type(error).__name__
    return ""


async def _alive(request: web.Request) -> web.Response:
    return web.json_response({"alive": True, "version": __version__})


async def _metrics(request: web.Request) -> web.Response:
    measured = telemetry.active()
    # Beside the loop: what is counted now may be a few thousand lines.
    text = await asyncio.to_thread(measured.exposition) if measured is not None else None
    if text is None:
        return web.Response(
            status=404, text="no metrics are kept: start it with OTEL_METRICS_EXPORTER=prometheus\n"
        )
    return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


@asynccontextmanager
async def health_at(address: str, checks: Mapping[str, Check]) -> AsyncIterator[None]:
    """Answers at HOST:PORT while the block runs; does nothing for an empty address. Raises StigmerError."""
    if not address:
        yield
        return
    host, _, port = address.rpartition(":")
    app = web.Application()
    ready = _Readiness(checks).answer
    app.add_routes([web.get("/livez", _alive), web.get("/readyz", ready), web.get("/metrics", _metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host.strip("[]"), int(port)).start()
        except OSError as error:
            raise StigmerError(
                f"nobody can listen at {address!r}: {error.strerror}",
                hint="is the port free? STIGMER_LISTEN_HTTP names another; an empty one is none",
            ) from error
        yield
    finally:
        await runner.cleanup()
