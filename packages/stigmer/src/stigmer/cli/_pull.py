"""Fetching a model: what is said before, from where it comes, and how it shows its progress."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from stigmer.cli._progress import progress
from stigmer.cli._session import connected, named_server
from stigmer.cli._terminal import Terminal, harmless, person_here, size_text, terminal
from stigmer.errors import ConfigError, StigmerError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from stigmer.client import Client

__all__ = [
    "FETCHABLE",
    "address",
    "fetch",
    "fetch_at_ollama",
    "fetch_or_refuse",
    "fetch_own",
    "keep_own",
    "wanted",
    "with_model",
]

FETCHABLE = ("model_missing", "not_installed")
"""Codes of what a daemon says where a model that can be had is not there: a file, or an Ollama's."""


def with_model(work: Callable[[Client], Awaitable[int]]) -> int:
    """Does `work` with the daemon; where its model is missing and is then fetched, does it again.

    What a server elsewhere lacks is for those to fetch who look after it.
    """
    try:
        return connected(work)
    except StigmerError as error:
        if error.code not in FETCHABLE or named_server() is not None:
            raise
        fetch_or_refuse(error, terminal())
    return connected(work)


def fetch_or_refuse(missing: StigmerError, talk: Terminal) -> None:
    """Fetches the model that a run needs, where somebody here says so; else raises what the daemon said."""
    details: dict[str, str] = getattr(missing, "details", {})
    name, url = details.get("name", ""), details.get("base_url", "")
    if missing.code == "not_installed":
        by, of_folder = details.get("named_by", ""), bool(details.get("of_folder"))
        what, place = f"model {name} ({by})", f"installed at the Ollama at {url}"
        # What comes with a folder may name a registry of anybody's: it is never asked without a question.
        if not name or not _agreed(what, place, "Pull it", talk, unasked=not of_folder):
            raise missing
        fetch_at_ollama(name, talk, url=url)
        return
    size, source = int(details.get("size") or 0), details.get("source", "")
    if not size or not wanted(name, size=size, source=source, talk=talk):
        raise missing
    fetch(name, talk)


def wanted(name: str, *, size: int, source: str, talk: Terminal) -> bool:
    """Whether the missing model shall be fetched now: asks the person at the terminal, or STIGMER_PULL=always said so."""
    what = f"the model {name} ({size_text(size)}, from {source})" if size else f"the model {name}"
    return _agreed(what, "on this machine", "Fetch it", talk)


def _agreed(what: str, place: str, question: str, talk: Terminal, *, unasked: bool = True) -> bool:
    if unasked and os.environ.get("STIGMER_PULL") == "always":
        talk.say(f"fetching {harmless(what)}; once")
        return True
    if not person_here():
        return False
    talk.ask(f"{harmless(what)} is not {harmless(place)}. {question} now? [Y/n] ")
    answer = sys.stdin.readline()
    talk.answered()
    return bool(answer) and answer.strip().lower() in ("", "y", "yes")


def fetch(name: str, talk: Terminal) -> str:
    """Fetches a model of the catalogue and gives the file's path; what is there already is left alone."""
    from graphton import catalog
    from graphton._download import GGUF, pull

    entry = catalog.find(name)
    own = not entry.licence
    if own and str(entry.sources[0]).startswith("file:"):
        return keep_own(_path_in(str(entry.sources[0])), entry.name, entry.sha256, talk)
    with _interruptible(talk, name), progress(talk, entry.name, entry.size) as show:
        return str(pull(entry, show, mirror="" if own else _mirror(), begins=GGUF if own else b""))


def _path_in(url: str) -> Path:
    from urllib.parse import unquote, urlsplit

    return Path(unquote(urlsplit(url).path))


def fetch_own(url: str, sha256: str, name: str, talk: Terminal) -> str:
    """Fetches the .gguf file at an address, keeps it as `name`, and gives its path."""
    from graphton._own_models import pull_from

    with _interruptible(talk, name), progress(talk, name) as show:
        return str(pull_from(url, sha256, name, show))


def keep_own(path: Path, name: str, sha256: str, talk: Terminal) -> str:
    """Keeps a .gguf file where it is under a name, and gives the link's path."""
    from graphton._own_models import register

    with progress(talk, name) as show:
        return str(register(path, name, show, sha256=sha256))


def fetch_at_ollama(name: str, talk: Terminal, *, url: str = "", insecure: bool = False) -> str:
    """Lets the Ollama at `url`, else at the resolved address, fetch a model; gives the address."""
    from stigmer.ollama import pull

    url, key = address(url)
    with _interruptible(talk, name), progress(talk, name) as show:
        pull(url, name, show, key=key, insecure=insecure)
    return url


def address(url: str = "") -> tuple[str, str | None]:
    """The address of the Ollama that a run would ask (or the one given), and the key that this shell has for it."""
    from graphton.models import PROVIDERS

    from stigmer import config
    from stigmer.cli._resolved import resolution, resolved, user_file, user_layer
    from stigmer.home import Home
    from stigmer.vault import Vault

    flags = {"provider": "ollama"}
    if not url:
        found = resolved(flags).settings["base_url"]["value"]
        url = str(found or PROVIDERS["ollama"].base_url)
    below = (Vault(Home.find()).layer(), user_layer(user_file()))
    layers = [config.layer_from_flags(flags), *(layer for layer in below if layer is not None)]
    mine = resolution(layers).settings
    return url, mine.api_key if mine.base_url == url else None


def _mirror() -> str:
    """Where files are looked for first; "" where nobody says. One that is no address is an error."""
    from stigmer.cli._resolved import resolved
    from stigmer.config import SETTINGS

    row = resolved({}).settings["models.mirror"]
    if row["value"] is None:
        return ""
    try:
        return str(SETTINGS["models.mirror"].parse(row["value"], True))
    except ValueError as error:
        raise ConfigError([f"models.mirror {row['value']!r} from {row['source']} {error}"]) from None


@contextmanager
def _interruptible(talk: Terminal, name: str) -> Iterator[None]:
    """Says how to go on where Ctrl-C ends a download."""
    try:
        yield
    except KeyboardInterrupt:
        talk.say(f"stopped; what has come is kept, and the next pull of {harmless(name)} goes on from it")
        raise
