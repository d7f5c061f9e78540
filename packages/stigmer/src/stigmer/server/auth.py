"""Who may call, and what: the home's token on its own machine, an API key from anywhere, by a table of methods."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, Protocol

import grpc.aio
from graphton.errors import JournalError

from stigmer.api import event_pb2 as pb
from stigmer.organisations import DEFAULT_ORGANISATION, RULE, is_organisation
from stigmer.server._audit import Audit
from stigmer.server._door import LOOK_SECONDS, Visit, end, guarded
from stigmer.server._limits import (
    FAILURES,
    FAILURES_A_SECOND,
    MOST,
    WORKERS_MORE,
    Buckets,
    Limits,
    Streams,
    address_of,
)
from stigmer.store import KeyRow, KeyTable

__all__ = [
    "LOOKS",
    "ORGANISATION",
    "SCOPES",
    "Access",
    "Caller",
    "Outside",
    "Tokens",
    "Unknown",
    "allows",
    "by_unix_socket",
    "caller",
    "caller_of_call",
    "digest_of",
    "may",
    "new_key",
    "token_of",
]

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
    _WORKERS + "Ready": "worker",
    _WORKERS + "GoneFolders": "worker",
}
"""What a method needs. One that is not here needs `admin`."""
LOOKS = {
    _EXECUTIONS + "PreviewExecution",
    "/stigmer.v1.ConfigService/ResolveConfig",
    "/stigmer.v1.ModelService/PreloadModel",
    _KEYS + "ListKeys",
    _WORKERS + "ReadEvents",
    _WORKERS + "Ready",
    _WORKERS + "GoneFolders",
}
"""Methods that need more than `read` and change nothing."""
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
    id: str = ""
    """What tells him from others: a key's id, a token's subject; "" for the home's token."""
    until: float = field(default=math.inf, compare=False)
    """When his token has ended, in Unix time; whether a key still holds is looked up."""

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


@dataclass(frozen=True, slots=True)
class Outside:
    """What a server that others can reach has beside its keys."""

    limits: Limits
    audit: Audit
    issuer: Tokens | None = None


class Tokens(Protocol):
    """Whoever says whose a bearer token is."""

    async def caller(self, token: str) -> Caller:
        """Who shows it. Raises Unknown."""
        ...


class Unknown(Exception):
    """Nobody whom we know. The text says why, for our log: who knocks is told nothing that would help him."""


