"""A worker: takes executions from Temporal's queue and drives them, over a line to the control plane.

It holds no database password, and no key but its own environment's, its user file's and those that come with an
execution. On SIGTERM it takes nothing more; what does not end within the grace time is handed over.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from graphton._proxies import is_loopback
from graphton.approval import Rule
from graphton.errors import JournalError

from stigmer import __version__, redact, telemetry
from stigmer.api import event_pb2 as pb
from stigmer.api import service_pb2 as service
from stigmer.api import worker_pb2 as api
from stigmer.approvals import agent_name
from stigmer.engines._attempt import Attempt
from stigmer.errors import ConfigError, StigmerError
from stigmer.home import Home
from stigmer.organisations import DEFAULT_ORGANISATION
from stigmer.places import PlaceError, disk, own, volume
from stigmer.runner import Runner
from stigmer.secrets import Keys
from stigmer.store import Row
from stigmer.worker._line import Line, Plane

if TYPE_CHECKING:
    from temporalio.client import Client

    from stigmer.health import Check

__all__ = ["GRACE_SECONDS", "Hands", "plane_at", "work"]

log = logging.getLogger("stigmer.worker")

Made = TypeVar("Made")

GRACE_SECONDS = 30.0
ENDING = "it ends"
MOST = 200
"""Executions at once."""
PATIENCE_SECONDS, AGAIN_SECONDS = 60.0, 0.5
"""So long, and so often, a Temporal that does not answer is tried at the start."""
AWAY_SECONDS = 5.0
"""A control plane that says nothing for so long at the start is away; executions are taken all the same."""
OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", 16 << 20),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
)


def plane_at(target: str, token: str) -> tuple[Plane, Any]:
    """The control plane at an address, and the channel to be closed in the end.

    The address is `unix:PATH` or HOST:PORT, with `https://` before it for TLS. Without TLS the token stays on this
    machine, unless `http://` says that the network is private. Raises ConfigError.
    """
    import grpc.aio

    from stigmer.api import worker_pb2_grpc

    rpc: Any = worker_pb2_grpc  # The generated stubs carry no types.
    plain = target.removeprefix("http://")
    if target.startswith("https://"):
        authority, key, certificate = map(_file, ("STIGMER_TLS_CA", "STIGMER_TLS_KEY", "STIGMER_TLS_CERT"))
        if (key is None) != (certificate is None):
            raise ConfigError(["a worker's own certificate needs STIGMER_TLS_CERT and STIGMER_TLS_KEY"])
        # No authority: gRPC's own list of public ones.
        secure = grpc.ssl_channel_credentials(authority, key, certificate)
        channel = grpc.aio.secure_channel(target.removeprefix("https://"), secure, options=OPTIONS)
    elif plain == target and not _here(target):
        raise ConfigError(
            [
                f"{target!r} is another machine: write https://{target}, or http://{target} where the network is private"
            ]
        )
    else:
        # A socket's path is no host name.
        channel = grpc.aio.insecure_channel(
            plain, options=(*OPTIONS, ("grpc.default_authority", "localhost"))
        )
    return Plane(rpc.WorkerServiceStub(channel), (("authorization", f"Bearer {token}"),)), channel


def _here(target: str) -> bool:
    return target.startswith("unix:") or is_loopback(target.rpartition(":")[0].strip("[]"))


def _file(variable: str) -> bytes | None:
    """The file that a variable names; None where it names none."""
    named = os.environ.get(variable, "").strip()
    try:
        return Path(named).expanduser().read_bytes() if named else None
    except OSError as error:
        raise ConfigError([f"{variable} {named!r} cannot be read: {error.strerror}"]) from error


class Hands:
    """What a worker has at hand: drives one execution after the other, many at once."""

    def __init__(self, home: Home, plane: Plane, *, key_for: Callable[[str, str], str | None]) -> None:
        self._plane = plane
        self._keys = Keys(otherwise=key_for)
        self._always: dict[tuple[str, str], Sequence[Rule]] = {}
        self._runner = Runner(home.path, self._keys, always=lambda *whose: self._always.get(whose, ()))
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._latest: dict[str, _Taken] = {}
        self.shut_out: JournalError | None = None
        """Why the control plane does not let us in any more."""
        self.on_shut_out: Callable[[], object] = lambda: None
        self.disk = _disk()
        """The disk that holds files of executions here; "": none does."""
        self.busy = 0
        """How many attempts are driven just now."""

    def take(self, execution: str, *, alone: bool = False) -> _Taken:
        """The next attempt of an execution, to be driven here. `alone`: the worker that has its files is gone."""
        line = Line(
            self._plane,
            execution,
            worker=self._name,
            disk=self.disk,
            alone=alone,
            shut_out=self._shut_out,
        )
        return _Taken(self, line, execution)

    def _shut_out(self, why: JournalError) -> None:
        if self.shut_out is None:
            self.shut_out = why
            log.error("shut out reason=%r", why.message)
            self.on_shut_out()

    def attempt(self, taken: _Taken, began: api.Began, records: Sequence[pb.Event]) -> Attempt:
        """The attempt that has begun, with what it needs of answers and keys."""
        agent = agent_name(service.CreateExecutionRequest.FromString(began.request))
        organisation = began.organisation or DEFAULT_ORGANISATION  # A server of the version before says none.
        self._always[agent, organisation] = [_rule(rule) for rule in began.always]
        for key in began.keys:
            self._keys.put(
                taken.execution,
                key.key,
                organisation=organisation,
                provider=key.provider,
                base_url=key.base_url,
            )
        self._latest[taken.execution] = taken
        row = Row(
            began.no,
            taken.execution,
            began.request,
            "running",
            began.attempt,
            began.seq,
            began.created_ms,
            None,
            organisation,
        )
        return Attempt(self._runner, taken.line, row=row, epoch=began.attempt, records=records)

    def forget(self, taken: _Taken) -> None:
        """The attempt has ended; its keys go with it, unless the execution is here anew."""
        if self._latest.get(taken.execution) is taken:
            del self._latest[taken.execution]
            self._keys.forget(taken.execution)


class _Taken:
    """One attempt of an execution here. Temporal may give one back to a worker that still has an attempt of it."""

    def __init__(self, hands: Hands, line: Line, execution: str) -> None:
        self.execution, self.line = execution, line
        self._hands = hands
        self._attempt: Attempt | None = None
        self._leaves = False

    async def drive(self) -> str:
        """Drives it; how it ended: done | waiting | shutdown, or `elsewhere DISK SECONDS` where it has not begun.

        Raises JournalError when it could not be recorded.
        """
        self._hands.busy += 1
        try:
            began = "shutdown" if self._leaves else await self.line.begin()
            if isinstance(began, str):
                if began.startswith("elsewhere "):
                    return began
                return {"finished": "done", "shutdown": "shutdown"}.get(began, "waiting")
            return await self._drive(began)
        finally:
            self._hands.busy -= 1
            await self.line.close()

    async def _drive(self, began: api.Began) -> str:
        asked = service.CreateExecutionRequest.FromString(began.request)
        telemetry.speak_of(self.execution, asked.traceparent)
        records = await self.line.replay(began.no)
        await _end_leftovers(self.execution, records)
        attempt = self._attempt = self._hands.attempt(self, began, records)
        try:
            if self._leaves:
                attempt.interrupt("shutdown")
            for record in records:
                if record.HasField("cancel_requested"):
                    attempt.hear(record)
            self.line.tell(attempt.hear, lost=attempt.drop)
            log.info("attempt started execution=%s attempt=%d", self.execution, began.attempt)
            outcome = await attempt.run()
            log.info(
                "attempt ended execution=%s attempt=%d outcome=%s", self.execution, began.attempt, outcome
            )
            return outcome if outcome in ("waiting", "shutdown") else "done"
        finally:
            self._hands.forget(self)

    def hand_over(self) -> None:
        """Stops it here, so that another worker goes on with it; one that has not begun does not begin."""
        self._leaves = True
        if self._attempt is not None:
            self._attempt.interrupt("shutdown")
        else:
            self.line.give_up()


def _disk() -> str:
    try:
        return disk()
    except PlaceError as error:
        log.warning("no files of runs are kept here reason=%r", error.message)
        return ""


async def _end_leftovers(execution: str, records: Sequence[pb.Event]) -> None:
    """Ends what a dead worker of this machine has left running."""
    from stigmer.engines._leftovers import end_leftovers
    from stigmer.engines.embedded import of_this_machine

    ended = await asyncio.to_thread(end_leftovers, execution, [*of_this_machine(records)])
    if ended:
        log.warning("ended processes of a lost attempt count=%s", ended)


def _rule(rule: service.ApprovalRule) -> Rule:
    return Rule(rule.tool, rule.verdict, dict(rule.when), source=rule.source)  # type: ignore[arg-type]  # the server checked the verdict


async def work(
    home: Home,
    *,
    target: str,
    token: str,
    grace: float = GRACE_SECONDS,
    most: int = MOST,
    flags: Mapping[str, str] | None = None,
    beside: bool = False,
    http: str = "",
    faults: Sequence[str] = (),
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Works until this task is cancelled, then ends in good order.

    A worker that is not `beside` a developer's daemon does not start with a setting that is wrong, nor without a mode
    that somebody said: ConfigError with all that is wrong, the caller's `faults` among it. Raises StigmerError where
    Temporal cannot be reached.
    """
    from graphton._process import make_undumpable

    from stigmer.engines.temporal import insist_on_temporalio

    insist_on_temporalio()
    from stigmer.engines.temporal.connection import deployment, task_queue
    from stigmer.engines.temporal.polling import poll
    from stigmer.health import health_at
    from stigmer.server._logs import format_problem, scrubbed_logs
    from stigmer.server._resolve import Resolver

    make_undumpable()
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    asked = telemetry.asked_of(os.environ, http=bool(http))
    async with AsyncExitStack() as around:
        around.enter_context(scrubbed_logs())
        home.create()
        redact.remember([token])
        log.info(
            "starting version=%s engine=temporal server=%s http=%s telemetry=%s pid=%d",
            *(__version__, target, http or "-", asked.words, os.getpid()),
        )
        resolver = Resolver(home, flags=dict(flags or {}), where="local" if beside else "worker")
        doubts = [*asked.problems, *filter(None, [format_problem()])]
        for doubt in doubts if beside else ():
            log.warning("setting problem=%r", doubt)
        doubts += await resolver.log()
        found = list(faults)
        for setting in (volume, own):
            _unless_wrong(setting, found)
        version = _unless_wrong(deployment, found)
        line = _unless_wrong(lambda: plane_at(target, token), found)
        if line is None or found or (doubts and not beside):
            if line is not None:
                await line[1].close(None)
            raise ConfigError([*found, *doubts])
        plane, channel = line
        await around.enter_async_context(
            telemetry.running(asked, service="stigmer-worker", insist=not beside)
        )
        try:
            health = _Health(plane)
            async with health_at(http, health.checks), _tidied(plane):
                health.client = client = await _temporal()
                await _let_in(plane)
                hands = Hands(home, plane, key_for=resolver.key_for)
                telemetry.watch_worker(most, busy=lambda: hands.busy, draining=lambda: health.ending)
                queue = task_queue()

                def ready() -> None:
                    health.not_polling = ""
                    build = version.version.build_id if version is not None else ""
                    log.info(
                        "ready queue=%s temporal=%s namespace=%s server=%s most=%d build=%s pid=%d",
                        queue,
                        client.service_client.config.target_host,
                        client.namespace,
                        target,
                        most,
                        build,
                        os.getpid(),
                    )
                    on_ready()

                polling = asyncio.ensure_future(
                    poll(
                        client,
                        hands,
                        queue=queue,
                        grace=grace,
                        most=most,
                        deployment=version,
                        on_ready=ready,
                        on_end=health.ends,
                    )
                )
                # What it would take now, it could not record: other workers take it.
                hands.on_shut_out = polling.cancel
                await _ended(polling)
                if hands.shut_out is not None:
                    raise _not_let_in(hands.shut_out.message)
                if not polling.cancelled():
                    polling.result()
        finally:
            await channel.close(None)
            await _close_models()
            log.info("ended pid=%d", os.getpid())


