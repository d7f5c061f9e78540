"""The process that asks servers and loads libraries for `stigmer doctor`.

It speaks through the very clients that a run uses, so it sees what a run would see; the commands are kept apart from
those. What it is asked comes as one JSON object over a pipe, keys among it; each check leaves as one line.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import traceback
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from graphton._process import make_undumpable

from stigmer.doctor import _hosted, _llamacpp, _ollama
from stigmer.doctor._check import FAIL, Check, check
from stigmer.doctor._postgres import postgres
from stigmer.doctor._targets import Target

__all__ = ["main"]

DATABASE_SECONDS = 3.0
"""For a name that is looked up in vain; the connection itself has two."""


def main() -> int:
    """Looks at everything at once and ends when the last answer is here, or the last limit has passed."""
    make_undumpable()
    said = sys.stdin.read()
    if not said:
        return 0  # The command has ended before it had a question.
    asked = json.loads(said)
    if asked["database"]:
        with suppress(ImportError):  # `postgres` says so.
            import psycopg  # noqa: F401  # Now, before any limit runs.
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    well = loop.run_until_complete(_all(asked))
    sys.stdout.flush()
    sys.stderr.flush()
    # A name server that does not answer holds a thread that nobody can end: it ends with us.
    os._exit(0 if well else 1)


async def _all(asked: dict[str, Any]) -> bool:
    """Prints each answer as it comes; False where a fault of our own kept one from coming."""
    work: list[Coroutine[Any, Any, list[Check]]] = [_llamacpp.look(asked["llamacpp"])]
    work += [_hosted.ask(Target.from_json(row)) for row in asked["targets"]]
    if asked["ollama"]:
        work.append(_ollama.look(asked["ollama"]))
    if asked["database"]:
        work.append(_database(asked["database"]))
    well = True
    for done in asyncio.as_completed(work):
        try:
            found = await done
        except Exception:  # The command tells of it, and the other answers still count.
            traceback.print_exc()
            well = False
            continue
        for one in found:
            print(json.dumps(one.to_json()), flush=True)
    return well


async def _database(url: str) -> list[Check]:
    try:
        async with asyncio.timeout(DATABASE_SECONDS):
            return [await asyncio.to_thread(postgres, url)]
    except TimeoutError:
        text = f"the database of STIGMER_DATABASE_URL did not answer within {DATABASE_SECONDS:g} s"
        hint = "see whether its host's name is known here, and the server is up"
        return [check("home.database", FAIL, text, hint)]
