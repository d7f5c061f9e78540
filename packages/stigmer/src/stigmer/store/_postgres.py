"""What is special to PostgreSQL: the address, connections, migrations, and commits whose answer was lost.

One connection writes, in the store's one thread; a few read. A connection that breaks is made again, for PATIENCE
seconds: the database may be restarting. A COMMIT whose answer was lost is not guessed about: its transaction's number
tells whether it happened.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from stigmer import redact
from stigmer.store._dialect import POSTGRES, Found, Session, StoreError, Values, migrations, newer, query

if TYPE_CHECKING:
    import psycopg

__all__ = ["PATIENCE", "READERS", "Postgres"]

Answer = TypeVar("Answer")
SCHEMES = ("postgresql", "postgres")
PATIENCE = 20.0
"""Seconds for which a commit or a read waits for a database that is away; longer than a restart, and than a lease."""
READERS = 4
_DEFAULTS = {
    "connect_timeout": 5, "application_name": "stigmer",
    "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 15000,
}  # fmt: skip
"""What the address may overrule."""
OLDEST = 130000
"""PostgreSQL 13: the first that can be asked about a transaction by its whole number."""
_MIGRATING = 7_377_186_233
"""The advisory lock under which one server at a time brings the schema up to date."""
_EXAMPLE = "e.g. STIGMER_DATABASE_URL=postgresql://stigmer:PASSWORD@db.example.com:5432/stigmer"
_AGAIN = frozenset({"40001", "40P01"})
"""SQLSTATE of transactions that met another one (serialization failure, deadlock): run again at once."""
_MOVED = frozenset({"25006", "57P01", "57P02", "57P03"})
"""SQLSTATE of a server that has become a standby, or ends: another connection must be made."""


class Postgres:
    """One database that several servers may share."""

    alone = False
    direct = False

    def __init__(self, url: str) -> None:
        self.psycopg = _psycopg()
        self.error: type[Exception] = self.psycopg.Error
        self.address = _Address(url, self.psycopg)
        self.name = self.address.shown
        self.sender = secrets.token_hex(4)
        """Tells our own notifications from those of other servers."""
        # What is wrong with a value; a table or a right that is missing is the owner's to mend.
        self.misuse: tuple[type[Exception], ...] = (self.psycopg.DataError, self.psycopg.errors.SyntaxError)
        self.unreadable = f"see whether it is up and has room: pg_isready -d {self.name!r}"
        self._hurry = threading.Event()
        self._idle: list[psycopg.Connection[Any]] = []
        self._ahead_ms = 0
        """How far the database's clock is ahead of this process's monotonic one."""
        try:
            self._writer: psycopg.Connection[Any] | None = self._connect()
        except self.psycopg.Error as error:
            raise StoreError(
                f"the database {self.name!r} cannot be used: {self.address.told(error)}",
                hint="see whether the address, user and password in STIGMER_DATABASE_URL are right and the server is"
                f" up: pg_isready -d {self.name!r}",
            ) from None  # The cause may show the address with its password.
        try:
            self._migrate(self._writer)
        except self.psycopg.Error as error:
            self._writer.close()
            raise StoreError(
                f"the database {self.name!r} cannot be set up: {self.address.told(error)}",
                hint="the user in STIGMER_DATABASE_URL must own the database, or may create tables in its schema",
            ) from error
        except StoreError:
            self._writer.close()
            raise

    # Transactions

    @property
    def now_ms(self) -> int:
        return int(time.monotonic() * 1000) + self._ahead_ms

    def refused(self, error: Exception) -> str:
        """The same for each: this process does not see the server's disk."""
        return self.unreadable

    def commit(self, work: Callable[[Session], Answer], *, durable: bool) -> Answer:
        """`durable` changes nothing: every commit waits for the server's disk, as the server is set up to do.

        A server that is killed loses the last commits where it does not wait, and a watcher may have seen them.
        """
        deadline = time.monotonic() + PATIENCE
        committing: tuple[_Transaction, Answer] | None = None
        while True:
            try:
                db = self._writer = self._writer or self._connect()
                if committing is not None and self._happened(db, committing[0]):
                    return committing[1]
                committing = None
                session = self._begin(db)
                answer = work(session)
                committing = session, answer
                db.execute("COMMIT", prepare=False)
                return answer
            except self.psycopg.Error as error:
                if not self._again(error, deadline):
                    self._roll_back()
                    raise
            except BaseException:
                self._roll_back()
                raise

    def _begin(self, db: psycopg.Connection[Any]) -> _Transaction:
        begun = db.execute(b"BEGIN;" + _text("begin"), prepare=False)  # One round trip.
        begun.nextset()
        now_ms, xid = begun.fetchone() or (0, "")
        self._ahead_ms = now_ms - int(time.monotonic() * 1000)
        return _Transaction(db, now_ms, xid)

    def _happened(self, db: psycopg.Connection[Any], ours: _Transaction) -> bool:
        """Whether the transaction was committed; one that is still being committed is waited for.

        A server that was killed before its disk knew of the number gives it out again: what is said of it may be said
        of another server's transaction by now. So the last event that ours inserted must be there, and be ours.
        """
        while True:
            try:
                (verdict,) = db.execute(_text("verdict"), {"xid": ours.xid}).fetchone() or (None,)
            except self.psycopg.errors.InvalidParameterValue:
                return False  # "in the future": it has not been given out again yet.
            if verdict != "in progress":
                return bool(verdict == "committed") and self._is_there(db, ours.last)
            if self._hurry.wait(0.05):
                raise self.psycopg.OperationalError("it is not known whether the last commit happened")

    def _is_there(self, db: psycopg.Connection[Any], event: Values | None) -> bool:
        """Whether this event is stored; of a transaction that inserted none its number alone must tell."""
        if event is None:
            return True
        found = db.execute(_text("event"), event, binary=True).fetchone()
        return found is not None and bytes(found[0]) == event["body"]

    def _again(self, error: psycopg.Error, deadline: float) -> bool:
        """Whether the transaction is to be run again; waits a little where the server is away."""
        db = self._writer
        if db is not None and not db.closed and error.sqlstate in _AGAIN:
            self._roll_back()
            return time.monotonic() < deadline
        if not self._away(error, db):
            return False
        if db is not None:
            db.close()
            self._writer = None
        return time.monotonic() < deadline and not self._hurry.wait(0.1)

    def _away(self, error: psycopg.Error, db: psycopg.Connection[Any] | None) -> bool:
        """Whether the error is the connection's, not the statement's."""
        if db is None or db.closed or db.broken:
            return True
        if error.sqlstate is None:  # Not the server's word: the driver could not get through to it.
            return isinstance(error, self.psycopg.OperationalError)
        return error.sqlstate in _MOVED or error.sqlstate.startswith("08")

    def _roll_back(self) -> None:
        db = self._writer
        if db is None or db.closed:
            return
        try:
            db.execute("ROLLBACK", prepare=False)
        except self.psycopg.Error:  # The connection is gone, and the transaction with it.
            db.close()
            self._writer = None

    # Reading

    def read(self, name: str, values: Values, pick: Callable[[Iterable[tuple[Any, ...]]], Answer]) -> Answer:
        deadline = time.monotonic() + PATIENCE
        while True:
            db: psycopg.Connection[Any] | None = None
            try:
                db = self._reader()
                rows = db.execute(_text(name), values, binary=True).fetchall()
            except self.psycopg.Error as error:
                away = self._away(error, db)
                if db is not None:
                    db.close()
                if not away or time.monotonic() > deadline or self._hurry.wait(0.1):
                    raise
            else:
                self._idle.append(db)
                return pick(rows)

    def _reader(self) -> psycopg.Connection[Any]:
        try:
            return self._idle.pop()
        except IndexError:  # All are in use.
            return self._connect()

    # Telling other servers

    def notify(self, nos: Iterable[int]) -> None:
        """Tells the other servers that these executions have grown; ids only, many in one message."""
        if self._writer is None:
            return  # They look at their watched executions by themselves now and then.
        numbers = sorted(nos)
        try:
            for first in range(0, len(numbers), 500):  # A message has less than 8,000 bytes.
                listed = ",".join(map(str, numbers[first : first + 500]))
                self._writer.execute(_text("notify"), {"payload": f"{self.sender}:{listed}"})
        except self.psycopg.Error as error:
            if self._away(error, self._writer):
                self._writer.close()
                self._writer = None

    # Opening and closing

    def _connect(self) -> psycopg.Connection[Any]:
        db: psycopg.Connection[Any] = self.psycopg.connect(**self.address.parts, autocommit=True)
        try:
            # Whole numbers always go as eight bytes: one prepared statement for all their sizes.
            db.adapters.register_dumper(int, self.psycopg.types.numeric.Int8Dumper)
            db.prepare_threshold = 2
            db.execute(_text("session"))
        except BaseException:
            db.close()
            raise
        return db

    def _migrate(self, db: psycopg.Connection[Any]) -> None:
        if db.info.server_version < OLDEST:
            raise _too_old(self.name, db.info.server_version // 10000)
        with db.transaction():
            db.execute("SELECT pg_advisory_xact_lock(%s)", [_MIGRATING])
            db.execute("CREATE TABLE IF NOT EXISTS stigmer_schema (version BIGINT NOT NULL)")
            (found,) = db.execute("SELECT coalesce(max(version), 0) FROM stigmer_schema").fetchone() or (0,)
            scripts = migrations(dialect=POSTGRES)
            if found > len(scripts):
                raise newer(self.name, found)
            for number, script in enumerate(scripts, start=1):
                if number > found:
                    db.execute(script.encode())
                    db.execute("INSERT INTO stigmer_schema VALUES (%s)", [number])
            (now_ms, _) = db.execute(_text("begin")).fetchone() or (0, "")
        self._ahead_ms = now_ms - int(time.monotonic() * 1000)

    def rest(self) -> None:
        """Closes the readers: a server that has nothing to do holds one connection, and the one that listens."""
        while self._idle:
            self._idle.pop().close()

    def slack(self) -> float:
        """The server's autovacuum sees to it."""
        return 0.0

    def compact(self) -> None:
        """The room of deleted rows is used again; the server gives back what is free at a file's end. Nobody waits."""
        db = self._connect()
        try:
            for table in ("executions", "events", "originals"):
                db.execute(f"VACUUM (ANALYZE) {table}".encode(), prepare=False)
        finally:
            db.close()

    def hurry(self) -> None:
        self._hurry.set()

    def close(self) -> None:
        self.rest()
        if self._writer is not None:
            self._writer.close()


def reachable(url: str, *, seconds: int) -> tuple[str, int, int]:
    """How the database may be shown, its server's major version, and the version of our schema in it (0: none yet).

    Connects once and changes nothing. Raises StoreError where it cannot be used; one that is newer than we are, too.
    """
    driver = _psycopg()
    address = _Address(url, driver)
    try:
        with driver.connect(**{**address.parts, "connect_timeout": seconds}, autocommit=True) as db:
            (there,) = db.execute("SELECT to_regclass('stigmer_schema') IS NOT NULL").fetchone() or (False,)
            found = db.execute("SELECT coalesce(max(version), 0) FROM stigmer_schema") if there else None
            (schema,) = (found.fetchone() if found else None) or (0,)
            server = db.info.server_version // 10000
    except driver.Error as error:
        raise StoreError(
            f"the database {address.shown!r} cannot be used: {address.told(error)}",
            hint="see whether the address, user and password in STIGMER_DATABASE_URL are right and the server is"
            f" up: pg_isready -d {address.shown!r}",
        ) from None  # The cause may show the address with its password.
    if server < OLDEST // 10000:
        raise _too_old(address.shown, server)
    if schema > len(migrations(dialect=POSTGRES)):
        raise newer(address.shown, schema)
    return address.shown, server, int(schema)


def _too_old(name: str, server: int) -> StoreError:
    return StoreError(
        f"the database {name!r} runs PostgreSQL {server}, older than {OLDEST // 10000}",
        hint=f"use a server of PostgreSQL {OLDEST // 10000} or newer",
    )


class _Transaction:
    """The Session of one transaction."""

    def __init__(self, db: psycopg.Connection[Any], now_ms: int, xid: str) -> None:
        self._db, self.now_ms, self.xid = db, now_ms, xid
        self.last: Values | None = None
        """The last event that it inserted: key and body."""

    def run(self, name: str, values: Values, /) -> Found:
        return self._db.execute(_text(name), values, binary=True)

    def run_many(self, name: str, values: Sequence[Values], /) -> None:
        if name == "insert_event" and values:
            self.last = values[-1]
        with self._db.cursor() as cursor:
            cursor.executemany(_text(name), values)


class _Address:
    """STIGMER_DATABASE_URL, checked: `parts` for the driver, `shown` for people, without the password."""

    def __init__(self, url: str, driver: Any) -> None:
        scheme, _, rest = url.partition("://")
        if scheme not in SCHEMES or not rest:
            raise StoreError(
                f"STIGMER_DATABASE_URL {_masked(url)!r} is no address of a PostgreSQL database", hint=_EXAMPLE
            )
        place = re.split(r"[/?#]", rest, maxsplit=1)[0]
        if place.count("@") > 1:
            raise StoreError(
                f"STIGMER_DATABASE_URL {_masked(url)!r} has more than one '@' before its path",
                hint="write a '@' in a user or password as %40, '/' as %2F and ':' as %3A",
            )
        self.shown = _masked(url)
        self.parts: dict[str, Any] = {"password": _password(url)}
        try:
            self.parts = _DEFAULTS | driver.conninfo.conninfo_to_dict(url)
        except driver.Error as error:
            raise StoreError(
                f"STIGMER_DATABASE_URL {self.shown!r} cannot be read: {self.told(error)}", hint=_EXAMPLE
            ) from None
        redact.remember([str(self.parts.get("password") or "")])

    def told(self, error: Exception) -> str:
        """The driver's words in one line, without the password."""
        text = " ".join(str(error).split())
        password = str(self.parts.get("password") or "")
        return text.replace(password, "***") if len(password) > 2 else text


def _masked(url: str) -> str:
    """The address without its password, whatever else is wrong with it."""
    head, sign, rest = url.partition("://")
    if not sign:
        return "***" if "@" in url or "password" in url else url
    # A password may hold any sign, if somebody forgot to quote it: everything up to the last '@' goes.
    user, at, place = rest.rpartition("@")
    name = user.partition(":")[0]
    place = re.sub(r"(?i)((?:ssl)?password=)[^&]*", r"\1***", place)
    return f"{head}://{name}:***@{place}" if ":" in user else f"{head}://{name}{at}{place}"


def _password(url: str) -> str:
    try:
        return unquote(urlsplit(url).password or "")
    except ValueError:
        return ""


@cache
def _text(name: str) -> bytes:
    """The SQL of queries/<name>.sql as the driver writes parameters: `:no` is `%(no)s`."""
    text = query(name, dialect=POSTGRES).replace("%", "%%")
    return re.sub(r"(?<![:\w]):([a-z_]+)", r"%(\1)s", re.sub(r"(?m)^\s*--.*$", "", text)).strip().encode()


def _psycopg() -> Any:
    try:
        import psycopg
        import psycopg.conninfo
        import psycopg.types.numeric
    except ImportError as error:
        raise StoreError(
            f"STIGMER_DATABASE_URL names a PostgreSQL database, and its driver is missing: {error}",
            hint="pip install 'stigmer[postgres]'",
        ) from error
    return psycopg
