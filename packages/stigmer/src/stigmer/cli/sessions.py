"""`get session`, `list sessions`, `delete session`: conversations that several executions share."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from stigmer.cli._main import again, asked, json_option
from stigmer.cli._session import connected
from stigmer.cli._terminal import harmless, terminal

if TYPE_CHECKING:
    from stigmer.api.service_pb2 import Session
    from stigmer.client import Client

__all__ = ["delete", "show", "show_all"]


@click.command()
@click.argument("kind", metavar="KIND", type=click.Choice(["session"]))
@click.argument("session", metavar="ID")
@json_option
def delete(kind: str, session: str) -> int:
    """Delete a session (KIND is `session`) with all its executions, for good. None of them may be running."""

    async def work(client: Client) -> int:
        count = await client.delete_session(session)
        if asked().json:
            terminal().data(json.dumps({"id": session, "executions": count}) + "\n")
        else:
            terminal().say(f"deleted {session} and its {count} execution{'s' if count != 1 else ''}")
        return 0

    return connected(work)


async def show(client: Client, id: str) -> int:
    """One session, its executions in their order."""
    found = await client.session(id)
    if asked().json:
        _print(found)
        return 0
    lines = [f"session    {found.id}", f"state      {found.state}", f"created    {_when(found.created_ms)}"]
    for one in found.executions:
        lines += ["", f"{one.id}  {one.state}  {_when(one.created_ms)}"]
        lines += [f"> {line}" for line in harmless(one.task).splitlines()]
        if one.HasField("finished"):
            lines += [harmless(one.finished.text or one.finished.error.message)]
    lines += ["", f"to go on: {again(f'chat --session {found.id}')}"]
    terminal().data("\n".join(lines) + "\n")
    return 0


async def show_all(client: Client, *, limit: int) -> int:
    """The sessions that were used last, one a line."""
    found = await client.sessions(limit=limit)
    for one in found:
        if asked().json:
            _print(one)
            continue
        first = " ".join(harmless(one.executions[0].task).split())
        terminal().data(f"{one.id}  {one.state:<15}  {_when(one.used_ms)}  {one.count:>3}  {first[:60]}\n")
    if not found and not asked().json:
        terminal().say("no sessions yet. To begin one: stigmer chat")
    return 0


def _print(one: Session) -> None:
    from stigmer.cli.executions import summary

    shown: dict[str, Any] = {
        "id": one.id,
        "state": one.state,
        "created": _when(one.created_ms),
        "used": _when(one.used_ms),
        "count": one.count,
        "executions": [summary(execution) for execution in one.executions],
    }
    terminal().data(json.dumps(shown, ensure_ascii=False) + "\n")


def _when(ms: int) -> str:
    from stigmer.events import time_text

    return time_text(ms)
