"""The server's side of the engine on Temporal: workflows are started and woken here, attempts run in workers.

The store stays the truth. Temporal says which worker is to run an attempt, and when another one is to; a new attempt
fences the older one off, so a worker that Temporal took for dead can do no harm. A workflow that could not be started,
because Temporal is away, is started as soon as it is back: the execution was accepted and has its record.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from graphton.errors import Fenced

from stigmer.api import event_pb2 as pb
from stigmer.engines.embedded import LEASE_SECONDS, LOOK_SECONDS, EmbeddedEngine, Runs
from stigmer.journal import cancelled_by
from stigmer.store import Row, Store

__all__ = ["Attends", "TemporalEngine", "Workflows"]

log = logging.getLogger("stigmer.engine")

PAUSES = (0.1, 0.3, 1.0, 2.0)
"""Seconds before Temporal is asked again; the last one from then on."""
AT_ONCE = 32
"""Questions to Temporal at once: more of them would only wait there, until their time is over."""
ASK_AGAIN = 6
"""So many leases later Temporal is told again of an execution that still waits for a worker."""


class Workflows(Protocol):
    """What the engine asks of Temporal; all raise OSError or a subclass of it while Temporal is away."""

    async def start(self, execution: str) -> None:
        """Starts the execution's workflow, where none is running."""
        ...

    async def wake(self, execution: str) -> None:
        """Wakes the execution's workflow, or starts it."""
        ...

    async def reachable(self) -> None:
        """Raises OSError when Temporal does not answer."""
        ...


class Attends(Protocol):
    """One attempt that a worker drives over a connection to this server."""

    @property
    def row(self) -> Row:
        """The execution."""
        ...

    @property
    def attempt(self) -> int:
        """Its epoch."""
        ...

    async def look(self) -> None:
        """Tells the worker what others have appended."""
        ...

    def refuse(self, error: pb.Error) -> None:
        """The attempt takes nothing more."""
        ...


