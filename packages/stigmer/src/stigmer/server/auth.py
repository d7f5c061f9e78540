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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import grpc
import grpc.aio
from graphton.errors import JournalError

from stigmer.api import event_pb2 as pb
from stigmer.organisations import DEFAULT_ORGANISATION, RULE, is_organisation
from stigmer.server.status import DETAIL, status_of
from stigmer.store import KeyRow, KeyTable

__all__ = [
    "ORGANISATION",
    "SCOPES",
    "Access",
    "Caller",
    "allows",
    "by_unix_socket",
    "caller",
    "caller_of_call",
    "digest_of",
    "may",
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

ORGANISATION = "stigmer-organisation"
"""The metadata that names the organisation a call is about: any with the home's token, its own with a key."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is calling, as this server has checked it, and the organisation that the call sees and acts in."""

    name: str
    """What records say of him, as `key ci`; "" for the home's token, whose holder says it himself."""
    scopes: frozenset[str]
    organisation: str
    kind: Literal["token", "key", "oidc"]

    @property
    def owns_the_machine(self) -> bool:
        """He has the home's token: every organisation is his, and what concerns the whole server."""
        return self.kind == "token"


_caller: ContextVar[Caller] = ContextVar("caller")
_OWNER = Caller("", frozenset({"read", "run", "worker", "admin"}), DEFAULT_ORGANISATION, "token")


def caller_of_call() -> Caller:
    """Who makes the call that is being answered. Raises LookupError outside of one."""
    return _caller.get()


def caller(claimed: str) -> str:
    """Who is calling: a key's name where one was shown, else what the caller says of himself."""
    return caller_of_call().name or claimed


def allows(scopes: str, needed: str) -> bool:
    """Whether a key with these scopes may call a method that needs this one."""
    return any(needed in _GRANTS.get(scope, ()) for scope in scopes.split())


def may(who: Caller, needed: str) -> bool:
    """Whether he may call a method that needs this. A worker serves all organisations: in `default` alone it is one."""
    if needed == "worker" and who.organisation != DEFAULT_ORGANISATION:
        return False
    return allows(" ".join(who.scopes), needed)


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

    Words are compared in constant time. No method runs before it is known who calls it.
    """

    def __init__(self, token: str, keys: KeyTable) -> None:
        self._token, self._keys = token.encode(), keys
        self._known: dict[str, tuple[float, KeyRow | None]] = {}

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """Hands on what is allowed; anything else meets a handler that refuses it."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        shown = _shown(handler_call_details.invocation_metadata)
        about = _organisation(handler_call_details.invocation_metadata)
        method = str(handler_call_details.method)

        async def admit(context: Any) -> None:
            _caller.set(await self._admitted(context, shown, method, about))

        return _guarded(handler, admit)

    async def _admitted(self, context: Any, shown: bytes, method: str, about: str) -> Caller:
        """Whose call it is, when it may go on; else ends it. `about` is the organisation that it names."""
        if hmac.compare_digest(shown, self._token) and _from_here(context):
            return _OWNER if not about else replace(_OWNER, organisation=await _checked(context, about))
        needed = SCOPES.get(method, "admin")
        try:
            key = await self._key(shown.decode("utf-8", "replace"))
        except JournalError as error:
            await _end(context, pb.Error(code="store", message=error.message, hint=error.hint))
        if key is None:
            await _end(context, _UNKNOWN)
        who = Caller(f"key {key.name}", frozenset(key.scopes.split()), key.organisation, "key")
        if not may(who, needed):
            log.warning("refused method=%s key=%s name=%r needs=%s", method, key.id, key.name, needed)
            await _end(
                context,
                pb.Error(
                    code="forbidden",
                    message=f"the key {key.name!r} may {key.scopes}, and this needs {needed}",
                    hint=f"stigmer key create --scope {needed}",
                ),
            )
        if about not in ("", who.organisation):
            await _end(context, _another(who))
        if needed != "read":
            log.info("called method=%s key=%s name=%r peer=%s", method, key.id, key.name, context.peer())
        return who

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


def _organisation(metadata: Any) -> str:
    """The organisation that a call names; "" where it names none."""
    return next((str(value) for key, value in metadata or () if key == ORGANISATION), "")


async def _checked(context: Any, organisation: str) -> str:
    """The same name; ends the call where no organisation can be called so."""
    if not is_organisation(organisation):
        await _end(
            context,
            pb.Error(
                code="usage",
                message=f"no organisation can be called {organisation[:100]!r}",
                hint=RULE,
            ),
        )
    return organisation


def _another(who: Caller) -> pb.Error:
    """The refusal of a call about an organisation that is not the caller's: it tells nothing of that one."""
    return pb.Error(
        code="forbidden",
        message=f"{who.name} belongs to the organisation {who.organisation!r}, and the call names another",
        hint="leave the organisation out: a key acts in its own",
    )


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
