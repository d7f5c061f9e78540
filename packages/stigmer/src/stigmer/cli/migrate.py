"""`migrate`: the database that servers share is brought up to this version, before they start."""

from __future__ import annotations

import json
from pathlib import Path

import click

from stigmer.cli._main import asked, json_option
from stigmer.cli._terminal import terminal
from stigmer.errors import UsageError
from stigmer.home import Home

__all__ = ["migrate"]


@click.command()
@json_option
def migrate() -> int:
    """Bring the database of STIGMER_DATABASE_URL up to this version, once, before its servers start.

    Servers do so themselves when they start; a cluster has it as a step of its own. Where nothing is to be done nothing
    is changed.
    """
    import asyncio  # Not for `--help`: it costs as much as click.

    from stigmer.server._database import VARIABLE, database_of
    from stigmer.store._postgres import reachable

    where = database_of(Home.find())
    if isinstance(where, Path):
        raise UsageError(
            f"{VARIABLE} is not set; the database of a home is brought up to date by its own daemon",
            hint=f"{VARIABLE}=postgresql://stigmer:PASSWORD@db.example.com:5432/stigmer stigmer migrate",
        )
    shown, _, before = reachable(where, seconds=10)
    after = asyncio.run(_brought_up(where))
    if asked().json:
        terminal().data(json.dumps({"database": shown, "before": before, "schema": after}) + "\n")
    elif after == before:
        terminal().say(f"{shown} is up to date: schema {after}")
    else:
        terminal().say(
            f"{shown} is brought up to date: schema {after}, {f'from {before}' if before else 'made anew'}"
        )
    return 0


async def _brought_up(url: str) -> int:
    """Opens the store, which brings the schema up to date, and gives the schema's version."""
    from stigmer.store import Store
    from stigmer.store._postgres import reachable

    store = await Store.open(url)
    await store.close()
    return reachable(url, seconds=10)[2]
