"""SessionService: conversations that several executions share, shown with their executions, and deleted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from stigmer.api import service_pb2 as api
from stigmer.api import service_pb2_grpc
from stigmer.home import Home
from stigmer.server._activity import Activity
from stigmer.server.auth import caller_of_call
from stigmer.server.status import Refused, abort
from stigmer.store import Row, Store

__all__ = ["SessionService"]

LIMIT = 200
Answer = TypeVar("Answer")


class SessionService(service_pb2_grpc.SessionServiceServicer):
    """The methods of proto/stigmer/v1. A session is nothing but its executions, which `brief` shows."""

    def __init__(
        self,
        *,
        home: Home,
        store: Store,
        activity: Activity,
        brief: Callable[[Row], Awaitable[api.Execution]],
    ) -> None:
        self._home, self._store, self._activity, self._brief = home, store, activity, brief

    async def GetSession(self, request: api.GetSessionRequest, context: Any) -> api.Session:
        """A session with its executions, the oldest first."""
        return await self._answered(context, self._get(request.session))

    async def ListSessions(self, request: api.ListSessionsRequest, context: Any) -> api.ListSessionsResponse:
        """The one that was used last comes first."""
        return await self._answered(context, self._list(min(request.limit or 20, LIMIT)))

    async def DeleteSession(
        self, request: api.DeleteSessionRequest, context: Any
    ) -> api.DeleteSessionResponse:
        """Deletes its executions, once all have finished."""
        return await self._answered(context, self._delete(request.session))

    async def _answered(self, context: Any, work: Awaitable[Answer]) -> Answer:
        with self._activity.call():
            try:
                return await work
            except Exception as error:
                await abort(context, error, home=self._home.path, about="session")

    async def _get(self, id: str) -> api.Session:
        rows = await self._rows(id)
        return await self._session(id, rows, count=len(rows))

    async def _list(self, limit: int) -> api.ListSessionsResponse:
        answer = api.ListSessionsResponse()
        for one in await self._store.sessions(organisation=caller_of_call().organisation, limit=limit):
            ends = [one.first] if one.count == 1 else [one.first, one.last]
            answer.sessions.append(await self._session(one.id, ends, count=one.count))
        return answer

    async def _delete(self, id: str) -> api.DeleteSessionResponse:
        await self._rows(id)
        deleted = await self._store.delete_session(id, organisation=caller_of_call().organisation)
        return api.DeleteSessionResponse(executions=deleted)

    async def _rows(self, id: str) -> list[Row]:
        rows = await self._store.of_session(id, organisation=caller_of_call().organisation)
        if not rows:
            raise Refused(f"there is no session {id!r}", code="not_found", hint="stigmer list session")
        return rows

    async def _session(self, id: str, rows: Sequence[Row], *, count: int) -> api.Session:
        first, last = rows[0], rows[-1]
        return api.Session(
            id=id,
            created_ms=first.created_ms,
            used_ms=last.created_ms,
            state=last.state,
            count=count,
            executions=[await self._brief(row) for row in rows],
        )
