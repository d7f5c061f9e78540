"""ExecutionService: accepts executions, streams their events, answers questions about them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

from graphton.approval import Rule
from graphton.errors import Fenced, JournalError

from stigmer import telemetry
from stigmer.agents import unknown_tools
from stigmer.api import event_pb2 as pb
from stigmer.api import service_pb2 as api
from stigmer.api import service_pb2_grpc
from stigmer.approvals import Answer as StoredAnswer
from stigmer.approvals import Answers, agent_name, offered, rules_of
from stigmer.engines import Engine
from stigmer.engines.embedded import going_on
from stigmer.home import Home
from stigmer.journal import cancelled_by, is_paused, masked, open_questions, read_back
from stigmer.redact import MASK
from stigmer.runner import agent_for, enough, limits_of, needed_models, recorded_chat, said_before
from stigmer.secrets import Keys
from stigmer.server._activity import Activity
from stigmer.server._models_here import check_models
from stigmer.server._places import as_shown, give_folder, noted, settle
from stigmer.server._resolve import Resolved
from stigmer.server._retry import carried, request_again
from stigmer.server.auth import by_unix_socket, caller, caller_of_call
from stigmer.server.status import Refused, abort
from stigmer.store import Moved, Row, Store, Watcher, new_id

if TYPE_CHECKING:
    from graphton.messages import Message

    from stigmer.server._relay import Relay

__all__ = ["ExecutionService"]

log = logging.getLogger("stigmer.server")

TASK_LIMIT = 4 << 20
"""Characters. What is longer belongs into a file of the workspace."""
PAGE_LIMIT = 200
PAGE_ROOM = 1 << 20
"""Bytes after which a page of executions ends: with the one that it ends with far below the 4 MB that gRPC takes by itself."""
BRIEF = 1000
"""Characters of a task or an answer in a list."""
Answer = TypeVar("Answer")


class _Resolves(Protocol):
    async def __call__(self, request: api.CreateExecutionRequest, *, local: bool) -> Resolved: ...
    def key_from(self, shell: Mapping[str, str], provider: str, base_url: str) -> str | None: ...


class ExecutionService(service_pb2_grpc.ExecutionServiceServicer):
    """The methods of proto/stigmer/v1. `resolve` turns a request's layers into a configuration, once per execution."""

    def __init__(
        self,
        *,
        home: Home,
        store: Store,
        engine: Engine,
        keys: Keys,
        activity: Activity,
        resolve: _Resolves,
    ) -> None:
        self._home, self._store, self._engine = home, store, engine
        self._keys, self._activity, self._resolve = keys, activity, resolve
        self._deciding = asyncio.Lock()
        self.relay: Relay | None = None
        """Where other servers hold workers' lines, too."""

    # The methods

    async def CreateExecution(
        self, request: api.CreateExecutionRequest, context: Any
    ) -> api.CreateExecutionResponse:
        """Accepts an execution and hands it to the engine."""
        request.traceparent = telemetry.traceparent_of(context.invocation_metadata())
        return await self._answered(context, self._create(request, local=by_unix_socket(context)))

    async def RunExecution(
        self, request: api.CreateExecutionRequest, context: Any
    ) -> AsyncIterator[api.Frame]:
        """CreateExecution and WatchExecution in one."""
        request.traceparent = telemetry.traceparent_of(context.invocation_metadata())
        row, _ = await self._answered(context, self._accept(request, local=by_unix_socket(context)))
        async for frame in self._streamed(context, self._watched(row, 1)):
            yield frame

    async def WatchExecution(
        self, request: api.WatchExecutionRequest, context: Any
    ) -> AsyncIterator[api.Frame]:
        """The events from a sequence number on, then the live ones, until the execution has finished."""
        row = await self._answered(context, self._known(request.execution))
        async for frame in self._streamed(context, self._watched(row, request.from_seq)):
            yield frame

    async def GetExecution(self, request: api.GetExecutionRequest, context: Any) -> api.Execution:
        """One execution as it is now."""
        return await self._answered(context, self._get(request))

    async def ListExecutions(
        self, request: api.ListExecutionsRequest, context: Any
    ) -> api.ListExecutionsResponse:
        """The newest first, in pages, long texts cut."""
        return await self._answered(context, self._list(request))

    async def CancelExecution(
        self, request: api.CancelExecutionRequest, context: Any
    ) -> api.CancelExecutionResponse:
        """Ends an execution; answers when its last tool has stopped."""
        return await self._answered(context, self._cancel(request))

    async def PauseExecution(
        self, request: api.PauseExecutionRequest, context: Any
    ) -> api.PauseExecutionResponse:
        """Lets an execution rest as soon as what runs has ended; answers at once."""
        return await self._answered(context, self._pause(request))

    async def ResumeExecution(
        self, request: api.ResumeExecutionRequest, context: Any
    ) -> api.ResumeExecutionResponse:
        """Lets a paused execution go on."""
        return await self._answered(context, self._resume(request, local=by_unix_socket(context)))

    async def DecideApproval(
        self, request: api.DecideApprovalRequest, context: Any
    ) -> api.DecideApprovalResponse:
        """Answers one question; the execution goes on."""
        return await self._answered(context, self._decide(request, local=by_unix_socket(context)))

    async def PreviewExecution(
        self, request: api.CreateExecutionRequest, context: Any
    ) -> api.PreviewExecutionResponse:
        """The first provider request of such an execution; nothing is stored or sent."""
        return await self._answered(context, self._preview(request, local=by_unix_socket(context)))

    async def WakeExecutions(
        self, request: api.WakeExecutionsRequest, context: Any
    ) -> api.WakeExecutionsResponse:
        """Lets executions go on whose key has come."""
        return await self._answered(context, self._wake())

    async def _answered(self, context: Any, work: Awaitable[Answer]) -> Answer:
        """The answer, or the error as gRPC tells it."""
        with self._activity.call():
            try:
                return await work
            except Exception as error:
                await self._refuse(context, error)

    async def _streamed(
        self, context: Any, frames: AsyncGenerator[api.Frame, None]
    ) -> AsyncGenerator[api.Frame, None]:
        """The frames, or the error as gRPC tells it."""
        with self._activity.call():
            try:
                async with aclosing(frames):
                    async for frame in frames:
                        yield frame
            except Exception as error:
                await self._refuse(context, error)

    async def _refuse(self, context: Any, error: Exception) -> NoReturn:
        log.info("refused code=%s", getattr(error, "code", "internal"))
        await abort(context, error, home=self._home.path, about="request")

    # Accepting

    async def _create(
        self, request: api.CreateExecutionRequest, *, local: bool
    ) -> api.CreateExecutionResponse:
        row, created = await self._accept(request, local=local)
        return api.CreateExecutionResponse(execution=await self._execution(row), created=created)

    async def _accept(self, request: api.CreateExecutionRequest, *, local: bool) -> tuple[Row, bool]:
        if request.idempotency_key:
            known = await self._store.by_idempotency_key(
                request.idempotency_key, organisation=_organisation()
            )
            if known is not None:
                return _same(known, request), False
        before: list[pb.Event] = []
        told = [] if request.retry_of else settle(request, local=local)
        if request.retry_of:
            first = await self._known(request.retry_of)
            request = request_again(first, request)
            before = carried(await self._store.replay(first.no), execution=first.id)
        _check(request, home=self._home.path)
        joins = await self._join(request)
        told += _narrow(request)
        _limit(request)
        resolved = await self._resolve(request, local=local)
        resolved.config.notices.extend(told)
        await check_models(request, resolved, local=local)
        request.approvals.extend(resolved.rules)
        request.on_unknown = (
            request.agent_record.on_unknown
            or request.on_unknown
            or resolved.on_unknown
            or ("ask" if request.interactive else "tell")
        )
        id = new_id(self._store.now_ms / 1000)
        give_folder(request, id)
        if resolved.key is not None and not resolved.key_is_stored:
            self._put(id, resolved.key, provider=resolved.provider, base_url=resolved.base_url)
        for provider, base_url, key in resolved.fallback_keys:
            self._put(id, key, provider=provider, base_url=base_url)
        events = [pb.Event(created=_created(request)), pb.Event(config_resolved=resolved.config), *before]
        events.append(pb.Event(notice=pb.Notice(code="model", text=resolved.line)))
        if request.retry_of:
            text = f"goes on from {request.retry_of}: its {len(before)} recorded events count, and are not done again"
            events.append(pb.Event(notice=pb.Notice(code="retry", text=text)))
        events += await self._make_way(request)
        try:
            row, created = await self._store.accept(
                id,
                _without_secrets(request).SerializeToString(),
                events=[masked(event) for event in events],
                organisation=_organisation(),
                idempotency_key=request.idempotency_key,
                session=request.session,
                folder=noted(request),
                alone=request.if_running == "reject",
                joins=joins,
            )
        except JournalError:
            self._keys.forget(id)
            raise
        if not created:
            self._keys.forget(id)
            return _same(row, request), False
        telemetry.speak_of(row.id, request.traceparent)
        log.info(
            "execution accepted execution=%s provider=%s model=%s", row.id, resolved.provider, resolved.model
        )
        self._engine.submit(row.id)
        if resolved.key is not None:
            await self._wake_those_without_a_key(_organisation())
        return row, True

    def _put(self, execution: str, key: str, *, provider: str, base_url: str) -> None:
        """Keeps a key that the caller gives for an execution of his organisation."""
        self._keys.put(execution, key, organisation=_organisation(), provider=provider, base_url=base_url)

    async def _join(self, request: api.CreateExecutionRequest) -> bool:
        """Begins a session, or finds the one that the request names and says that it joins: one may go meanwhile."""
        if request.session == "new":
            request.session = new_id(self._store.now_ms / 1000, kind="ses")
            return False
        if request.session and not await self._of_session(request):
            raise Refused(
                f"there is no session {request.session!r}",
                code="not_found",
                hint="stigmer list session; to begin one: --session new",
            )
        return bool(request.session)

    async def _make_way(self, request: api.CreateExecutionRequest) -> list[pb.Event]:
        """Where executions of the session have not finished: stops them, if that is wanted, or says what is waited for."""
        rows = await self._of_session(request)
        running = [row for row in rows if row.finished_ms is None]
        if request.if_running == "interrupt":
            for row in running:
                await self._engine.cancel(row.id, by="the next run of its session")
        elif running and request.if_running != "reject":
            text = f"begins when {running[-1].id}, of the same session, has finished"
            return [pb.Event(notice=pb.Notice(code="queued", text=text))]
        return []

    async def _of_session(self, request: api.CreateExecutionRequest) -> list[Row]:
        """The executions of the session that a request names, where the caller's organisation has it."""
        if not request.session:
            return []
        return await self._store.of_session(request.session, organisation=_organisation())

    async def _wake(self) -> api.WakeExecutionsResponse:
        """A secret that was stored serves all organisations, and the machine's owner wakes them all."""
        who = caller_of_call()
        woken = await self._wake_those_without_a_key(None if who.owns_the_machine else who.organisation)
        return api.WakeExecutionsResponse(woken=woken)

    async def _wake_those_without_a_key(self, organisation: str | None) -> int:
        """Wakes the executions of an organisation, or of all, whose key is at hand now; says how many those are."""
        woken = 0
        async for row in self._waiting(organisation):
            if await self._lacked_its_key(row):
                self._engine.wake(row.id)
                woken += 1
        return woken

    async def _waiting(self, organisation: str | None) -> AsyncIterator[Row]:
        """What waits, of an organisation or of all, page after page."""
        last: Row | None = None
        while page := await (
            self._store.page(
                organisation=organisation,
                limit=PAGE_LIMIT,
                before=last.no if last is not None else None,
                state="waiting",
            )
            if organisation is not None
            else self._store.in_state("waiting", limit=PAGE_LIMIT, after=last)
        ):
            for last in page:
                yield last

    async def _lacked_its_key(self, row: Row) -> bool:
        """Whether an execution waits for a key that is there by now."""
        (_, last), *_ = await self._store.events(row.no, row.seq - 1)
        if pb.Event.FromString(last).waiting.reason != "key":
            return False
        needed = needed_models((await self._execution(row)).config)
        return all(self._key(row, model) is not None for model in needed)

    def _key(self, row: Row, model: pb.ResolvedModel) -> str | None:
        return self._keys.find(
            row.id, organisation=row.organisation, provider=model.provider, base_url=model.base_url
        )

    async def _preview(
        self, request: api.CreateExecutionRequest, *, local: bool
    ) -> api.PreviewExecutionResponse:
        from graphton.chat.base import Request
        from graphton.history import History
        from graphton.messages import UserMessage

        told = settle(request, local=local)
        _check(request, home=self._home.path)
        await self._join(request)
        resolved = await self._resolve(request, local=local)
        resolved.config.notices.extend(told)
        chat = recorded_chat(resolved.config.models[0], resolved.key)
        try:
            agent = agent_for(chat, as_shown(request), closed=(self._home.path,))
            history = History(system=agent.system)
            history.extend(await self._said(request, agent.chat.settings.max_tokens))
            history.add(UserMessage(request.task))
            shown = agent.chat.preview(Request(agent.system, history.messages, tools=agent.tool_specs))
            resolved.config.notices.extend(n for n in chat.notices if n not in resolved.config.notices)
        finally:
            await chat.close()
        return api.PreviewExecutionResponse(
            config=resolved.config,
            method=shown.method,
            url=shown.url,
            headers=shown.headers,
            body=shown.body,
        )

    async def _said(self, request: api.CreateExecutionRequest, max_tokens: int | None) -> Sequence[Message]:
        """What the executions of the request's session said so far."""
        rows = await self._of_session(request)
        return said_before(await read_back(self._store, rows, until=enough()), max_tokens=max_tokens)

    # Watching

    def _watched(self, row: Row, from_seq: int) -> AsyncGenerator[api.Frame, None]:
        """The events, and what is live, at whichever server that is."""
        watch = self.watch_here if self.relay is None else self.relay.watch
        return watch(row, from_seq)

    async def watch_here(self, row: Row, from_seq: int) -> AsyncGenerator[api.Frame, None]:
        """Stored events first, then what is published: no gap, no double."""
        feed = self._store.feed
        watcher = feed.join(row.no)
        next_seq = max(1, from_seq)
        anew = True
        """No live text has been shown yet, or some was lost: the text so far is to be shown."""
        try:
            while True:
                if anew:
                    watcher.take()  # It is stored: it is read now, with whatever other servers appended.
                watcher.stale = False
                while page := await self._store.events(row.no, next_seq):
                    next_seq = page[-1][0] + 1
                    yield api.Frame(execution=row.id, events=[body for _, body in page])
                found = await self._store.get(row.id)
                if found is None or (found.finished_ms is not None and next_seq > found.seq):
                    return
                if watcher.behind or (found.seq >= next_seq and not watcher.queue):
                    anew = anew or watcher.behind
                    continue
                if anew:
                    # Nothing is awaited here: what was committed meanwhile, then the text so far as it is now.
                    fresh, next_seq, whole = _news(watcher, next_seq, live=False)
                    if not whole:
                        continue
                    if shown := [*fresh, *feed.partial(row.no)]:
                        yield api.Frame(execution=row.id, events=shown)
                whole = True
                while whole and not (watcher.behind or watcher.stale):
                    if watcher.ended and not watcher.queue:
                        return
                    await watcher.news()
                    if not watcher.behind:
                        fresh, next_seq, whole = _news(watcher, next_seq, live=True)
                        if fresh:
                            yield api.Frame(execution=row.id, events=fresh)
                anew = watcher.behind or not whole
        finally:
            feed.leave(row.no, watcher)

    # Asking and telling

    async def _known(self, id: str) -> Row:
        """The execution of that id. One of another organisation is as unknown as one that never was."""
        row = await self._store.find(id, organisation=_organisation())
        if row is None:
            raise Refused(f"there is no execution {id!r}", code="not_found", hint="stigmer list execution")
        return row

    async def _get(self, request: api.GetExecutionRequest) -> api.Execution:
        return await self._execution(await self._known(request.execution), asked=("waiting", "running"))

    async def _list(self, request: api.ListExecutionsRequest) -> api.ListExecutionsResponse:
        before: int | None = None
        if request.page_token:
            if not request.page_token.isdecimal():
                raise Refused(f"{request.page_token!r} is no page token", code="usage")
            before = int(request.page_token)
        limit = min(request.limit or 20, PAGE_LIMIT)
        answer = api.ListExecutionsResponse()
        page = await self._store.page(
            organisation=_organisation(), limit=limit + 1, before=before, state=request.state
        )
        for row in page:
            if len(answer.executions) == limit or answer.ByteSize() > PAGE_ROOM:
                answer.next_page_token = str(before)
                break
            before = row.no
            answer.executions.append(await self.brief(row))
        return answer

    async def brief(self, row: Row) -> api.Execution:
        """The execution with long texts cut, as it stands in a list."""
        execution = await self._execution(row)
        execution.task = execution.task[:BRIEF]
        if execution.HasField("finished"):
            execution.finished.text = execution.finished.text[:BRIEF]
        return execution

    async def _cancel(self, request: api.CancelExecutionRequest) -> api.CancelExecutionResponse:
        row = await self._known(request.execution)
        stopped = await self._engine.cancel(row.id, by=caller(request.by) or "somebody")
        row = await self._known(row.id)
        return api.CancelExecutionResponse(execution=await self._execution(row), already_finished=not stopped)

    async def _pause(self, request: api.PauseExecutionRequest) -> api.PauseExecutionResponse:
        by = caller(request.by) or "somebody"
        while True:
            row = await self._known(request.execution)
            records = await self._store.replay(row.no)
            if row.finished_ms is not None:
                return api.PauseExecutionResponse(execution=await self._execution(row), already_finished=True)
            if is_paused(records):
                return api.PauseExecutionResponse(execution=await self._execution(row))
            events = [pb.Event(pause_requested=pb.PauseRequested(by=by))]
            if row.state == "waiting":  # It rests already, and goes on resting whatever it waited for.
                events.append(going_on([*records, *events], (), by=by))
            if await self._steered(row, events):
                self._engine.wake(row.id)
                row = await self._known(row.id)
                return api.PauseExecutionResponse(execution=await self._execution(row))

    async def _resume(
        self, request: api.ResumeExecutionRequest, *, local: bool
    ) -> api.ResumeExecutionResponse:
        await self._take_keys(await self._known(request.execution), request.shell, local=local)
        while True:
            row = await self._known(request.execution)
            records = await self._store.replay(row.no)
            if row.finished_ms is not None:
                raise Refused(
                    f"execution {row.id} has ended: {row.state}",
                    code="finished",
                    hint="to see it: stigmer get execution …"
                    if row.state == "completed"
                    else f"stigmer retry {row.id} begins a new one with what it has recorded",
                )
            if not is_paused(records) and row.state == "waiting" and _last_wait(records) == "key":
                self._with_its_key(row, records, local=local)
                self._engine.wake(row.id)
                return api.ResumeExecutionResponse(execution=await self._execution(row))
            if not is_paused(records):
                raise Refused(
                    f"execution {row.id} is not paused: it is {row.state}",
                    code="not_paused",
                    hint="stigmer approvals" if row.state == "waiting" else f"stigmer attach {row.id}",
                )
            resumed = pb.Event(resumed=pb.Resumed(by=caller(request.by) or "somebody"))
            if await self._steered(row, [resumed]):
                self._engine.wake(row.id)
                row = await self._known(row.id)
                return api.ResumeExecutionResponse(execution=await self._execution(row))

    async def _take_keys(self, row: Row, shell: Mapping[str, str], *, local: bool) -> None:
        """Keeps, of a caller's shell, the keys that an execution lacks: bound as when it was accepted, never stored."""
        if shell and not local:
            raise Refused(
                "a request over TCP may not carry the caller's shell",
                code="forbidden",
                hint="keys are set at the server: stigmer secret set NAME",
            )
        if not shell or row.finished_ms is not None:
            return
        for model in needed_models((await self._execution(row, asked=())).config):
            where = {"provider": model.provider, "base_url": model.base_url}
            if self._key(row, model) is None and (key := self._resolve.key_from(shell, **where)):
                self._put(row.id, key, **where)
                await self._wake_those_without_a_key(row.organisation)

    def _with_its_key(self, row: Row, records: list[pb.Event], *, local: bool) -> None:
        """Raises Refused where the execution still lacks a key."""
        config = next(record.config_resolved for record in records if record.HasField("config_resolved"))
        for model in needed_models(config):
            if self._key(row, model) is None:
                where = f" at {model.base_url}" if model.base_url else ""
                raise Refused(
                    f"execution {row.id} waits for its key of {model.provider}{where}, and "
                    + ("this shell has none" if local else "the server has none"),
                    code="no_key",
                    hint=f"stigmer resume {row.id} from a shell that has it; or stigmer secret set NAME"
                    if local
                    else "at the server: stigmer secret set NAME, or its environment",
                )

    async def _steered(self, row: Row, events: list[pb.Event]) -> bool:
        """Appends control events; False when the execution has grown, or ended, since it was looked at."""
        try:
            await self._store.control(row.no, [masked(event) for event in events], seen=row.seq)
        except (Moved, Fenced):
            return False
        return True

    async def _decide(self, request: api.DecideApprovalRequest, *, local: bool) -> api.DecideApprovalResponse:
        row = await self._known(request.execution)
        await self._take_keys(row, request.shell, local=local)
        while not await self._decided(row, request):
            pass  # It has grown while we looked: look again.
        self._engine.wake(row.id)
        return api.DecideApprovalResponse(execution=await self._execution(await self._known(row.id)))

    async def _decided(self, row: Row, request: api.DecideApprovalRequest) -> bool:
        """Appends the decision; False when the execution has grown between the look and the append."""
        async with self._deciding:
            records = await self._store.replay(row.no)
            question = _question(records, request)
            answer = _for_always(row, question, request) if request.always else None
            decided = pb.ApprovalDecided(
                call=question.approval_requested.call,
                digest=question.approval_requested.digest,
                decision="approved" if request.approve else "rejected",
                by=caller(request.by) or "somebody",
                reason=request.reason,
                rule=str(answer) if answer else "",
            )
            events = [pb.Event(path=question.path, approval_decided=decided)]
            if (await self._known(row.id)).state == "waiting":
                events.append(going_on(records, events, by=decided.by))
            try:
                await self._store.control(row.no, [masked(event) for event in events], seen=records[-1].seq)
            except Moved:
                return False
            except Fenced:
                raise _already(records, request, f"execution {row.id} has finished") from None
            if answer is not None:
                Answers(self._home.path).add(answer._replace(time_ms=self._store.now_ms))
            return True

    async def _execution(self, row: Row, *, asked: Sequence[str] = ("waiting",)) -> api.Execution:
        """The execution as it is shown; in the states `asked` with its open questions, for which all of it is read."""
        request = api.CreateExecutionRequest.FromString(row.request)
        shown = api.Execution(
            id=row.id,
            task=request.task,
            agent=request.agent,
            session=request.session,
            workspace=request.workspace,
            place=request.place,
            state=row.state,
            created_ms=row.created_ms,
            finished_ms=row.finished_ms or 0,
            attempt=row.epoch,
            last_seq=row.seq,
            retry_of=request.retry_of,
            limits=limits_of(request),
        )
        for _, body in await self._store.events(row.no, 1, limit=2):
            event = pb.Event.FromString(body)
            if event.HasField("config_resolved"):
                shown.config.CopyFrom(event.config_resolved)
        if row.finished_ms is not None:
            with suppress(ValueError):
                ((_, body),) = await self._store.events(row.no, row.seq, limit=1)
                shown.finished.CopyFrom(pb.Event.FromString(body).finished)
        elif row.state in asked:
            records = await self._store.replay(row.no)
            shown.approvals.extend(_addressed(question, request) for question in open_questions(records))
            shown.waits_for = _last_wait(records) if row.state == "waiting" else ""
        return shown


