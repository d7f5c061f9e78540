"""`key create | list | revoke`: what lets callers in from elsewhere."""

from __future__ import annotations

import getpass
import json
import time
from typing import TYPE_CHECKING, Any

import click

from stigmer.cli._main import asked, json_option
from stigmer.cli._session import connected
from stigmer.cli._terminal import harmless, terminal
from stigmer.organisations import DEFAULT_ORGANISATION

if TYPE_CHECKING:
    from stigmer.api.service_pb2 import ApiKey

__all__ = ["key"]


@click.group()
def key() -> None:
    """Let programs, workers and other people call this server, each with a key of its own."""


@key.command()
@click.option("--name", required=True, help="Who or what it is for; stands in records and logs.")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(["read", "run", "worker"]),
    multiple=True,
    help="read: look at executions. run: start and steer them, too. worker: drive them. May be given again.  "
    "[default: run]",
)
@click.option("--admin", is_flag=True, help="Everything, other keys too, but what is a worker's.")
@click.option(
    "--organisation",
    metavar="NAME",
    default="",
    help="What it sees and acts in: nothing of another one. On the server's machine any name will do.  [default: your own]",
)
@click.option("--expires-days", type=click.IntRange(1, 3650), help="It ends by itself after so many days.")
@json_option
def create(
    name: str, scopes: tuple[str, ...], admin: bool, organisation: str, expires_days: int | None
) -> int:
    """Make a key and print it; it is shown this once and kept nowhere."""
    wanted = [*scopes, *(["admin"] if admin else [])] or ["run"]
    made = connected(
        lambda client: client.create_key(
            name,
            scopes=wanted,
            organisation=organisation,
            expires_days=expires_days or 0,
            by=getpass.getuser(),
        )
    )
    talk = terminal()
    if asked().json:
        talk.data(json.dumps({**_as_json(made.key), "secret": made.secret}) + "\n")
    else:
        talk.say(
            f"{made.key.id}, {harmless(made.key.name)}: {' '.join(made.key.scopes)}{_where(made.key)}; keep it, it is "
            "not shown again:"
        )
        talk.data(made.secret + "\n")
    return 0


@key.command("list")
@json_option
def list_() -> int:
    """List the keys of all organisations, or of that of your own key, also those that hold no more; never their text."""
    found, talk = connected(lambda client: client.keys()), terminal()
    if asked().json:
        for one in found:
            talk.data(json.dumps(_as_json(one)) + "\n")
        return 0
    for one in found:
        talk.data(
            f"{one.id}  {_day(one.created_ms)}  {_state(one):<18}  {' '.join(one.scopes):<11}  "
            f"{harmless(one.name)}{_where(one)}\n"
        )
    if not found:
        talk.say("there is no key; e.g. stigmer key create --name ci --scope run")
    return 0


@key.command()
@click.argument("id")
@json_option
def revoke(id: str) -> int:
    """End the key ID for good; servers know of it within seconds."""
    revoked = connected(lambda client: client.revoke_key(id))
    if asked().json:
        terminal().data(json.dumps({"id": id, "revoked": revoked}) + "\n")
    else:
        terminal().say(f"{id} holds no more" if revoked else f"{id} had ended before")
    return 0


def _state(one: ApiKey) -> str:
    if one.revoked_ms:
        return f"ended {_day(one.revoked_ms)}"
    if one.expires_ms:
        over = one.expires_ms <= time.time() * 1000
        return f"{'ended' if over else 'until'} {_day(one.expires_ms)}"
    return "holds"


def _where(one: ApiKey) -> str:
    """The organisation, where it is not everybody's."""
    return f" of {one.organisation}" if one.organisation != DEFAULT_ORGANISATION else ""


def _day(ms: int) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(ms / 1000))


def _as_json(one: ApiKey) -> dict[str, Any]:
    return {
        "id": one.id,
        "name": one.name,
        "scopes": list(one.scopes),
        "organisation": one.organisation,
        "created_by": one.created_by,
        "created_ms": one.created_ms,
        "expires_ms": one.expires_ms or None,
        "revoked_ms": one.revoked_ms or None,
    }
