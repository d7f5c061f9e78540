"""`models`: what runs on this machine and what providers have; fetching and removing models, of both local servers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from stigmer.cli._main import asked, json_option
from stigmer.cli._terminal import harmless, person_here, size_text, terminal
from stigmer.cli.models_bench import bench
from stigmer.errors import StigmerError, UsageError

__all__ = ["models"]

SERVERS = ("llamacpp", "ollama")
_on_option = click.option(
    "--on",
    type=click.Choice(SERVERS),
    help="Whose model it is: the built-in llama.cpp's, or an Ollama's. Default: see above.",
)


@click.group()
def models() -> None:
    """List the models of this machine and of the providers; fetch and remove models; try what one gets done."""


models.add_command(bench)


@models.command("list")
@json_option
def list_() -> int:
    """List the models on this machine, the providers, and what is known of their models.

    With --json one object a line; `kind` says what it is: file, ollama, provider or model.
    """
    from graphton.models import PROVIDERS

    from stigmer.cli import _models_list as shown
    from stigmer.cli._pull import address
    from stigmer.cli._resolved import resolved_each

    found = resolved_each([{"provider": name} for name in PROVIDERS])
    settings = {name: one.settings for name, one in zip(PROVIDERS, found, strict=True)}
    url, key = address(str(settings["ollama"]["base_url"]["value"] or PROVIDERS["ollama"].base_url))
    files, served = list(shown.files()), shown.of_ollama(url, key)
    providers, known = list(shown.providers(settings)), list(shown.known())
    if asked().json:
        rows = () if isinstance(served, str) else served
        for row in [*files, *rows, *providers, *known]:
            terminal().data(json.dumps(row, ensure_ascii=False) + "\n")
        return 0
    parts = (
        shown.local_lines(files),
        shown.ollama_lines(served, url),
        shown.provider_lines(providers),
        shown.known_lines(known),
    )
    terminal().data("\n".join(line for part in parts for line in part) + "\n")
    return 0


@models.command()
@click.argument("name", metavar="NAME|URL|FILE")
@_on_option
@click.option(
    "--sha256", metavar="HEX", help="Of a file at an address: only bytes with this digest are installed."
)
@click.option("--name", "as_name", metavar="NAME", help="What a file of your own is called from then on.")
@click.option("--insecure", is_flag=True, help="Ollama may ask the model's registry without TLS.")
@json_option
def pull(name: str, on: str | None, sha256: str | None, as_name: str | None, insecure: bool) -> int:
    """Fetch a model; goes on where an earlier pull was broken off, and checks what came.

    \b
    qwen2.5-coder:1.5b         a name of the catalogue (stigmer models list): a file for the built-in llama.cpp
    qwen3:8b                   any other name: the Ollama at the resolved address pulls it from its registry
    https://host/x.gguf        a file of your own for llama.cpp: with --sha256; then --model llamacpp:NAME
    ./x.gguf                   a file that is here: it stays where it is, and gets a name

    --on llamacpp or --on ollama says it where a name could be either.
    """
    talk = terminal()
    server, name = _server_of(name, on)
    if server == "ollama":
        told = _pull_at_ollama(name, insecure=insecure, unused=(sha256, as_name))
    elif insecure:
        raise UsageError("--insecure is for an Ollama's registry", hint="leave it out: the sha256 decides")
    else:
        told = _pull_file(name, sha256, as_name)
    if asked().json:
        talk.data(json.dumps(told) + "\n")
    elif "path" in told:
        talk.data(told["path"] + "\n")
    else:
        talk.say(f"{harmless(told['name'])} is installed at the Ollama at {harmless(told['base_url'])}")
    return 0


def _server_of(name: str, on: str | None) -> tuple[str, str]:
    """Which server a name means, and the name without its prefix: what was said, else what it looks like."""
    from graphton import catalog

    prefix, colon, rest = name.partition(":")
    if on is None and colon and rest and prefix.lower() in SERVERS:
        return prefix.lower(), rest
    if on is not None:
        return on, name
    ours = _is_address(name) or _is_path(name) or catalog.known(name) is not None
    return ("llamacpp" if ours else "ollama"), name


def _is_address(name: str) -> bool:
    return name.lower().startswith(("http://", "https://"))


def _is_path(name: str) -> bool:
    return name.lower().endswith(".gguf") or name.startswith(("./", "../", "/", "~/"))


def _pull_at_ollama(name: str, *, insecure: bool, unused: tuple[str | None, ...]) -> dict[str, str]:
    from graphton.catalog import CATALOG
    from graphton.errors import ConnectError

    from stigmer.cli._pull import fetch_at_ollama

    if any(unused):
        raise UsageError(
            "--sha256 and --name are for files of your own", hint=f"stigmer models pull --on ollama {name}"
        )
    try:
        return {"name": name, "base_url": fetch_at_ollama(name, terminal(), insecure=insecure)}
    except ConnectError as error:
        names = ", ".join(entry.name for entry in CATALOG)
        error.hint = f"{error.hint}; the built-in llama.cpp needs none, and has {names}"
        raise


def _pull_file(name: str, sha256: str | None, as_name: str | None) -> dict[str, str]:
    from graphton._own_models import name_from

    from stigmer.cli._pull import fetch, fetch_own, keep_own

    talk = terminal()
    own = (as_name or name_from(name)).strip().lower()
    if _is_address(name):
        if not sha256:
            raise UsageError(
                "a file from an address needs its sha256: nothing else says that it is the one that you mean",
                hint="stigmer models pull URL --sha256 HEX; the publisher shows it beside the file (on huggingface.co "
                "under `Large File Pointer Details`), and of a file that you trust: sha256sum FILE",
            )
        path = fetch_own(name, sha256, own, talk)
    elif _is_path(name):
        path = keep_own(Path(name).expanduser(), own, sha256 or "", talk)
    elif sha256 or as_name:
        raise UsageError(
            "--sha256 and --name are for files of your own",
            hint=f"stigmer models pull {name}: its digest stands in the catalogue",
        )
    else:
        return {"name": name, "path": fetch(name, talk)}
    talk.say(f"use it: --model llamacpp:{own}")
    return {"name": own, "path": path}


@models.command()
@click.argument("name")
@_on_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def remove(name: str, on: str | None, yes: bool) -> int:
    """Remove a model and free its room: its file, or an Ollama's.

    A name of the catalogue, of a file of your own, or of a .gguf file in the folder of models is a file's; any other
    is one of the Ollama at the resolved address. --on llamacpp or --on ollama says it where a name could be either.
    """
    server, name = _server_of(name, on)
    place, size, act = _at_ollama(name) if server == "ollama" else _own_file(name)
    if not yes and not _sure(name, place, size):
        terminal().say(f"{harmless(name)} stays")
        return 1
    act()
    told = {"name": name, "path" if server == "llamacpp" else "base_url": place, "bytes": size}
    if asked().json:
        terminal().data(json.dumps(told) + "\n")
    else:
        what = place if server == "llamacpp" else f"{name} from the Ollama at {place}"
        terminal().say(f"removed {harmless(what)} ({size_text(size)})")
    return 0


def _sure(name: str, place: str, size: int) -> bool:
    """Whether the person here wants it gone."""
    if not person_here():
        raise UsageError(
            f"nobody is here to ask whether {name!r} may go", hint=f"stigmer models remove {name} --yes"
        )
    what = place if "://" not in place else f"{name} from the Ollama at {place}"
    room = "only this link; the file itself stays" if os.path.islink(place) else size_text(size)
    terminal().ask(f"Remove {harmless(what)} ({room})? [y/N] ")
    answer = sys.stdin.readline()
    terminal().answered()
    return answer.strip().lower() in ("y", "yes")


Found = tuple[str, int, Callable[[], Any]]
"""Where what is to be removed is, how large it is, and what removes it."""


def _at_ollama(name: str) -> Found:
    """The model of the Ollama that a run would ask."""
    from graphton.errors import ConnectError

    from stigmer import ollama
    from stigmer.cli._pull import address

    url, key = address()
    try:
        size, why = ollama.size_of(url, name, key=key), f"the Ollama at {url} has none of that name"
    except ConnectError:
        size, why = None, f"no Ollama answers at {url}"
    if size is None:
        raise StigmerError(
            f"{name!r} is none of the models that stigmer keeps on this machine, and {why}",
            hint=f"stigmer models list; of an Ollama elsewhere: OLLAMA_HOST=… stigmer models remove {name}, or there: "
            f"ollama rm {name}",
        )
    return url, size, lambda: ollama.remove(url, name, key=key)


def _own_file(name: str) -> Found:
    """The file that is meant: one of the catalogue, the user's own, or one that lies in the folder of models."""
    from graphton import catalog
    from graphton._own_models import forget

    folder = catalog.models_dir()
    if name.lower().endswith(".gguf"):
        path = folder / Path(name).expanduser()  # An absolute path stays itself.
        if os.path.realpath(path.parent) != os.path.realpath(folder):
            raise UsageError(
                f"{name!r} is not in the folder of models ({folder}): only what is there is removed",
                hint="remove a file of your own yourself",
            )
        if os.path.lexists(path):
            entry = next((one for one in catalog.own_entries() if one.file == path.name), None)
            return str(path), _size(path), _removing(lambda: forget(entry) if entry else path.unlink(), path)
    else:
        entry = catalog.known(name)
        if entry is None:
            raise UsageError(
                f"{name!r} is none of the models that stigmer keeps on this machine",
                hint="stigmer models list",
            )
        path, part = folder / entry.file, folder / f"{entry.file}.part"
        if os.path.lexists(path) or part.is_dir() or not entry.licence:
            half = sum(file.stat().st_size for file in part.iterdir()) if part.is_dir() else 0
            return str(path), _size(path) + half, _removing(lambda: forget(entry), path)
    raise StigmerError(
        f"{name!r} is not on this machine: there is no {str(path)!r}", hint="stigmer models list"
    )


def _size(path: Path) -> int:
    """What removing it frees: of a link nothing."""
    return path.stat().st_size if path.is_file() and not path.is_symlink() else 0


def _removing(act: Callable[[], Any], path: Path) -> Callable[[], Any]:
    def removed() -> None:
        try:
            act()
        except OSError as error:
            raise StigmerError(f"{str(path)!r} cannot be removed: {error.strerror}") from error

    return removed