def _organisation() -> str:
    """What the call that is being answered sees and acts in."""
    return caller_of_call().organisation


def _news(watcher: Watcher, next_seq: int, *, live: bool) -> tuple[list[bytes], int, bool]:
    """What the watcher has not shown yet, the seq it wants next, and whether nothing was left out.

    Another server's events are not pushed here: where a number is missing, the store must be read.
    """
    fresh: list[bytes] = []
    for seq, body in watcher.take():
        if seq > next_seq:
            return fresh, next_seq, False
        if seq == next_seq:
            next_seq += 1
            fresh.append(body)
        elif seq == 0 and live:
            fresh.append(body)
    return fresh, next_seq, True


def _check(request: api.CreateExecutionRequest, *, home: Path) -> None:
    """What can be seen to be wrong without knowing the configuration."""
    if not request.task.strip():
        raise Refused("the task is empty", code="empty_task", hint='stigmer run "What is in this folder?"')
    if len(request.task) > TASK_LIMIT:
        raise Refused(
            f"the task has {len(request.task)} characters, more than {TASK_LIMIT}",
            code="task_too_long",
            hint="put the text into a file in the workspace and name the file in the task",
        )
    if request.HasField("agent_record"):
        _check_agent(request)
    elif request.agent not in ("", "default"):
        raise Refused(
            f"there is no agent {request.agent!r}",
            code="agent_unknown",
            hint="name a file: --agent ./agent.yaml; or leave --agent out",
        )
    if request.if_running not in ("", "reject", "enqueue", "interrupt"):
        raise Refused(
            f"if_running {request.if_running!r} is not reject, enqueue or interrupt",
            code="usage",
            hint="leave it out to wait in line",
        )
    if request.if_running and not request.session:
        raise Refused(
            f"if_running {request.if_running!r} is about the runs of a session, and none is named",
            code="usage",
            hint="name the session: --session ID",
        )
    rules_of(request)
    if request.on_unknown not in ("", "ask", "tell", "stop"):
        given = request.on_unknown
        raise Refused(f"on_unknown {given!r} is not ask, tell or stop", code="usage", hint="on_unknown: ask")
    limits = [*request.budget.ListFields(), *request.agent_record.budget.ListFields()]
    for field, value in limits:
        if not value > 0:
            raise Refused(
                f"budget {field.name} {value!r} is not above 0",
                code="usage",
                hint="leave it out for no limit",
            )
    if request.workspace and not request.place:
        from graphton.toolsets import open_workspace

        if not Path(request.workspace).is_absolute():
            raise Refused(
                f"workspace {request.workspace!r} is not an absolute path",
                code="workspace",
                hint="e.g. /home/ann/project",
            )
        open_workspace(request.workspace, named=request.workspace_named, closed=(home,))


