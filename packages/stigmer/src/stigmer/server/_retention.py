"""What is kept and what goes: prunes on request, and by the `retention` setting on a slow timer.

A home's own database is pruned while nothing runs; one that servers share, where something always runs, all the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from graphton.errors import JournalError

from stigmer.config import Retention
from stigmer.errors import ConfigError
from stigmer.store import Store, StoreError

__all__ = ["Pruned", "Pruner"]

log = logging.getLogger("stigmer.server")

DAY_MS = 86_400_000
GRACE_MS = 3_600_000
"""The timer leaves what ended within an hour, whatever `keep` says: somebody may be about to read it."""
FOLDERS_MS = 90 * DAY_MS
"""So long it is told of a folder that its run was deleted: a worker may be away, and have it on its disk."""
LOOK_SECONDS = 60.0
"""So often the timer looks whether nothing runs."""
REST_SECONDS = 3600.0
"""So long it rests when it has done its work."""
SLACK = 0.25
"""The timer writes the database anew when so much of it is free."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What went, or would go."""

    executions: int
    sessions: int
    bytes: int
    compacted: bool


class Pruner:
    """Prunes one store, one prune at a time. `retention` is asked anew each time, so that an edit counts."""

    def __init__(
        self,
        store: Store,
        *,
        retention: Callable[[], Retention],
        busy: Callable[[], bool],
        look: float = LOOK_SECONDS,
        rest: float = REST_SECONDS,
    ) -> None:
        self.retention = retention
        self._store, self._busy = store, busy
        self._look, self._rest = look, rest
        self._one = asyncio.Lock()

    async def prune(
        self,
        wanted: Retention,
        *,
        dry_run: bool = False,
        grace_ms: int = 0,
        organisation: str | None = None,
    ) -> Pruned:
        """Deletes what has ended and `wanted` does not keep, of one organisation or of each.

        With `dry_run` only says what that would be.
        """
        async with self._one:
            before = self._store.now_ms + 1 - max((wanted.days or 0) * DAY_MS, grace_ms)
            found = await self._store.expendable(
                before_ms=before, keep=wanted.keep or 0, organisation=organisation
            )
            size = await self._store.bytes_of(found)
            count = sum(len(one.ages) for one in found)
            sessions = sum(1 for one in found if one.session)
            if dry_run or not found:
                return Pruned(count, sessions, size, False)
            count = await self._store.prune(found)
            log.info("pruned executions=%d bytes=%d", count, size)
            return Pruned(count, sessions, size, grace_ms == 0 and await self._compact())

    async def keep(self) -> None:
        """Prunes again and again as the setting says, until it is cancelled."""
        while True:
            await asyncio.sleep(self._look)
            if self._store.alone and self._busy():
                continue
            try:
                if wanted := self.retention():
                    await self.prune(wanted, grace_ms=GRACE_MS)
                await self._store.forget_folders(before_ms=self._store.now_ms - FOLDERS_MS)
                if await self._store.slack() > SLACK:
                    await self._compact()
            except (ConfigError, JournalError) as error:
                log.warning("nothing is pruned reason=%r", error.message)
            await asyncio.sleep(self._rest)

    async def _compact(self) -> bool:
        """Gives the room back, where that holds no run up and there is room to do it; else it is used again."""
        if self._store.alone and self._busy():
            return False
        try:
            await self._store.compact()
        except StoreError as error:
            log.warning("the database keeps its size reason=%r", error.message)
            return False
        return True