class Access(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    """Lets a call in that shows the home's token, from this machine, or an API key with the scope that it needs.

    Words are compared in constant time. No method runs before it is known who calls it. A server for others has an
    `outside`: tokens of an identity provider are let in too, who calls too often is refused, and lines are written.
    """

    def __init__(
        self, token: str, keys: KeyTable, *, outside: Outside | None = None, look: float = LOOK_SECONDS
    ) -> None:
        """Open streams are looked after every `look` seconds: whether their callers may still hear."""
        self._token, self._keys, self._look = token.encode(), keys, look
        self._known: dict[str, tuple[float, KeyRow | None]] = {}
        limits = outside.limits if outside else Limits(calls=0)
        self._audit = outside.audit if outside else None
        self._issuer = outside.issuer if outside else None
        self._calls = Buckets(limits.calls, limits.burst)
        self._workers = Buckets(limits.calls * WORKERS_MORE, limits.burst * WORKERS_MORE)
        self._streams = Streams(limits.streams)
        self._failures = Buckets(FAILURES_A_SECOND if outside else 0, FAILURES)
        self._told = Buckets(0.1, 1)
        """Of those who are refused for asking too often, not every call is told."""
        self._welcome: OrderedDict[str, None] = OrderedDict()
        """Digests of what was shown by callers whom we let in: others of their address do not keep them out."""

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
        needed = SCOPES.get(method, "admin")
        # A worker reads as many records as it has executions.
        watches = handler.response_streaming and needed != "worker"

        async def admit(context: Any) -> Visit:
            knock = _Knock(context, shown, method, needed, about, watches)
            who = await self._admitted(knock)
            _caller.set(who)
            return self._visit(knock, who)

        return guarded(handler, admit)

    def _visit(self, knock: _Knock, who: Caller) -> Visit:
        """What goes with the call until it ends."""
        limited = knock.watches and not who.owns_the_machine
        return Visit(
            knock.context,
            audit=self._audit,
            quiet=knock.needs == "read" or knock.method in LOOKS,
            said=_said(knock, who),
            streams=self._streams.one(who.id) if limited else None,
            over=None if who.owns_the_machine else lambda: self._over(knock.shown, who),
            look=self._look,
        )

    async def _admitted(self, knock: _Knock) -> Caller:
        """Whose call it is, when it may go on; else ends it."""
        context, about = knock.context, knock.about
        if hmac.compare_digest(knock.shown, self._token) and _from_here(context):
            return _OWNER if not about else replace(_OWNER, organisation=await _checked(context, about))
        who = await self._who(knock)
        calls = self._workers if knock.needs == "worker" else self._calls
        if wait := calls.take(who.id):
            text = f"{who.name} makes more than {calls.rate:.0f} calls a second"
            await self._refuse(knock, _too_many(text, wait), who)
        if not may(who, knock.needs):
            await self._refuse(knock, _not_allowed(who, knock.needs), who)
        if about not in ("", who.organisation):
            await self._refuse(knock, _another(who), who)
        if knock.watches and self._streams.full(who.id):
            text = f"{who.name} has {self._streams.most} streams open, and may not open more"
            await self._refuse(knock, _too_many(text, 1.0), who)
        return who

    async def _who(self, knock: _Knock) -> Caller:
        """Who shows what was shown; ends the call of anybody else, and of whoever tries too often."""
        address = address_of(str(knock.context.peer()))
        digest = hashlib.sha256(knock.shown).hexdigest()
        if digest not in self._welcome and (wait := self._failures.wait(address)):
            await self._refuse(knock, _too_many("too many calls from this address were refused", wait))
        try:
            who = await self._caller_of(knock.shown.decode("utf-8", "replace"))
        except JournalError as error:
            await end(knock.context, pb.Error(code="store", message=error.message, hint=error.hint))
        except Unknown as error:
            self._welcome.pop(digest, None)
            self._failures.take(address)
            await self._refuse(knock, _UNKNOWN, reason=str(error))
        self._welcome[digest] = None
        self._welcome.move_to_end(digest)
        if len(self._welcome) > MOST:
            self._welcome.popitem(last=False)
        return who

    async def _caller_of(self, shown: str) -> Caller:
        """Raises Unknown, JournalError."""
        if self._issuer is not None and shown.count(".") == 2 and not shown.startswith(_PREFIX):
            return await self._issuer.caller(shown)
        key = await self._key(shown)
        if key is None:
            raise Unknown("no key of ours, or one that holds no more" if shown else "nothing was shown")
        scopes = frozenset(key.scopes.split())
        return Caller(f"key {key.name}", scopes, key.organisation, "key", id=key.id)

    async def _over(self, shown: bytes, who: Caller) -> pb.Error | None:
        """Why somebody who was let in may hear no more. A database that is away ends no stream."""
        if who.kind == "oidc":
            return _TOKEN_ENDED if time.time() >= who.until else None
        try:
            return None if await self._key(shown.decode("utf-8", "replace")) else _KEY_ENDED
        except JournalError:
            return None

    async def _refuse(
        self, knock: _Knock, error: pb.Error, who: Caller | None = None, *, reason: str = ""
    ) -> NoReturn:
        """Ends the call, and tells of it."""
        peer = str(knock.context.peer())
        often = error.code == "too_many_calls" and self._told.take(who.id if who else address_of(peer)) > 0
        if self._audit is not None and not often:
            self._audit.tell(error.code, **_said(knock, who), reason=reason or error.message)
        await end(knock.context, error)

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


class _Knock(NamedTuple):
    """A call at the door: what it shows, and what it wants."""

    context: Any
    shown: bytes
    method: str
    needs: str
    about: str
    """The organisation that it names; "" is none."""
    watches: bool
    """It opens a stream that may last."""


def _said(knock: _Knock, who: Caller | None) -> dict[str, Any]:
    """What a line says of any call."""
    key = who.id if who else ""
    return {
        "method": knock.method.removeprefix("/stigmer.v1."),
        "who": (who.name or "owner") if who else "",
        "key": key,
        "organisation": who.organisation if who else "",
        "peer": str(knock.context.peer()),
    }


def _not_allowed(who: Caller, needed: str) -> pb.Error:
    words = " ".join(sorted(who.scopes)) or "nothing"
    if who.kind == "oidc":
        return pb.Error(
            code="forbidden",
            message=f"{who.name} may {words}, and this needs {needed}",
            hint="which scopes a token has is set at the identity provider",
        )
    return pb.Error(
        code="forbidden",
        message=f"the key {who.name.removeprefix('key ')!r} may {words}, and this needs {needed}",
        hint="stigmer key create " + ("--admin" if needed == "admin" else f"--scope {needed}"),
    )


def _too_many(text: str, wait: float) -> pb.Error:
    """Refused for now; programs find the seconds in the details."""
    return pb.Error(
        code="too_many_calls",
        message=text,
        hint=f"try again in {math.ceil(wait)} s",
        details={"retry_after_seconds": f"{wait:.3f}"},
    )


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
        await end(
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
        hint="unset STIGMER_ORGANISATION: a key acts in its own",
    )


_KEY_ENDED = pb.Error(
    code="unauthenticated", message="the key that opened this stream holds no more", hint="stigmer key list"
)
_TOKEN_ENDED = pb.Error(
    code="unauthenticated",
    message="the token that opened this stream has ended",
    hint="show a fresh token of the identity provider; what ran goes on: stigmer attach",
)
_UNKNOWN = pb.Error(
    code="unauthenticated",
    message="the server does not know this token",
    hint="the token is in the file `token` of the server's STIGMER_HOME and serves that machine only; from elsewhere "
    "show an API key: stigmer key create",
)