def _check_agent(request: api.CreateExecutionRequest) -> None:
    """An agent that comes with the request may be any program's making."""
    name = request.agent_record.name
    if not name or request.agent != name:
        raise Refused(
            f"the agent's record is called {name!r} and the request names {request.agent!r}",
            code="usage",
            hint="give both the same name",
        )
    if wrong := unknown_tools(request.agent_record):
        raise Refused("; ".join(wrong), code="agent")
    if request.agent_record.on_unknown not in ("", "ask", "tell", "stop"):
        given = request.agent_record.on_unknown
        raise Refused(f"on_unknown {given!r} is not ask, tell or stop", code="agent", hint="on_unknown: ask")


def _same(known: Row, request: api.CreateExecutionRequest) -> Row:
    """The execution that a key named before; refused where the key comes with something else to do."""
    first, second = api.CreateExecutionRequest.FromString(known.request), _without_secrets(request)
    same = first.task == second.task or MASK in first.task  # What was masked cannot be compared any more.
    if first.retry_of == second.retry_of and (first.retry_of or same):
        return known
    raise Refused(
        f"the idempotency key {request.idempotency_key!r} belongs to {known.id}, whose task is another",
        code="usage",
        hint=f"take a new key; or see what that one did: stigmer get execution {known.id}",
    )


