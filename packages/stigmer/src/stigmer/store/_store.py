"""Store: what happened, kept. One writer, group commit per loop tick, a fence in every commit, publish after it.

Appends are called from the event loop and return futures. Everything that is asked for in one tick of the loop goes
into one transaction. SQLite commits in the loop, but for a transaction that must survive a power cut (it dispatches a
write, holds a decision or finishes an execution): that one goes with synchronous FULL into the store's one thread, and
so does every commit of PostgreSQL. What is asked for meanwhile waits and joins the next transaction.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from graphton.errors import Fenced, JournalError

from stigmer.api import event_pb2 as pb
from stigmer.organisations import DEFAULT_ORGANISATION
from stigmer.store._cut import EVENT_LIMIT, cut
from stigmer.store._dialect import Dialect, Session, StoreDefect, StoreError
from stigmer.store._feed import Feed
from stigmer.store._prune import Age, Expendable, batches, expendable, ranges
from stigmer.store._sqlite import SQLite

if TYPE_CHECKING:
    from stigmer.store._news import Teller

__all__ = ["Busy", "Gone", "Moved", "Row", "SessionRow", "Store", "StoreError", "new_id"]

Answer = TypeVar("Answer")

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_SEQ_BITS = 24
_NEVER = 1 << 62
"""Later than every time, above every number."""
_AGES = 2000
"""So many executions are looked at before others get their turn."""
_LOST = -1
"""The batch of an attempt that was given up; see lose.sql."""


class Busy(StoreError):
    """An execution of the session has not finished."""

    code = "session_busy"


class Gone(StoreError):
    """There is no such session, or no more."""

    code = "not_found"


class Moved(StoreError):
    """The execution has grown since the caller looked at it."""

    code = "moved"


@dataclass(frozen=True, slots=True)
class Row:
    """One execution as the store knows it. `no` is its short name inside the database."""

    no: int
    id: str
    request: bytes
    state: str
    epoch: int
    seq: int
    created_ms: int
    finished_ms: int | None
    organisation: str = DEFAULT_ORGANISATION


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session: how many executions it has, the first and the last one."""

    id: str
    count: int
    first: Row
    last: Row


_Committed = list[tuple[int, pb.Event, bytes]]


@dataclass(slots=True)
class _Done:
    """What one operation answers, and what its watchers get."""

    answer: Any = None
    no: int = 0
    events: _Committed | None = None
    error: Exception | None = None


@dataclass(slots=True)
class _Op:
    work: Callable[[Session], _Done]
    durable: bool
    future: asyncio.Future[Any]
    told: Callable[[asyncio.Future[Any]], None] | None = None
    """Called with the future as soon as it is done: in that very turn of the loop."""


def new_id(now: float | None = None, *, kind: str = "exec") -> str:
    """The kind, `_` and 26 letters that sort by time of making."""
    number = (int((time.time() if now is None else now) * 1000) << 80) | secrets.randbits(80)
    letters = [_ALPHABET[number >> shift & 31] for shift in range(125, -5, -5)]
    return f"{kind}_" + "".join(letters)


