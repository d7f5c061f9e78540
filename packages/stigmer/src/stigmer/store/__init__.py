"""The store: executions and their events, each query once, on SQLite (`_sqlite`) or PostgreSQL (`_postgres`)."""

from __future__ import annotations

from stigmer.store._dialect import StoreError
from stigmer.store._feed import Feed, Watcher
from stigmer.store._keys import KeyRow, KeyTable
from stigmer.store._prune import Expendable
from stigmer.store._store import Busy, Gone, Moved, Row, SessionRow, Store, new_id

__all__ = [
    "Busy",
    "Expendable",
    "Feed",
    "Gone",
    "KeyRow",
    "KeyTable",
    "Moved",
    "Row",
    "SessionRow",
    "Store",
    "StoreError",
    "Watcher",
    "new_id",
]
