"""The database of a home, looked at without changing it."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

from stigmer.doctor._check import FAIL, OK, WARN, Check, check
from stigmer.store._dialect import migrations, newer

__all__ = ["sqlite_file"]

SECONDS = 1.0
"""How long the file is looked through when nobody asked for a deep look."""


def sqlite_file(path: Path, *, deep: bool) -> Check:
    """Whether the file can be read, is of a version that we know, and is whole."""
    if not path.exists():
        return check("home.database", OK, "no database yet; the first run makes it", path=str(path))
    facts: dict[str, object] = {"path": str(path), "bytes": path.stat().st_size}
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=1.0)) as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            facts |= {"schema": version, "schema_known": len(migrations())}
            if version > len(migrations()):
                error = newer(str(path), version)
                return check("home.database", FAIL, error.message, error.hint, **facts)
            faults = _faults(db, deep=deep)
    except sqlite3.Error as error:
        return check(
            "home.database",
            FAIL,
            f"the database {str(path)!r} cannot be read: {error}",
            f"stigmer down, then move it away: mv {path} {path}.old",
            **facts,
        )
    text = f"database {path.name}, {path.stat().st_size / 1e6:.1f} MB, schema {version}"
    if faults is None:
        text += f"; looked through for {SECONDS:g} s without a fault (all of it: stigmer doctor --deep)"
        return check("home.database", OK, text, **facts, checked="part")
    if faults:
        return check(
            "home.database",
            WARN,
            f"{text}: damaged: {'; '.join(faults[:3])}",
            f"save what can be read: stigmer down; sqlite3 {path} .recover | sqlite3 {path}.new",
            **facts,
            faults=faults,
            checked="all",
        )
    return check("home.database", OK, f"{text}, whole", **facts, checked="all")


def _faults(db: sqlite3.Connection, *, deep: bool) -> list[str] | None:
    """What SQLite finds wrong; None where the time was over before it had seen all."""
    deadline = time.monotonic() + SECONDS
    if not deep:
        db.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
    try:
        rows = [str(text) for (text,) in db.execute("PRAGMA quick_check(10)")]
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        return None
    return [] if rows == ["ok"] else rows
