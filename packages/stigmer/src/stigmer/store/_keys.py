"""API keys as the store keeps them: a digest each, never the key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stigmer.organisations import DEFAULT_ORGANISATION
from stigmer.store._dialect import Session

if TYPE_CHECKING:
    from stigmer.store._store import Store

__all__ = ["KeyRow", "KeyTable"]


@dataclass(frozen=True, slots=True)
class KeyRow:
    """One key; `digest` is the SHA-256 of its text, in hex."""

    id: str
    name: str
    digest: str
    scopes: str
    created_by: str
    created_ms: int
    expires_ms: int | None
    revoked_ms: int | None
    organisation: str = DEFAULT_ORGANISATION
    """What it sees and acts in; nothing of another one."""

    def holds(self, now_ms: int) -> bool:
        """Whether it still lets anybody in."""
        return self.revoked_ms is None and (self.expires_ms is None or now_ms < self.expires_ms)


class KeyTable:
    """The keys of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def now_ms(self) -> int:
        """The store's clock, by which keys expire."""
        return self._store.now_ms

    async def add(
        self,
        id: str,
        *,
        name: str,
        digest: str,
        scopes: str,
        by: str,
        expires_ms: int | None,
        organisation: str = DEFAULT_ORGANISATION,
    ) -> KeyRow:
        """Keeps a new key."""
        values = {
            "id": id, "name": name, "digest": digest, "scopes": scopes, "created_by": by,
            "expires_ms": expires_ms, "organisation": organisation,
        }  # fmt: skip

        def work(db: Session) -> None:
            db.run("add_key", {**values, "now": db.now_ms})

        await self._store.change(work)
        found = await self.get(id)
        assert found is not None
        return found

    async def get(self, id: str) -> KeyRow | None:
        """The key of that id, whatever its organisation."""
        rows = await self._store.rows("key", {"id": id})
        return next((KeyRow(*row) for row in rows), None)

    async def all(self, *, organisation: str | None = None) -> list[KeyRow]:
        """Those of one organisation, or of all: the oldest first; those that hold no more too."""
        return [KeyRow(*row) for row in await self._store.rows("keys", {"organisation": organisation})]

    async def revoke(self, id: str, *, organisation: str | None = None) -> bool:
        """Ends a key of this organisation, or of any; whether it held until now."""

        def work(db: Session) -> bool:
            values = {"id": id, "organisation": organisation, "now": db.now_ms}
            return db.run("revoke_key", values).fetchone() is not None

        return await self._store.change(work)
