"""Who may call, and what: the home's token on its own machine, an API key from anywhere, by a table of methods."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import secrets
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn

import grpc
import grpc.aio
from graphton.errors import JournalError

from stigmer.api import event_pb2 as pb
from stigmer.server.status import DETAIL, status_of
from stigmer.store import KeyRow, KeyTable

__all__ = [
    "SCOPES",
    "Access",
    "allows",
    "by_unix_socket",
    "caller",
    "digest_of",
    "new_key",
    "token_of",
]

log = logging.getLogger("stigmer.audit")

_EXECUTIONS, _SESSIONS = "/stigmer.v1.ExecutionService/", "/stigmer.v1.SessionService/"
_SYSTEM, _KEYS, _WORKERS = (
    "/stigmer.v1.SystemService/",
    "/stigmer.v1.KeyService/",
    "/stigmer.v1.WorkerService/",
)

SCOPES = {
    _EXECUTIONS + "CreateExecution": "run",
    _EXECUTIONS + "RunExecution": "run",
    _EXECUTIONS + "CancelExecution": "run",
    _EXECUTIONS + "PauseExecution": "run",
    _EXECUTIONS + "ResumeExecution": "run",
    _EXECUTIONS + "DecideApproval": "run",
    _EXECUTIONS + "PreviewExecution": "run",
    _EXECUTIONS + "WakeExecutions": "run",
    _EXECUTIONS + "WatchExecution": "read",
    _EXECUTIONS + "GetExecution": "read",
    _EXECUTIONS + "ListExecutions": "read",
    _SESSIONS + "GetSession": "read",
    _SESSIONS + "ListSessions": "read",
    _SESSIONS + "DeleteSession": "run",
    "/stigmer.v1.ConfigService/ResolveConfig": "run",
    "/stigmer.v1.ModelService/PreloadModel": "run",
    _SYSTEM + "GetStatus": "read",
    _SYSTEM + "Shutdown": "admin",
    _SYSTEM + "PruneExecutions": "admin",
    _KEYS + "CreateKey": "admin",
    _KEYS + "ListKeys": "admin",
    _KEYS + "RevokeKey": "admin",
    _WORKERS + "Attend": "worker",
    _WORKERS + "ReadEvents": "worker",
}
"""What a method needs. One that is not here needs `admin`."""
_GRANTS = {"read": {"read"}, "run": {"run", "read"}, "worker": {"worker"}, "admin": {"admin", "run", "read"}}

FRESH_SECONDS = 5.0
"""So long a key that was looked up is believed: a revoked one works no longer than that."""
_PREFIX = "stk_"

_caller: ContextVar[str] = ContextVar("caller", default="")


def caller(claimed: str) -> str:
    """Who is calling: a key's name where one was shown, else what the caller says of himself."""
    return _caller.get() or claimed


def allows(scopes: str, needed: str) -> bool:
    """Whether a key with these scopes may call a method that needs this one."""
    return any(needed in _GRANTS.get(scope, ()) for scope in scopes.split())


def new_key() -> tuple[str, str]:
    """A new key's id, and the key itself, which begins with it."""
    id = _PREFIX + secrets.token_hex(6)
    return id, f"{id}_{secrets.token_urlsafe(32)}"


def digest_of(key: str) -> str:
    """What is kept of a key. It is random and long, so a plain hash cannot be guessed back."""
    return hashlib.sha256(key.encode()).hexdigest()


def token_of(path: Path) -> str:
    """The token in this file; made, for its owner alone, where there is none."""
    try:
        found = path.read_text(errors="replace").strip()
    except FileNotFoundError:
        found = ""
    if len(found) >= 32 and found.isascii():
        path.chmod(0o600)
        return found
    token = secrets.token_hex(32)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(token + "\n")
    new.replace(path)
    return token


def by_unix_socket(context: Any) -> bool:
    """Whether the call came over a Unix socket: the only way for secrets and the caller's own files."""
    return str(context.peer()).startswith("unix:")


def _from_here(context: Any) -> bool:
    """Whether the caller is on this machine."""
    peer = str(context.peer())
    return peer.startswith(("unix:", "ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1%5D"))


