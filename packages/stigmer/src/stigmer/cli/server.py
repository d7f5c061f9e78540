"""`up`, `down`, `status`, `logs`: the daemon."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from stigmer import __version__
from stigmer.cli._main import FAILED, asked, json_option
from stigmer.cli._options import check, flags_of, llm_options
from stigmer.cli._resolved import resolved
from stigmer.cli._session import named_server, with_client
from stigmer.cli._terminal import harmless, terminal
from stigmer.daemon import find, start, stop
from stigmer.home import Address, Home

if TYPE_CHECKING:
    from stigmer.api.service_pb2 import Status
    from stigmer.client import Client

__all__ = ["down", "logs", "status", "up"]


@click.command()
@llm_options
@click.option(
    "--engine",
    type=click.Choice(["embedded", "temporal"]),
    envvar="STIGMER_ENGINE",
    help="What drives the runs: the daemon itself, or a worker beside it on a Temporal server of its own "
    "(or the one at TEMPORAL_ADDRESS).  [default: embedded]",
)
@json_option
def up(engine: str | None, **given: Any) -> int:
    """Start the daemon and let it stay until `stigmer down`. LLM flags rank just above its environment."""
    home, flags = Home.find(), flags_of(given)
    check(flags, command="up")
    address = start(home, stays=True, flags=flags, engine=engine or "", say=terminal().say)
    problems = resolved({}).problems
    if asked().json:
        said = {"running": True, "pid": address.pid, "address": address.target, "problems": problems}
        terminal().data(json.dumps(said) + "\n")
        return 0
    terminal().say(f"the daemon (pid {address.pid}) listens on {address.target}")
    for problem in problems:
        terminal().say(f"note: no run from here would begin: {harmless(problem)}")
    if problems:
        terminal().say("for more: stigmer doctor")
    return 0


@click.command()
@json_option
def down() -> int:
    """Stop the daemon. What runs is handed back and goes on with the next daemon."""
    ran = stop(Home.find())
    if asked().json:
        terminal().data(json.dumps({"running": False, "stopped": ran}) + "\n")
    else:
        terminal().say("the daemon has ended" if ran else "no daemon was running")
    return 0


@click.command()
@json_option
def status() -> int:
    """Say whether the daemon, or a server elsewhere, runs and what it does; exit code 0 when it runs, 1 when not."""
    home = Home.find()
    server = named_server()
    found = server or find(home)
    if found is None:
        if asked().json:
            terminal().data(json.dumps({"running": False, "home": str(home.path)}) + "\n")
        else:
            terminal().data(f"no daemon runs for {home.path}\n")
        return FAILED
    import asyncio

    said = asyncio.run(with_client(_status, found))
    if server is not None and said.version != __version__:
        terminal().say(f"note: it is of version {harmless(said.version)}, and this is {__version__}")
    terminal().data(json.dumps(_as_json(said, found)) + "\n" if asked().json else _as_text(said, found))
    return 0


async def _status(client: Client) -> Status:
    return await client.status()


def _as_json(said: Status, found: Address) -> dict[str, Any]:
    return {
        "running": True,
        "pid": said.pid,
        "version": said.version,
        "address": found.shown if found.remote else said.address,
        "engine": said.engine,
        "executions": {"running": said.running, "waiting": said.waiting},
        "home": said.home,
        "stays": said.stays,
        "models": [{"model": served.model, "pid": served.pid} for served in said.models],
    }


def _as_text(said: Status, found: Address) -> str:
    stays = "; stays until `stigmer down`" if said.stays else "; ends when it has been idle"
    lines = [
        f"running    pid {said.pid}, version {said.version}, engine {said.engine}{'' if found.remote else stays}",
        f"address    {f'{found.shown} ({found.source})' if found.remote else said.address}",
        f"home       {said.home}",
        f"executions {said.running} running, {said.waiting} waiting",
        *(f"model      {served.model} (pid {served.pid})" for served in said.models),
    ]
    return "\n".join(lines) + "\n"


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on until Ctrl-C.")
@click.option(
    "-n", "--lines", type=click.IntRange(0), default=100, show_default=True, help="How many of the last."
)
def logs(follow: bool, lines: int) -> int:
    """Show the daemon's log."""
    home, talk = Home.find(), terminal()
    if not home.log.exists() and not follow:
        talk.say(f"no log at {home.log}: no daemon has run for this home yet")
        return 0
    if home.log.exists():
        for line in home.log.read_text(errors="replace").splitlines()[-lines:] if lines else ():
            talk.data(line + "\n")
    if follow:
        for text in _growing(home):
            talk.data(text)
    return 0


def _growing(home: Home) -> Iterator[str]:
    """What is added to the log from now on; follows it when a new file takes its place."""
    file = home.log.open(errors="replace") if home.log.exists() else None
    if file is not None:
        file.seek(0, os.SEEK_END)
    while True:
        if file is not None and (text := file.read()):
            yield text
            continue
        time.sleep(0.2)  # Files tell nobody that they grow.
        if home.log.exists() and (file is None or os.fstat(file.fileno()).st_ino != home.log.stat().st_ino):
            if file is not None:
                file.close()
            file = home.log.open(errors="replace")
