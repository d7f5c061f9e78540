"""The server: one process that accepts executions over gRPC and drives them to their end."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext, suppress
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from stigmer import __version__, redact, telemetry
from stigmer.errors import ConfigError, StigmerError
from stigmer.home import Home

if TYPE_CHECKING:
    from stigmer.engines.embedded import EmbeddedEngine
    from stigmer.runner import Runner
    from stigmer.server._oidc import Issuer
    from stigmer.server._relay import Relay
    from stigmer.server.auth import Outside
    from stigmer.server.executions import ExecutionService
    from stigmer.store import Store
    from stigmer.telemetry._server import ServerWatch

__all__ = ["serve"]

log = logging.getLogger("stigmer.server")

MESSAGE_LIMIT = 16 << 20
HOME_CHECK_SECONDS = 2.0
GRACE_SECONDS = 2.0
"""How long open calls may go on when the server ends."""
OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    ("grpc.so_reuseport", 0),
)
PING_SECONDS = 5
"""Workers and clients ask every 10 or 20 s whether the line still stands; gRPC hangs up on who asks more often than this."""
_WARM = (
    "graphton.toolsets._workspace",
    "graphton.chat._aiohttp",
    "graphton.agent",
    "graphton.chat._http",
    "graphton.toolsets.files",
    "graphton.toolsets.shell",
)
"""What a run needs and a ready server does not: imported right after the first caller could connect."""


async def serve(
    home: Home,
    *,
    address: str,
    on_ready: Callable[[], None],
    idle_seconds: float | None = 1800.0,
    stays: bool = False,
    flags: Mapping[str, str] | None = None,
    findable: Callable[[], bool] = lambda: True,
    engine: str = "embedded",
    listen: Sequence[str] = (),
    plaintext: bool = False,
    http: str = "",
) -> None:
    """Serves `home` at `address` (`unix:PATH`, or `HOST:PORT`) until it is told to end, or has nothing to do.

    The caller holds the home's lock: there is one server per home. Cancelling this task ends it in good order, as
    Shutdown does: what runs is handed back and goes on with the next server. `flags` are the LLM flags of the command
    that started this process. A server that is not `findable` any more ends too, because nobody could reach it and it
    would keep others out. A server for others, which takes calls at `listen` (`HOST:PORT`) too, does not start with a
    setting that is wrong or that nobody said. Raises StoreError when the database cannot be used, ConfigError.
    """
    from graphton._process import keep_freed_memory, make_undumpable

    from stigmer.server._database import database_of
    from stigmer.server._logs import scrubbed_logs
    from stigmer.store import Store, StoreError

    make_undumpable()
    keep_freed_memory()
    # gRPC's fork handlers would meet the processes that our tools start.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    asked = telemetry.asked_of(os.environ, http=bool(http))
    async with AsyncExitStack() as around:
        around.enter_context(scrubbed_logs())
        home.create()
        log.info(
            "starting version=%s engine=%s address=%s listen=%s http=%s telemetry=%s pid=%d",
            __version__, engine, address, ",".join(listen) or "-", http or "-", asked.words, os.getpid(),
        )  # fmt: skip
        problems = await _problems(home, flags or {}, engine, listen, asked, plaintext=plaintext)
        await around.enter_async_context(
            telemetry.running(asked, service="stigmer-server", insist=bool(listen))
        )
        try:
            store = await Store.open(database_of(home))
        except StoreError as error:
            if not problems:
                raise
            raise ConfigError([*problems, error.message]) from error
        try:
            if problems:
                raise ConfigError(problems)
            drives = await _engine_of(engine)
            server = _Server(
                home,
                store,
                address=address,
                stays=stays,
                flags=dict(flags or {}),
                drives=drives,
                listen=listen,
                plaintext=plaintext,
            )
            try:
                async with _health(http, server):
                    await server.start()
                    on_ready()
                    log.info("ready address=%s pid=%d database=%s", address, os.getpid(), store.name)
                    await server.until_the_end(
                        idle_seconds=None if stays else idle_seconds, findable=findable
                    )
            finally:
                await server.stop()
        finally:
            await store.close()
            log.info("ended pid=%d", os.getpid())


def _health(address: str, server: _Server) -> AbstractAsyncContextManager[None]:
    """Liveness and readiness at this address, for servers that have one."""
    if not address:
        return nullcontext()
    from stigmer.health import health_at

    return health_at(address, {"started": server.has_started, "store": server.reads, "engine": server.drives})


async def _problems(
    home: Home,
    flags: Mapping[str, str],
    engine: str,
    listen: Sequence[str],
    asked: telemetry.Asked,
    *,
    plaintext: bool,
) -> list[str]:
    """All that keeps a server for others from starting; its settings are logged. Other servers start all the same."""
    from stigmer.server._logs import format_problem

    found = [*asked.problems, *filter(None, [format_problem()])]
    if not listen:
        for problem in found:
            log.warning("setting problem=%r", problem)
        return []
    from stigmer.server._places import problems as place_problems
    from stigmer.server._resolve import Resolver
    from stigmer.server.tls import credentials

    found += await Resolver(home, flags=dict(flags), where="serve").log()
    found += place_problems()
    for address in listen:
        try:
            credentials(address, plaintext=plaintext)
        except ConfigError as error:
            found += error.problems
    if engine == "temporal":
        from stigmer.engines.temporal import insist_on_temporalio

        try:
            insist_on_temporalio()
        except StigmerError as error:
            found.append(f"{error.message}: {error.hint}")
    from stigmer.server._audit import audit_of
    from stigmer.server._limits import limits_of
    from stigmer.server._oidc import settings_of
    from stigmer.server._relay import relay_at

    for read in (limits_of, audit_of, settings_of, partial(relay_at, plaintext=plaintext)):
        try:
            read(os.environ)
        except ConfigError as error:
            found += error.problems
    return list(dict.fromkeys(found))


def _options(keepalive: int) -> list[tuple[str, int]]:
    """How connections are kept: one that is silent for `keepalive` seconds is asked, and given up after as many more."""
    return [
        *OPTIONS,
        ("grpc.keepalive_time_ms", keepalive * 1000),
        ("grpc.keepalive_timeout_ms", min(keepalive, 20) * 1000),
        ("grpc.http2.ping_timeout_ms", min(keepalive, 20) * 1000),
        ("grpc.http2.min_ping_interval_without_data_ms", min(PING_SECONDS * 1000, keepalive * 500)),
    ]


async def _engine_of(name: str) -> Callable[[Store, Runner], EmbeddedEngine]:
    """Makes the engine of that name. Raises StigmerError where a setting of it cannot be used."""
    if name == "embedded":
        from stigmer.engines.embedded import EmbeddedEngine

        return EmbeddedEngine
    from stigmer.engines.temporal import insist_on_temporalio

    insist_on_temporalio()
    from stigmer.engines.temporal.connection import TemporalWorkflows, connect, task_queue
    from stigmer.engines.temporal.engine import TemporalEngine

    client, queue = await connect(lazy=True), task_queue()
    where = client.service_client.config.target_host
    log.info("runs go to workers temporal=%s namespace=%s queue=%s", where, client.namespace, queue)
    workflows = TemporalWorkflows(client, queue=queue)
    return lambda store, runner: TemporalEngine(store, runner, workflows)


class _Server:
    """The parts of a running server, in the order in which they start; they stop in the reverse order."""

    def __init__(
        self,
        home: Home,
        store: Store,
        *,
        address: str,
        stays: bool,
        flags: dict[str, str],
        drives: Callable[[Store, Runner], EmbeddedEngine],
        listen: Sequence[str] = (),
        plaintext: bool = False,
    ) -> None:
        from stigmer.runner import Runner
        from stigmer.secrets import Keys
        from stigmer.server._activity import Activity
        from stigmer.server._resolve import Resolver
        from stigmer.server._retention import Pruner

        self._home, self._address, self._stays = home, address, stays
        self._listen, self._plaintext = tuple(listen), plaintext
        self._end = asyncio.Event()
        self._activity = Activity()
        self._store = store
        self._resolver = Resolver(
            home, flags=flags, where="serve" if listen or not address.startswith("unix:") else "local"
        )
        self._keys = Keys(otherwise=self._resolver.key_for)
        self._engine = drives(self._store, Runner(home.path, self._keys))
        self._pruner = Pruner(
            store, retention=self._resolver.retention, busy=lambda: self._engine.running > 0
        )
        self._grpc: Any = None
        self._watch: ServerWatch | None = None
        self._issuer: Issuer | None = None
        self._relay: Relay | None = None
        self._ready = False
        self._beside: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self._watch = telemetry.watch_server(self._store, self._engine)
        here = self._engine.name == "embedded" and not self._listen
        if here:
            # What a dead process left goes on before gRPC is imported, which takes as long as all the rest.
            await self._engine.start()
            await self._engine.under_way()
        import grpc.aio

        from stigmer.api import service_pb2_grpc
        from stigmer.server._limits import Limits
        from stigmer.server.auth import Access, token_of
        from stigmer.server.configuration import ConfigService
        from stigmer.server.executions import ExecutionService
        from stigmer.server.keys import KeyService
        from stigmer.server.models import ModelService
        from stigmer.server.sessions import SessionService
        from stigmer.server.system import SystemService
        from stigmer.store import KeyTable

        token = token_of(self._home.token)
        redact.remember([token])  # A command may print the file.
        keys = KeyTable(self._store)
        outside = self._outside()
        keepalive = (outside.limits if outside else Limits()).keepalive
        self._grpc = grpc.aio.server(
            interceptors=(*telemetry.interceptors(), Access(token, keys, outside=outside)),
            options=_options(keepalive),
        )
        executions = ExecutionService(
            home=self._home,
            store=self._store,
            engine=self._engine,
            keys=self._keys,
            activity=self._activity,
            resolve=self._resolver,
        )
        system = SystemService(
            home=self._home,
            store=self._store,
            engine=self._engine,
            activity=self._activity,
            pruner=self._pruner,
            address=self._address,
            stays=self._stays,
            end=self._end,
        )
        configuration = ConfigService(home=self._home, activity=self._activity, resolver=self._resolver)
        sessions = SessionService(
            home=self._home, store=self._store, activity=self._activity, brief=executions.brief
        )
        models = ModelService(
            home=self._home,
            activity=self._activity,
            resolve=self._resolver,
            runs_here=self._engine.name == "embedded",
        )
        rpc: Any = service_pb2_grpc  # The generated stubs carry no types.
        rpc.add_ExecutionServiceServicer_to_server(executions, self._grpc)
        rpc.add_SessionServiceServicer_to_server(sessions, self._grpc)
        rpc.add_ConfigServiceServicer_to_server(configuration, self._grpc)
        rpc.add_SystemServiceServicer_to_server(system, self._grpc)
        rpc.add_ModelServiceServicer_to_server(models, self._grpc)
        rpc.add_KeyServiceServicer_to_server(
            KeyService(home=self._home, keys=keys, activity=self._activity), self._grpc
        )
        await self._join_relay(executions)
        self._add_workers()
        before = os.umask(0o077)  # The socket is its owner's alone from its first moment.
        try:
            self._grpc.add_insecure_port(self._address)
        finally:
            os.umask(before)
        for address in self._listen:
            self._open(address)
        await self._grpc.start()
        if not here:
            await self._engine.start()
        self._ready = True
        self._beside = [
            asyncio.create_task(self._warm_up(), name="warm up"),
            asyncio.create_task(self._pruner.keep(), name="pruner"),
        ]
        if self._engine.name == "embedded":  # Else the files are at the workers.
            from stigmer.server._places import gone
            from stigmer.server._tidy import keep_tidy

            self._beside.append(asyncio.create_task(keep_tidy(partial(gone, self._store)), name="tidy"))

    def _outside(self) -> Outside | None:
        """Limits, audit log and identity provider of a server that others can reach. Raises ConfigError."""
        if not self._listen and self._address.startswith("unix:"):
            return None
        from stigmer.server._audit import audit_of
        from stigmer.server._limits import limits_of
        from stigmer.server._oidc import issuer_of
        from stigmer.server.auth import Outside

        self._issuer = issuer_of(os.environ)
        if self._issuer is not None:
            self._issuer.begin()
        return Outside(limits_of(os.environ), audit_of(os.environ), self._issuer)

    def _open(self, address: str) -> None:
        """Takes calls at HOST:PORT; every call must show the token, or a key."""
        from stigmer.server.tls import credentials

        secure = credentials(address, plaintext=self._plaintext)
        try:
            if secure is None:
                port = self._grpc.add_insecure_port(address)
            else:
                port = self._grpc.add_secure_port(address, secure)
        except RuntimeError as error:
            raise StigmerError(
                f"nobody can listen at {address!r}: {error}",
                hint="is the port free? STIGMER_LISTEN_GRPC names another",
            ) from error
        log.info("listening address=%s port=%d tls=%s", address, port, "on" if secure else "off")

    async def _join_relay(self, executions: ExecutionService) -> None:
        """Live text from the other servers of the database, and for them, where STIGMER_RELAY says how they reach this one."""
        from stigmer.server._relay import Relay, relay_at

        at = relay_at(os.environ, plaintext=self._plaintext)
        if not at or self._engine.name == "embedded" or self._store.alone:
            return
        self._relay = Relay(self._store, executions.watch_here, at=at, plaintext=self._plaintext)
        executions.relay = self._relay
        await self._relay.start()

    def _add_workers(self) -> None:
        """The door for workers, where the engine has any."""
        if self._engine.name == "embedded":
            return
        from stigmer.api import worker_pb2_grpc
        from stigmer.engines.temporal.engine import TemporalEngine
        from stigmer.server.workers import WorkerService, always_of

        assert isinstance(self._engine, TemporalEngine)

        rpc: Any = worker_pb2_grpc
        workers = WorkerService(
            home=self._home,
            store=self._store,
            engine=self._engine,
            activity=self._activity,
            always=always_of(self._home),
            keys=self._keys,
            relay=self._relay,
        )
        self._engine.holder = str(self._relay.here) if self._relay is not None else ""
        rpc.add_WorkerServiceServicer_to_server(workers, self._grpc)

    # What readiness means

    async def has_started(self) -> None:
        """Raises before calls are taken, and when it ends."""
        if not self._ready or self._end.is_set():
            raise StigmerError("it starts" if not self._ready else "it ends")

    async def reads(self) -> None:
        """Raises when the database does not answer."""
        await self._store.count("running")

    async def drives(self) -> None:
        """Raises when what drives the executions cannot be reached."""
        await self._engine.reachable()

    async def until_the_end(self, *, idle_seconds: float | None, findable: Callable[[], bool]) -> None:
        """Returns when Shutdown was called, no command finds us any more, or `idle_seconds` passed with no work."""
        every = HOME_CHECK_SECONDS if idle_seconds is None else min(HOME_CHECK_SECONDS, idle_seconds / 2)
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._end.wait(), every)
                log.info("ending reason=asked")
                return
            if not (self._home.database if self._store.alone else self._home.token).exists():
                log.warning("ending reason='the home is gone'")
                return
            if not findable():
                log.warning("ending reason='address, socket or token are not ours any more'")
                return
            if self._engine.running:
                self._activity.touch()
            elif idle_seconds is not None and self._activity.idle_for >= idle_seconds:
                log.info("ending reason=idle")
                return

    async def stop(self) -> None:
        """Runs are handed back first, so that watchers see it; then calls end, and children."""
        self._ready = False
        for task in self._beside:
            task.cancel()
        # Each is stopped, even where one before it fails or is cut short.
        async with AsyncExitStack() as left:
            if self._watch is not None:
                left.push_async_callback(self._watch.stop)
            if self._issuer is not None:
                left.push_async_callback(self._issuer.close)
            if (llamacpp := sys.modules.get("graphton.chat.llamacpp")) is not None:
                left.push_async_callback(llamacpp.close_all)
            if self._grpc is not None:
                left.push_async_callback(self._grpc.stop, GRACE_SECONDS)
                self._grpc = None  # Its last word wants this loop; collected later, it would have none.
            if self._relay is not None:
                left.push_async_callback(self._relay.stop)
            left.push_async_callback(self._engine.stop)
            await asyncio.gather(*self._beside, return_exceptions=True)

    async def _warm_up(self) -> None:
        """What the first run needs, then a word in the log on what this process's own settings come to."""
        for module in _WARM:
            await asyncio.sleep(0)  # A caller who is waiting comes first.
            import_module(module)
        if self._listen:
            return
        try:
            await self._resolver.log()
        except (OSError, StigmerError) as error:  # Who runs something hears of it too.
            log.warning("setting problem=%r", str(error))
