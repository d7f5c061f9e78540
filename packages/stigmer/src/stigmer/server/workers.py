"""WorkerService: workers take executions over, and their batches reach the store; what others decide reaches them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Protocol

from google.protobuf.message import DecodeError
from graphton.errors import Fenced

from stigmer import telemetry
from stigmer.api import event_pb2 as pb
from stigmer.api import service_pb2 as service
from stigmer.api import worker_pb2 as api
from stigmer.api import worker_pb2_grpc
from stigmer.approvals import Answers, AnswersError, agent_name
from stigmer.home import Home
from stigmer.places import placed_at
from stigmer.secrets import Keys
from stigmer.server._activity import Activity
from stigmer.server._places import gone, patience
from stigmer.server._relay import Relay
from stigmer.server.auth import by_unix_socket
from stigmer.server.status import Refused, abort, detail
from stigmer.store import Row, Store

__all__ = ["Attended", "WorkerService", "always_of"]

log = logging.getLogger("stigmer.server")

PAGE = 1 << 20
"""Bytes of events in one message."""
FEW = 1 << 18
"""Bytes of events that are told as an attempt begins: most executions have no more then."""
BATCH = 64 << 20
"""Bytes of one batch, which is held until it is whole. What a run says in one moment is a reply, or the results of its
calls: our tools answer with some 16 KB each, so whoever sends this much is no worker of ours."""
EVENT = 64
"""Bytes that an event takes here beside its own, at least: empty ones fill the memory, too."""


class Claims(Protocol):
    """The engine, as far as workers need it."""

    async def take_over(self, row: Row, *, worker: str) -> int | None:
        """Begins the next attempt, whoever had the execution before; None when it cannot begin now."""
        ...

    async def go_on(self, row: Row, attempt: int) -> bool:
        """Whether this attempt still owns the execution; its lease is renewed."""
        ...

    def attend(self, attended: Attended) -> None:
        """A worker drives this attempt over a connection to this server."""
        ...

    def leave(self, attended: Attended) -> None:
        """The connection has ended."""
        ...


class Attended:
    """One attempt that a worker drives over a connection to this server."""

    def __init__(self, store: Store, row: Row, attempt: int, *, seen: int) -> None:
        self.row, self.attempt = row, attempt
        self._store, self._seen = store, seen
        self._looking = asyncio.Lock()
        self._out = api.ToWorker()
        self._news = asyncio.Event()

    async def look(self) -> None:
        """Tells the worker what others have appended."""
        async with self._looking:
            while page := await self._store.events(self.row.no, self._seen + 1):
                for seq, body in page:
                    self._seen = seq
                    if _by_others(pb.Event.FromString(body)):
                        self._out.heard.append(body)
                        self._out.seen = seq
                        self._news.set()

    def stored(self, batch: int) -> None:
        """Everything up to this batch is in the store."""
        self._out.stored = max(self._out.stored, batch)
        self._news.set()

    def refuse(self, error: pb.Error) -> None:
        """The attempt takes nothing more."""
        if not self._out.HasField("refused"):
            self._out.refused.CopyFrom(error)
        self._news.set()

    async def messages(self) -> AsyncIterator[api.ToWorker]:
        """What there is to tell, everything of one moment in one message; ends after a refusal."""
        while True:
            await self._news.wait()
            self._news.clear()
            message, self._out = self._out, api.ToWorker()
            yield message
            if message.HasField("refused"):
                return


def _by_others(event: pb.Event) -> bool:
    return event.WhichOneof("kind") in (
        "cancel_requested",
        "pause_requested",
        "resumed",
        "approval_decided",
    )


class WorkerService(worker_pb2_grpc.WorkerServiceServicer):
    """The methods of proto/stigmer/v1/worker.proto."""

    def __init__(
        self,
        *,
        home: Home,
        store: Store,
        engine: Claims,
        activity: Activity,
        always: Callable[[Row], Iterable[service.ApprovalRule]],
        keys: Keys,
        relay: Relay | None = None,
    ) -> None:
        self._home, self._store, self._engine, self._activity = home, store, engine, activity
        self._relay = relay
        self._always, self._keys = always, keys
        self._patience = patience()

    async def Attend(self, requests: AsyncIterator[api.FromWorker], context: Any) -> None:
        """One attempt, as long as the worker's connection lasts."""
        with self._activity.call():
            try:
                await self._attend(requests, context)
            except Exception as error:
                await self._refuse(context, error)

    async def ReadEvents(self, request: api.ReadEventsRequest, context: Any) -> AsyncIterator[api.EventsPart]:
        """The events of an execution, or of those before it in its session."""
        with self._activity.call():
            try:
                row = await self._known(request.execution)
                rows = await self._store.earlier(row.no) if request.earlier else [row]
                for one in rows:
                    for part in _parts(one, await self._store.replay(one.no)):
                        yield part
            except Exception as error:
                await self._refuse(context, error)

    async def Ready(self, request: api.ReadyRequest, context: Any) -> api.ReadyReply:
        """Answers while attempts can be taken: the database can be read."""
        try:
            await self._store.due()
        except Exception as error:
            await self._refuse(context, error)
        return api.ReadyReply()

    async def GoneFolders(self, request: api.GoneFoldersRequest, context: Any) -> api.GoneFoldersReply:
        """Which of a worker's folders may go."""
        answer = api.GoneFoldersReply()
        try:
            answer.folders.extend(await gone(self._store, request.place, request.folders))
        except Exception as error:
            await self._refuse(context, error)
        return answer

    async def _refuse(self, context: Any, error: Exception) -> None:
        log.info("refused a worker code=%s", getattr(error, "code", "internal"))
        await abort(context, error, home=self._home.path, about="worker")

    async def _known(self, id: str) -> Row:
        row = await self._store.get(id)
        if row is None:
            raise Refused(f"there is no execution {id!r}", code="not_found")
        return row

    async def _attend(self, requests: AsyncIterator[api.FromWorker], context: Any) -> None:
        first = await anext(requests, None)
        if first is None:
            return
        if not first.HasField("begin"):
            raise Refused("a worker's first message is `begin`", code="usage")
        attended = await self._begin(first.begin, context)
        if attended is None:
            return
        self._engine.attend(attended)
        taking = asyncio.create_task(self._take_all(attended, requests), name=f"from {attended.row.id}")
        try:
            await attended.look()
            telling = asyncio.ensure_future(_tell_all(attended, context))
            try:
                await asyncio.wait([taking, telling], return_when=asyncio.FIRST_COMPLETED)
            finally:
                await _ended(telling)
        finally:
            try:
                await _ended(taking)
            finally:  # Also where what the worker sent could not be read: nobody drives it any more.
                self._engine.leave(attended)

    async def _begin(self, begin: api.Begin, context: Any) -> Attended | None:
        row = await self._known(begin.execution)
        if row.finished_ms is not None and not begin.attempt:
            await context.write(api.ToWorker(over="finished"))
            return None
        if begin.attempt:
            if not await self._engine.go_on(row, begin.attempt):
                gone = Fenced(
                    f"attempt {begin.attempt} is over: another owns the execution, or it has finished"
                )
                await context.write(api.ToWorker(refused=self._detail(gone)))
                return None
            if self._relay is not None:
                await self._relay.hold(row, begin.attempt)
            attempt, seen, records = begin.attempt, begin.seen, []
        elif (placed := await self._elsewhere(row, begin)) is not None:
            await context.write(
                api.ToWorker(over="elsewhere", disk=placed.disk, patience_seconds=self._patience)
            )
            return None
        else:
            claimed = await self._engine.take_over(row, worker=begin.worker)
            if claimed is None:
                found = await self._known(row.id)
                state = "finished" if found.finished_ms is not None else "queued"
                await context.write(api.ToWorker(over=state))
                return None
            attempt = claimed
            records = await self._store.replay(row.no)
            seen = records[-1].seq
        began = api.Began(
            attempt=attempt,
            no=row.no,
            request=row.request,
            seq=seen,
            created_ms=row.created_ms,
            now_ms=self._store.now_ms,
            stored=await self._store.last_batch(row.no) if begin.attempt else 0,
            organisation=row.organisation,
            always=self._always(row),
            keys=[
                api.ModelKey(provider=provider, base_url=base_url, key=key)
                for provider, base_url, key in (self._keys.given(row.id) if _private(context) else ())
            ],
        )
        bodies = [record.SerializeToString() for record in records]
        if sum(map(len, bodies)) <= FEW:
            began.events.extend(bodies)
        await context.write(api.ToWorker(began=began))
        asked = service.CreateExecutionRequest.FromString(row.request)
        telemetry.speak_of(row.id, asked.traceparent)
        log.info("attempt attended execution=%s attempt=%d worker=%s", row.id, attempt, begin.worker)
        return Attended(self._store, row, attempt, seen=seen)

    async def _elsewhere(self, row: Row, begin: api.Begin) -> pb.WorkspacePlaced | None:
        """Where the files of an execution are, when they are on the disk of another worker; its record says so.

        Those of its session lie in one folder, so the executions before it tell too.
        """
        if begin.alone or service.CreateExecutionRequest.FromString(row.request).place != "worker":
            return None
        for one in [row, *reversed(await self._store.earlier(row.no))]:
            placed = placed_at(await self._store.replay(one.no))
            if placed is not None and placed.disk == begin.disk:
                return None
            if placed is not None:
                text = f"its files are on worker {placed.worker}, which goes on with it; waits {self._patience:g} s for it"
                with suppress(Fenced):
                    await self._store.control(
                        row.no, [pb.Event(notice=pb.Notice(code="workspace", text=text))]
                    )
                return placed
        return None

    async def _take_all(self, attended: Attended, requests: AsyncIterator[api.FromWorker]) -> None:
        """Every message of the worker; what it appends is acknowledged when it is stored."""
        begun: list[bytes] = []  # The first parts of a batch that is too long for one message.
        room = BATCH
        async for message in requests:
            for append in message.appends:
                begun += append.events
                room -= sum(map(len, append.events)) + EVENT * len(append.events)
                if room < 0:
                    raise Refused(
                        f"batch {append.batch} of {attended.row.id} is larger than {BATCH} bytes",
                        code="too_large",
                    )
                if not append.more:
                    self._take(attended, append.batch, begun)
                    begun, room = [], BATCH
            for body in message.live:
                self._store.feed.live(attended.row.no, _event(body))

    def _take(self, attended: Attended, batch: int, bodies: Sequence[bytes]) -> None:
        events = [_event(body) for body in bodies]
        stored = self._store.append(attended.row.no, attended.attempt, batch=batch, events=events)

        def settled(future: asyncio.Future[int]) -> None:
            if future.cancelled():
                return
            error = future.exception()
            if error is None:
                attended.stored(batch)
            elif isinstance(error, Exception):
                attended.refuse(self._detail(error))

        stored.add_done_callback(settled)

    def _detail(self, error: Exception) -> pb.Error:
        return detail(error, home=self._home.path, about="worker")