def _narrow(request: api.CreateExecutionRequest) -> list[str]:
    """Takes back what an agent of an untrusted folder may not have, and tells."""
    if not request.HasField("agent_record") or request.agent_record.trusted:
        return []
    agent, told = request.agent_record, []
    if request.approve_all:
        request.approve_all = False
        told.append(
            f"--yes does not answer for agent {request.agent}: its folder is not trusted (stigmer trust)"
        )
    kept = [rule for rule in agent.approvals if rule.verdict != "allow"]
    if len(kept) < len(agent.approvals):
        del agent.approvals[:]
        agent.approvals.extend(kept)
        told.append(
            f"allow rules of agent {request.agent} are left out: its folder is not trusted (stigmer trust)"
        )
    return told


def _limit(request: api.CreateExecutionRequest) -> None:
    """Puts the agent's limits where the request has none; those of an untrusted folder only where they are lower."""
    from graphton.budget import Budget

    for field, value in request.agent_record.budget.ListFields():
        usual = getattr(Budget(), field.name)
        widens = not request.agent_record.trusted and usual is not None and value > usual
        if not widens and field.name not in {said.name for said, _ in request.budget.ListFields()}:
            setattr(request.budget, field.name, value)


def _created(request: api.CreateExecutionRequest) -> pb.Created:
    return pb.Created(
        task=request.task,
        agent=request.agent or "default",
        agent_revision=request.agent_record.revision,
        session=request.session,
        workspace=request.workspace,
        place=request.place,
        budget=request.budget,
        approve_all=request.approve_all,
        parent=request.retry_of,
        retry_of=request.retry_of,
        rules=map(str, rules_of(request)),
        on_unknown=request.on_unknown,
    )


