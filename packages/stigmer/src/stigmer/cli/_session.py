"""One connection to the daemon for one command, started where it must be."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from stigmer.cli._terminal import terminal
from stigmer.daemon import ensure_running
from stigmer.home import Address, Home

if TYPE_CHECKING:
    from stigmer.client import Client

__all__ = ["connected", "with_client"]

Result = TypeVar("Result")


def connected(work: Callable[[Client], Awaitable[Result]]) -> Result:
    """Does `work` with a client of this home's daemon, which is started where none runs."""
    talk = terminal()
    home = Home.find()
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

    from stigmer.client import Client

    make_undumpable()  # Our environment holds the shell's keys, and runs start commands beside us.
    async with Client(address, again=again, notice=terminal().say) as client:
        return await work(client)


def _slow_imports() -> None:
    """What costs most of a command's time: imported while the daemon starts."""
    import stigmer.cli._follow
    import stigmer.client
    import stigmer.events  # noqa: F401
