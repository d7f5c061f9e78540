"""Telemetry: traces and metrics of what runs here, where OpenTelemetry's own variables ask for them.

Off, nothing of OpenTelemetry is imported, and each hook is one look at `active()`. On, spans and metrics are derived
from the records that are written anyway (`_attempt.py`, `_server.py`), so that neither the loop nor a provider knows of
it. Which names are used: `_conventions.py`, `_instruments.py`; where they go: `_sdk.py`; docs/telemetry.md.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

from stigmer.errors import ConfigError
from stigmer.telemetry._asked import Asked, asked_of

if TYPE_CHECKING:
    from stigmer.api import event_pb2 as pb
    from stigmer.store import Row, Store
    from stigmer.telemetry._attempt import AttemptWatch
    from stigmer.telemetry._sdk import Telemetry
    from stigmer.telemetry._server import Drives, ServerWatch

__all__ = [
    "About",
    "Asked",
    "about",
    "active",
    "asked_of",
    "carrier",
    "command",
    "interceptors",
    "running",
    "speak_of",
    "traceparent_of",
    "watch_attempt",
    "watch_server",
    "watch_worker",
]

log = logging.getLogger("stigmer.telemetry")

_HEADER = "traceparent"
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_active: Telemetry | None = None


def active() -> Telemetry | None:
    """The telemetry of this process; None where it is off."""
    return _active


@asynccontextmanager
async def running(asked: Asked, *, service: str, insist: bool = False) -> AsyncIterator[None]:
    """While the block runs, this process tells of itself what was asked for; then the last of it is sent.

    Where the SDK cannot be set up, it goes on without; who insists on it gets a ConfigError.
    """
    global _active
    import asyncio  # Commands import this module for `--help`, too.

    try:
        made = _made(asked, service=service) if asked.anything else None
    except ConfigError as error:
        if insist:
            raise
        log.warning("setting problem=%r", error.message)
        made = None
    if made is None:
        yield
        return
    before, _active = _active, made
    try:
        yield
    finally:
        _active = before
        await asyncio.to_thread(made.close)


def _made(asked: Asked, *, service: str, hurry: bool = False) -> Telemetry:
    """The SDK, set up. Raises ConfigError with what it could not take."""
    from stigmer.telemetry._sdk import Telemetry

    try:
        return Telemetry(asked, service=service, hurry=hurry)
    except Exception as error:  # The SDK raises whatever it meets in its variables.
        problem = f"OpenTelemetry cannot be set up by its OTEL_… variables: {error}"
        raise ConfigError([problem]) from error


@contextmanager
def command(name: str, say: Callable[[str], object]) -> Iterator[None]:
    """One command, as the beginning of a trace: what it asks a server for goes on with it."""
    asked = asked_of(os.environ)._replace(metrics=())
    problems, made = asked.problems if asked.traces else (), None
    if asked.anything:
        try:
            made = _made(asked, service="stigmer-cli", hurry=True)
        except ConfigError as error:
            problems = error.problems
    for problem in problems:
        say(f"note: no trace is kept: {problem}")
    if made is None:
        yield
        return
    from stigmer.telemetry._command import span

    with span(made, name):
        yield


def carrier() -> tuple[tuple[str, str], ...]:
    """The trace context of whoever calls a server, as metadata of the call: of our command, or of a program that uses
    the client and OpenTelemetry."""
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry import trace

    place = trace.get_current_span().get_span_context()
    if not place.is_valid:
        return ()
    return ((_HEADER, f"00-{place.trace_id:032x}-{place.span_id:016x}-{place.trace_flags:02x}"),)


def traceparent_of(metadata: Iterable[tuple[str, Any]] | None) -> str:
    """The trace context that came with a call, as https://www.w3.org/TR/trace-context/ writes it; "" where none did."""
    for key, value in metadata or ():
        if key == _HEADER and isinstance(value, str) and _TRACEPARENT.fullmatch(value):
            return value
    return ""


def watch_attempt(row: Row, attempt: int, records: Sequence[pb.Event]) -> AttemptWatch | None:
    """What derives spans and metrics from the records of one attempt; None where telemetry is off."""
    if _active is None:
        return None
    from stigmer.telemetry._attempt import AttemptWatch

    return AttemptWatch(_active, row, attempt, records)


def watch_server(store: Store, engine: Drives) -> ServerWatch | None:
    """What tells of a server's executions, levels and streams; None where telemetry is off."""
    if _active is None:
        return None
    from stigmer.telemetry._server import ServerWatch

    return ServerWatch(_active, store, engine)


def watch_worker(most: int, *, busy: Callable[[], int], draining: Callable[[], bool]) -> None:
    """Tells of a worker that drives up to `most` attempts at once."""
    if _active is None:
        return
    levels = _active.instruments.levels
    levels["stigmer.worker.slots"] = lambda: [
        (busy(), {"state": "used"}),
        (max(0, most - busy()), {"state": "free"}),
    ]
    levels["stigmer.worker.draining"] = lambda: [(int(draining()), {})]
    levels["stigmer.attempts.running"] = lambda: [(busy(), {})]


def interceptors() -> tuple[Any, ...]:
    """What counts the calls of a server; nothing where telemetry is off."""
    if _active is None:
        return ()
    from stigmer.telemetry._server import Calls

    return (Calls(_active),)


class About(NamedTuple):
    """The execution that this task works on, and its trace; empty where there is none."""

    execution: str = ""
    trace: str = ""


_NOTHING = About()
_about: ContextVar[About] = ContextVar("about", default=_NOTHING)


def about() -> About:
    """What this task works on: each of its log lines names it."""
    return _about.get()


def speak_of(execution: str, traceparent: str) -> None:
    """From now on this task works on that execution."""
    _about.set(About(execution, _trace(execution, traceparent)))


def _trace(execution: str, traceparent: str) -> str:
    if traceparent:
        return traceparent.split("-")[1]
    if _active is None or not _active.traces:
        return ""
    from stigmer.telemetry._sdk import trace_of

    return f"{trace_of(execution):032x}"