def _without_secrets(request: api.CreateExecutionRequest) -> api.CreateExecutionRequest:
    """What of a request is kept: no shell layer, no file text, and no known secret anywhere."""
    kept = api.CreateExecutionRequest()
    kept.CopyFrom(request)
    kept.ClearField("shell")
    kept.ClearField("project_file")
    kept.ClearField("flags")  # Their values stand in the resolved configuration, with their source.
    masked(kept)
    return kept


def _address(path: str, call: str) -> str:
    """What a person types for a call: `1.0`, or `/researcher@3.0:1.0` of a sub-agent."""
    return f"{path}:{call}" if path else call


def _addressed(question: pb.Event, request: api.CreateExecutionRequest) -> pb.ApprovalRequested:
    """The question as it is listed, its call named so that `approve` finds it wherever in the tree it is."""
    shown = pb.ApprovalRequested()
    shown.CopyFrom(question.approval_requested)
    rule = _rule_for_always(shown, request)
    shown.always = str(rule) if rule else ""
    shown.call = _address(question.path, shown.call)
    return shown


def _rule_for_always(asked: pb.ApprovalRequested, request: api.CreateExecutionRequest) -> Rule | None:
    """The answer for all such calls that may be given to this question, if any."""
    if asked.reason == "outcome" or not agent_name(request):
        return None
    return offered(asked.name, json.loads(asked.arguments or b"{}"))


