"""API keys as the store keeps them: a digest each, never the key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
        self, id: str, *, name: str, digest: str, scopes: str, by: str, expires_ms: int | None
    ) -> KeyRow:
        """Keeps a new key."""

        def work(db: Session) -> None:
            values = {"id": id, "name": name, "digest": digest, "scopes": scopes, "created_by": by}
            db.run("add_key", {**values, "now": db.now_ms, "expires_ms": expires_ms})

        await self._store.change(work)
        found = await self.get(id)
        assert found is not None
        return found

    async def get(self, id: str) -> KeyRow | None:
        rows = await self._store.rows("key", {"id": id})
        return next((KeyRow(*row) for row in rows), None)

    async def all(self) -> list[KeyRow]:
        """The oldest first; those that hold no more too."""
        return [KeyRow(*row) for row in await self._store.rows("keys", {})]

    async def revoke(self, id: str) -> bool:
        """Whether the key held until now."""

        def work(db: Session) -> bool:
            return db.run("revoke_key", {"id": id, "now": db.now_ms}).fetchone() is not None

        return await self._store.change(work)
