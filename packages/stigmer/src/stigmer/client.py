"""Talks to a server: one small asynchronous client for programs, tests and the commands.

>>> async def largest() -> str:
...     async with Client(ensure_running(Home.find())) as client:
...         async for event in client.run(CreateExecutionRequest(task="Which file is the largest?")):
...             if event.HasField("finished"):
...                 return event.finished.text
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import grpc
import grpc.aio

from stigmer import __version__
from stigmer.api import event_pb2, service_pb2_grpc
from stigmer.api.event_pb2 import Event
from stigmer.api.service_pb2 import (
    ApiKey,
    CancelExecutionRequest,
    CancelExecutionResponse,
    CreateExecutionRequest,
    CreateExecutionResponse,
    CreateKeyRequest,
    CreateKeyResponse,
    DecideApprovalRequest,
    DecideApprovalResponse,
    DeleteSessionRequest,
    DeleteSessionResponse,
    Execution,
    ExecutionConfig,
    GetExecutionRequest,
    GetSessionRequest,
    GetStatusRequest,
    ListExecutionsRequest,
    ListExecutionsResponse,
    ListKeysRequest,
    ListKeysResponse,
    ListSessionsRequest,
    ListSessionsResponse,
    PauseExecutionRequest,
    PauseExecutionResponse,
    PreviewExecutionResponse,
    PruneExecutionsRequest,
    PruneExecutionsResponse,
    ResolveConfigResponse,
    ResumeExecutionRequest,
    ResumeExecutionResponse,
    RevokeKeyRequest,
    RevokeKeyResponse,
    Session,
    ShutdownRequest,
    Status,
    WakeExecutionsRequest,
    WakeExecutionsResponse,
    WatchExecutionRequest,
)
from stigmer.errors import StigmerError
from stigmer.home import Address
from stigmer.telemetry import carrier

__all__ = [
    "Client",
    "CreateExecutionRequest",
    "Event",
    "Events",
    "ExecutionConfig",
    "RemoteError",
    "ServerGone",
]

OPTIONS = (
    ("grpc.enable_http_proxy", 0),  # No proxy stands between us and a socket of our own.
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.default_authority", "localhost"),
    ("grpc.min_reconnect_backoff_ms", 10_000),  # How long a server may take to say its first word, too.
    ("grpc.use_local_subchannel_pool", 1),  # A new channel must not wait out the failures of the one before.
)
KEEPALIVE = 20.0
"""Seconds of silence after which a connection over the network is asked whether it still stands."""
_LIMIT = 30.0
"""Seconds for an answer that needs no model."""
PRELOAD_SECONDS = 0.5
"""How long a person may wait for the prompt, so that the request to load the model is on its way."""
_PRUNE_LIMIT = 3600.0
"""Seconds for a prune: writing a large database anew takes its time."""
_REVIVALS, _REVIVAL_SECONDS = 3, 60.0
"""A stream that broke so often within so many seconds is given up: what it shows may be what kills the server."""
_PATIENCE, _PAUSE = 20.0, 0.5
"""Seconds: a server that is gone and does not start is tried again so long, so often: its database may be restarting."""
_BREATH = 0.2
"""Seconds: the socket of a process that was just killed still answers for a moment."""
_REMOTE_PATIENCE = 120.0
"""Seconds that a server which somebody named, and which has answered before, may be away: a rollout takes its time."""
_LOOK = 5.0
"""Seconds that such a server has to say that it is there again."""

_stubs: Any = service_pb2_grpc  # The generated stubs carry no types.
Answer = TypeVar("Answer")


class RemoteError(StigmerError):
    """The server refused or failed, in its own words.

    `code` is the stable word of the errors table; `status` is the gRPC status; `problems` are the single faults
    where several were reported together, `details` more for programs.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        hint: str = "",
        status: str = "",
        problems: tuple[str, ...] = (),
        details: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.status = status
        self.problems = problems
        self.details = details or {}


class ServerGone(RemoteError):
    """Nothing answers at the address any more."""

    def __init__(self, address: Address, detail: str) -> None:
        super().__init__(
            f"the server at {address.shown!r} does not answer: {detail}",
            code="unavailable",
            hint="stigmer status" if address.remote else "stigmer status; stigmer logs",
            status="UNAVAILABLE",
        )