async def _ended(polling: asyncio.Future[None]) -> None:
    """Until it has ended, however; where we are cancelled, it ends in good order."""
    try:
        await asyncio.wait([polling])
    except asyncio.CancelledError:
        polling.cancel()
        await asyncio.wait([polling])


async def _let_in(plane: Plane) -> None:
    """Raises StigmerError where the control plane does not know our key. One that is away may come yet."""
    import grpc
    import grpc.aio

    try:
        await plane.stub.Ready(api.ReadyRequest(), metadata=plane.metadata, timeout=AWAY_SECONDS)
    except grpc.aio.AioRpcError as error:
        if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            raise _not_let_in(error.details() or error.code().name) from error
        log.warning("the control plane is away reason=%r", error.details())


def _not_let_in(why: str) -> StigmerError:
    return StigmerError(
        f"the control plane does not let this worker in: {why}",
        hint="at the server: stigmer key create --name worker --scope worker; here STIGMER_API_KEY has the key",
    )


async def _gone(plane: Plane, place: str, names: Sequence[str]) -> Sequence[str]:
    """Which of our folders the control plane gives up. Raises StigmerError where it cannot say."""
    import grpc.aio

    try:
        asked = api.GoneFoldersRequest(place=place, folders=names)
        return list((await plane.stub.GoneFolders(asked, metadata=plane.metadata)).folders)
    except grpc.aio.AioRpcError as error:
        raise StigmerError(f"{error.code().name}: {error.details()}") from error