def _event(body: bytes) -> pb.Event:
    """The event in these bytes of a worker. Raises Refused."""
    try:
        return pb.Event.FromString(body)
    except DecodeError as error:
        raise Refused("what a worker sent as an event is none", code="usage") from error


async def _tell_all(attended: Attended, context: Any) -> None:
    async for message in attended.messages():
        await context.write(message)


async def _ended(task: Awaitable[None]) -> None:
    """Cancels a task and waits for it; what it failed with is raised."""
    if isinstance(task, asyncio.Task) and not task.done():
        task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def _parts(row: Row, events: Sequence[pb.Event]) -> Iterable[api.EventsPart]:
    """An execution's events in messages of a moderate size; at least one, which holds the request."""
    part, room = api.EventsPart(execution=row.id, no=row.no, request=row.request), PAGE
    for event in events:
        if room <= 0:
            yield part
            part, room = api.EventsPart(execution=row.id, no=row.no), PAGE
        body = event.SerializeToString()
        part.events.append(body)
        room -= len(body)
    yield part


def always_of(home: Home) -> Callable[[Row], Iterable[service.ApprovalRule]]:
    """The answers of this home for all runs of an execution's agent."""
    answers = Answers(home.path)

    def rules(row: Row) -> Iterator[service.ApprovalRule]:
        agent = agent_name(service.CreateExecutionRequest.FromString(row.request))
        try:
            found = answers.rules(agent, row.organisation) if agent else ()
        except AnswersError as error:  # Asking is the safe way on.
            log.warning("answers for always are left out reason=%r", error.message)
            found = ()
        for rule in found:
            yield service.ApprovalRule(
                tool=rule.tool, when=rule.when, verdict=rule.verdict, source=rule.source
            )

    return rules


def _private(context: Any) -> bool:
    """Whether nobody else can read the connection: a Unix socket, or TLS."""
    kinds = context.auth_context().get("transport_security_type", ())  # gRPC calls a plain one `insecure`.
    return by_unix_socket(context) or b"ssl" in kinds
