"""The engine inside the server process: one owned task per running execution, leases and events in the store.

An attempt is claimed (a new epoch fences every older one off), driven by the runner, and ended by its last records in
one commit: finished, waiting, or handed back. Waiting holds no task. What a dead process left is taken back at start.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from graphton.errors import Fenced, JournalError

from stigmer.api import event_pb2 as pb
from stigmer.engines._leftovers import end_leftovers
from stigmer.journal import StoreJournal, open_questions
from stigmer.runner import complete
from stigmer.store import Row, Store

__all__ = ["EmbeddedEngine", "Runs"]

log = logging.getLogger("stigmer.engine")

LEASE_SECONDS = 10.0
STOP_SECONDS = 10.0
LOST_LIMIT = 5
"""So many attempts lost in a row, none of which got anywhere, and the execution ends: it kills its server."""


class Runs(Protocol):
    """What drives one attempt; `stigmer.runner.Runner` is it."""

    async def run(self, row: Row, records: Sequence[pb.Event], journal: StoreJournal) -> list[pb.Event]:
        """Drives the execution until it has an outcome; the last of the records given is `finished` or `waiting`.

        A failure of the run, known or unknown, is an outcome. Raises only what the journal raised.
        """
        ...

    def can_go_on(self, row: Row, records: Sequence[pb.Event]) -> bool:
        """Whether an execution that waited for a key could go on now."""
        ...

    def explain(self, error: Exception, row: Row) -> pb.Error:
        """What is told of a defect."""
        ...

    def forget(self, id: str) -> None:
        """The execution has finished: drop what memory holds of it."""
        ...


@dataclass(slots=True)
class _Running:
    """An execution that has a task."""

    row: Row
    task: asyncio.Task[None] | None = None
    work: asyncio.Task[list[pb.Event]] | None = None
    journal: StoreJournal | None = None
    why: str = ""
    """Why its work is being stopped: cancel | shutdown."""
    by: str = ""
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    def interrupt(self, why: str, *, by: str = "") -> None:
        """Stops its work for good. A cancel is stronger than a shutdown: it must end the execution."""
        if self.why != "cancel":
            self.why, self.by = why, by
        self.stop.set()
        self.drop()

    def drop(self) -> None:
        """Stops this attempt's work: the journal takes nothing more from it."""
        if self.work is not None:
            self.work.cancel()


