"""ConfigService: what the cascade makes of a request's layers, for those who ask before they run."""

from __future__ import annotations

import json
from collections.abc import Awaitable
from typing import Any, Protocol

from stigmer.api import event_pb2 as pb
from stigmer.api import service_pb2 as api
from stigmer.api import service_pb2_grpc
from stigmer.config import Beside
from stigmer.home import Home
from stigmer.server._activity import Activity
from stigmer.server.auth import by_unix_socket
from stigmer.server.status import abort

__all__ = ["ConfigService"]


class _Explains(Protocol):
    def explain(
        self, request: api.CreateExecutionRequest, *, local: bool
    ) -> Awaitable[tuple[pb.ConfigResolved, tuple[str, ...]]]: ...

    def beside(self, request: api.CreateExecutionRequest, *, local: bool) -> Awaitable[Beside]: ...


class ConfigService(service_pb2_grpc.ConfigServiceServicer):
    """The method of proto/stigmer/v1. A request over TCP is refused here as it would be for a run."""

    def __init__(self, *, home: Home, activity: Activity, resolver: _Explains) -> None:
        self._home, self._activity, self._resolver = home, activity, resolver

    async def ResolveConfig(
        self, request: api.CreateExecutionRequest, context: Any
    ) -> api.ResolveConfigResponse:
        """Every setting with its source, as far as it could be resolved, and the problems beside them."""
        with self._activity.call():
            try:
                local = by_unix_socket(context)
                found, problems = await self._resolver.explain(request, local=local)
                more = await self._resolver.beside(request, local=local)
            except Exception as error:
                await abort(context, error, home=self._home.path, about="config")
            answer = api.ResolveConfigResponse(config=found, problems=problems)
            answer.approvals.extend(api.ApprovalRule(**rule) for rule in more.rules)
            for name, (value, source) in more.values.items():
                answer.others.add(name=name, value=json.dumps(value), source=source)
            return answer
