"""What a database must be able to do for the Store, and the SQL files: one text for both dialects wherever one will do.

`queries/append.sql` serves SQLite and PostgreSQL; where a text must differ, `append.postgres.sql` beside it is
PostgreSQL's. The same holds for `migrations/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

from graphton.errors import JournalError

__all__ = ["Dialect", "Found", "Session", "StoreDefect", "StoreError", "migrations", "newer", "query"]

Answer = TypeVar("Answer")
Values = Mapping[str, Any]
POSTGRES = "postgres"
_HERE = Path(__file__).parent
"""Where the SQL lies; importlib.resources would find it too, at 10 ms of every start."""


class StoreError(JournalError):
    """The database cannot be used, or refused a write; `code` says which."""

    code = "store"


class StoreDefect(StoreError):
    """A fault in our own use of the database: its cause goes into a report."""

    code = "internal"


class Found(Protocol):
    """The rows that a statement gave."""

    def fetchone(self) -> Any: ...
    def __iter__(self) -> Iterator[Any]: ...


class Session(Protocol):
    """One transaction, as the Store's operations see it."""

    @property
    def now_ms(self) -> int:
        """The database's clock."""
        ...

    def run(self, name: str, values: Values, /) -> Found:
        """Runs queries/<name>.sql."""
        ...

    def run_many(self, name: str, values: Sequence[Values], /) -> None:
        """Runs queries/<name>.sql once for each of the values."""
        ...


class Dialect(Protocol):
    """One database. `commit` and `read` wait for it; a Store calls them where waiting does no harm."""

    name: str
    """How an error text calls it; no password is in it."""
    alone: bool
    """No other process works on this database: whoever opens it may void what a dead one left."""
    direct: bool
    """Answers so fast that it is asked in the event loop itself."""
    error: type[Exception]
    """What its driver raises."""
    misuse: tuple[type[Exception], ...]
    """What its driver raises where the fault is in our own call."""
    unreadable: str
    """What to do when it cannot be read."""

    @property
    def now_ms(self) -> int:
        """The database's clock, as this process knows it."""
        ...

    def refused(self, error: Exception) -> str:
        """What to do when it refused a write with this error."""
        ...

    def commit(self, work: Callable[[Session], Answer], *, durable: bool) -> Answer:
        """Runs `work` in one transaction. When it raises, nothing of it stays; `work` may be run again."""
        ...

    def read(self, name: str, values: Values, pick: Callable[[Iterable[Any]], Answer]) -> Answer:
        """What `pick` makes of the rows of queries/<name>.sql."""
        ...

    def rest(self) -> None:
        """Nothing runs: gives back what is not needed."""
        ...

    def slack(self) -> float:
        """The part of its room, 0 to 1, that deleted rows have left and that only `compact` gives back."""
        ...

    def compact(self) -> None:
        """Gives the room of deleted rows back, outside any transaction."""
        ...

    def hurry(self) -> None:
        """Waits for nothing any more: the process wants to end."""
        ...

    def close(self) -> None: ...


@cache
def query(name: str, *, dialect: str = "") -> str:
    """The SQL of queries/<name>.sql, or of the file that is the dialect's own."""
    folder = _HERE / "queries"
    own = folder / f"{name}.{dialect}.sql"
    return (own if own.is_file() else folder / f"{name}.sql").read_text(encoding="utf-8")


@cache
def migrations(*, dialect: str = "") -> tuple[str, ...]:
    """The scripts that make the schema, in order; their number is the schema's version."""
    folder = _HERE / "migrations"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.count(".") == 1)
    own = [folder / f"{name.removesuffix('.sql')}.{dialect}.sql" for name in names]
    return tuple(
        (special if special.is_file() else folder / name).read_text(encoding="utf-8")
        for name, special in zip(names, own, strict=True)
    )


def newer(name: str, found: int) -> StoreError:
    """The error of a database that a newer program has changed."""
    known = len(migrations())
    return StoreError(
        f"the database {name!r} was written by a newer stigmer (schema {found}, this program knows {known})",
        hint="upgrade: pip install --upgrade stigmer",
    )