def credentials(address: Address, organisation: str = "") -> tuple[tuple[str, str], ...]:
    """The metadata that lets a call in, the organisation that it is about, and the trace that it belongs to."""
    about = (("stigmer-organisation", organisation),) if organisation else ()
    return (("authorization", f"Bearer {address.token}"), *about, *carrier())


def keepalive_options(seconds: float) -> list[tuple[str, int]]:
    """A connection that is silent is asked after so many seconds, and given up after half as many more."""
    return [
        ("grpc.keepalive_time_ms", round(seconds * 1000)),
        ("grpc.keepalive_timeout_ms", round(seconds * 500)),
        # Without it gRPC waits a minute for the answer, whatever the line above says.
        ("grpc.http2.ping_timeout_ms", round(seconds * 500)),
        # However long nothing is said: a run may think for an hour.
        ("grpc.http2.max_pings_without_data", 0),
    ]


def channel_to(address: Address, *, keepalive: float = KEEPALIVE) -> grpc.aio.Channel:
    """A channel, with TLS where the address says so. Raises UsageError where a certificate cannot be read."""
    alive = [] if address.target.startswith("unix:") else keepalive_options(keepalive)
    if not address.remote:
        return grpc.aio.insecure_channel(address.target, options=[*OPTIONS, *alive])
    # It has a name of its own.
    options = [*(one for one in OPTIONS if one[0] != "grpc.default_authority"), *alive]
    if not address.tls:
        return grpc.aio.insecure_channel(address.target, options=options)
    from stigmer.remote import certificates  # With `ssl`, which most commands need not.

    secure = grpc.ssl_channel_credentials(*certificates())
    return grpc.aio.secure_channel(address.target, secure, options=options)


