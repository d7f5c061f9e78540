"""`secret set | list | delete`: API keys that later runs find, without an environment that holds them."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import click
from graphton.models import PROVIDERS

from stigmer import config as cascade
from stigmer import vault
from stigmer.cli._main import asked, json_option
from stigmer.cli._terminal import harmless, terminal
from stigmer.errors import StigmerError, UsageError
from stigmer.home import Home
from stigmer.redact import scrub

__all__ = ["secret"]


@click.group()
def secret() -> None:
    """Keep API keys, in the system's keyring or encrypted; a key in the environment comes first."""


@secret.command("set")
@click.argument("name")
@click.argument("value", nargs=-1, metavar=" ")
@json_option
def set_(name: str, value: tuple[str, ...]) -> int:
    """Keep a value under NAME, such as ANTHROPIC_API_KEY. It is asked for here, or read from standard input.

    A secret that is called like a provider's key variable goes to that provider at its own address, and nowhere else.
    """
    from graphton._process import make_undumpable

    home = Home.find()
    _check(name, value, home)
    make_undumpable()
    text = _value(name)
    stored = vault.Vault(home).put(name, text)
    woken = _wake(home)
    talk = terminal()
    if asked().json:
        talk.data(json.dumps({**_as_json(name, stored.place), "woken": woken}) + "\n")
        return 0
    if stored.place == "keyring":
        talk.say(f"{name} is kept in the keyring of this system, {_serves(name)}")
    else:
        where = cascade.display_path(vault.Vault(home).path)
        talk.say(f"{name} is kept in {where}, encrypted, {_serves(name)}")
        talk.say(f"note: {harmless(stored.why_not)}; the file's key lies beside it, for you alone")
    if os.environ.get(name, "").strip():
        talk.say(f"note: {name} is set in your shell too, and that comes first")
    if woken is None:
        talk.say(
            "note: the daemon could not be told; a run that waits for a key goes on with: stigmer down; stigmer up"
        )
    elif woken:
        talk.say(f"{woken} waiting {'run goes' if woken == 1 else 'runs go'} on: stigmer list execution")
    return 0


@secret.command("list")
@json_option
def list_() -> int:
    """List the names of what is kept, where each is, and where it goes; never a value."""
    kept, talk = vault.Vault(Home.find()).kept(), terminal()
    width = max((len(one.name) for one in kept), default=0)
    for one in kept:
        if asked().json:
            talk.data(json.dumps(_as_json(one.name, one.place)) + "\n")
        else:
            talk.data(f"{one.name:<{width}}  {one.place:<7}  {_serves(one.name)}\n")
    if not kept and not asked().json:
        talk.say("no secret is kept; e.g. stigmer secret set ANTHROPIC_API_KEY")
    return 0


@secret.command()
@click.argument("name")
@json_option
def delete(name: str) -> int:
    """Forget what is kept under NAME."""
    keeps = vault.Vault(Home.find())
    if not keeps.drop(name):
        near = cascade.nearest(name, [one.name for one in keeps.kept()])
        raise StigmerError(
            f"there is no secret {scrub(name)!r}",
            hint=f"did you mean {near!r}?" if near else "stigmer secret list",
        )
    if asked().json:
        terminal().data(json.dumps({"name": name, "deleted": True}) + "\n")
    else:
        terminal().say(f"{name} is forgotten here; whoever issued the key can still accept it")
    return 0


def _check(name: str, value: tuple[str, ...], home: Home) -> None:
    """Refuses what should not be in a command line, and a name that would serve nothing. Echoes no value."""
    word, sign, _ = name.partition("=")
    if value or sign:
        raise UsageError(
            "a secret's value is not given in the command line, where other programs can read it",
            hint=f"stigmer secret set {_shown(word)}, and type it when asked; or: … <FILE",
        )
    known = {row.key_variable for row in PROVIDERS.values() if row.key_variable and row.origins}
    file = Path(os.environ.get("STIGMER_CONFIG", "").strip() or home.config).expanduser()
    if name in known or name in cascade.named_key_variables(file):
        return
    near = cascade.nearest(name, known)
    raise UsageError(
        f"nothing asks for a secret called {_shown(name)!r}",
        hint=f"did you mean {near!r}?"
        if near
        else f"known are {', '.join(sorted(known))}, and what `llm.api_key_env` names in {cascade.display_path(file)}",
    )


def _shown(word: str) -> str:
    """A name as it may be shown: somebody may have typed the key in its place."""
    return word if re.fullmatch(r"[A-Z][A-Z0-9_]*", word) else "***"


def _value(name: str) -> str:
    if sys.stdin.isatty():
        import getpass

        raw = getpass.getpass(f"{name}: ")
        nothing = "nothing was typed"
    else:
        raw = sys.stdin.read()
        nothing = "standard input is empty"
    text = raw.strip(cascade.BLANKS)
    if not text:
        raise UsageError(f"{nothing}: no value for {name}", hint=f"stigmer secret set {name} <FILE")
    try:
        cascade.SETTINGS["api_key"].parse(text, True)
    except ValueError as error:
        raise UsageError(f"the value for {name} {error}") from None
    return text


def _wake(home: Home) -> int | None:
    """How many runs that waited for a key go on, None where the daemon does not say (an older one may not know how).

    Without a daemon none does: the next one looks by itself.
    """
    from stigmer.daemon import find

    address = find(home)
    if address is None:
        return 0
    import asyncio

    from stigmer.cli._session import with_client
    from stigmer.client import Client, RemoteError

    async def work(client: Client) -> int | None:
        try:
            return await client.wake()
        except RemoteError:
            return None

    return asyncio.run(with_client(work, address))


def _serves(name: str) -> str:
    rows = vault.served_by(name)
    if not rows:
        return "for whom llm.api_key_env names it"
    return "for " + ", ".join(f"{row.name} at {row.base_url}" for row in rows)


def _as_json(name: str, place: str) -> dict[str, object]:
    return {
        "name": name,
        "kept": place,
        "serves": [{"provider": row.name, "base_url": row.base_url} for row in vault.served_by(name)],
    }