@asynccontextmanager
async def _tidied(plane: Plane) -> AsyncIterator[None]:
    """Meanwhile the folders of deleted runs are deleted here."""
    from stigmer.server._tidy import keep_tidy

    tidying = asyncio.create_task(keep_tidy(partial(_gone, plane)), name="tidy")
    try:
        yield
    finally:
        tidying.cancel()
        with suppress(asyncio.CancelledError):
            await tidying


def _unless_wrong(make: Callable[[], Made], found: list[str]) -> Made | None:
    """What is made; where a setting is wrong, None, and what is wrong goes to what was found."""
    try:
        return make()
    except ConfigError as error:
        found.extend(error.problems)
    except StigmerError as error:
        found.append(f"{error.message}: {error.hint}" if error.hint else error.message)
    return None


class _Health:
    """What a worker's readiness looks at, each time anew. One that is not ready still drives what it has."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self.client: Client | None = None
        self.not_polling = "it starts"
        """Why no execution is taken; "" where they are."""

    @property
    def checks(self) -> Mapping[str, Check]:
        return {"polls": self._polls, "temporal": self._temporal, "server": self._server}

    @property
    def ending(self) -> bool:
        """It drives what it has to its end, or hands it over."""
        return self.not_polling == ENDING

    def ends(self) -> None:
        """It takes no more executions."""
        self.not_polling = ENDING

    async def _polls(self) -> None:
        if self.not_polling:
            raise StigmerError(self.not_polling)

    async def _temporal(self) -> None:
        from stigmer.engines.temporal.connection import reachable

        if self.client is None:
            raise StigmerError("Temporal has not answered yet")
        await reachable(self.client)

    async def _server(self) -> None:
        """The control plane lets us in, and can take attempts."""
        import grpc.aio

        try:
            await self._plane.stub.Ready(api.ReadyRequest(), metadata=self._plane.metadata)
        except grpc.aio.AioRpcError as error:
            raise StigmerError(f"{error.code().name}: {error.details()}") from error


async def _temporal() -> Client:
    """Temporal, which may start after us; given up after PATIENCE_SECONDS."""
    from stigmer.engines.temporal.connection import TemporalAway, connect

    deadline, told = time.monotonic() + PATIENCE_SECONDS, False
    while True:
        try:
            return await connect()
        except TemporalAway as error:
            if time.monotonic() >= deadline:
                raise StigmerError(
                    str(error), hint="is it running? TEMPORAL_ADDRESS says where it is looked for"
                ) from error
            if not told:
                log.warning("temporal is away reason=%r", str(error))
            told = True
        await asyncio.sleep(AGAIN_SECONDS)


async def _close_models() -> None:
    import sys

    llamacpp = sys.modules.get("graphton.chat.llamacpp")
    if llamacpp is not None:
        await llamacpp.close_all()