class Client:
    """One connection to a server.

    `again` finds, or starts, the server anew when it is gone; then a stream that is being read goes on where it
    stopped, no event lost or doubled, and `notice` is told. Without `again` a stream ends with `ServerGone`. A server
    that somebody named, and that has answered before, is waited for instead. Calls are about the `organisation`; ""
    leaves it to the server: that of the key, else `default`. A connection over the network that is dead without a word
    is noticed within `keepalive` seconds and half as many more.
    """

    def __init__(
        self,
        address: Address,
        *,
        again: Callable[[], Address] | None = None,
        notice: Callable[[str], None] = lambda text: None,
        organisation: str = "",
        keepalive: float = KEEPALIVE,
    ) -> None:
        self.address, self._keepalive = address, keepalive
        self._organisation = organisation
        self._again = again
        self._notice = notice
        self._answered = False
        """It has been reached: should it go, it will come back."""
        self._mending = asyncio.Lock()
        self._connect()

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return credentials(self.address, self._organisation)

    def _connect(self) -> None:
        self._channel = channel_to(self.address, keepalive=self._keepalive)
        self._executions: Any = _stubs.ExecutionServiceStub(self._channel)
        self._sessions: Any = _stubs.SessionServiceStub(self._channel)
        self._config: Any = _stubs.ConfigServiceStub(self._channel)
        self._system: Any = _stubs.SystemServiceStub(self._channel)
        self._keys: Any = _stubs.KeyServiceStub(self._channel)
        self._models: Any = _stubs.ModelServiceStub(self._channel)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close(None)

    def run(self, request: CreateExecutionRequest) -> Events:
        """Creates an execution and gives its events until it has finished.

        The request gets an idempotency key where it has none, so that asking again creates nothing twice.
        """
        request.idempotency_key = request.idempotency_key or os.urandom(16).hex()
        return Events(self, "", 1, request)

    def watch(self, execution: str, *, from_seq: int = 1) -> Events:
        """The events with seq >= `from_seq`, and the live ones, until the execution has finished."""
        return Events(self, execution, max(from_seq, 1), None)

    def _open(self, execution: str, from_seq: int, request: CreateExecutionRequest | None) -> Any:
        """A stream of frames; of `request` where the execution has no id yet."""
        who = self._metadata()
        if execution or request is None:
            asked = WatchExecutionRequest(execution=execution, from_seq=from_seq)
            return self._executions.WatchExecution(asked, metadata=who)
        return self._executions.RunExecution(request, metadata=who)

    async def _revive(self, lost: str) -> None:
        """Connects to the server that is there now, started anew where `again` knows how."""
        old = self.address
        if old.remote:
            await self._back(lost)
            return
        if self._again is None:
            raise ServerGone(old, lost)
        await self._channel.close(None)
        self.address = await self._found(self._again)
        if self.address.pid == old.pid:
            await asyncio.sleep(_BREATH)
            self.address = await self._found(self._again)
        self._connect()
        if self.address.pid != old.pid:
            self._notice(f"the daemon (pid {old.pid}) was gone; going on with pid {self.address.pid}")

    async def _back(self, lost: str) -> None:
        """Waits until the server that somebody named answers again; once for all who miss it."""
        if not self._answered:
            raise ServerGone(self.address, lost)
        missed = self._channel
        async with self._mending:
            if self._channel is missed:
                await self._connect_again()

    async def _connect_again(self) -> None:
        self._notice(f"the server at {self.address.shown!r} is away; waiting for it")
        deadline = time.monotonic() + _REMOTE_PATIENCE
        while True:
            await self._channel.close(None)
            self._connect()
            try:
                await self._call("GetStatus", GetStatusRequest(), _LOOK)
                break
            except RemoteError as error:
                away = isinstance(error, ServerGone) or error.status == "DEADLINE_EXCEEDED"
                if not away or time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(_PAUSE)
        self._notice("it is back; going on where it stopped")

    async def _found(self, again: Callable[[], Address]) -> Address:
        """What `again` gives; a server that cannot start, since what it needs is away or full, is waited for."""
        deadline, told = time.monotonic() + _PATIENCE, False
        while True:
            try:
                return await asyncio.to_thread(again)
            except StigmerError as error:
                if time.monotonic() >= deadline:
                    raise
                if not told:
                    self._notice(f"{error.message}; trying again")
                told = True
            await asyncio.sleep(_PAUSE)

    async def create(self, request: CreateExecutionRequest) -> CreateExecutionResponse:
        """Accepts an execution; the server runs it whether somebody watches or not."""
        request.idempotency_key = request.idempotency_key or os.urandom(16).hex()
        return await self._ask(CreateExecutionResponse, "CreateExecution", request)

    async def preview(self, request: CreateExecutionRequest) -> PreviewExecutionResponse:
        """The exact provider request that this execution would begin with; nothing is stored or sent."""
        return await self._ask(PreviewExecutionResponse, "PreviewExecution", request)

    async def resolve(self, request: CreateExecutionRequest) -> ResolveConfigResponse:
        """What a run of this request would use, every value with its source, and why it would be refused."""
        return await self._ask(ResolveConfigResponse, "ResolveConfig", request)

    async def get(self, execution: str) -> Execution:
        return await self._ask(Execution, "GetExecution", GetExecutionRequest(execution=execution))

    async def list(self, *, limit: int = 20, state: str = "") -> list[Execution]:
        """The newest executions first, `limit` of them at most; `state` "" means any."""
        found: list[Execution] = []
        token = ""
        while len(found) < limit:
            request = ListExecutionsRequest(limit=limit - len(found), state=state, page_token=token)
            page = await self._ask(ListExecutionsResponse, "ListExecutions", request)
            found.extend(page.executions)
            token = page.next_page_token
            if not token:
                break
        return found

    async def cancel(self, execution: str, *, by: str = "") -> CancelExecutionResponse:
        """Stops an execution; answers when its last tool has stopped."""
        request = CancelExecutionRequest(execution=execution, by=by)
        return await self._ask(CancelExecutionResponse, "CancelExecution", request, limit=120.0)

    async def pause(self, execution: str, *, by: str = "") -> PauseExecutionResponse:
        """Lets an execution rest as soon as what runs has ended; answers at once."""
        request = PauseExecutionRequest(execution=execution, by=by)
        return await self._ask(PauseExecutionResponse, "PauseExecution", request)

    async def resume(
        self, execution: str, *, by: str = "", shell: Mapping[str, str] | None = None
    ) -> ResumeExecutionResponse:
        """Lets an execution go on that is paused, or that waits for a key which `shell` has."""
        request = ResumeExecutionRequest(execution=execution, by=by, shell=shell)
        return await self._ask(ResumeExecutionResponse, "ResumeExecution", request)

    async def decide(
        self,
        execution: str,
        call: str,
        *,
        approve: bool,
        path: str = "",
        digest: bytes = b"",
        by: str = "",
        reason: str = "",
        always: bool = False,
        shell: Mapping[str, str] | None = None,
    ) -> DecideApprovalResponse:
        """Answers one approval. With `digest` only for the arguments that were shown.

        `always` keeps the answer for all such calls of the agent, where the listed question offers it. `shell` are
        variables of the caller, for a key that the execution lacks; over a Unix socket only.
        """
        request = DecideApprovalRequest(
            execution=execution,
            call=call,
            path=path,
            digest=digest,
            approve=approve,
            by=by,
            reason=reason,
            always=always,
            shell=shell,
        )
        return await self._ask(DecideApprovalResponse, "DecideApproval", request)

    async def wake(self) -> int:
        """Lets executions go on that wait for a key which has come since; how many do."""
        return (await self._ask(WakeExecutionsResponse, "WakeExecutions", WakeExecutionsRequest())).woken

    async def session(self, id: str) -> Session:
        """A session with its executions, the oldest first."""
        return await self._ask(Session, "GetSession", GetSessionRequest(session=id))

    async def sessions(self, *, limit: int = 20) -> Sequence[Session]:
        """The sessions that were used last, each with its first and its last execution."""
        answer = await self._ask(ListSessionsResponse, "ListSessions", ListSessionsRequest(limit=limit))
        return answer.sessions

    async def delete_session(self, id: str) -> int:
        """Deletes a session and its executions; how many those were."""
        request = DeleteSessionRequest(session=id)
        return (await self._ask(DeleteSessionResponse, "DeleteSession", request)).executions

    async def prune(
        self, *, older_than_days: int | None = None, keep: int | None = None, dry_run: bool = False
    ) -> PruneExecutionsResponse:
        """Deletes, for good, executions that ended longer ago and are not among the newest `keep` that have ended.

        With neither, as the server's `retention` says. `dry_run` only says what would go.
        """
        request = PruneExecutionsRequest(older_than_days=older_than_days, keep=keep, dry_run=dry_run)
        return await self._ask(PruneExecutionsResponse, "PruneExecutions", request, limit=_PRUNE_LIMIT)

    @contextlib.asynccontextmanager
    async def preloading(self, request: CreateExecutionRequest) -> AsyncIterator[None]:
        """While this lasts the local model of such a run is made ready and kept loaded; whether it works out is not told.

        It begins within the time that a person takes to look up, whatever the server is busy with.
        """
        call = self._models.PreloadModel(request, metadata=self._metadata())
        begun = asyncio.ensure_future(call.initial_metadata())
        try:
            await asyncio.wait({begun}, timeout=PRELOAD_SECONDS)
            yield
        finally:
            begun.cancel()
            call.cancel()
            await asyncio.gather(begun, return_exceptions=True)

    async def create_key(
        self,
        name: str,
        *,
        scopes: Sequence[str],
        organisation: str = "",
        expires_days: int = 0,
        by: str = "",
    ) -> CreateKeyResponse:
        """Makes an API key for an organisation; the answer is the only place where its text is ever shown."""
        request = CreateKeyRequest(
            name=name, scopes=scopes, organisation=organisation, expires_days=expires_days, by=by
        )
        return await self._ask(CreateKeyResponse, "CreateKey", request)

    async def keys(self) -> Sequence[ApiKey]:
        """The API keys, the oldest first."""
        return (await self._ask(ListKeysResponse, "ListKeys", ListKeysRequest())).keys

    async def revoke_key(self, id: str) -> bool:
        """Ends an API key for good; whether it held until now."""
        return (await self._ask(RevokeKeyResponse, "RevokeKey", RevokeKeyRequest(id=id))).revoked

    async def status(self) -> Status:
        return await self._ask(Status, "GetStatus", GetStatusRequest())

    async def shutdown(self, *, if_idle: bool = False) -> None:
        """Stops the server; what runs is handed back and goes on with the next one."""
        await self._call("Shutdown", ShutdownRequest(if_idle=if_idle), _LIMIT)

    async def _ask(self, kind: type[Answer], method: str, request: Any, *, limit: float = _LIMIT) -> Answer:
        """One answer; asked once more where the server was gone and came back. No request does harm twice."""
        try:
            answer = await self._call(method, request, limit)
        except ServerGone as gone:
            if self._again is None and not (self.address.remote and self._answered):
                raise
            await self._revive(gone.message)
            answer = await self._call(method, request, limit)
        assert isinstance(answer, kind)
        return answer

    async def _call(self, method: str, request: Any, limit: float) -> Any:
        services = (self._executions, self._sessions, self._config, self._system, self._keys)
        stub = next(service for service in services if hasattr(service, method))
        try:
            answer = await getattr(stub, method)(request, timeout=limit, metadata=self._metadata())
            self._answered = True
            return answer
        except grpc.aio.AioRpcError as error:
            raise await self._known(error) from error

    async def _known(self, error: grpc.aio.AioRpcError) -> RemoteError:
        """What the failure of a call means. Of a server that somebody named, and that never answered, we find out more."""
        known = translated(error, self.address)
        if not self.address.remote:
            return known
        if known.status == "UNIMPLEMENTED":
            return await self._of_another_version()
        if known.status in ("UNAVAILABLE", "DEADLINE_EXCEEDED") and not self._answered:
            from stigmer.remote import obstacle

            found = await asyncio.to_thread(obstacle, self.address)
            if found is not None:
                return RemoteError(found.message, code=found.code, hint=found.hint, status=known.status)
        return known

    async def _of_another_version(self) -> RemoteError:
        """The server does not know a call: it is an older one, or none of ours."""
        where = f"the server at {self.address.shown!r} ({self.address.source})"
        try:
            theirs = await self._system.GetStatus(
                GetStatusRequest(), timeout=_LOOK, metadata=self._metadata()
            )
        except grpc.aio.AioRpcError:
            return RemoteError(
                f"what answers at {self.address.shown!r} ({self.address.source}) is no stigmer server",
                code="version",
                hint="the port of calls is 7244 by itself; 7245 is for health checks alone",
            )
        return RemoteError(
            f"{where} is of version {theirs.version} and does not know this call; this is {__version__}",
            code="version",
            hint="take the same version here and there",
        )


