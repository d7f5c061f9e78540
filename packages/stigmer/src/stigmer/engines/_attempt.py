"""One attempt, driven: the runner works, what others decide reaches it, and its last records end it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from stigmer import telemetry
from stigmer._translate import from_record
from stigmer.api import event_pb2 as pb
from stigmer.journal import Keeps, StoreJournal, open_questions
from stigmer.runner import complete
from stigmer.store import Row

__all__ = ["Attempt", "Drives", "closing", "decided", "ended", "finished"]


class Drives(Protocol):
    """What drives one attempt; `stigmer.runner.Runner` is it."""

    async def run(self, row: Row, records: Sequence[pb.Event], journal: StoreJournal) -> list[pb.Event]:
        """Drives the execution until it has an outcome; the last of the records given is `finished` or `waiting`.

        A failure of the run, known or unknown, is an outcome. Raises only what the journal raised.
        """
        ...


class Attempt:
    """One attempt of one execution, over the store or a worker's line to it."""

    def __init__(
        self, runner: Drives, store: Keeps, *, row: Row, epoch: int, records: Sequence[pb.Event]
    ) -> None:
        self.row, self.epoch = row, epoch
        self._runner, self._store, self._records = runner, store, records
        self._why, self._by = "", ""
        self._work: asyncio.Task[list[pb.Event]] | None = None
        self._watch = telemetry.watch_attempt(row, epoch, records)
        self.journal = StoreJournal(
            store,
            no=row.no,
            execution=row.id,
            epoch=epoch,
            records=records,
            on_failure=lambda error: self.drop(),
            watch=self._watch,
        )

    async def run(self) -> str:
        """Drives it to its end. How that was: waiting | shutdown, else the outcome that the execution has finished with.

        Raises JournalError.
        """
        try:
            return await self._run()
        finally:
            if self._watch is not None:
                self._watch.close()

    async def _run(self) -> str:
        self._work = asyncio.create_task(
            self._runner.run(self.row, self._records, self.journal), name=f"work {self.row.id}"
        )
        if self._why:
            self._work.cancel()
        try:
            await asyncio.wait([self._work])
        except asyncio.CancelledError:
            self._work.cancel()
            await asyncio.wait([self._work])
            raise
        await self.journal.commit()
        last = await self._last_records(self._work)
        self.journal.write(last)
        await self.journal.commit()
        if last[-1].HasField("finished"):
            return last[-1].finished.outcome
        return last[-1].attempt_ended.outcome

    def interrupt(self, why: str, *, by: str = "") -> None:
        """Stops the work for good: cancel | shutdown. A cancel is stronger: it must end the execution."""
        if self._why != "cancel":
            self._why, self._by = why, by
        self.drop()

    def drop(self) -> None:
        """Stops the work: nothing more of it is recorded."""
        if self._work is not None:
            self._work.cancel()

    def hear(self, record: pb.Event) -> bool:
        """What somebody else has appended: a cancel stops the work, a decision or a pause reaches its loop.

        Whether it was news.
        """
        if self._watch is not None:
            self._watch.heard(record)
        if record.HasField("cancel_requested"):
            if self._why == "cancel":
                return False
            self.interrupt("cancel", by=record.cancel_requested.by)
            return True
        if record.HasField("pause_requested") or record.HasField("resumed") or self.has_not_heard(record):
            self.journal.record(record)
            return True
        return False

    def has_not_heard(self, record: pb.Event) -> bool:
        """Whether this is a decision that the attempt does not know."""
        return record.HasField("approval_decided") and (
            from_record(record) not in self.journal.decisions.values()
        )

    async def _last_records(self, work: asyncio.Task[list[pb.Event]]) -> list[pb.Event]:
        """How this attempt ends, as the records of its last commit."""
        if not work.cancelled():
            *before, last = work.result()
            if last.HasField("waiting"):
                return [*before, last, ended(self.epoch, "waiting")]
            return [*before, ended(self.epoch, "done"), await finished(self._store, self.row, last.finished)]
        if self._why == "cancel":
            *closed, end = await closing(self._store, self.row, by=self._by)
            return [*closed, ended(self.epoch, "done"), end]
        return [ended(self.epoch, "shutdown")]


async def closing(store: Keeps, row: Row, *, by: str) -> list[pb.Event]:
    """The records that end a cancelled execution, open questions with it; the last one is `finished`."""
    closed = [
        decided(question, "cancelled", by=by) for question in open_questions(await store.replay(row.no))
    ]
    return [*closed, await finished(store, row, pb.Finished(outcome="cancelled"))]


async def finished(store: Keeps, row: Row, end: pb.Finished) -> pb.Event:
    """The record of an execution's end, with what the whole of it used."""
    return pb.Event(finished=complete(end, await store.replay(row.no), now_ms=store.now_ms))


def ended(epoch: int, outcome: str) -> pb.Event:
    """The record of an attempt's end."""
    return pb.Event(attempt_ended=pb.AttemptEnded(attempt=epoch, outcome=outcome))


def decided(question: pb.Event, decision: str, *, by: str) -> pb.Event:
    """The record of a decision about an open question."""
    asked = question.approval_requested
    answer = pb.ApprovalDecided(call=asked.call, digest=asked.digest, decision=decision, by=by)
    return pb.Event(path=question.path, approval_decided=answer)
