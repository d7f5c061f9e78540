"""The PostgreSQL database of STIGMER_DATABASE_URL: can it be reached, and is it of a version that we know."""

from __future__ import annotations

from graphton.errors import GraphtonError

from stigmer.doctor._check import FAIL, OK, Check, check

__all__ = ["postgres"]


def postgres(url: str) -> Check:
    """Connects once, changes nothing, and waits for at most two seconds."""
    from stigmer.store._postgres import reachable

    try:
        shown, server, schema = reachable(url, seconds=2)
    except GraphtonError as error:
        return check("home.database", FAIL, error.message, error.hint)
    text = (
        f"PostgreSQL {server} at {shown} answers, schema {schema or 'not made yet: the first run makes it'}"
    )
    return check("home.database", OK, text, url=shown, server=server, schema=schema)
