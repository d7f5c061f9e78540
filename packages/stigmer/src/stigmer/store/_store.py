"""Store: what happened, kept. One writer, group commit per loop tick, a fence in every commit, publish after it.

Appends are called from the event loop and return futures. Everything that is asked for in one tick of the loop goes
into one transaction. A transaction that must survive a power cut (it dispatches a write, holds a decision or finishes
an execution) is committed with synchronous FULL in the store's one thread; what is asked for meanwhile waits and joins
the next transaction.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphton.errors import Fenced, JournalError

from stigmer.api import event_pb2 as pb
from stigmer.store._cut import EVENT_LIMIT, cut
from stigmer.store._feed import Feed
from stigmer.store._sqlite import VERSION, connect, migrate, query, set_durable

__all__ = ["Row", "Store", "StoreError", "new_id"]

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_SEQ_BITS = 24


class StoreError(JournalError):
    """The database cannot be used, or refused a write; `code` says which."""

    code = "store"


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
    work: Callable[[sqlite3.Connection], _Done]
    durable: bool
    future: asyncio.Future[Any]


def new_id(now: float | None = None) -> str:
    """`exec_` and 26 letters that sort by time of making."""
    number = (int((time.time() if now is None else now) * 1000) << 80) | secrets.randbits(80)
    letters = [_ALPHABET[number >> shift & 31] for shift in range(125, -5, -5)]
    return "exec_" + "".join(letters)


class Store:
    """Opened once per process on one file. Reads are answered at once, from what is committed."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.feed = Feed()
        self.commits = 0
        self._clock = clock
        self._queue: list[_Op] = []
        self._scheduled = False
        self._writing: asyncio.Future[list[_Done]] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="stigmer-store")
        try:
            self._writer = connect(path)
            self._check_version()
            self._reader = connect(path)
            self._reader.execute("PRAGMA query_only = ON")
        except sqlite3.Error as error:
            raise StoreError(
                f"the database {str(path)!r} cannot be opened: {error}",
                hint="if the file is damaged, move it away; a new one is made at the next start",
            ) from error

    def _check_version(self) -> None:
        found = migrate(self._writer)
        if found > VERSION:
            self._writer.close()
            raise StoreError(
                f"the database {str(self.path)!r} was written by a newer stigmer"
                f" (schema {found}, this program knows {VERSION})",
                hint="upgrade: pip install --upgrade stigmer",
            )

    @property
    def now_ms(self) -> int:
        """The store's clock: leases and event times are read from it and no other."""
        return int(self._clock() * 1000)

    # Writing

    def accept(
        self, id: str, request: bytes, *, events: Sequence[pb.Event], idempotency_key: str = ""
    ) -> asyncio.Future[tuple[Row, bool]]:
        """Stores a new execution with its first events; False when the idempotency key named an older one."""

        def work(db: sqlite3.Connection) -> _Done:
            key = {"idempotency_key": idempotency_key or None}
            known = idempotency_key and db.execute(query("by_idempotency_key"), key).fetchone()
            if known:
                return _Done((Row(*known), False))
            now = self.now_ms
            for event in events:
                event.time_ms = now
            values = {"id": id, "request": request, "now": now, **key}
            (no,) = db.execute(query("accept"), values).fetchone()
            committed = self._control(db, no, events)
            row = Row(*db.execute(query("get"), {"id": id}).fetchone())
            return _Done((row, True), no, committed)

        return self._submit(work)

    def append(self, no: int, epoch: int, *, batch: int, events: Sequence[pb.Event]) -> asyncio.Future[int]:
        """Appends an attempt's next batch; the answer is the seq of its first event.

        Batches count from 1 within the epoch. The last batch given again is answered like the first time and
        changes nothing. Raises Fenced when another attempt owns the execution or it has finished.
        """

        def work(db: sqlite3.Connection) -> _Done:
            values = {"no": no, "epoch": epoch, "batch": batch, **self._effects(events)}
            row = db.execute(query("append"), values).fetchone()
            if row is None:
                return self._refused(db, no, epoch, batch)
            committed = self._insert(db, no, row[0] - len(events) + 1, events)
            return _Done(committed[0][0], no, committed)

        return self._submit(work, durable=any(map(_durable, events)))

    def control(self, no: int, events: Sequence[pb.Event]) -> asyncio.Future[int]:
        """Appends events that belong to no attempt: cancel requests, decisions, what the sweep finds."""

        def work(db: sqlite3.Connection) -> _Done:
            committed = self._control(db, no, events)
            return _Done(committed[0][0], no, committed)

        return self._submit(work, durable=any(map(_durable, events)))

    def claim(self, no: int, *, worker: str, lease: float) -> asyncio.Future[int | None]:
        """Begins the next attempt and gives its epoch; None when it has finished or somebody holds its lease."""

        def work(db: sqlite3.Connection) -> _Done:
            now = self.now_ms
            values = {"no": no, "now": now, "lease_until_ms": now + int(lease * 1000)}
            row = db.execute(query("claim"), values).fetchone()
            if row is None:
                return _Done(None)
            started = pb.Event(attempt_started=pb.AttemptStarted(attempt=row[0], worker=worker))
            return _Done(row[0], no, self._control(db, no, [started]))

        return self._submit(work)

    def renew(self, held: Sequence[tuple[int, int]], *, lease: float) -> asyncio.Future[list[int]]:
        """Keeps the leases of (no, epoch) alive; the answer names those that were lost."""

        def work(db: sqlite3.Connection) -> _Done:
            until = self.now_ms + int(lease * 1000)
            lost = []
            for no, epoch in held:
                values = {"no": no, "epoch": epoch, "lease_until_ms": until}
                if db.execute(query("renew"), values).fetchone() is None:
                    lost.append(no)
            return _Done(lost)

        return self._submit(work)

    def _control(self, db: sqlite3.Connection, no: int, events: Sequence[pb.Event]) -> _Committed:
        row = db.execute(query("append_control"), {"no": no, **self._effects(events)}).fetchone()
        if row is None:
            raise Fenced("the execution has finished; nothing can be added to it")
        return self._insert(db, no, row[0] - len(events) + 1, events)

    def _refused(self, db: sqlite3.Connection, no: int, epoch: int, batch: int) -> _Done:
        found = db.execute(query("fence"), {"no": no}).fetchone()
        if found is None:
            raise StoreError(f"there is no execution number {no}")
        current, last, first_seq, finished_ms = found
        if current == epoch and last == batch:
            return _Done(first_seq)
        if finished_ms is not None:
            raise Fenced("the execution has finished; nothing can be added to it")
        if current != epoch:
            raise Fenced(f"attempt {epoch} is over: attempt {current} owns the execution now")
        raise StoreError(f"batch {batch} of attempt {epoch} is out of order: the last one was {last}")

    def _effects(self, events: Sequence[pb.Event]) -> dict[str, Any]:
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
                    values.update(state=event.finished.outcome, finished_ms=self.now_ms, wake_ms=None)
                case _:
                    pass
        return values

    def _insert(self, db: sqlite3.Connection, no: int, first: int, events: Sequence[pb.Event]) -> _Committed:
        committed: _Committed = []
        now = self.now_ms
        for seq, event in enumerate(events, start=first):
            event.seq = seq
            event.time_ms = event.time_ms or now
            body = event.SerializeToString()
            key = no << _SEQ_BITS | seq
            if len(body) > EVENT_LIMIT:
                db.execute(query("insert_original"), {"key": key, "body": body})
                body = cut(event).SerializeToString()
            db.execute(query("insert_event"), {"key": key, "body": body})
            committed.append((seq, event, body))
        return committed

    def _submit(
        self, work: Callable[[sqlite3.Connection], _Done], *, durable: bool = False
    ) -> asyncio.Future[Any]:
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
        if not ops:
            return
        if not any(op.durable for op in ops):
            self._settle(ops, self._commit(ops, False))
            return
        loop = asyncio.get_running_loop()
        self._writing = loop.run_in_executor(self._thread, self._commit, ops, True)
        self._writing.add_done_callback(lambda written: self._written(ops, written))

    def _written(self, ops: list[_Op], written: asyncio.Future[list[_Done]]) -> None:
        self._writing = None
        self._settle(ops, written.result())
        if self._queue and not self._scheduled:
            self._flush()

    def _commit(self, ops: list[_Op], durable: bool) -> list[_Done]:
        """All operations in one transaction. One that is refused changes nothing and does not disturb the others."""
        db = self._writer
        try:
            if durable:
                set_durable(db, True)
            db.execute("BEGIN IMMEDIATE")
            done = [_attempt(op.work, db) for op in ops]
            db.execute("COMMIT")
        except (
            Exception
        ) as error:  # A full disk, or a bug in one operation: nothing of the group may stay half done.
            if db.in_transaction:
                db.execute("ROLLBACK")
            failure = StoreError(
                f"the database {str(self.path)!r} refused a write: {error}",
                hint=f"see whether there is room on the disk: df -h {os.path.dirname(self.path)}",
            )
            failure.__cause__ = error
            return [_Done(error=failure) for _ in ops]
        finally:
            if durable:
                set_durable(db, False)
        self.commits += 1
        return done

    def _settle(self, ops: list[_Op], done: list[_Done]) -> None:
        """Publishes what is committed, then answers."""
        for op, result in zip(ops, done, strict=True):
            if result.events:
                self.feed.publish(result.no, result.events)
            if op.future.done():  # The one who asked was cancelled; the write stands.
                continue
            if result.error is not None:
                op.future.set_exception(result.error)
            else:
                op.future.set_result(result.answer)

    # Reading

    def get(self, id: str) -> Row | None:
        return next(iter(self._rows("get", {"id": id})), None)

    def by_idempotency_key(self, key: str) -> Row | None:
        return next(iter(self._rows("by_idempotency_key", {"idempotency_key": key})), None)

    def page(self, *, limit: int, before: int | None = None, state: str = "") -> list[Row]:
        """The newest first, those with a number below `before`."""
        return self._rows("list", {"before": before or 1 << 62, "state": state, "limit": limit})

    def unfinished(self) -> list[Row]:
        return self._rows("unfinished", {})

    def due(self) -> list[Row]:
        """Waiting executions whose time has come."""
        return self._rows("due", {"now": self.now_ms})

    def count(self, state: str) -> int:
        ((number,),) = self._read("count", {"state": state})
        return int(number)

    def events(
        self, no: int, first: int, *, limit: int = 500, room: int = 1 << 20
    ) -> list[tuple[int, bytes]]:
        """(seq, body) from `first` on: at most `limit` of them and about `room` bytes, but one at least if there is one."""
        values = {"first": _key(no, first), "end": _key(no + 1, 0), "limit": limit}
        page: list[tuple[int, bytes]] = []
        with closing(self._read("events", values)) as rows:
            for key, body in rows:
                page.append((key & (1 << _SEQ_BITS) - 1, body))
                room -= len(body)
                if room <= 0:
                    break
        return page

    def replay(self, no: int) -> list[pb.Event]:
        """All events, whole even where watchers get them cut."""
        values = {"first": _key(no, 0), "end": _key(no + 1, 0)}
        return [pb.Event.FromString(body) for (body,) in self._read("replay", values)]

    def _rows(self, name: str, values: dict[str, Any]) -> list[Row]:
        return [Row(*row) for row in self._read(name, values)]

    def _read(self, name: str, values: dict[str, Any]) -> Generator[tuple[Any, ...], None, None]:
        cursor = None
        try:
            cursor = self._reader.execute(query(name), values)
            yield from cursor
        except sqlite3.Error as error:
            raise StoreError(
                f"the database {str(self.path)!r} cannot be read: {error}",
                hint="stigmer down; if it stays so, move the file away: a new one is made at the next start",
            ) from error
        finally:
            if cursor is not None:
                cursor.close()

    # Rest and end

    async def settled(self) -> None:
        """Waits until everything asked for so far is committed or refused."""
        while self._queue or self._writing is not None:
            if self._writing is not None:
                await asyncio.wait([self._writing])
            await asyncio.sleep(0)

    async def rest(self) -> None:
        """Nothing runs: empties the WAL file into the database."""
        await self.settled()
        if self._writing is None and not self._queue:
            await self._alone(lambda: self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())

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
        """Everything asked for is written; then both connections end, which also removes the WAL file."""
        await self.settled()
        self._thread.shutdown()
        self._reader.close()
        self._writer.close()


def _attempt(work: Callable[[sqlite3.Connection], _Done], db: sqlite3.Connection) -> _Done:
    try:
        return work(db)
    except JournalError as refusal:
        return _Done(error=refusal)


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
