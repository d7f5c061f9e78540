"""The store's Journal: what the loop appends becomes records of one attempt, what was recorded answers it first."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from graphton import journal as g
from graphton.approval import Question

from stigmer import redact
from stigmer._translate import from_record, to_live, to_record
from stigmer.api import event_pb2 as pb
from stigmer.store import Row

if TYPE_CHECKING:
    from stigmer.telemetry._attempt import AttemptWatch

__all__ = [
    "APPROVAL_SECONDS",
    "DELTA_SECONDS",
    "Keeps",
    "StoreJournal",
    "is_paused",
    "masked",
    "open_questions",
    "read_back",
    "running_seconds",
]

DELTA_SECONDS = 0.05
"""Text is shown in pieces this far apart, the first piece at once: half the work of a piece per token."""
Kept = TypeVar("Kept", bound=Message)
Enough = Callable[[Row, Sequence[pb.Event]], bool]
"""Whether what came before this execution of a session need not be known."""
APPROVAL_SECONDS = 7 * 24 * 3600.0
LONGEST_MS = 3_700_000
"""No call takes longer than a command may (an hour), so no two records of an attempt are further apart."""


class Shows(Protocol):
    """Where live events go."""

    def live(self, no: int, event: pb.Event) -> None:
        """An event that is shown and forgotten."""
        ...


class Keeps(Protocol):
    """What a journal needs of a store: the store itself, or a worker's line to the server that has it."""

    @property
    def feed(self) -> Shows:
        """Where live events go."""
        ...

    @property
    def now_ms(self) -> int:
        """The store's clock."""
        ...

    def append(
        self,
        no: int,
        epoch: int,
        *,
        batch: int,
        events: Sequence[pb.Event],
        told: Callable[[asyncio.Future[int]], None],
    ) -> asyncio.Future[int]:
        """Appends an attempt's next batch; see `Store.append`."""
        ...

    def join(self, append: asyncio.Future[int], events: Iterable[pb.Event]) -> bool:
        """Adds events to an append that has not begun; see `Store.join`."""
        ...

    async def earlier(self, no: int) -> list[Row]:
        """The executions of the same session that came before this one."""
        ...

    async def replay(self, no: int) -> list[pb.Event]:
        """All events of an execution."""
        ...


@dataclass(slots=True)
class _Stream:
    """One reply's text, or thinking, on its way to the watchers."""

    shown: int
    """Code points shown so far."""
    pieces: list[str] = field(default_factory=list)


