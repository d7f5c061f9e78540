"""What is special to SQLite: opening, pragmas, migrations, and which commits wait for the disk."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from stigmer.store._dialect import Found, Session, StoreError, Values, migrations, newer, query

__all__ = ["SQLite", "query"]

Answer = TypeVar("Answer")


class SQLite:
    """One file, one writer, called in the event loop. The home's lock makes this process the only one."""

    alone = True
    direct = True
    error: type[Exception] = sqlite3.Error
    misuse: tuple[type[Exception], ...] = (sqlite3.ProgrammingError, sqlite3.InterfaceError)
    unreadable = "stigmer down; if it stays so, move the file away: a new one is made at the next start"

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path, self.name = path, str(path)
        self._clock = clock
        try:
            self.writer = _connect(path)
            found = _migrate(self.writer)
            if found > len(migrations()):
                self.writer.close()
                raise newer(self.name, found)
            self._reader = _connect(path)
            self._reader.execute("PRAGMA query_only = ON")
        except sqlite3.Error as error:
            raise StoreError(
                f"the database {self.name!r} cannot be opened: {error}",
                hint=self.refused(error),
            ) from error

    @property
    def now_ms(self) -> int:
        return int(self._clock() * 1000)

    def run(self, name: str, values: Values, /) -> Found:
        return self.writer.execute(query(name), values)

    def run_many(self, name: str, values: Sequence[Values], /) -> None:
        self.writer.executemany(query(name), values)

    def refused(self, error: Exception) -> str:
        """What helps, by the cause that SQLite names."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # The rest of the number is detail.
        return _CURES.get(code, _CURES[sqlite3.SQLITE_IOERR]).format(path=self.path, folder=self.path.parent)

    def commit(self, work: Callable[[Session], Answer], *, durable: bool) -> Answer:
        """One that finds the file read-only is tried once more on a new connection: the old one stays so for ever."""
        try:
            return self._commit(work, durable=durable)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_READONLY or not self.path.exists():
                raise
            self._connect_anew()
        return self._commit(work, durable=durable)

    def _connect_anew(self) -> None:
        old, self.writer = self.writer, _connect(self.path)
        old.close()

    def _commit(self, work: Callable[[Session], Answer], *, durable: bool) -> Answer:
        db = self.writer
        try:
            if durable:
                _set_durable(db, True)
            db.execute("BEGIN IMMEDIATE")
            answer = work(self)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        finally:
            if durable:
                _set_durable(db, False)
        return answer

    def read(
        self, name: str, values: Values, pick: Callable[[Iterable[tuple[object, ...]]], Answer]
    ) -> Answer:
        with closing(self._reader.execute(query(name), values)) as rows:
            return pick(rows)

    def rest(self) -> None:
        """Empties the WAL file into the database."""
        self.writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def slack(self) -> float:
        ((free,),) = self._reader.execute("PRAGMA freelist_count")
        ((pages,),) = self._reader.execute("PRAGMA page_count")
        return float(free / pages) if pages else 0.0

    def compact(self) -> None:
        """Writes the file anew, as small as it can be; needs as much room again while it does."""
        self.writer.execute("VACUUM")
        self.rest()

    def hurry(self) -> None:
        """There is nothing to wait for."""

    def close(self) -> None:
        """Both connections end, which also removes the WAL file."""
        self._reader.close()
        self.writer.close()


_CURES = {
    sqlite3.SQLITE_FULL: "make room on the disk: df -h {folder}",
    sqlite3.SQLITE_READONLY: "let stigmer write to it: ls -l {path}; chmod u+w {path}; is the disk mounted read-only?",
    sqlite3.SQLITE_PERM: "let stigmer write to it: ls -ld {folder} {path}",
    sqlite3.SQLITE_CANTOPEN: "let stigmer write to its folder: ls -ld {folder}; and see whether there is room: df -h {folder}",
    sqlite3.SQLITE_BUSY: "another program holds the database; end it: lsof {path}",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; stigmer down, then move it away: mv {path} {path}.old",
    sqlite3.SQLITE_NOTADB: "the file is no database; stigmer down, then move it away: mv {path} {path}.old",
    sqlite3.SQLITE_IOERR: "see whether the disk is well and has room: df -h {folder}; dmesg | tail",
}
"""What helps against an opening or a write that was refused, by SQLite's primary result code; the last stands for any other."""


def _connect(path: Path) -> sqlite3.Connection:
    """A connection in autocommit, used by one thread at a time; the file is made for its owner alone."""
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        # 160 pages keep the WAL file under 0.7 MB at no measured cost; SQLite's own 1,000 leave 4 MB for ever.
        db.execute("PRAGMA wal_autocheckpoint = 160")
        db.execute("PRAGMA synchronous = NORMAL")
    except sqlite3.Error:
        db.close()
        raise
    return db


def _set_durable(db: sqlite3.Connection, durable: bool) -> None:
    """FULL survives a power cut; NORMAL survives a killed process and costs a tenth. Never inside a transaction."""
    db.execute("PRAGMA synchronous = FULL" if durable else "PRAGMA synchronous = NORMAL")


def _migrate(db: sqlite3.Connection) -> int:
    """Brings the schema up to date and gives the version found; a newer one is left untouched."""
    (found,) = db.execute("PRAGMA user_version").fetchone()
    for number, script in enumerate(migrations(), start=1):
        if number > found:
            db.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {number};\nCOMMIT;")
    return int(found)
