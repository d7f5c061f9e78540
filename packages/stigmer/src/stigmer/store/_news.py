"""What other servers append to the same PostgreSQL database: heard by LISTEN, told by NOTIFY, numbers only.

A message may be lost (a server dies between its commit and its message, a connection breaks), so whoever watches also
looks by itself: whenever the connection is new, and every LOOK seconds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from stigmer.store._postgres import Postgres

__all__ = ["APART", "LOOK", "Teller", "hear"]

log = logging.getLogger("stigmer.store")

APART = 0.05
"""Seconds between two messages: at most one per execution and 50 ms."""
LOOK = 5.0
Heard = Callable[[Sequence[int] | None], None]


class Teller:
    """Tells the other servers which executions have grown: the first at once, the next APART later, together."""

    def __init__(self, tell: Callable[[set[int]], object]) -> None:
        self._tell = tell
        self._grown: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._last = 0.0

    def grown(self, no: int) -> None:
        self._grown.add(no)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(max(loop.time(), self._last + APART), self.flush)

    def flush(self) -> None:
        """Tells what waits to be told."""
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        self._last = asyncio.get_running_loop().time()
        grown, self._grown = self._grown, set()
        self._tell(grown)


async def hear(database: Postgres, heard: Heard) -> None:
    """Until it is cancelled: calls `heard` with what grew elsewhere, with None where everything may have."""
    driver = database.psycopg
    while True:
        try:
            async with await driver.AsyncConnection.connect(**database.address.parts, autocommit=True) as db:
                await db.execute("LISTEN stigmer_events")
                while True:
                    heard(None)
                    async for message in db.notifies(timeout=LOOK):
                        sender, _, listed = message.payload.partition(":")
                        if sender != database.sender:
                            heard([int(no) for no in listed.split(",")])
                    await db.execute("SELECT 1")  # A connection whose other end is gone says so.
        except driver.OperationalError as error:
            log.warning("the database is away reason=%r", database.address.told(error))
            await asyncio.sleep(0.2)
