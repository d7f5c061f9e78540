"""The engine inside the server process: one owned task per running execution, leases and events in the store.

An attempt is claimed (a new epoch fences every older one off), driven by the runner, and ended by its last records in
one commit: finished, waiting, or handed back. Waiting holds no task. What a dead process left is taken back at start.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from graphton.errors import Fenced, JournalError

from stigmer import telemetry
from stigmer.api import event_pb2 as pb
from stigmer.api.service_pb2 import CreateExecutionRequest
from stigmer.engines._attempt import Attempt, Drives, closing, decided, ended, finished
from stigmer.engines._here import has_ended, here, machine
from stigmer.engines._leftovers import end_leftovers
from stigmer.journal import cancelled_by, is_paused, open_questions
from stigmer.store import Moved, Row, Store

__all__ = ["EmbeddedEngine", "Runs", "going_on", "of_this_machine"]

log = logging.getLogger("stigmer.engine")

LEASE_SECONDS = 10.0
STOP_SECONDS = 10.0
SWEEP_SECONDS = 1.0
"""So often a server looks for what another one has left, where several share a store."""
TURN_SECONDS = 0.01
LOOK_SECONDS = 0.2
"""So often a cancel looks whether another server has ended the run."""
LOST_LIMIT = 5
"""So many attempts lost in a row, none of which got anywhere, and the execution ends: it kills its server."""


class Runs(Drives, Protocol):
    """What drives attempts; `stigmer.runner.Runner` is it."""

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

    id: str
    row: Row | None = None
    epoch: int = 0
    """Its attempt here."""
    seen: int = 0
    """The last event that this attempt knows, of those that others may have appended."""
    woken: bool = False
    """Something happened while no loop was there to hear it: look again before it is let go."""
    task: asyncio.Task[None] | None = None
    attempt: Attempt | None = None
    why: str = ""
    """Why its work is being stopped: cancel | shutdown."""
    by: str = ""
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    def interrupt(self, why: str, *, by: str = "") -> None:
        """Stops its work for good. A cancel is stronger than a shutdown: it must end the execution."""
        if self.why != "cancel":
            self.why, self.by = why, by
        self.stop.set()
        if self.attempt is not None:
            self.attempt.interrupt(why, by=by)


class EmbeddedEngine:
    """Drives the executions of one store. Servers that share a store tell by its leases who drives what."""

    name = "embedded"

    def __init__(self, store: Store, runner: Runs, *, lease: float = LEASE_SECONDS) -> None:
        self._store, self._runner, self._lease = store, runner, lease
        self._running: dict[str, _Running] = {}
        self._keeper: asyncio.Task[None] | None = None
        self._errands: set[asyncio.Task[None]] = set()
        self._worker = f"{socket.gethostname()}:{os.getpid()}"
        self._process = here()
        self._stopping = False
        self._rested = True

    @property
    def running(self) -> int:
        """How many executions have a task just now."""
        return len(self._running)

    async def reachable(self) -> None:
        """Raises when what it needs beside the store does not answer; it needs nothing."""

    async def start(self) -> None:
        self._store.listen(self._heard)
        rows = await self._store.unfinished()
        if not self._store.alone:  # What others drive is theirs, until its lease runs out.
            rows = [row for row in rows if row.state == "waiting"]
        await self._take_all_back(rows, expired=not self._store.alone)
        await self._take_all_back(await self._of_the_dead(), expired=False)
        await self._sweep()
        self._keeper = asyncio.create_task(self._keep(), name="engine keeper")

    async def under_way(self) -> None:
        """Returns when every run that has a task works, waits for its model or a tool; or a little later than it should."""
        turns = 50
        while turns and any(running.attempt is None for running in self._running.values()):
            turns -= 1  # Turns, not seconds: on a busy machine they take longer.
            await asyncio.sleep(TURN_SECONDS)
        for _ in range(5 if self._running else 0):
            await asyncio.sleep(
                TURN_SECONDS
            )  # What its first steps import is one turn of the loop; then it connects.

    async def stop(self) -> None:
        self._stopping = True
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        await asyncio.gather(*self._errands)
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
        running = self._running[id] = _Running(id)
        running.task = asyncio.create_task(self._drive(running), name=f"execution {id}")

    def wake(self, id: str) -> None:
        running = self._running.get(id)
        self._errand(self._wake(id) if running is None else self._look(running))

    async def cancel(self, id: str, *, by: str) -> bool:
        row = await self._store.get(id)
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
        elif not self._store.alone:
            await self._ended_elsewhere(id)
        await self._close(row, by=by)
        return True

    async def _ended_elsewhere(self, id: str) -> None:
        """Until no other server drives it: the one that does has heard of the cancel, or its lease runs out."""
        while (found := await self._store.get(id)) is not None and found.state == "running":
            if await self._store.lose(found):
                return
            await asyncio.sleep(LOOK_SECONDS)

    def _errand(self, work: Coroutine[Any, Any, None]) -> None:
        """Does it soon; `stop` waits for it."""

        async def done() -> None:
            try:
                await work
            except JournalError as error:
                log.error("the store failed reason=%r", error.message)

        task = asyncio.create_task(done(), name="engine errand")
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    async def _wake(self, id: str) -> None:
        row = await self._store.get(id)
        if row is None or row.finished_ms is not None:
            return
        if row.state != "waiting" or self._may_go_on(row, await self._store.replay(row.no)):
            self.submit(id)

    def _heard(self, nos: Sequence[int] | None) -> None:
        """Other servers have appended to these executions; None: maybe to any."""
        for running in self._running.values():
            if running.row is not None and (nos is None or running.row.no in nos):
                self._errand(self._look(running))

    async def _look(self, running: _Running) -> None:
        """What others appended to an execution that runs here: a cancel stops it, a decision or a pause reaches its loop."""
        row, attempt = running.row, running.attempt
        if row is None or attempt is None:
            running.woken = True
            return
        while page := await self._store.events(row.no, running.seen + 1):
            for seq, body in page:
                running.seen = max(running.seen, seq)
                record = pb.Event.FromString(body)
                if record.HasField("cancel_requested"):
                    if running.why != "cancel":
                        running.interrupt("cancel", by=record.cancel_requested.by)
                elif attempt.hear(record):
                    running.woken = running.woken or running.attempt is not attempt

    # One execution

    async def _drive(self, running: _Running) -> None:
        """Attempt after attempt, until the execution has finished, waits, or is handed over."""
        id = running.id
        try:
            while not running.stop.is_set():
                running.woken = False
                try:
                    if not await self._attempt(running) and not running.woken:
                        return
                except Fenced as error:
                    log.warning("attempt given up execution=%s reason=%r", id, error.message)
                    return
                except JournalError as error:
                    log.error("the store failed execution=%s reason=%r", id, error.message)
                    await self._pause(running)
        except Exception as error:
            await self._broken(id, error, epoch=running.epoch)
        finally:
            del self._running[id]
            self._rested = False
            with suppress(JournalError):
                found = await self._store.get(id)
                if found is not None and found.finished_ms is not None:
                    self._runner.forget(id)
                    self._go_on_with_session(found.no)

    async def _attempt(self, running: _Running) -> bool:
        """One attempt; whether another is to follow at once."""
        row = running.row = await self._store.get(running.id)
        if row is None or row.finished_ms is not None:
            return False
        epoch = await self._store.claim(row.no, worker=self._worker, lease=self._lease, process=self._process)
        if epoch is None:
            # It has finished, or another server drives it; or, against all rules, nobody does: the lease runs out.
            found = await self._store.get(row.id)
            first = await self._store.next_of_session(row.no)
            if first is not None and first.no != row.no:
                return False  # It stands in line, and is called when its turn comes.
            if first is not None and first.state == "queued" and self._store.alone:
                await asyncio.sleep(LOOK_SECONDS)  # Its turn came just now.
                return True
            if self._store.alone and found is not None and found.finished_ms is None:
                log.warning("the lease is held execution=%s state=%s", row.id, found.state)
                await self._pause(running)
                return True
            return False
        running.epoch = epoch
        records = await self._store.replay(row.no)
        running.seen = records[-1].seq
        telemetry.speak_of(row.id, CreateExecutionRequest.FromString(row.request).traceparent)
        attempt = Attempt(self._runner, self._store, row=row, epoch=epoch, records=records)
        if running.stop.is_set():
            attempt.interrupt(running.why, by=running.by)
        log.info("attempt started execution=%s attempt=%d", row.id, epoch)
        running.attempt = attempt
        try:
            outcome = await attempt.run()
        finally:
            running.attempt = None
        log.info("attempt ended execution=%s attempt=%d outcome=%s", row.id, epoch, outcome)
        return outcome == "waiting" and await self._decided_meanwhile(row, attempt)

    async def _pause(self, running: _Running) -> None:
        """After a failed write: wait a little, give the lost attempt up, and try again."""
        with suppress(TimeoutError):
            await asyncio.wait_for(running.stop.wait(), self._lease)
        with suppress(JournalError):
            found = await self._store.get(running.id)
            mine = found is not None and (self._store.alone or found.epoch == running.epoch)
            if found is not None and mine and found.state == "running":
                await self._store.lose(found, expired=False)

    async def _broken(self, id: str, error: Exception, *, epoch: int) -> None:
        """The way out for our own defects: the accepted execution has an end all the same."""
        row = await self._store.get(id)
        if row is None:
            return
        told = self._runner.explain(error, row)
        log.error("a defect ended the execution execution=%s reason=%r", id, told.hint)
        if row.epoch == epoch:  # Else it is another server's by now.
            end = pb.Finished(outcome="failed", error=told)
            with suppress(JournalError):
                await self._store.control(row.no, [ended(epoch, "lost"), pb.Event(finished=end)])

    async def _close(self, row: Row, *, by: str) -> None:
        """Ends an execution that has no task: open questions are closed with it."""
        found = await self._store.get(row.id)
        if found is not None and found.finished_ms is None:
            with suppress(Fenced):
                await self._store.control(row.no, await closing(self._store, row, by=by))
            self._runner.forget(row.id)
            self._go_on_with_session(row.no)

    async def _decided_meanwhile(self, row: Row, attempt: Attempt) -> bool:
        """Whether a decision, or the end of a pause, came that the attempt did not hear of or could not act on any more."""
        records = await self._store.replay(row.no)
        if is_paused(records):
            return False
        if _last_wait(records) == "pause" or any(map(attempt.has_not_heard, records)):
            return True
        return _last_wait(records) in ("approval", "outcome") and not open_questions(records)

    def _go_on_with_session(self, no: int) -> None:
        """After the end of an execution: the next one of its session begins."""
        if not self._stopping:
            self._errand(self._call_next(no))

    async def _call_next(self, no: int) -> None:
        row = await self._store.next_of_session(no)
        if row is None or row.state != "queued":
            return
        running = self._running.get(row.id)
        if running is None:
            self.submit(row.id)
        else:
            running.woken = True

    # All executions

    async def _of_the_dead(self) -> list[Row]:
        """What processes of this machine drove that have ended: nobody need wait until their leases run out."""
        if self._store.alone or not machine():
            return []
        return [row for row, process in await self._store.driven(machine()) if has_ended(process)]

    async def _take_all_back(self, rows: Sequence[Row], *, expired: bool) -> None:
        for row in rows:
            try:
                await self._take_back(row, expired=expired)
            except JournalError:
                raise
            except Exception as error:  # One broken execution must not keep the server from starting.
                await self._broken(row.id, error, epoch=row.epoch)

    async def _take_back(self, row: Row, *, expired: bool) -> None:
        """What a dead process left of one execution: its attempt is lost, its processes end, the next one begins.

        With `expired`, another server may still live: only an attempt whose lease has run out is lost.
        """
        records = await self._store.replay(row.no)
        cancelled = cancelled_by(records)
        if row.state == "running" or _is_open(records):
            if not await self._store.lose(row, expired=expired):
                return  # It lives after all, or another server was faster.
            here = records if self._store.alone else [*of_this_machine(records)]
            pids = await asyncio.to_thread(end_leftovers, row.id, here)
            log.warning("taken back execution=%s attempt=%d ended_processes=%s", row.id, row.epoch, pids)
            records = await self._store.replay(row.no)
        if cancelled:
            await self._close(row, by=cancelled)
        elif not await self._given_up(row, records) and (
            row.state != "waiting" or self._may_go_on(row, records)
        ):
            self.submit(row.id)

    async def _given_up(self, row: Row, records: Sequence[pb.Event]) -> bool:
        """Ends an execution that kills whoever drives it; whether it was one."""
        if not _hopeless(records):
            return False
        end = pb.Finished(outcome="failed", error=_CRASHES)
        with suppress(Fenced):
            await self._store.control(row.no, [await finished(self._store, row, end)])
        self._go_on_with_session(row.no)
        return True

    def _may_go_on(self, row: Row, records: Sequence[pb.Event]) -> bool:
        """Whether what a waiting execution waits for has come."""
        if is_paused(records):
            return False
        if _last_wait(records) in ("key", "pause"):
            return self._runner.can_go_on(row, records)
        return _decided_since_wait(records) or not open_questions(records)

    async def _keep(self) -> None:
        """Leases are renewed, expired questions answered, what nobody drives is taken back, the store is let rest."""
        while True:
            await asyncio.sleep(self._lease / 3 if self._store.alone else min(self._lease / 3, SWEEP_SECONDS))
            try:
                await self._renew()
                for row in await self._store.due():
                    await self._expire(row)
                await self._sweep()
                if not self._running and not self._rested:
                    self._rested = True
                    await self._store.rest()
            except JournalError as error:
                log.error("the store failed reason=%r", error.message)

    async def _sweep(self) -> None:
        """What nobody drives is driven here; a new one is left to the server that accepted it for a while."""
        left = await self._store.abandoned(idle=self._lease)
        await self._take_all_back([row for row in left if row.id not in self._running], expired=True)

    async def _renew(self) -> None:
        held = [
            (running.attempt.row.no, running.attempt.epoch)
            for running in self._running.values()
            if running.attempt is not None
        ]
        lost = await self._store.renew(held, lease=self._lease) if held else []
        for running in self._running.values():
            if running.attempt is not None and running.attempt.row.no in lost:
                running.attempt.drop()

    async def _expire(self, row: Row) -> None:
        now = self._store.now_ms
        records = await self._store.replay(row.no)
        late = [q for q in open_questions(records) if q.approval_requested.expires_ms <= now]
        if late and not cancelled_by(records):
            answers = [decided(question, "expired", by="stigmer") for question in late]
            with suppress(Fenced, Moved):  # Somebody decided meanwhile, or another server saw it too.
                events = [*answers, going_on(records, answers, by="stigmer")]
                await self._store.control(row.no, events, seen=records[-1].seq)
                self.wake(row.id)


def going_on(records: Sequence[pb.Event], decided: Sequence[pb.Event], *, by: str) -> pb.Event:
    """What follows decisions about a waiting execution: it goes on, or goes on resting where it is paused."""
    if not is_paused(records):
        return pb.Event(resumed=pb.Resumed(by=by))
    left = open_questions([*records, *decided])
    expires = min((question.approval_requested.expires_ms for question in left), default=0)
    return pb.Event(waiting=pb.Waiting(reason="pause", expires_ms=expires))


_CRASHES = pb.Error(
    code="crashed",
    message=f"the server ended {LOST_LIMIT} times in a row while it ran this, without getting any further",
    hint="stigmer logs",
)


def of_this_machine(records: Iterable[pb.Event]) -> Iterator[pb.Event]:
    """The records of processes that were started here: elsewhere their numbers mean other processes."""
    here = False
    for record in records:
        if record.HasField("attempt_started"):
            here = record.attempt_started.worker.rpartition(":")[0] == socket.gethostname()
        if here or not record.HasField("process_started"):
            yield record


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


def _decided_since_wait(records: Sequence[pb.Event]) -> bool:
    """Whether a question was answered after the run began to wait: its call can go on, whatever others wait for."""
    for record in reversed(records):
        if record.HasField("waiting"):
            return False
        if record.HasField("approval_decided"):
            return True
    return False


def _last_wait(records: Sequence[pb.Event]) -> str:
    return next((r.waiting.reason for r in reversed(records) if r.HasField("waiting")), "")