class Access(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    """Lets a call in that shows the home's token, from this machine, or an API key with the scope that it needs.

    Words are compared in constant time. `beyond` says that callers may come from elsewhere; else the socket alone
    is open, and a token that is right needs no second look.
    """

    def __init__(self, token: str, keys: KeyTable, *, beyond: bool = False) -> None:
        self._token, self._keys, self._beyond = token.encode(), keys, beyond
        self._known: dict[str, tuple[float, KeyRow | None]] = {}

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """Hands on what is allowed; anything else meets a handler that refuses it."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        shown = _shown(handler_call_details.invocation_metadata)
        if not self._beyond and hmac.compare_digest(shown, self._token):
            return handler
        method = str(handler_call_details.method)

        async def admit(context: Any) -> None:
            await self._admit(context, shown, method)

        return _guarded(handler, admit)

    async def _admit(self, context: Any, shown: bytes, method: str) -> None:
        """Returns when the call may go on, and remembers whose it is; else ends it."""
        if hmac.compare_digest(shown, self._token) and _from_here(context):
            return
        needed = SCOPES.get(method, "admin")
        try:
            key = await self._key(shown.decode("utf-8", "replace"))
        except JournalError as error:
            await _end(context, pb.Error(code="store", message=error.message, hint=error.hint))
        if key is None:
            await _end(context, _UNKNOWN)
        if not allows(key.scopes, needed):
            log.warning("refused method=%s key=%s name=%r needs=%s", method, key.id, key.name, needed)
            await _end(
                context,
                pb.Error(
                    code="forbidden",
                    message=f"the key {key.name!r} may {key.scopes}, and this needs {needed}",
                    hint=f"stigmer key create --scope {needed}",
                ),
            )
        _caller.set(f"key {key.name}")
        if needed != "read":
            log.info("called method=%s key=%s name=%r peer=%s", method, key.id, key.name, context.peer())

    async def _key(self, shown: str) -> KeyRow | None:
        """The key that was shown, where it is one of ours and still holds."""
        id = shown[: len(_PREFIX) + 12]
        if not shown.startswith(_PREFIX) or len(shown) < 40:
            return None
        now = asyncio.get_running_loop().time()
        looked, row = self._known.get(id, (0.0, None))
        if now - looked >= FRESH_SECONDS:
            row = await self._keys.get(id)
            if row is None:  # Nothing is remembered of what anybody may make up.
                self._known.pop(id, None)
                return None
            self._known[id] = (now, row)
        if row is None or not hmac.compare_digest(row.digest, digest_of(shown)):
            return None
        return row if row.holds(self._keys.now_ms) else None


def _shown(metadata: Any) -> bytes:
    """What the caller shows: `authorization: Bearer WORD`, once."""
    found = [value for key, value in metadata or () if key == "authorization"]
    given = found[0] if len(found) == 1 else ""
    data = given if isinstance(given, bytes) else given.encode("utf-8", "replace")
    return data.removeprefix(b"Bearer ") if data.startswith(b"Bearer ") else b""


def _guarded(handler: Any, admit: Callable[[Any], Awaitable[None]]) -> Any:
    """The same method, whose caller must be admitted first."""
    wires = {
        "request_deserializer": handler.request_deserializer,
        "response_serializer": handler.response_serializer,
    }
    if handler.request_streaming:

        async def attend(requests: Any, context: Any) -> Any:
            await admit(context)
            return await handler.stream_stream(requests, context)

        return grpc.stream_stream_rpc_method_handler(attend, **wires)
    if handler.response_streaming:

        async def stream(request: Any, context: Any) -> Any:
            await admit(context)
            async for answer in handler.unary_stream(request, context):
                yield answer

        return grpc.unary_stream_rpc_method_handler(stream, **wires)

    async def answer(request: Any, context: Any) -> Any:
        await admit(context)
        return await handler.unary_unary(request, context)

    return grpc.unary_unary_rpc_method_handler(answer, **wires)


_UNKNOWN = pb.Error(
    code="unauthenticated",
    message="the server does not know this token",
    hint="the token is in the file `token` of the server's STIGMER_HOME and serves that machine only; from elsewhere "
    "show an API key: stigmer key create",
)


async def _end(context: Any, error: pb.Error) -> NoReturn:
    await context.abort(
        status_of(error.code), error.message, trailing_metadata=((DETAIL, error.SerializeToString()),)
    )
    raise AssertionError("abort() always raises")
