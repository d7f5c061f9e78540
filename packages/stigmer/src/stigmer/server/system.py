"""SystemService: what this server is and does, what it keeps, and its end."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from stigmer import __version__
from stigmer.api import service_pb2 as api
from stigmer.api import service_pb2_grpc
from stigmer.config import Retention
from stigmer.engines.embedded import EmbeddedEngine
from stigmer.home import Home
from stigmer.server._activity import Activity
from stigmer.server._retention import Pruner
from stigmer.server.auth import caller_of_call
from stigmer.server.status import Refused, abort
from stigmer.store import Store

__all__ = ["SystemService"]


class SystemService(service_pb2_grpc.SystemServiceServicer):
    """GetStatus, PruneExecutions and Shutdown. `end` is set when the server shall end."""

    def __init__(
        self,
        *,
        home: Home,
        store: Store,
        engine: EmbeddedEngine,
        activity: Activity,
        pruner: Pruner,
        address: str,
        stays: bool,
        end: asyncio.Event,
    ) -> None:
        self._home, self._store, self._engine, self._activity = home, store, engine, activity
        self._pruner = pruner
        self._address, self._stays, self._end = address, stays, end
        self._started_ms = store.now_ms

    async def GetStatus(self, request: api.GetStatusRequest, context: Any) -> api.Status:
        """What runs and waits here, and which models this server serves itself. Of others' executions a key hears nothing."""
        who = caller_of_call()
        whose = None if who.owns_the_machine else who.organisation
        return api.Status(
            version=__version__,
            pid=os.getpid(),
            address=self._address,
            engine=self._engine.name,
            home=str(self._home.path),
            running=await self._store.count("running", organisation=whose) if whose else self._engine.running,
            waiting=await self._store.count("waiting", organisation=whose),
            started_ms=self._started_ms,
            stays=self._stays,
            models=_served(),
        )

    async def PruneExecutions(
        self, request: api.PruneExecutionsRequest, context: Any
    ) -> api.PruneExecutionsResponse:
        """Deletes what has ended and is neither young nor among the newest, or says what that would be."""
        with self._activity.call():
            try:
                said = any(request.HasField(name) for name in ("older_than_days", "keep"))
                wanted = _wanted(request) if said else self._pruner.retention()
                if not wanted:
                    raise Refused(
                        "nothing says what may go: there is no `retention` setting",
                        code="usage",
                        hint="stigmer prune --older-than 90; or for always, in ~/.stigmer/config.yaml: "
                        "retention: {days: 90}",
                    )
                pruned = await self._pruner.prune(
                    wanted, dry_run=request.dry_run, organisation=caller_of_call().organisation
                )
            except Exception as error:
                await abort(context, error, home=self._home.path, about="prune")
        return api.PruneExecutionsResponse(
            executions=pruned.executions,
            sessions=pruned.sessions,
            bytes=pruned.bytes,
            older_than_days=wanted.days,
            keep=wanted.keep,
            compacted=pruned.compacted,
        )

    async def Shutdown(self, request: api.ShutdownRequest, context: Any) -> api.ShutdownResponse:
        """Ends the server after the answer; what runs is handed back. All organisations lose it: its owner may, no key."""
        if not caller_of_call().owns_the_machine:
            refused = Refused(
                "only the owner of the server's machine may end it, with the token of its home",
                code="forbidden",
                hint="stigmer down, on that machine",
            )
            await abort(context, refused, home=self._home.path, about="shutdown")
        if request.if_idle and (self._engine.running or self._store.feed.watchers):
            busy = Refused(
                f"the server is busy: {self._engine.running} executions run", code="busy", hint="stigmer down"
            )
            await abort(context, busy, home=self._home.path, about="shutdown")
        self._end.set()
        return api.ShutdownResponse()


def _wanted(request: api.PruneExecutionsRequest) -> Retention:
    days = request.older_than_days if request.HasField("older_than_days") else None
    return Retention(days, request.keep if request.HasField("keep") else None)


def _served() -> list[api.ServedModel]:
    """The llama.cpp children, if that module was ever needed."""
    module = sys.modules.get("graphton.chat.llamacpp")
    served = module.served() if module is not None and hasattr(module, "served") else ()
    return [api.ServedModel(model=model, pid=pid) for model, pid in served]
