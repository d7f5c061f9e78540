"""KeyService: makes, lists and ends the keys that callers from elsewhere show."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

from stigmer import redact
from stigmer.api import service_pb2 as api
from stigmer.api import service_pb2_grpc
from stigmer.home import Home
from stigmer.organisations import DEFAULT_ORGANISATION, RULE, is_organisation
from stigmer.server._activity import Activity
from stigmer.server.auth import Caller, caller, caller_of_call, digest_of, new_key
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
        """The keys of the caller's organisation, with the home's token of all; never their text."""
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
        scopes = _scopes(request.scopes)
        organisation = _organisation(request, caller_of_call())
        id, secret = new_key()
        redact.remember([secret])
        days = request.expires_days
        row = await self._keys.add(
            id,
            name=name,
            digest=digest_of(secret),
            scopes=scopes,
            organisation=organisation,
            by=caller(request.by),
            expires_ms=self._keys.now_ms + days * _DAY_MS if days else None,
        )
        return api.CreateKeyResponse(key=_shown(row), secret=secret)

    async def _list(self) -> api.ListKeysResponse:
        found = await self._keys.all(organisation=_whose(caller_of_call()))
        return api.ListKeysResponse(keys=map(_shown, found))

    async def _revoke(self, id: str) -> api.RevokeKeyResponse:
        whose = _whose(caller_of_call())
        found = await self._keys.get(id)
        if found is None or whose not in (None, found.organisation):
            raise Refused(f"there is no key {id[:50]!r}", code="not_found", hint="stigmer key list")
        return api.RevokeKeyResponse(revoked=await self._keys.revoke(id, organisation=whose))


def _whose(who: Caller) -> str | None:
    """The organisation whose keys somebody sees and ends; None is all of them."""
    return None if who.owns_the_machine else who.organisation


def _organisation(request: api.CreateKeyRequest, who: Caller) -> str:
    """The organisation that the key is for. Raises Refused where the caller may not make such a key."""
    wanted = request.organisation or who.organisation
    if not is_organisation(wanted):
        raise Refused(f"no organisation can be called {wanted[:100]!r}", code="usage", hint=RULE)
    if not who.owns_the_machine and wanted != who.organisation:
        raise Refused(
            f"{who.name} makes keys of its own organisation, {who.organisation!r}, only",
            code="forbidden",
            hint="the owner of the server's machine makes them for any: stigmer key create --organisation NAME",
        )
    if "worker" in request.scopes and not (who.owns_the_machine and wanted == DEFAULT_ORGANISATION):
        raise Refused(
            "a worker serves all organisations: its key is made on the server's machine, without an organisation",
            code="forbidden",
            hint="stigmer key create --name worker-1 --scope worker",
        )
    return wanted


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
        organisation=row.organisation,
    )
