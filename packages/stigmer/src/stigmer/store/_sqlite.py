"""What is special to SQLite: opening, pragmas, migrations, and which commits wait for the disk."""

from __future__ import annotations

import os
import sqlite3
from functools import cache
from importlib.resources import files
from pathlib import Path

__all__ = ["VERSION", "connect", "migrate", "query", "set_durable"]


@cache
def query(name: str) -> str:
    """The SQL of queries/<name>.sql."""
    return (files("stigmer.store") / "queries" / f"{name}.sql").read_text(encoding="utf-8")


def _migrations() -> list[str]:
    folder = files("stigmer.store") / "migrations"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return [(folder / name).read_text(encoding="utf-8") for name in names]


@cache
def _version() -> int:
    return len(_migrations())


VERSION = _version()
"""The schema this program writes: how many migrations there are."""


def connect(path: Path) -> sqlite3.Connection:
    """A connection in autocommit, used by one thread at a time; the file is made for its owner alone."""
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        # 200 pages keep the WAL file under 1 MB at no measured cost; SQLite's own 1,000 leave 4 MB for ever.
        db.execute("PRAGMA wal_autocheckpoint = 200")
        db.execute("PRAGMA synchronous = NORMAL")
    except sqlite3.Error:
        db.close()
        raise
    return db


def set_durable(db: sqlite3.Connection, durable: bool) -> None:
    """FULL survives a power cut; NORMAL survives a killed process and costs a tenth. Never inside a transaction."""
    db.execute("PRAGMA synchronous = FULL" if durable else "PRAGMA synchronous = NORMAL")


def migrate(db: sqlite3.Connection) -> int:
    """Brings the schema up to VERSION and gives the version found; a newer one is left untouched."""
    (found,) = db.execute("PRAGMA user_version").fetchone()
    for number, script in enumerate(_migrations(), start=1):
        if number > found:
            db.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {number};\nCOMMIT;")
    return int(found)