def _for_always(row: Row, question: pb.Event, request: api.DecideApprovalRequest) -> StoredAnswer:
    """The answer to be kept. Raises Refused where none is offered."""
    asked = question.approval_requested
    made_by = api.CreateExecutionRequest.FromString(row.request)
    rule = _rule_for_always(asked, made_by) if request.approve else None
    if rule is None:
        raise Refused(
            f"call {request.call!r} cannot be answered for always: {_why_not_always(asked, made_by, request)}",
            code="not_offered",
            hint=f"stigmer approve {row.id} {request.call}",
        )
    said_by = caller(request.by) or "somebody"
    return StoredAnswer(agent_name(made_by), rule.tool, rule.when, said_by, 0, row.organisation)


def _why_not_always(
    asked: pb.ApprovalRequested, made_by: api.CreateExecutionRequest, request: api.DecideApprovalRequest
) -> str:
    if not request.approve:
        return "only a yes can be kept; to refuse such calls always, write a deny rule"
    if asked.reason == "outcome":
        return "whether a lost call did its work is a question of its own each time"
    if not agent_name(made_by):
        return f"the folder of agent {made_by.agent} is not trusted (stigmer trust)"
    if asked.name == "run_command":
        return "a command that is not confined is asked about each time"
    return "its arguments are commands, or too long for a pattern"