class StoreJournal(g.Record):
    """The journal of one attempt over the store. Made with what earlier attempts recorded.

    `append` and `live` return at once. Live events never overtake an appended one. Once the store refused an append
    (another attempt owns the execution, the disk is full) `commit` raises, and nothing more is written.
    """

    def __init__(
        self,
        store: Keeps,
        *,
        no: int,
        execution: str,
        epoch: int,
        records: Iterable[pb.Event] = (),
        on_failure: Callable[[Exception], None] = lambda error: None,
        watch: AttemptWatch | None = None,
    ) -> None:
        super().__init__()
        self.execution = execution
        self.epoch = epoch
        self._store, self._no, self._batch = store, no, 0
        self._pending: asyncio.Future[int] | None = None
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        """Who waits until a batch is written."""
        self._failure: Exception | None = None
        self._on_failure = on_failure
        self._watch = watch
        self._streams: dict[tuple[type[g.TextDelta] | type[g.ThinkingDelta], str, int, int], _Stream] = {}
        self._held: deque[tuple[int, pb.Event]] = deque()
        """Live events, each with the batch that it must not overtake."""
        self._timer: asyncio.TimerHandle | None = None
        self._expires: dict[tuple[str, str], int] = {}
        """When each question lapses."""
        for record in records:
            self.record(record)

    @property
    def failure(self) -> Exception | None:
        """What made the store refuse an append of this attempt."""
        return self._failure

    def record(self, record: pb.Event) -> None:
        """Enters what is recorded already: earlier attempts, or a decision that somebody else appended meanwhile."""
        event = from_record(record)
        if event is not None:
            self.add(event)
        if record.HasField("pause_requested") or record.HasField("resumed"):
            self.pausing = record.HasField("pause_requested")
        if isinstance(event, g.ApprovalRequested):
            self._expires[event.path, event.call] = record.approval_requested.expires_ms

    def resting(self) -> pb.Event:
        """The record of a pause; questions that are open meanwhile expire as they would."""
        open_ = [
            expires
            for (path, call), expires in self._expires.items()
            if self.decision(path, call, self.approvals[path, call].digest) is None
        ]
        return pb.Event(waiting=pb.Waiting(reason="pause", expires_ms=min(open_, default=0)))

    def waiting(self, questions: Sequence[Question]) -> pb.Event:
        """The record of waiting for these calls, under the path of the first, until the first of them expires."""
        first = questions[0]
        expires = [self._expires[q.path, q.call] for q in questions if (q.path, q.call) in self._expires]
        waiting = pb.Waiting(reason=first.reason, call=first.call, expires_ms=min(expires, default=0))
        return pb.Event(path=first.path, waiting=waiting)

    async def earlier(
        self, *, until: Enough = lambda row, records: False
    ) -> list[tuple[Row, list[pb.Event]]]:
        """The executions of the same session that came before this one, each with its records; see `read_back`."""
        return await read_back(self._store, await self._store.earlier(self._no), until=until)

    # What the loop writes

    def append(self, event: g.Event) -> None:
        self.add(event)
        if self._streams:
            self._flush_text(ended=event if isinstance(event, g.ModelReplied) else None)
        expires = 0
        if isinstance(event, g.ApprovalRequested):
            expires = self._store.now_ms + int(APPROVAL_SECONDS * 1000)
            self._expires[event.path, event.call] = expires
        self.write([to_record(event, execution=self.execution, expires_ms=expires)])

    def write(self, records: list[pb.Event]) -> None:
        """Appends records: a batch of this attempt, with what else is written before it is committed."""
        if self._failure is not None:
            return
        batch = [masked(record) for record in records]
        joined = self._pending is not None and self._store.join(self._pending, batch)
        self._batch += not joined
        if self._watch is not None:
            self._watch.wrote(self._batch, batch)
        if joined:
            return
        told = partial(self._written, self._batch)
        self._pending = self._store.append(self._no, self.epoch, batch=self._batch, events=batch, told=told)

    async def commit(self) -> None:
        if self._pending is not None:
            # One future for each who waits: whoever is cancelled must not cancel the others, nor the write.
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append((self._batch, waiter))
            await waiter
        if self._failure is not None:
            raise self._failure

    def _written(self, batch: int, written: asyncio.Future[int]) -> None:
        error = None if written.cancelled() else written.exception()
        if isinstance(error, Exception) and self._failure is None:
            self._failure = error
            self._on_failure(error)
        if written is self._pending:
            self._pending = None
        if self._watch is not None:
            self._watch.stored(batch)
        while self._waiters and self._waiters[0][0] <= batch:
            waiter = self._waiters.popleft()[1]
            if not waiter.done():
                waiter.set_result(None)
        while self._held and self._held[0][0] <= batch:
            self._store.feed.live(self._no, self._held.popleft()[1])

    # What is shown and forgotten

    def live(self, event: g.Live) -> None:
        if isinstance(event, (g.TextDelta, g.ThinkingDelta)):
            self._text(event)
            if self._watch is not None:
                self._watch.shown(event.path)
            return
        self._flush_text(ended=event if isinstance(event, g.StreamReset) else None)
        self._show(masked(to_live(event, attempt=self.epoch)))

    def _text(self, event: g.TextDelta | g.ThinkingDelta) -> None:
        key = (type(event), event.path, event.step, event.try_)
        stream = self._streams.get(key)
        first = stream is None
        if stream is None:
            stream = self._streams[key] = _Stream(event.offset)
        stream.pieces.append(event.text)
        if first:
            self._flush_text()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(DELTA_SECONDS, self._flush_text)

    def _flush_text(self, *, ended: g.ModelReplied | g.StreamReset | None = None) -> None:
        """Shows the text that waits. What may be the beginning of a secret stays back until its reply has ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for key, stream in list(self._streams.items()):
            kind, path, step, try_ = key
            over = ended is not None and (path, step) == (ended.path, ended.step)
            text = "".join(stream.pieces)
            back = 0 if over else redact.held_back(text)
            ready = redact.mask(text[: len(text) - back])
            stream.pieces = [text[len(text) - back :]] if back else []
            if ready:
                self._show(to_live(kind(path, step, try_, stream.shown, ready), attempt=self.epoch))
                stream.shown += len(ready)
            if over:
                del self._streams[key]

    def _show(self, event: pb.Event) -> None:
        event.time_ms = self._store.now_ms
        if self._pending is not None:
            self._held.append((self._batch, event))
        else:
            self._store.feed.live(self._no, event)


async def read_back(store: Keeps, rows: Sequence[Row], *, until: Enough) -> list[tuple[Row, list[pb.Event]]]:
    """These executions with their records, read from the last one back to the first that `until` says is enough."""
    found: list[tuple[Row, list[pb.Event]]] = []
    for row in reversed(rows):
        found.append((row, await store.replay(row.no)))
        if until(*found[-1]):
            break
    return found[::-1]


def masked(record: Kept) -> Kept:
    """The record with every known secret masked, in place. Going through its fields takes ten times as long as a look."""
    if redact.holds(record.SerializeToString()):
        _mask(record)
    return record


def _mask(message: Message) -> None:
    for field_, value in message.ListFields():
        if field_.type == FieldDescriptor.TYPE_MESSAGE:
            for child in value if field_.is_repeated else [value]:
                if isinstance(child, Message):
                    _mask(child)
        elif field_.type == FieldDescriptor.TYPE_STRING:
            if field_.is_repeated:
                value[:] = [redact.mask(text) for text in value]
            else:
                setattr(message, field_.name, redact.mask(value))
        elif field_.type == FieldDescriptor.TYPE_BYTES and not field_.is_repeated:
            setattr(message, field_.name, redact.mask_bytes(value))


def open_questions(records: Iterable[pb.Event]) -> list[pb.Event]:
    """The approval_requested records that nobody has answered."""
    asked: dict[tuple[str, str], pb.Event] = {}
    for record in records:
        match record.WhichOneof("kind"):
            case "approval_requested":
                asked[record.path, record.approval_requested.call] = record
            case "approval_decided":
                asked.pop((record.path, record.approval_decided.call), None)
            case _:
                pass
    return list(asked.values())


def is_paused(records: Sequence[pb.Event]) -> bool:
    """Whether somebody wants the execution to rest, and nobody has let it go on since."""
    for record in reversed(records):
        if record.HasField("pause_requested") or record.HasField("resumed"):
            return record.HasField("pause_requested")
    return False


def cancelled_by(records: Iterable[pb.Event]) -> str:
    """Who asked for the execution's end first; empty where nobody did. From then on nobody decides anything about it."""
    return next((r.cancel_requested.by or "somebody" for r in records if r.HasField("cancel_requested")), "")


def running_seconds(records: Iterable[pb.Event], *, now_ms: int) -> float:
    """How long attempts ran, waiting and time between them left out; a lost one counts to its last record.

    A clock that is set meanwhile makes it no shorter, and longer by no more than the longest pause between two records.
    """

    def between(earlier: int, later: int) -> int:
        return min(max(0, later - earlier), LONGEST_MS)

    total = last = 0
    runs = False
    for record in records:
        kind = record.WhichOneof("kind")
        lost = kind == "attempt_ended" and record.attempt_ended.outcome == "lost"
        if runs and not lost:
            total += between(last, record.time_ms)
        if kind in ("attempt_started", "attempt_ended"):
            runs = kind == "attempt_started"
        last = record.time_ms
    return (total + (between(last, now_ms) if runs else 0)) / 1000