class Store:
    """Opened once per process. Reads are answered from what is committed; SQLite answers without giving way.

    Whatever a caller of the server names is looked for in his organisation: `find`, `page`, `of_session` and the like
    ask for it. What takes a number or a Row is for those who have looked so, and for the engines, which serve all.
    """

    def __init__(self, where: Path | str, *, clock: Callable[[], float] = time.time) -> None:
        """Opens the database: a file (its clock may be given, for tests), or a `postgresql://` address.

        Raises StoreError. An address is connected to here and now; `open` does not block the event loop.
        """
        self.feed = Feed()
        self.commits = 0
        self._queue: list[_Op] = []
        self._open: dict[asyncio.Future[Any], tuple[_Op, list[pb.Event]]] = {}
        """The appends in the queue, and what they will append."""
        self._scheduled = False
        self._writing: asyncio.Future[list[_Done]] | None = None
        self._dialect: Dialect
        self._teller: Teller | None = None
        self._hearing: asyncio.Task[None] | None = None
        self._readers: ThreadPoolExecutor | None = None
        if isinstance(where, Path):
            self._dialect = SQLite(where, clock=clock)
        else:
            from stigmer.store._news import Teller
            from stigmer.store._postgres import READERS, Postgres

            self._dialect = database = Postgres(where)
            self._teller = Teller(lambda nos: self._thread.submit(database.notify, nos))
            self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="stigmer-store-read")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="stigmer-store")

    @classmethod
    async def open(cls, where: Path | str) -> Store:
        """The store at a path or an address."""
        return cls(where) if isinstance(where, Path) else await asyncio.to_thread(cls, where)

    @property
    def name(self) -> str:
        """What people may be shown of where it is."""
        return self._dialect.name

    @property
    def alone(self) -> bool:
        """No other server works on it: what is not running here is not running at all."""
        return self._dialect.alone

    @property
    def now_ms(self) -> int:
        """The store's clock: leases and event times are read from it and no other."""
        return self._dialect.now_ms

    # Writing

    def accept(
        self,
        id: str,
        request: bytes,
        *,
        events: Sequence[pb.Event],
        organisation: str = DEFAULT_ORGANISATION,
        idempotency_key: str = "",
        session: str = "",
        folder: str = "",
        alone: bool = False,
        joins: bool = False,
    ) -> asyncio.Future[tuple[Row, bool]]:
        """Stores a new execution with its first events; False when the idempotency key named an older one.

        The key and the session are the organisation's: the same words elsewhere name something else. One of a session
        begins when those before it have finished. With `alone` it raises Busy where one has not; with `joins` it goes on
        with a conversation, and raises Gone where that has been deleted or pruned meanwhile. `folder` is where its files
        are, `PLACE/NAME`: see `folders_gone`.
        """

        if "\0" in idempotency_key:
            raise StoreError("the idempotency key holds a zero byte", hint="use letters and digits")

        def work(db: Session) -> _Done:
            key = {"idempotency_key": idempotency_key or None, "organisation": organisation}
            line = {"session": session, "organisation": organisation}
            known = idempotency_key and db.run("by_idempotency_key", key).fetchone()
            if known:
                return _Done((Row(*known), False))
            if session:
                db.run("lock_session", {"session": session})
            if joins and not list(db.run("of_session", line)):
                raise Gone(
                    f"there is no session {session!r}",
                    hint="stigmer list session; to begin one: --session new",
                )
            if alone and (busy := _unfinished(db, line)):
                raise Busy(
                    f"{busy.id} of session {session!r} has not finished ({busy.state})",
                    hint=f"wait for it: --if-running enqueue; or stop it: stigmer cancel {busy.id}",
                )
            now = db.now_ms
            for event in events:
                event.time_ms = now
            values = {"id": id, "request": request, "now": now, "session": session or None, **key}
            values["folder"] = folder or None
            made = db.run("accept", values).fetchone()
            if made is None:
                return _Done((Row(*db.run("by_idempotency_key", key).fetchone()), False))
            committed = self._control(db, made[0], events)
            row = Row(*db.run("get", {"id": id}).fetchone())
            return _Done((row, True), made[0], committed)

        return self._submit(work)

    def append(
        self,
        no: int,
        epoch: int,
        *,
        batch: int,
        events: Sequence[pb.Event],
        told: Callable[[asyncio.Future[int]], None] | None = None,
    ) -> asyncio.Future[int]:
        """Appends an attempt's next batch; the answer is the seq of its first event. `told` hears of it first.

        Batches count from 1 within the epoch. The last batch given again is answered like the first time and
        changes nothing. Raises Fenced when another attempt owns the execution or it has finished.
        """

        events = list(events)

        def work(db: Session) -> _Done:
            values = {"no": no, "epoch": epoch, "batch": batch, **_effects(events, db.now_ms)}
            row = db.run("append", values).fetchone()
            if row is None:
                return self._refused(db, no, epoch, batch)
            committed = self._insert(db, no, row[0] - len(events) + 1, events)
            return _Done(committed[0][0], no, committed)

        future = self._submit(work, durable=any(map(_durable, events)))
        op = self._queue[-1]
        op.told = told
        self._open[future] = op, events
        return future

    def join(self, append: asyncio.Future[int], events: Iterable[pb.Event]) -> bool:
        """Adds events to the end of an append that has not begun; False when it has: then they are a batch of their own."""
        if (found := self._open.get(append)) is None:
            return False
        op, batch = found
        for event in events:
            batch.append(event)
            op.durable = op.durable or _durable(event)
        return True

    def control(self, no: int, events: Sequence[pb.Event], *, seen: int = 0) -> asyncio.Future[int]:
        """Appends events that belong to no attempt: cancel requests, decisions, what the sweep finds.

        With `seen`, the last seq that the caller knew, it raises Moved when the execution has grown since.
        """

        def work(db: Session) -> _Done:
            committed = self._control(db, no, events, seen=seen)
            return _Done(committed[0][0], no, committed)

        return self._submit(work, durable=any(map(_durable, events)))

    def claim(self, no: int, *, worker: str, lease: float, process: str = "") -> asyncio.Future[int | None]:
        """Begins the next attempt and gives its epoch; None when it has finished or somebody holds its lease.

        `process` is what `driven` tells of who holds it, to others of the same machine.
        """

        def work(db: Session) -> _Done:
            now = db.now_ms
            until = now + int(lease * 1000)
            values = {"no": no, "now": now, "lease_until_ms": until, "process": process or None}
            row = db.run("claim", values).fetchone()
            if row is None:
                return _Done(None)
            started = pb.Event(attempt_started=pb.AttemptStarted(attempt=row[0], worker=worker))
            return _Done(row[0], no, self._control(db, no, [started]))

        return self._submit(work)

    def renew(self, held: Sequence[tuple[int, int]], *, lease: float) -> asyncio.Future[list[int]]:
        """Keeps the leases of (no, epoch) alive; the answer names those that were lost."""

        def work(db: Session) -> _Done:
            until = db.now_ms + int(lease * 1000)
            lost = []
            for no, epoch in sorted(held):  # Always in one order: two servers then never wait for each other.
                values = {"no": no, "epoch": epoch, "lease_until_ms": until}
                if db.run("renew", values).fetchone() is None:
                    lost.append(no)
            return _Done(lost)

        return self._submit(work)

    def lose(self, row: Row, *, expired: bool = True) -> asyncio.Future[bool]:
        """Gives up an attempt that never ended: it can append nothing more, and the next one may be claimed.

        False when the execution is not as `row` says any more, or (unless `expired` is False) its lease is held.
        """

        def work(db: Session) -> _Done:
            now = db.now_ms
            until = now if expired else _NEVER
            values = {"no": row.no, "epoch": row.epoch, "seen": row.seq, "now": now, "until": until}
            found = db.run("lose", values).fetchone()
            if found is None:
                return _Done(False)
            ended = pb.Event(attempt_ended=pb.AttemptEnded(attempt=row.epoch, outcome="lost"))
            return _Done(True, row.no, self._insert(db, row.no, found[0], [ended]))

        return self._submit(work)

    def delete_session(self, session: str, *, organisation: str) -> asyncio.Future[int]:
        """Deletes a session's executions and says how many; raises Busy while one of them has not finished."""

        line = {"session": session, "organisation": organisation}

        def work(db: Session) -> _Done:
            db.run("lock_session", {"session": session})
            if busy := _unfinished(db, line):
                raise Busy(
                    f"{busy.id} of session {session!r} has not finished ({busy.state})",
                    hint=f"stigmer cancel {busy.id}",
                )
            nos = [row[0] for row in db.run("of_session", line)]
            _delete(db, nos)
            return _Done(len(nos))

        return self._submit(work)

    async def expendable(
        self, *, before_ms: int, keep: int = 0, organisation: str | None = None
    ) -> list[Expendable]:
        """What ended before that moment and is not among the newest `keep` of its organisation that have ended.

        Of one organisation or of each, the oldest first. Only what is old enough is looked at, and others are let in
        between the pages that are read.
        """
        organisations = (
            [(organisation,)] if organisation is not None else await self._read("organisations", {}, list)
        )
        return [
            one
            for (name,) in organisations
            for one in await self._expendable(name, before_ms=before_ms, keep=keep)
        ]

    async def _expendable(self, organisation: str, *, before_ms: int, keep: int) -> list[Expendable]:
        within = {"organisation": organisation}
        newest = (
            await self._read("newest_ended", {**within, "others": keep - 1}, list) if keep else [(_NEVER,)]
        )
        if not newest:
            return []
        ((below,),) = newest
        values = {**within, "before": before_ms, "below": below, "ended": 0, "after": 0, "limit": _AGES}
        found: list[Expendable] = []
        while page := await self._ages("ended", values):
            for last in page:
                members = [last]
                if last.session is not None:
                    members = await self._ages("ages_of_session", {**within, "session": last.session})
                if expendable(members, before_ms=before_ms, below=below):
                    found.append(Expendable(last.session or "", tuple(members)))
            values |= {"ended": page[-1].finished_ms, "after": page[-1].no}
            await asyncio.sleep(0)
        return found

    async def _ages(self, name: str, values: dict[str, Any]) -> list[Age]:
        return await self._read(name, values, lambda rows: [Age(*row) for row in rows])

    async def bytes_of(self, found: Sequence[Expendable]) -> int:
        """What these take in the database, about: requests and events, without indexes."""
        total = sum(age.bytes for one in found for age in one.ages)
        for batch in batches(found):
            for first, end in ranges([age.no for one in batch for age in one.ages]):
                ((size,),) = await self._read("bytes", {"first": _key(first, 0), "end": _key(end, 0)}, list)
                total += size
            await asyncio.sleep(0)
        return total

    async def prune(self, found: Sequence[Expendable]) -> int:
        """Deletes them for good, batch after batch, and says how many executions that were.

        A session that has grown since it was found, or is open again, stays.
        """
        count = 0
        for batch in batches(found):
            count += await self._prune(batch)
        return count

    def _prune(self, batch: Sequence[Expendable]) -> asyncio.Future[int]:
        def work(db: Session) -> _Done:
            nos = [age.no for one in batch for age in one.ages if not one.session]
            for one in sorted((one for one in batch if one.session), key=lambda one: one.session):
                line = {"session": one.session, "organisation": one.organisation}
                db.run("lock_session", {"session": one.session})
                rows = [Row(*row) for row in db.run("of_session", line)]
                whole = {row.no for row in rows} <= {age.no for age in one.ages}
                if whole and all(row.finished_ms is not None for row in rows):
                    nos += [row.no for row in rows]
            return _Done(_delete(db, nos))

        # In the store's thread: others commit and read in between.
        return self._submit(work, durable=True)

    async def folders_gone(self, folders: Sequence[str], *, before_ms: int) -> list[str]:
        """Which of these have had an execution, whose last one was deleted before that moment."""
        values = {"folders": json.dumps(list(folders)), "before": before_ms}
        return await self._read("folders_gone", values, lambda rows: [folder for (folder,) in rows])

    async def forget_folders(self, *, before_ms: int) -> None:
        """Says of no folder that went before that moment any more that it is gone."""

        def work(db: Session) -> None:
            db.run("forget_folders", {"before": before_ms})

        await self.change(work)

    def _control(self, db: Session, no: int, events: Sequence[pb.Event], *, seen: int = 0) -> _Committed:
        values = {"no": no, "seen": seen, **_effects(events, db.now_ms)}
        row = db.run("append_control", values).fetchone()
        if row is None:
            if seen and (found := db.run("fence", {"no": no}).fetchone()) and found[3] is None:
                raise Moved(f"execution number {no} has grown since event {seen}; look at it again")
            raise Fenced("the execution has finished; nothing can be added to it")
        return self._insert(db, no, row[0] - len(events) + 1, events)

    def _refused(self, db: Session, no: int, epoch: int, batch: int) -> _Done:
        found = db.run("fence", {"no": no}).fetchone()
        if found is None:
            raise StoreError(f"there is no execution number {no}")
        current, last, first_seq, finished_ms = found
        if current == epoch and last == batch:
            return _Done(first_seq)
        if finished_ms is not None:
            raise Fenced("the execution has finished; nothing can be added to it")
        if current != epoch:
            raise Fenced(f"attempt {epoch} is over: attempt {current} owns the execution now")
        if last == _LOST:
            raise Fenced(f"attempt {epoch} is over: it was given up as lost")
        raise StoreError(f"batch {batch} of attempt {epoch} is out of order: the last one was {last}")

    def _insert(self, db: Session, no: int, first: int, events: Sequence[pb.Event]) -> _Committed:
        committed: _Committed = []
        now = db.now_ms
        for seq, event in enumerate(events, start=first):
            event.seq = seq
            event.time_ms = event.time_ms or now
            body = event.SerializeToString()
            if len(body) > EVENT_LIMIT:
                db.run("insert_original", {"key": _key(no, seq), "body": body})
                body = cut(event).SerializeToString()
            committed.append((seq, event, body))
        db.run_many("insert_event", [{"key": _key(no, seq), "body": body} for seq, _, body in committed])
        return committed

    def _submit(self, work: Callable[[Session], _Done], *, durable: bool = False) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._queue.append(_Op(work, durable, future))
        if not self._scheduled and self._writing is None:
            self._scheduled = True
            loop.call_soon(self._flush)
        return future

    def _flush(self) -> None:
        self._scheduled = False
        ops, self._queue = self._queue, []
        self._open.clear()
        if not ops:
            return
        durable = any(op.durable for op in ops)
        if self._dialect.direct and not durable:
            self._settle(ops, self._commit(ops, False))
            return
        loop = asyncio.get_running_loop()
        self._writing = loop.run_in_executor(self._thread, self._commit, ops, durable)
        self._writing.add_done_callback(lambda written: self._written(ops, written))

    def _written(self, ops: list[_Op], written: asyncio.Future[list[_Done]]) -> None:
        self._writing = None
        self._settle(ops, written.result())
        if self._queue and not self._scheduled:
            self._flush()

    def _commit(self, ops: list[_Op], durable: bool) -> list[_Done]:
        """All operations in one transaction. One that is refused changes nothing and does not disturb the others."""
        try:
            done = self._dialect.commit(lambda db: [_attempt(op.work, db) for op in ops], durable=durable)
        except Exception as error:  # Nothing of the group may stay half done.
            failure = self._failure("refused a write", error, hint=self._dialect.refused)
            failure.__cause__ = error
            return [_Done(error=failure) for _ in ops]
        self.commits += 1
        return done

    def _settle(self, ops: list[_Op], done: list[_Done]) -> None:
        """Publishes what is committed, then answers."""
        for op, result in zip(ops, done, strict=True):
            if result.events:
                self.feed.publish(result.no, result.events)
                if self._teller is not None:
                    self._teller.grown(result.no)
            if op.future.done():
                pass  # The one who asked was cancelled; the write stands.
            elif result.error is not None:
                op.future.set_exception(result.error)
            else:
                op.future.set_result(result.answer)
            if op.told is not None:
                op.told(op.future)

    # Other tables

    def change(self, work: Callable[[Session], Answer]) -> asyncio.Future[Answer]:
        """Does `work` in a transaction; what it changes survives a power cut."""
        return self._submit(lambda db: _Done(work(db)), durable=True)

    async def rows(self, name: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
        """What the query of that name finds."""
        return await self._read(name, values, lambda rows: [tuple(row) for row in rows])

    # Reading

    async def get(self, id: str) -> Row | None:
        """The execution of that id, whatever its organisation: for the engines, not for what a caller names."""
        return next(iter(await self._rows("get", {"id": id})), None)

    async def find(self, id: str, *, organisation: str) -> Row | None:
        """The execution of that id, where it is this organisation's."""
        return next(iter(await self._rows("find", {"id": id, "organisation": organisation})), None)

    async def last_batch(self, no: int) -> int:
        """The last batch of the current attempt that is stored; 0 where none is."""
        ((_, batch, _, _),) = await self._read("fence", {"no": no}, list)
        return max(0, int(batch))

    async def by_idempotency_key(self, key: str, *, organisation: str) -> Row | None:
        """The execution that this organisation made with that key."""
        values = {"idempotency_key": key, "organisation": organisation}
        return next(iter(await self._rows("by_idempotency_key", values)), None)

    async def page(
        self, *, organisation: str, limit: int, before: int | None = None, state: str = ""
    ) -> list[Row]:
        """An organisation's executions, the newest first, those with a number below `before`."""
        values = {"organisation": organisation, "before": before or _NEVER, "limit": limit}
        return await (
            self._rows("list_in_state", {**values, "state": state}) if state else self._rows("list", values)
        )

    async def in_state(self, state: str, *, limit: int, after: Row | None = None) -> list[Row]:
        """Those of every organisation, one organisation after the other; the page that follows the row `after`."""
        organisation, no = (after.organisation, after.no) if after is not None else ("", 0)
        values = {"state": state, "organisation": organisation, "after": no, "limit": limit}
        return await self._rows("in_state", values)

    async def sessions(self, *, organisation: str, limit: int) -> list[SessionRow]:
        """An organisation's; those that were used last come first."""
        values = {"limit": limit, "organisation": organisation}
        found: list[tuple[str, int, int, int]] = await self._read("sessions", values, list)
        rows = {
            no: row
            for no in {no for _, _, *nos in found for no in nos}
            for row in await self._rows("by_no", {"no": no})
        }
        return [SessionRow(id, count, rows[first], rows[last]) for id, count, first, last in found]

    async def of_session(self, session: str, *, organisation: str) -> list[Row]:
        """The executions of an organisation's session, in their order; none where it has no such session."""
        return await self._rows("of_session", {"session": session, "organisation": organisation})

    async def earlier(self, no: int) -> list[Row]:
        """The executions of the same session that came before this one."""
        return await self._rows("earlier", {"no": no})

    async def next_of_session(self, no: int) -> Row | None:
        """The execution that this one's session has come to: the first that has not finished."""
        return next(iter(await self._rows("next", {"no": no})), None)

    async def unfinished(self) -> list[Row]:
        return await self._rows("unfinished", {})

    async def driven(self, machine: str) -> list[tuple[Row, str]]:
        """What processes of this machine drive, each with the process that claimed it: those whose name begins so."""
        return await self._read(
            "driven", {"machine": machine}, lambda rows: [(Row(*row), process) for *row, process in rows]
        )

    async def abandoned(self, *, idle: float) -> list[Row]:
        """Those that nobody seems to drive: their lease has run out, or they were queued for `idle` seconds."""
        now = self.now_ms
        return await self._rows("abandoned", {"now": now, "idle": now - int(idle * 1000)})

    async def due(self) -> list[Row]:
        """Waiting executions whose time has come."""
        return await self._rows("due", {"now": self.now_ms})

    async def count(self, state: str, *, organisation: str | None = None) -> int:
        """How many are in that state, of one organisation or of all."""
        ((number,),) = await self._read("count", {"state": state, "organisation": organisation}, list)
        return int(number)

    async def events(
        self, no: int, first: int, *, limit: int = 500, room: int = 1 << 20
    ) -> list[tuple[int, bytes]]:
        """(seq, body) from `first` on: at most `limit` of them and about `room` bytes, but one at least if there is one."""
        values = {"first": _key(no, first), "end": _key(no + 1, 0), "limit": limit, "room": room}

        def pick(rows: Iterable[Any]) -> list[tuple[int, bytes]]:
            page: list[tuple[int, bytes]] = []
            left = room
            for key, body in rows:
                page.append((key & (1 << _SEQ_BITS) - 1, body))
                left -= len(body)
                if left <= 0:
                    break
            return page

        return await self._read("events", values, pick)

    async def replay(self, no: int) -> list[pb.Event]:
        """All events, whole even where watchers get them cut."""
        values = {"first": _key(no, 0), "end": _key(no + 1, 0)}
        return await self._read(
            "replay", values, lambda rows: [pb.Event.FromString(body) for (body,) in rows]
        )

    async def _rows(self, name: str, values: dict[str, Any]) -> list[Row]:
        return await self._read(name, values, lambda rows: [Row(*row) for row in rows])

    async def _read(
        self, name: str, values: dict[str, Any], pick: Callable[[Iterable[Any]], Answer]
    ) -> Answer:
        try:
            if self._readers is None:
                return self._dialect.read(name, values, pick)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._readers, self._dialect.read, name, values, pick)
        except self._dialect.error as error:
            raise self._failure("cannot be read", error, hint=lambda _: self._dialect.unreadable) from error

    def _failure(self, what: str, error: Exception, *, hint: Callable[[Exception], str]) -> StoreError:
        """A refusal of the database, such as a full disk, or a defect of ours."""
        text = f"the database {self.name!r} {what}: {_words(error)}"
        database = self._dialect
        if isinstance(error, database.error) and not isinstance(error, database.misuse):
            return StoreError(text, hint=hint(error))
        return StoreDefect(text)

    # Other servers

    def listen(self, heard: Callable[[Sequence[int] | None], None]) -> None:
        """From now on `heard` is called with the numbers of executions that grew elsewhere; None means any may have.

        Watchers here see those events too. A store that is alone never calls it.
        """
        database = self._dialect
        if database.alone or self._hearing is not None:
            return
        from stigmer.store._news import hear
        from stigmer.store._postgres import Postgres

        assert isinstance(database, Postgres)

        def both(nos: Sequence[int] | None) -> None:
            self.feed.stale(nos)
            heard(nos)

        self._hearing = asyncio.create_task(hear(database, both), name="store news")

    # Rest and end

    async def settled(self) -> None:
        """Waits until everything asked for so far is committed or refused."""
        while self._queue or self._writing is not None:
            if self._writing is not None:
                await asyncio.wait([self._writing])
            await asyncio.sleep(0)

    async def rest(self) -> None:
        """Nothing runs: the database gives back what is not needed (SQLite's WAL file is emptied into it)."""
        await self.settled()
        if self._writing is None and not self._queue:
            await self._alone(self._dialect.rest)

    async def slack(self) -> float:
        """The part of the database's room that deleted rows have left, and that `compact` would give back."""
        try:
            return self._dialect.slack()
        except self._dialect.error as error:
            raise self._failure("cannot be read", error, hint=lambda _: self._dialect.unreadable) from error

    async def compact(self) -> None:
        """Gives the room of deleted rows back. SQLite writes its file anew: what is asked for meanwhile waits."""
        failed: list[Exception] = []

        def work() -> None:
            try:
                self._dialect.compact()
            except self._dialect.error as error:
                failed.append(error)

        if self._readers is not None:
            await asyncio.get_running_loop().run_in_executor(self._readers, work)
        else:
            await self.settled()
            await self._alone(work)
        for error in failed:
            raise self._failure("could not be made smaller", error, hint=self._dialect.refused) from error

    async def _alone(self, work: Callable[[], Any]) -> None:
        """Runs in the store's thread as if it were a commit of nothing, so that no other write meets it."""

        def commit() -> list[_Done]:
            work()
            return []

        self._writing = asyncio.get_running_loop().run_in_executor(self._thread, commit)
        writing = self._writing
        writing.add_done_callback(lambda written: self._written([], written))
        await asyncio.wait([writing])

    async def close(self) -> None:
        """Everything asked for is written, if the database is there; then all connections end."""
        self._dialect.hurry()
        await self.settled()
        if self._teller is not None:
            self._teller.flush()
        if self._hearing is not None:
            self._hearing.cancel()
            await asyncio.gather(self._hearing, return_exceptions=True)
        for threads in (self._thread, self._readers):
            if threads is not None:
                await asyncio.get_running_loop().run_in_executor(None, threads.shutdown)
        self._dialect.close()