class Events:
    """The events of one execution, over as many connections as it takes; `execution` is its id once one has come."""

    def __init__(
        self, client: Client, execution: str, next_seq: int, request: CreateExecutionRequest | None
    ) -> None:
        self._client = client
        self._request = request
        self.execution = execution
        self.next_seq = next_seq
        """The seq that the next stored event must have at least."""
        self.more = False
        """The event after this one is here already: it came in the same message."""

    async def __aiter__(self) -> AsyncIterator[Event]:
        broken: deque[float] = deque(maxlen=_REVIVALS)
        while True:
            call = self._client._open(self.execution, self.next_seq, self._request)
            try:
                async for frame in call:
                    self._client._answered = True
                    self.execution = self.execution or frame.execution
                    fresh = self._fresh(frame.events)
                    for left, event in zip(reversed(range(len(fresh))), fresh, strict=True):
                        self.next_seq, self.more = max(self.next_seq, event.seq + 1), left > 0
                        yield event
                        if event.HasField("finished") and not event.path:
                            return
                if self.execution and (await self._client.get(self.execution)).finished_ms:
                    return  # It had ended before the first event that was asked for.
                lost = "it ended the stream before the execution ended"
            except grpc.aio.AioRpcError as error:
                known = await self._client._known(error)
                if not isinstance(known, ServerGone):
                    raise known from error
                lost = error.details() or "the connection was closed"
            except asyncio.CancelledError:
                if not self._client.address.remote or _is_cancelled():
                    raise
                lost = "the connection was closed"  # By another call of this client, which has missed the server.
            finally:
                call.cancel()
            now = time.monotonic()
            if len(broken) == _REVIVALS and now - broken[0] < _REVIVAL_SECONDS:
                raise ServerGone(self._client.address, f"it went away {_REVIVALS + 1} times ({lost})")
            broken.append(now)
            await self._client._revive(lost)

    def _fresh(self, bodies: Iterable[bytes]) -> list[Event]:
        """The events of a message that have not been given yet: a stream that was opened anew may begin a little early."""
        found: list[Event] = []
        next_seq = self.next_seq
        for event in map(Event.FromString, bodies):
            if not event.seq or event.seq >= next_seq:
                next_seq = max(next_seq, event.seq + 1)
                found.append(event)
        return found


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def translated(error: grpc.aio.AioRpcError, address: Address) -> RemoteError:
    """What the server meant: its own error from the trailing metadata, else one made from the gRPC status."""
    status = error.code().name
    trailing: Any = error.trailing_metadata()
    for key, value in trailing or ():
        if key == "stigmer-error-bin":
            said = event_pb2.Error.FromString(value)
            lets_in = address.remote and said.code in ("unauthenticated", "forbidden")
            return RemoteError(
                f"the server at {address.shown!r} ({address.source}): {said.message}"
                if lets_in
                else said.message,
                code=said.code,
                hint=said.hint,
                status=status,
                problems=tuple(said.problems),
                details=dict(said.details),
            )
    detail = error.details() or "no reason given"
    if address.remote:
        return _of_a_named_server(address, status, detail)
    if (
        "before receiving SETTINGS" in detail
    ):  # Something listens and says nothing: waiting again would not help.
        return RemoteError(
            f"the server at {address.target!r} (pid {address.pid}) takes the call and does not answer",
            code="unavailable",
            hint="stigmer down, then try again",
            status=status,
        )
    if status == "UNAVAILABLE":
        return ServerGone(address, detail)
    if status == "CANCELLED" and "goaway" in detail.lower():
        return ServerGone(address, detail)
    if status == "DEADLINE_EXCEEDED":
        return RemoteError(
            f"the server at {address.target!r} did not answer in time",
            code="timeout",
            hint="stigmer status; stigmer logs",
            status=status,
        )
    if status == "UNAUTHENTICATED":
        return RemoteError(
            f"the server at {address.target!r} does not know our token",
            code="unauthenticated",
            hint="stigmer down, then try again",
            status=status,
        )
    if (
        status == "RESOURCE_EXHAUSTED" and "larger than max" in detail
    ):  # gRPC's own words, before our code is asked.
        return RemoteError(
            f"the request is larger than the server takes ({detail})",
            code="task_too_long",
            hint="put the text into a file in the workspace and name the file in the task",
            status=status,
        )
    return RemoteError(f"the server failed: {detail}", code=f"rpc_{status.lower()}", status=status)


def _of_a_named_server(address: Address, status: str, detail: str) -> RemoteError:
    """The same of a server that somebody named, where gRPC or something between us said it."""
    where = f"the server at {address.shown!r} ({address.source})"
    if status == "UNAVAILABLE" or (status == "CANCELLED" and "goaway" in detail.lower()):
        return ServerGone(address, detail)
    if status == "DEADLINE_EXCEEDED":
        return RemoteError(
            f"{where} did not answer in time", code="timeout", hint="stigmer status", status=status
        )
    if status == "UNAUTHENTICATED":
        return RemoteError(
            f"{where} does not know the key of STIGMER_API_KEY",
            code="unauthenticated",
            hint="there: stigmer key list; stigmer key create",
            status=status,
        )
    if status == "RESOURCE_EXHAUSTED" and "larger than max" in detail:
        return RemoteError(
            f"the request is larger than {where} takes ({detail})",
            code="task_too_long",
            hint="make the task shorter",
            status=status,
        )
    return RemoteError(f"{where} failed: {detail}", code=f"rpc_{status.lower()}", status=status)