class EmbeddedEngine:
    """Drives the executions of one store. Only one may run per store: the daemon holds its home's lock."""

    def __init__(self, store: Store, runner: Runs, *, lease: float = LEASE_SECONDS) -> None:
        self._store, self._runner, self._lease = store, runner, lease
        self._running: dict[str, _Running] = {}
        self._keeper: asyncio.Task[None] | None = None
        self._worker = f"{socket.gethostname()}:{os.getpid()}"
        self._stopping = False
        self._rested = True

    @property
    def running(self) -> int:
        """How many executions have a task just now."""
        return len(self._running)

    async def start(self) -> None:
        for row in self._store.unfinished():
            try:
                await self._take_back(row)
            except JournalError:
                raise
            except Exception as error:  # One broken execution must not keep the server from starting.
                await self._broken(row, error)
        self._keeper = asyncio.create_task(self._keep(), name="engine keeper")

    async def stop(self) -> None:
        self._stopping = True
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        tasks = [running.task for running in self._running.values() if running.task is not None]
        for running in list(self._running.values()):
            running.interrupt("shutdown")
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=STOP_SECONDS)
            for task in late:
                log.error(
                    "a run did not stop in time; the next server takes it back task=%s", task.get_name()
                )
        with suppress(JournalError):
            await self._store.settled()

    def submit(self, id: str) -> None:
        if id in self._running or self._stopping:
            return
        row = self._store.get(id)
        if row is None or row.finished_ms is not None:
            return
        running = self._running[id] = _Running(row)
        running.task = asyncio.create_task(self._drive(running), name=f"execution {id}")

    def wake(self, id: str) -> None:
        running = self._running.get(id)
        row = self._store.get(id)
        if running is None and row is not None and row.state == "waiting":
            if self._may_go_on(row, self._store.replay(row.no)):
                self.submit(id)
        elif running is None:
            self.submit(id)
        elif running.journal is not None:
            for decision in self._unseen_decisions(running.row, running.journal):
                running.journal.record(decision)

    async def cancel(self, id: str, *, by: str) -> bool:
        row = self._store.get(id)
        if row is None or row.finished_ms is not None:
            return False
        try:
            await self._store.control(row.no, [pb.Event(cancel_requested=pb.CancelRequested(by=by))])
        except Fenced:
            return False
        running = self._running.get(id)
        if running is not None and running.task is not None:
            running.interrupt("cancel", by=by)
            await asyncio.wait([running.task])
        await self._close(row, by=by)
        return True

    # One execution

    async def _drive(self, running: _Running) -> None:
        """Attempt after attempt, until the execution has finished, waits, or is handed over."""
        row = running.row
        try:
            while not running.stop.is_set():
                try:
                    if not await self._attempt(running):
                        return
                except Fenced as error:
                    log.warning("attempt given up execution=%s reason=%r", row.id, error.message)
                    return
                except JournalError as error:
                    log.error("the store failed execution=%s reason=%r", row.id, error.message)
                    await self._pause(running)
        except Exception as error:
            await self._broken(row, error)
        finally:
            del self._running[row.id]
            self._rested = False
            found = self._store.get(row.id)
            if found is not None and found.finished_ms is not None:
                self._runner.forget(row.id)

    async def _attempt(self, running: _Running) -> bool:
        """One attempt; whether another is to follow at once."""
        row = running.row
        epoch = await self._store.claim(row.no, worker=self._worker, lease=self._lease)
        if epoch is None:
            # It has finished; or, against all rules, somebody holds its lease: that runs out.
            found = self._store.get(row.id)
            if found is not None and found.finished_ms is None:
                log.warning("the lease is held execution=%s state=%s", row.id, found.state)
                await self._pause(running)
                return True
            return False
        records = self._store.replay(row.no)
        journal = StoreJournal(
            self._store,
            no=row.no,
            execution=row.id,
            epoch=epoch,
            records=records,
            on_failure=lambda error: running.drop(),
        )
        log.info("attempt started execution=%s attempt=%d", row.id, epoch)
        running.journal = journal
        running.work = asyncio.create_task(self._runner.run(row, records, journal), name=f"work {row.id}")
        if running.stop.is_set():
            running.work.cancel()
        try:
            await asyncio.wait([running.work])
            await journal.commit()
            last = self._last_records(running, epoch)
            journal.write(last)
            await journal.commit()
        finally:
            running.work = running.journal = None
        outcome = (
            last[-1].finished.outcome if last[-1].HasField("finished") else last[-1].attempt_ended.outcome
        )
        log.info("attempt ended execution=%s attempt=%d outcome=%s", row.id, epoch, outcome)
        return outcome == "waiting" and bool(self._unseen_decisions(row, journal))

    def _last_records(self, running: _Running, epoch: int) -> list[pb.Event]:
        """How this attempt ends, as the records of its last commit."""
        work = running.work
        assert work is not None
        if not work.cancelled():
            *before, last = work.result()
            if last.HasField("waiting"):
                return [*before, last, _ended(epoch, "waiting")]
            return [*before, _ended(epoch, "done"), self._finished(running.row, last.finished)]
        if running.why == "cancel":
            closing = self._closing(running.row, by=running.by)
            return [*closing[:-1], _ended(epoch, "done"), closing[-1]]
        return [_ended(epoch, "shutdown")]

    async def _pause(self, running: _Running) -> None:
        """After a failed write: wait a little, give the lost attempt up, and try again."""
        with suppress(TimeoutError):
            await asyncio.wait_for(running.stop.wait(), self._lease)
        found = self._store.get(running.row.id)
        if found is not None and found.state == "running":
            with suppress(JournalError):
                await self._store.control(found.no, [_ended(found.epoch, "lost")])

    async def _broken(self, row: Row, error: Exception) -> None:
        """The way out for our own defects: the accepted execution has an end all the same."""
        told = self._runner.explain(error, row)
        log.error("a defect ended the execution execution=%s reason=%r", row.id, told.hint)
        end = pb.Finished(outcome="failed", error=told)
        with suppress(JournalError):
            await self._store.control(row.no, [_ended(row.epoch, "lost"), pb.Event(finished=end)])

    async def _close(self, row: Row, *, by: str) -> None:
        """Ends an execution that has no task: open questions are closed with it."""
        found = self._store.get(row.id)
        if found is not None and found.finished_ms is None:
            with suppress(Fenced):
                await self._store.control(row.no, self._closing(row, by=by))
            self._runner.forget(row.id)

    def _closing(self, row: Row, *, by: str) -> list[pb.Event]:
        """The records that end a cancelled execution; the last one is `finished`."""
        closed = [_decided(q, "cancelled", by=by) for q in open_questions(self._store.replay(row.no))]
        return [*closed, self._finished(row, pb.Finished(outcome="cancelled"))]

    def _finished(self, row: Row, end: pb.Finished) -> pb.Event:
        records = self._store.replay(row.no)
        return pb.Event(finished=complete(end, records, now_ms=self._store.now_ms))

    def _unseen_decisions(self, row: Row, journal: StoreJournal) -> list[pb.Event]:
        return [
            record
            for record in self._store.replay(row.no)
            if record.HasField("approval_decided")
            and (record.path, record.approval_decided.call) not in journal.decisions
        ]

    # All executions

    async def _take_back(self, row: Row) -> None:
        """What a dead process left of one execution: its processes end, its attempt is lost, the next one begins."""
        records = self._store.replay(row.no)
        cancelled = next((r for r in records if r.HasField("cancel_requested")), None)
        if row.state == "running" or _is_open(records):
            ended = end_leftovers(records)
            log.warning("taken back execution=%s attempt=%d ended_processes=%s", row.id, row.epoch, ended)
            await self._store.control(row.no, [_ended(row.epoch, "lost")])
            records = self._store.replay(row.no)
        if cancelled is not None:
            await self._close(row, by=cancelled.cancel_requested.by)
        elif _hopeless(records):
            end = pb.Finished(outcome="failed", error=_CRASHES)
            await self._store.control(row.no, [self._finished(row, end)])
        elif row.state != "waiting" or self._may_go_on(row, records):
            self.submit(row.id)

    def _may_go_on(self, row: Row, records: Sequence[pb.Event]) -> bool:
        """Whether what a waiting execution waits for has come."""
        if _last_wait(records) == "key":
            return self._runner.can_go_on(row, records)
        return not open_questions(records)

    async def _keep(self) -> None:
        """Every third of a lease: leases are renewed, expired questions answered, the WAL emptied when all is quiet."""
        while True:
            await asyncio.sleep(self._lease / 3)
            try:
                await self._renew()
                for row in self._store.due():
                    await self._expire(row)
                if not self._running and not self._rested:
                    self._rested = True
                    await self._store.rest()
            except JournalError as error:
                log.error("the store failed reason=%r", error.message)

    async def _renew(self) -> None:
        held = [
            (r.row.no, r.journal.epoch) for r in self._running.values() if r.journal is not None and r.work
        ]
        lost = await self._store.renew(held, lease=self._lease) if held else []
        for running in self._running.values():
            if running.row.no in lost:
                running.drop()

    async def _expire(self, row: Row) -> None:
        now = self._store.now_ms
        late = [
            q for q in open_questions(self._store.replay(row.no)) if q.approval_requested.expires_ms <= now
        ]
        if late:
            decided = [_decided(question, "expired", by="stigmer") for question in late]
            resumed = pb.Event(resumed=pb.Resumed(by="stigmer"))
            with suppress(Fenced):
                await self._store.control(row.no, [*decided, resumed])
            self.wake(row.id)