def _unfinished(db: Session, line: Mapping[str, str]) -> Row | None:
    """The first execution of a session (`session` and `organisation`) that has not finished."""
    rows = (Row(*row) for row in db.run("of_session", line))
    return next((row for row in rows if row.finished_ms is None), None)


def _delete(db: Session, nos: Sequence[int]) -> int:
    """Deletes executions with their events, and says how many there were."""
    if not nos:
        return 0
    found = ranges(nos)
    keys = [{"first": _key(first, 0), "end": _key(end, 0)} for first, end in found]
    db.run_many("delete_events", keys)
    db.run_many("delete_originals", keys)
    rows = [{"first": first, "end": end} for first, end in found]
    folders = {folder for values in rows for (folder,) in db.run("folders", values)}
    count = sum(len(list(db.run("delete_executions", values))) for values in rows)
    db.run_many("folder_gone", [{"folder": folder, "now": db.now_ms} for folder in sorted(folders)])
    return count


def _attempt(work: Callable[[Session], _Done], db: Session) -> _Done:
    try:
        return work(db)
    except JournalError as refusal:
        return _Done(error=refusal)


def _effects(events: Sequence[pb.Event], now_ms: int) -> dict[str, Any]:
    """What a batch of events does to its execution's row."""
    values: dict[str, Any] = {
        "count": len(events), "state": None, "wake_ms": None, "release": 0, "finished_ms": None,
    }  # fmt: skip
    for event in events:
        match event.WhichOneof("kind"):
            case "attempt_started":
                values["state"] = "running"
            case "waiting":
                values["state"] = "waiting"
                values["wake_ms"] = event.waiting.expires_ms or None
            case "resumed":
                values["state"] = "queued"
            case "attempt_ended":
                values["release"] = 1
                if event.attempt_ended.outcome in ("lost", "shutdown"):
                    values["state"] = "queued"
            case "finished":
                values.update(state=event.finished.outcome, finished_ms=now_ms, wake_ms=None)
            case _:
                pass
    return values


def _key(no: int, seq: int) -> int:
    return no << _SEQ_BITS | seq


def _durable(event: pb.Event) -> bool:
    """Whether this event must survive a power cut."""
    match event.WhichOneof("kind"):
        case "tool_dispatched":
            return event.tool_dispatched.effect == "write"
        case "approval_decided" | "finished":
            return True
        case _:
            return False


def _words(error: Exception) -> str:
    return " ".join(str(error).split())
