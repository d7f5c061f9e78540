"""The store: executions and their events, each query once. SQLite today; a second dialect plugs in beside `_sqlite`."""

from __future__ import annotations

from stigmer.store._feed import Feed, Watcher
from stigmer.store._store import Row, Store, StoreError, new_id

__all__ = ["Feed", "Row", "Store", "StoreError", "Watcher", "new_id"]
