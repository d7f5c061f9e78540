"""KeyService: makes, lists and ends the keys that callers from elsewhere show."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

from stigmer import redact
from stigmer.api import service_pb2 as api
from stigmer.api import service_pb2_grpc
from stigmer.home import Home
from stigmer.server._activity import Activity
from stigmer.server.auth import caller, digest_of, new_key
from stigmer.server.status import Refused, abort
from stigmer.store import KeyRow, KeyTable

__all__ = ["WORDS", "KeyService"]

WORDS = ("read", "run", "worker", "admin")
"""The scopes there are."""
NAME_LIMIT = 200
_DAY_MS = 24 * 3600 * 1000
Answer = TypeVar("Answer")


class KeyService(service_pb2_grpc.KeyServiceServicer):
    """The methods of proto/stigmer/v1. A key's text is in the answer to CreateKey and nowhere else."""

    def __init__(self, *, home: Home, keys: KeyTable, activity: Activity) -> None:
        self._home, self._keys, self._activity = home, keys, activity

    async def CreateKey(self, request: api.CreateKeyRequest, context: Any) -> api.CreateKeyResponse:
        """Makes a key, and shows it this once."""
        return await self._answered(context, self._create(request))

    async def ListKeys(self, request: api.ListKeysRequest, context: Any) -> api.ListKeysResponse:
        """All keys, never their text."""
        return await self._answered(context, self._list())

    async def RevokeKey(self, request: api.RevokeKeyRequest, context: Any) -> api.RevokeKeyResponse:
        """Ends a key for good."""
        return await self._answered(context, self._revoke(request.id))

    async def _answered(self, context: Any, work: Awaitable[Answer]) -> Answer:
        with self._activity.call():
            try:
                return await work
            except Exception as error:
                await abort(context, error, home=self._home.path, about="key")

    async def _create(self, request: api.CreateKeyRequest) -> api.CreateKeyResponse:
        name = request.name.strip()
        if not name or len(name) > NAME_LIMIT or not name.isprintable():
            raise Refused(
                f"the key's name {request.name[:50]!r} is not 1 to {NAME_LIMIT} printable characters",
                code="usage",
                hint="--name says who or what the key is for",
            )
        id, secret = new_key()
        redact.remember([secret])
        days = request.expires_days
        row = await self._keys.add(
            id,
            name=name,
            digest=digest_of(secret),
            scopes=_scopes(request.scopes),
            by=caller(request.by),
            expires_ms=self._keys.now_ms + days * _DAY_MS if days else None,
        )
        return api.CreateKeyResponse(key=_shown(row), secret=secret)

    async def _list(self) -> api.ListKeysResponse:
        return api.ListKeysResponse(keys=map(_shown, await self._keys.all()))

    async def _revoke(self, id: str) -> api.RevokeKeyResponse:
        revoked = await self._keys.revoke(id)
        if not revoked and await self._keys.get(id) is None:
            raise Refused(f"there is no key {id[:50]!r}", code="not_found", hint="stigmer key list")
        return api.RevokeKeyResponse(revoked=revoked)


def _scopes(given: Sequence[str]) -> str:
    """The scopes in their usual order. Raises Refused."""
    unknown = sorted(set(given) - set(WORDS))
    if unknown or not given:
        raise Refused(
            f"scope {unknown[0][:50]!r} is none of {', '.join(WORDS)}" if unknown else "a key needs a scope",
            code="usage",
            hint="--scope run",
        )
    return " ".join(word for word in WORDS if word in given)


def _shown(row: KeyRow) -> api.ApiKey:
    return api.ApiKey(
        id=row.id,
        name=row.name,
        scopes=row.scopes.split(),
        created_by=row.created_by,
        created_ms=row.created_ms,
        expires_ms=row.expires_ms or 0,
        revoked_ms=row.revoked_ms or 0,
    )
