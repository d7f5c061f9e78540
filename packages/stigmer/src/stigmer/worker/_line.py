"""A worker's line to the control plane for one attempt: batches go up and are acknowledged, what others decide comes down.

A line that breaks is made anew, to whichever server answers: what was not acknowledged is sent again, in order, and a
batch that had arrived changes nothing. Meanwhile the run goes on as far as it can; a commit waits.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from graphton.errors import Fenced, JournalError

from stigmer.api import event_pb2 as pb
from stigmer.api import worker_pb2 as api
from stigmer.store import Feed, Row

__all__ = ["Line", "NotLetIn", "Plane"]

log = logging.getLogger("stigmer.worker")

_ROOM = 1 << 20
"""Bytes of events after which a message is sent: far below the limit of one."""
_PAUSES = (0.05, 0.2, 0.5, 1.0)
"""Seconds before a broken line is tried again; the last one from then on."""
_PASSING = ("UNAVAILABLE", "CANCELLED", "UNKNOWN", "DEADLINE_EXCEEDED", "INTERNAL", "RESOURCE_EXHAUSTED")
"""States of a call that another try may well get over: the server restarts, or its database does."""


@dataclass(frozen=True, slots=True)
class Plane:
    """The control plane: its service, and what lets us in."""

    stub: Any
    metadata: tuple[tuple[str, str], ...]


class NotLetIn(JournalError):
    """The control plane does not know our key: it never did, or the key is revoked or has expired."""

    code = "unauthenticated"


@dataclass(slots=True)
class _Batch:
    events: list[bytes]
    stored: asyncio.Future[int]
    left: list[bytes] | None = None
    """What of it is still to be sent; None when all is on its way."""


@dataclass(slots=True)
class _Shows:
    """Where live events go: up the line, and into a memory for the watchers of the next server."""

    line: Line
    memory: Feed = field(default_factory=Feed)

    def live(self, no: int, event: pb.Event) -> None:
        self.memory.live(no, event)
        self.line._show(event.SerializeToString())


class Line:
    """What `StoreJournal` needs of a store, of one attempt and over a connection.

    `begin` comes first, `close` last.
    """

    def __init__(
        self,
        plane: Plane,
        execution: str,
        *,
        worker: str,
        disk: str = "",
        alone: bool = False,
        shut_out: Callable[[JournalError], object] = lambda error: None,
    ) -> None:
        """`disk` holds the worker's files of executions; `alone`: the one that has this execution's is gone.

        `shut_out` is called when the control plane does not know our key: no other execution is let through either.
        """
        self.attempt = 0
        self._heard: list[pb.Event] = []
        self._hear: Callable[[pb.Event], object] = self._heard.append
        self._lost: Callable[[], object] = lambda: None
        self._shut_out = shut_out
        self.feed = _Shows(self)
        self._plane, self._execution, self._worker = plane, execution, worker
        self._disk, self._alone = disk, alone
        self._no = self._seen = 0
        self._ahead_ms = self._last_ms = 0
        self._records: list[pb.Event] | None = None
        """All that this attempt knows of its execution's events, once it has read them."""
        self._batches: dict[int, _Batch] = {}
        self._fresh: _Batch | None = None
        """The last batch, while nothing of it has ever been sent."""
        self._live: list[bytes] = []
        self._news = asyncio.Event()
        self._connected = False
        self._failure: JournalError | None = None
        self._began: asyncio.Future[api.Began | str] | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def begin(self) -> api.Began | str:
        """Takes the execution over. A word instead of an attempt: nothing is to be done, for it is in that state, or
        `give_up` came first: `shutdown`. `elsewhere DISK SECONDS`: the worker of that disk has its files.

        Raises JournalError when the server refuses.
        """
        self._began = asyncio.get_running_loop().create_future()
        self._keeper = asyncio.create_task(self._keep(), name=f"line {self._execution}")
        return await self._began

    def give_up(self) -> None:
        """Whoever waits for the beginning waits no longer."""
        self._answer("shutdown")

    def tell(self, hear: Callable[[pb.Event], object], *, lost: Callable[[], object]) -> None:
        """From now on `hear` is told of every event that somebody else appends; first of those that came already.

        `lost` is called when the control plane takes nothing more: what runs would run in vain, and at a cost.
        """
        self._hear, self._lost = hear, lost
        for event in self._heard:
            hear(event)

    async def close(self) -> None:
        """Hangs up. What is not acknowledged is not waited for."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    # What a journal needs

    @property
    def now_ms(self) -> int:
        """The server's clock, as far as ours tells it; it never runs back, whatever a new connection says of it."""
        self._last_ms = max(self._last_ms, time.time_ns() // 1_000_000 + self._ahead_ms)
        return self._last_ms

    def append(
        self,
        no: int,
        epoch: int,
        *,
        batch: int,
        events: Sequence[pb.Event],
        told: Callable[[asyncio.Future[int]], None],
    ) -> asyncio.Future[int]:
        """Sends the attempt's next batch; done when it is stored, which `told` hears of."""
        stored: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        stored.add_done_callback(told)
        if self._failure is not None:
            stored.set_exception(self._failure)
            return stored
        now = self.now_ms
        for event in events:
            event.time_ms = event.time_ms or now
        self.feed.memory.publish(no, [(0, event, b"") for event in events])
        bodies = [event.SerializeToString() for event in events]
        self._fresh = self._batches[batch] = _Batch(bodies, stored, left=bodies)
        self._know(events)
        self._news.set()
        return stored

    def join(self, append: asyncio.Future[int], events: Iterable[pb.Event]) -> bool:
        """Adds events to a batch that has not been sent; False when it may have: a server that has it takes no more to it."""
        batch = self._fresh
        if batch is None or batch.stored is not append or self._failure is not None:
            return False
        now = self.now_ms
        for event in events:
            event.time_ms = event.time_ms or now
            self.feed.memory.publish(self._no, [(0, event, b"")])
            batch.events.append(event.SerializeToString())
            self._know([event])
        return True

    async def earlier(self, no: int) -> list[Row]:
        """The executions of the same session that came before this one."""
        return [row for row, _ in await self._read(earlier=True)]

    async def replay(self, no: int) -> list[pb.Event]:
        """All events of an execution: of this one, or of one that `earlier` named."""
        if no == self._no and self._records is not None:
            return list(self._records)
        found = await self._read(earlier=no != self._no)
        events = next((events for row, events in found if row.no == no), [])
        if no == self._no:
            self._records = list(events)
        return events

    def _know(self, events: Iterable[pb.Event]) -> None:
        if self._records is not None:
            self._records.extend(events)

    async def _read(self, *, earlier: bool) -> list[tuple[Row, list[pb.Event]]]:
        for pause in (*_PAUSES, None):
            try:
                return await self._read_once(earlier=earlier)
            except grpc.aio.AioRpcError as error:
                if pause is None or error.code().name not in _PASSING:
                    raise _refusal(error) from error
            await asyncio.sleep(pause)
        raise AssertionError("the last pause is None")

    async def _read_once(self, *, earlier: bool) -> list[tuple[Row, list[pb.Event]]]:
        asked = api.ReadEventsRequest(execution=self._execution, earlier=earlier)
        found: dict[int, tuple[Row, list[pb.Event]]] = {}
        async for part in self._plane.stub.ReadEvents(
            asked, metadata=self._plane.metadata, wait_for_ready=True
        ):
            if part.no not in found:
                found[part.no] = (_row(part.no, part.execution, part.request), [])
            found[part.no][1].extend(map(pb.Event.FromString, part.events))
        return list(found.values())

    def _show(self, event: bytes) -> None:
        if self._connected:
            self._live.append(event)
            self._news.set()

    # The connection

    async def _keep(self) -> None:
        """Talks; after a break, again, until somebody hangs up or the server wants no more of it."""
        tries = 0
        while self._failure is None:
            try:
                if await self._talk():
                    return
                tries = 0
            except grpc.aio.AioRpcError as error:
                if error.code().name not in _PASSING:
                    self._fail(_refusal(error))
                    return
                if not tries:
                    log.warning("line broken execution=%s reason=%r", self._execution, error.details())
            except Exception as error:  # Whoever waits for a batch would wait for ever.
                log.exception("line given up execution=%s", self._execution)
                self._fail(JournalError(f"the line to the control plane failed: {error!r}"))
                return
            await asyncio.sleep(_PAUSES[min(tries, len(_PAUSES) - 1)])
            tries += 1

    async def _talk(self) -> bool:
        """One connection, from its first word to its break; whether there is nothing more to say."""
        call = self._plane.stub.Attend(metadata=self._plane.metadata, wait_for_ready=True)
        begin = api.Begin(
            execution=self._execution,
            worker=self._worker,
            attempt=self.attempt,
            seen=self._seen,
            disk=self._disk,
            alone=self._alone,
        )
        sender: asyncio.Task[None] | None = None
        try:
            await call.write(api.FromWorker(begin=begin))
            async for message in call:
                if message.HasField("began"):
                    self._go_on(message.began)
                    sender = asyncio.create_task(self._send(call), name=f"sender {self._execution}")
                if message.over:
                    where = f" {message.disk} {message.patience_seconds:g}" if message.disk else ""
                    self._answer(message.over + where)
                    return True
                if message.HasField("refused"):
                    self._fail(_told(message.refused))
                    return True
                self._settle(message.stored)
                self._seen = max(self._seen, message.seen)
                for body in message.heard:
                    self._know([heard := pb.Event.FromString(body)])
                    self._hear(heard)
            return False
        finally:
            self._connected = False
            self._live.clear()
            if sender is not None:
                sender.cancel()
                await asyncio.gather(sender, return_exceptions=True)
            call.cancel()

    def _go_on(self, began: api.Began) -> None:
        self._no, self.attempt = began.no, began.attempt
        self._seen = self._seen or began.seq
        if began.events:
            self._records = [pb.Event.FromString(body) for body in began.events]
        self._ahead_ms = began.now_ms - time.time_ns() // 1_000_000
        self._settle(began.stored)
        for batch in self._batches.values():
            batch.left = batch.events
        self._live = list(self.feed.memory.partial(began.no))
        self._connected = True
        self._news.set()
        self._answer(began)

    async def _send(self, call: Any) -> None:
        """What is new goes out, everything of one moment in one message."""
        while True:
            await self._news.wait()
            self._news.clear()
            while message := self._next_message():
                await call.write(message)

    def _next_message(self) -> api.FromWorker | None:
        self._fresh = None
        message, room = api.FromWorker(), _ROOM
        for number, batch in self._batches.items():
            while room > 0 and batch.left is not None:
                part = _up_to(batch.left, room)
                rest = batch.left[len(part) :]
                message.appends.append(api.Append(batch=number, events=part, more=bool(rest)))
                batch.left = rest or None
                room -= sum(map(len, part))
            if room <= 0:
                return message
        if self._live:
            message.live.extend(self._live)
            self._live.clear()
        return message if message.appends or message.live else None

    def _settle(self, stored: int) -> None:
        """Every batch up to this one is in the store."""
        for number in [number for number in self._batches if number <= stored]:
            future = self._batches.pop(number).stored
            if not future.done():
                future.set_result(0)

    def _answer(self, answer: api.Began | str) -> None:
        if self._began is not None and not self._began.done():
            self._began.set_result(answer)

    def _fail(self, error: JournalError) -> None:
        """Nothing more is taken: whoever waits for a batch, or appends one, hears of it."""
        self._failure = error
        if self._began is not None and not self._began.done():
            self._began.set_exception(error)
        batches, self._batches = self._batches, {}
        for batch in batches.values():
            if not batch.stored.done():
                batch.stored.set_exception(error)
        self._lost()
        if isinstance(error, NotLetIn):
            self._shut_out(error)


def _up_to(events: Sequence[bytes], room: int) -> list[bytes]:
    """The first of the events, one at least, as far as there is room for them."""
    found: list[bytes] = []
    for event in events:
        room -= len(event)
        if found and room < 0:
            break
        found.append(event)
    return found


def _row(no: int, id: str, request: bytes) -> Row:
    return Row(no, id, request, state="running", epoch=0, seq=0, created_ms=0, finished_ms=None)


def _told(error: pb.Error) -> JournalError:
    kinds: dict[str, type[JournalError]] = {"fenced": Fenced, NotLetIn.code: NotLetIn}
    return kinds.get(error.code, JournalError)(error.message, hint=error.hint)


def _refusal(error: grpc.aio.AioRpcError) -> JournalError:
    """A call that no other try gets over, as a failure of the journal."""
    trailing: Any = error.trailing_metadata()
    for key, value in trailing or ():
        if key == "stigmer-error-bin":
            return _told(pb.Error.FromString(value))
    kind = NotLetIn if error.code() is grpc.StatusCode.UNAUTHENTICATED else JournalError
    return kind(f"the control plane refused: {error.code().name}: {error.details()}")
