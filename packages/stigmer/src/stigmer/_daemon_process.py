"""The daemon's process: takes the home's lock, serves, writes its log, and leaves nothing behind that misleads."""

from __future__ import annotations

import argparse
import fcntl
import gc
import json
import logging
import os
import signal
import sys
from contextlib import AsyncExitStack, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from graphton.errors import GraphtonError

from stigmer import __version__
from stigmer._surroundings import marks
from stigmer.errors import StigmerError, SystemRefused
from stigmer.home import LOG_LIMIT, Home

__all__ = ["main"]

IDLE_SECONDS = 30 * 60.0
"""A daemon that a command started ends after this time with nothing to do."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the daemon in the foreground until it is told to end or has nothing to do."""
    parser = argparse.ArgumentParser(prog="python -m stigmer.daemon", description=main.__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--stays", action="store_true", help="do not end when idle")
    parser.add_argument("--flags", type=json.loads, default={}, help="JSON: the LLM flags of `stigmer up`")
    parser.add_argument("--idle-seconds", type=float, default=IDLE_SECONDS)
    parser.add_argument("--engine", choices=("embedded", "temporal"), default="embedded")
    parser.add_argument("--alone", action="store_true", help="start no Temporal server and no worker beside")
    parser.add_argument("--plaintext", action="store_true", help="no TLS, wherever it listens")
    parser.add_argument("--http", default="", help="HOST:PORT of liveness and readiness")
    parser.add_argument("--listen", action="append", default=[], help="HOST:PORT, besides the home's socket")
    given = parser.parse_args(arguments)
    # What is imported never dies; looking at it again and again costs 20 ms of the start.
    gc.set_threshold(50_000)
    home = Home(given.home)
    try:
        lock = os.open(home.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        _take(lock, home, tells=given.ready_fd is None)
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        _serve(home, given)
    except (GraphtonError, StigmerError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return getattr(error, "exit_code", 1)
    except OSError as error:
        if (known := SystemRefused.of(error)) is None:
            raise
        print(f"error: {known}", file=sys.stderr, flush=True)
        return 1
    return 0


def _take(lock: int, home: Home, *, tells: bool) -> None:
    """Takes the home's lock. An old daemon may be about to end: who started us limits the wait, or hears of it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if tells:
            holder = os.pread(lock, 32, 0).decode() or "?"
            text = f"waiting for the server of {home.path} (pid {holder}) to end; stigmer down ends it"
            print(text, file=sys.stderr, flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


def _serve(home: Home, given: Any) -> None:
    import asyncio

    # By name: nothing that the commands import may reach the loop or a provider, not even through this file.
    serve = import_module("stigmer.server").serve
    _log_to_stderr(home)
    path = home.create_socket_folder()
    path.unlink(missing_ok=True)

    said = json.dumps(
        {
            "address": f"unix:{path}",
            "pid": os.getpid(),
            "version": __version__,
            "stays": given.stays,
            "surroundings": marks(),
            "engine": given.engine,
        }
    )
    ours: list[object] = []

    def ready() -> None:
        _write(home.address, said)
        ours.append(_left_to_find(home))
        if given.ready_fd is not None:
            os.write(given.ready_fd, b"ready\n")
            os.close(given.ready_fd)

    async def served() -> None:
        async with AsyncExitStack() as beside:
            if given.engine == "temporal" and not given.alone:
                developer = import_module("stigmer.engines.temporal.developer")
                await beside.enter_async_context(developer.temporal_beside(home))
                # The worker asks for the daemon until it answers.
                await beside.enter_async_context(
                    developer.worker_beside(home, server=f"unix:{path}", flags=given.flags)
                )
            await serve(
                home,
                address=f"unix:{path}",
                on_ready=ready,
                idle_seconds=given.idle_seconds,
                stays=given.stays,
                flags=given.flags,
                findable=lambda: ours == [_left_to_find(home)],
                engine=given.engine,
                listen=given.listen,
                plaintext=given.plaintext,
                http=given.http,
            )

    async def run() -> None:
        task = asyncio.ensure_future(served())
        for sign in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(sign, task.cancel)
        with suppress(asyncio.CancelledError):
            await task

    try:
        asyncio.run(run())
    finally:
        with suppress(OSError):
            if (
                home.address.read_text() == said
            ):  # Another daemon, in a home that was made anew, keeps its own.
                home.address.unlink()
                path.unlink()


def _left_to_find(home: Home) -> object:
    """What a command finds us by, as it is just now; None where a part is missing."""
    try:
        socket, said = home.socket.stat(), json.loads(home.address.read_text())
        return said["address"], said["pid"], home.token.read_bytes(), socket.st_dev, socket.st_ino
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, text: str) -> None:
    """Writes a file whole or not at all, for its owner alone."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text)
    new.replace(path)


def _log_to_stderr(home: Home) -> None:
    """One line per record on stderr, which is daemon.log; a log that has grown too long is put aside."""

    class Handler(logging.StreamHandler[Any]):
        def emit(self, record: logging.LogRecord) -> None:
            super().emit(record)
            if os.fstat(2).st_size > LOG_LIMIT and home.log.exists():
                home.log.replace(home.log.with_suffix(".log.1"))
                fd = os.open(home.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
                os.dup2(fd, 1)
                os.dup2(fd, 2)
                os.close(fd)

    handler = Handler(sys.stderr)
    handler.setFormatter(import_module("stigmer.server._logs").formatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
