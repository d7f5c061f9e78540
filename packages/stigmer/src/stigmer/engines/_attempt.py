"""One attempt, driven: the runner works, what others decide reaches it, and its last records end it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from stigmer._translate import from_record
from stigmer.api import event_pb2 as pb
from stigmer.journal import Keeps, StoreJournal, open_questions
from stigmer.runner import complete
from stigmer.store import Row

__all__ = ["Attempt", "Drives", "decided", "ended"]


class Drives(Protocol):
    """What drives one attempt; `stigmer.runner.Runner` is it."""

    async def run(self, row: Row, records: Sequence[pb.Event], journal: StoreJournal) -> list[pb.Event]:
        """The records that end the attempt: the last one is `finished` or `waiting`."""
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
        self.journal = StoreJournal(
            store,
            no=row.no,
            execution=row.id,
            epoch=epoch,
            records=records,
            on_failure=lambda error: self.drop(),
        )

    async def run(self) -> str:
        """Drives it to its end; how that was: done | waiting | shutdown. Raises JournalError."""
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
            return "done"
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

    def hear(self, record: pb.Event) -> None:
        """What somebody else has appended: a cancel stops the work, a decision or a pause reaches its loop."""
        if record.HasField("cancel_requested"):
            if self._why != "cancel":
                self.interrupt("cancel", by=record.cancel_requested.by)
        elif record.HasField("pause_requested") or record.HasField("resumed") or self._is_new(record):
            self.journal.record(record)

    def _is_new(self, record: pb.Event) -> bool:
        return record.HasField("approval_decided") and (
            from_record(record) not in self.journal.decisions.values()
        )

    async def _last_records(self, work: asyncio.Task[list[pb.Event]]) -> list[pb.Event]:
        """How this attempt ends, as the records of its last commit."""
        if not work.cancelled():
            *before, last = work.result()
            if last.HasField("waiting"):
                return [*before, last, ended(self.epoch, "waiting")]
            return [*before, ended(self.epoch, "done"), await self._finished(last.finished)]
        if self._why == "cancel":
            records = await self._store.replay(self.row.no)
            closed = [decided(question, "cancelled", by=self._by) for question in open_questions(records)]
            return [
                *closed,
                ended(self.epoch, "done"),
                await self._finished(pb.Finished(outcome="cancelled")),
            ]
        return [ended(self.epoch, "shutdown")]

    async def _finished(self, end: pb.Finished) -> pb.Event:
        records = await self._store.replay(self.row.no)
        return pb.Event(finished=complete(end, records, now_ms=self._store.now_ms))


def ended(epoch: int, outcome: str) -> pb.Event:
    """The record of an attempt's end."""
    return pb.Event(attempt_ended=pb.AttemptEnded(attempt=epoch, outcome=outcome))


def decided(question: pb.Event, decision: str, *, by: str) -> pb.Event:
    """The record of a decision about an open question."""
    asked = question.approval_requested
    answer = pb.ApprovalDecided(call=asked.call, digest=asked.digest, decision=decision, by=by)
    return pb.Event(path=question.path, approval_decided=answer)