class TemporalEngine(EmbeddedEngine):
    """Drives the executions of one store through workers; any number of servers may share the store."""

    name = "temporal"

    def __init__(
        self, store: Store, runner: Runs, workflows: Workflows, *, lease: float = LEASE_SECONDS
    ) -> None:
        super().__init__(store, runner, lease=lease)
        self._workflows = workflows
        self.holder = ""
        """What a lease says of this server to the others; "" where they need not know."""
        self._attended: dict[str, Attends] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._called: set[str] = set()
        """Whose turn came while nobody drove them: called once, so that a history does not grow with every look."""
        self._swept = self._renewed = float("-inf")
        self._places = asyncio.Semaphore(AT_ONCE)
        self._asked_at: dict[str, float] = {}
        """When Temporal took what was asked of it about an execution that has not begun yet."""

    @property
    def running(self) -> int:
        """How many attempts workers drive over this server, and how many workflows wait to be started."""
        return len(self._attended) + len(self._asking)

    async def reachable(self) -> None:
        """Raises OSError when Temporal does not answer."""
        await self._workflows.reachable()

    async def start(self) -> None:
        """Looks after every execution that has not finished; attempts go on with their workers, or with new ones."""
        self._store.listen(self._heard)
        await self._take_all_back(await self._store.unfinished(), expired=True)
        self._keeper = asyncio.create_task(self._keep(), name="engine keeper")

    async def stop(self) -> None:
        for task in list(self._asking.values()):
            task.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)
        await super().stop()

    def submit(self, id: str) -> None:
        self._ask(id, self._workflows.start)

    def wake(self, id: str) -> None:
        attended = self._attended.get(id)
        if attended is not None:
            self._errand(attended.look())
        # Its attempt may be at its end already: then the workflow begins the next one.
        self._ask(id, self._workflows.wake)

    async def cancel(self, id: str, *, by: str) -> bool:
        row = await self._store.get(id)
        if row is None or row.finished_ms is not None:
            return False
        try:
            await self._store.control(row.no, [pb.Event(cancel_requested=pb.CancelRequested(by=by))])
        except Fenced:
            return False
        attended = self._attended.get(id)
        if attended is not None:
            await attended.look()
        await self._ended_elsewhere(id)
        await self._close(row, by=by)
        self._ask(id, self._workflows.wake)  # The workflow finds that it is over, and ends.
        return True

    # For workers

    async def take_over(self, row: Row, *, worker: str) -> int | None:
        """Begins the next attempt, whoever had the execution before; None when it has finished or stands in line."""
        while (found := await self._store.get(row.id)) is not None and found.finished_ms is None:
            if found.state == "running" and not await self._store.lose(found, expired=False):
                continue  # It has grown meanwhile.
            if await self._given_up(found, await self._store.replay(row.no)):
                return None
            epoch = await self._store.claim(row.no, worker=worker, lease=self._lease, process=self.holder)
            if epoch is not None:
                return epoch
            first = await self._store.next_of_session(row.no)
            if first is not None and first.no != row.no:
                return None
            await asyncio.sleep(LOOK_SECONDS)
        return None

    async def go_on(self, row: Row, attempt: int) -> bool:
        """Whether this attempt still owns the execution; its lease is renewed."""
        return not await self._store.renew([(row.no, attempt)], lease=self._lease)

    def attend(self, attended: Attends) -> None:
        """A worker drives this attempt over a connection to this server."""
        self._attended[attended.row.id] = attended

    def leave(self, attended: Attends) -> None:
        """The connection has ended; where the execution has, its session goes on."""
        if self._attended.get(attended.row.id) is attended:
            del self._attended[attended.row.id]
        self._rested = False
        if not self._stopping:
            self._errand(self._after(attended.row))

    async def _after(self, row: Row) -> None:
        found = await self._store.get(row.id)
        if found is not None and found.finished_ms is not None:
            self._runner.forget(row.id)
            self._go_on_with_session(row.no)

    # Duties

    def _heard(self, nos: Sequence[int] | None) -> None:
        for attended in self._attended.values():
            if nos is None or attended.row.no in nos:
                self._errand(attended.look())

    async def _renew(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._renewed < self._lease / 3:
            return
        self._renewed = now
        looked_at = list(self._attended.values())  # What begins meanwhile is another attempt.
        held = [(attended.row.no, attended.attempt) for attended in looked_at]
        lost = await self._store.renew(held, lease=self._lease) if held else []
        for attended in looked_at:
            if attended.row.no in lost:
                attended.refuse(pb.Error(code="fenced", message=f"attempt {attended.attempt} is over"))

    async def _call_next(self, no: int) -> None:
        row = await self._store.next_of_session(no)
        if row is not None and row.state == "queued":
            self.wake(row.id)

    async def _sweep(self) -> None:
        """Now and then: whoever seems to be driven by nobody has a workflow that will see to it."""
        now = asyncio.get_running_loop().time()
        if now - self._swept >= self._lease:
            self._swept = now
            left = await self._store.abandoned(idle=self._lease)
            ids = {row.id for row in left}
            self._called &= ids
            self._asked_at = {
                id: at for id, at in self._asked_at.items() if id in ids or now - at < 2 * self._lease
            }
            waiting = [row for row in left if row.state == "queued" and self._is_told(row, now)]
            for row in waiting:
                if await self._is_called_first(row):
                    self.wake(row.id)
            known = {row.id for row in waiting}
            await self._take_all_back([row for row in left if row.id not in known], expired=True)

    def _is_told(self, row: Row, now: float) -> bool:
        """Whether Temporal knows that it waits for a worker; so thousands may, and nobody asks about each ever again."""
        return now - self._asked_at.get(row.id, float("-inf")) < ASK_AGAIN * self._lease

    async def _take_back(self, row: Row, *, expired: bool) -> None:
        """That its worker is gone is for Temporal to say: an attempt whose server was away goes on with the next one."""
        records = await self._store.replay(row.no)
        cancelled = cancelled_by(records)
        if cancelled and (row.state != "running" or await self._store.lose(row)):
            await self._close(row, by=cancelled)
            self._ask(row.id, self._workflows.wake)
        elif row.state == "queued" and await self._is_called_first(row):
            self.wake(row.id)
        elif row.state != "waiting":
            self.submit(row.id)
        elif self._may_go_on(row, records):
            self.wake(row.id)

    async def _is_called_first(self, row: Row) -> bool:
        """Whether its turn in its session has come, and this server has not called it yet.

        It may have stood in line: then its workflow waits for a word, and the server that owed it may have died.
        """
        first = await self._store.next_of_session(row.no)
        if first is None or first.no != row.no or row.id in self._called:
            return False
        self._called.add(row.id)
        return True

    def _ask(self, id: str, ask: Callable[[str], Awaitable[None]]) -> None:
        """Asks Temporal, again and again while it is away; what is asked of one execution meanwhile is one question."""
        if self._stopping:
            return
        if (before := self._asking.get(id)) is not None:
            if ask == self._workflows.start:
                return
            before.cancel()
        task = self._asking[id] = asyncio.create_task(self._until_asked(id, ask), name=f"ask {id}")
        task.add_done_callback(lambda done: self._asked(id, done))

    def _asked(self, id: str, task: asyncio.Task[None]) -> None:
        if self._asking.get(id) is task:
            del self._asking[id]

    async def _until_asked(self, id: str, ask: Callable[[str], Awaitable[None]]) -> None:
        tries = 0
        while True:
            try:
                async with self._places:
                    await ask(id)
                self._asked_at[id] = asyncio.get_running_loop().time()
                return
            except OSError as error:
                if not tries:
                    log.warning("temporal is away execution=%s reason=%r", id, str(error))
            await asyncio.sleep(PAUSES[min(tries, len(PAUSES) - 1)])
            tries += 1