def _last_wait(records: list[pb.Event]) -> str:
    return next((r.waiting.reason for r in reversed(records) if r.HasField("waiting")), "")


def _question(records: list[pb.Event], request: api.DecideApprovalRequest) -> pb.Event:
    """The open question that the request answers."""
    for question in open_questions(records):
        asked = question.approval_requested
        if _address(question.path, asked.call) == _address(request.path, request.call):
            if request.digest and request.digest != asked.digest:
                raise Refused(
                    f"call {request.call!r} now has other arguments than those that were shown",
                    code="changed",
                    hint="look at it again: stigmer approvals",
                )
            if by := cancelled_by(records):
                # Whoever cancels closes the question; no answer may come in between.
                wrong = f"call {request.call!r} needs no decision: {by} cancels the run"
                raise Refused(wrong, code="decided")
            return question
    raise _already(records, request, f"there is no open question about call {request.call!r}")


def _already(records: list[pb.Event], request: api.DecideApprovalRequest, otherwise: str) -> Refused:
    """Who decided this before, if anybody did."""
    for record in reversed(records):
        decided = record.approval_decided
        if record.HasField("approval_decided") and (
            _address(record.path, decided.call) == _address(request.path, request.call)
        ):
            return Refused(f"call {request.call!r} was {decided.decision} by {decided.by}", code="decided")
    return Refused(otherwise, code="not_found", hint="stigmer approvals")
