"""`python -m stigmer.worker`: the process of `stigmer worker`, and of the worker beside a developer's daemon."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from graphton._proxies import is_loopback
from graphton.errors import GraphtonError

from stigmer.errors import StigmerError, UsageError
from stigmer.home import Home
from stigmer.server._logs import formatter
from stigmer.server.auth import token_of
from stigmer.worker import GRACE_SECONDS, MOST, work


def main(arguments: list[str] | None = None) -> int:
    """Works in the foreground until SIGTERM or SIGINT; a second signal ends it at once."""
    parser = argparse.ArgumentParser(prog="python -m stigmer.worker", description=main.__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--server", required=True, help="the control plane's address")
    parser.add_argument("--grace", type=float, default=GRACE_SECONDS)
    parser.add_argument("--most", type=int, default=MOST)
    parser.add_argument("--flags", type=json.loads, default={}, help="JSON: LLM flags")
    parser.add_argument("--http", default="", help="HOST:PORT of liveness and readiness")
    parser.add_argument("--beside", action="store_true", help="beside a developer's daemon")
    given = parser.parse_args(arguments)
    home = Home(given.home)
    _log_to_stderr()

    async def run() -> None:
        token, faults = "", []
        try:
            token = _shown(home, given.server)
        except UsageError as error:  # It is told with whatever else is wrong.
            faults.append(f"{error.message} ({error.hint})")
        task = asyncio.ensure_future(
            work(
                home,
                target=given.server,
                token=token,
                grace=given.grace,
                most=given.most,
                flags=given.flags,
                beside=given.beside,
                http=given.http,
                faults=faults,
            )
        )
        for sign in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(sign, _end, task)
        with suppress(asyncio.CancelledError):
            await task

    try:
        asyncio.run(run())
    except (GraphtonError, StigmerError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return getattr(error, "exit_code", 1)
    return 0


def _shown(home: Home, server: str) -> str:
    """What lets us in: the key of the environment, else this home's token, which leaves this machine never.

    Never an argument: everybody on the machine can read those.
    """
    if key := os.environ.pop("STIGMER_API_KEY", "").strip():
        return key
    here = False
    with suppress(ValueError):  # What cannot be read is not ours either.
        host = urlsplit(server if "://" in server else f"http://{server}").hostname or ""
        here = server.startswith("unix:") or is_loopback(host)
    if here:
        return token_of(home.create().token)
    raise UsageError(
        f"the control plane at {server!r} is another machine, and STIGMER_API_KEY is not set",
        hint="there: stigmer key create --name worker-1 --scope worker",
    )


def _log_to_stderr() -> None:
    """One line per record, as the daemon writes them."""
    handler = logging.StreamHandler()
    handler.setFormatter(formatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, signal.SIG_DFL)


if __name__ == "__main__":
    raise SystemExit(main())