_CRASHES = pb.Error(
    code="crashed",
    message=f"the server ended {LOST_LIMIT} times in a row while it ran this, without getting any further",
    hint="stigmer logs",
)


def _ended(epoch: int, outcome: str) -> pb.Event:
    return pb.Event(attempt_ended=pb.AttemptEnded(attempt=epoch, outcome=outcome))


def _decided(question: pb.Event, decision: str, *, by: str) -> pb.Event:
    asked = question.approval_requested
    decided = pb.ApprovalDecided(call=asked.call, digest=asked.digest, decision=decision, by=by)
    return pb.Event(path=question.path, approval_decided=decided)


def _hopeless(records: Sequence[pb.Event]) -> bool:
    """Whether the last attempts were all lost and recorded nothing new."""
    lost = 0
    for record in reversed(records):
        match record.WhichOneof("kind"):
            case "attempt_ended" if record.attempt_ended.outcome == "lost":
                lost += 1
            case "model_replied" | "tool_finished" | "tool_outcome_unknown" | "attempt_ended":
                break
            case _:
                pass
    return lost >= LOST_LIMIT


def _is_open(records: Sequence[pb.Event]) -> bool:
    """Whether an attempt has started that has not ended."""
    ends = [
        r.HasField("attempt_started")
        for r in records
        if r.HasField("attempt_started") or r.HasField("attempt_ended")
    ]
    return bool(ends) and ends[-1]


def _last_wait(records: Sequence[pb.Event]) -> str:
    return next((r.waiting.reason for r in reversed(records) if r.HasField("waiting")), "")
