"""One connection for one command: to the daemon, started where it must be, or to the server that somebody names."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import click

from stigmer.cli._main import asked
from stigmer.cli._terminal import terminal
from stigmer.daemon import ensure_running
from stigmer.errors import UsageError
from stigmer.home import Address, Home
from stigmer.organisations import RULE, is_organisation
from stigmer.telemetry import command

if TYPE_CHECKING:
    from stigmer.client import Client

__all__ = ["connected", "named_server", "with_client"]

Result = TypeVar("Result")


def named_server() -> Address | None:
    """The server that --server, else STIGMER_SERVER, names; None for this home's own daemon. Raises UsageError."""
    text, source = asked().server, "--server"
    if text is None:
        text, source = os.environ.get("STIGMER_SERVER", "").strip(), "env STIGMER_SERVER"
        if asked().here or not text:
            return None
    from stigmer.remote import server_at

    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # What goes wrong with a connection we say ourselves.
    return server_at(text, source=source, home=Home.find())


def connected(work: Callable[[Client], Awaitable[Result]]) -> Result:
    """Does `work` with a client of the server that somebody names, else of this home's daemon, started where none runs."""
    talk = terminal()
    home = Home.find()
    if (server := named_server()) is not None:
        _slow_imports()
        import asyncio

        return asyncio.run(with_client(work, server))
    address = ensure_running(home, say=talk.say, meanwhile=_slow_imports)
    import asyncio  # Not for `--help`: it costs as much as click.

    return asyncio.run(with_client(work, address, again=lambda: ensure_running(home, say=talk.say)))


async def with_client(
    work: Callable[[Client], Awaitable[Result]],
    address: Address,
    *,
    again: Callable[[], Address] | None = None,
) -> Result:
    from graphton._process import make_undumpable

    from stigmer import redact
    from stigmer.client import Client

    redact.remember([address.token])  # A report of a defect of ours may be shown around.
    make_undumpable()  # Our environment holds the shell's keys, and runs start commands beside us.
    with command(_name(), terminal().say):
        async with Client(
            address, again=again, notice=terminal().say, organisation=_organisation()
        ) as client:
            return await work(client)


def _organisation() -> str:
    """What STIGMER_ORGANISATION names; "" leaves it to the server. Raises UsageError."""
    named = os.environ.get("STIGMER_ORGANISATION", "").strip()
    if named and not is_organisation(named):
        raise UsageError(f"STIGMER_ORGANISATION {named!r} is no organisation's name", hint=RULE)
    return named


def _name() -> str:
    """This command, as it stands in its trace: `stigmer run`."""
    context = click.get_current_context(silent=True)
    return context.command_path if context is not None else "stigmer"


def _slow_imports() -> None:
    """What costs most of a command's time: imported while the daemon starts."""
    import stigmer.cli._follow
    import stigmer.client
    import stigmer.events  # noqa: F401
