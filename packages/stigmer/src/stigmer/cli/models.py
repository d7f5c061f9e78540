"""`models`: what runs on this machine, which providers and models are known, and fetching or removing a file."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stigmer.cli._main import asked, json_option
from stigmer.cli._terminal import harmless, person_here, size_text, terminal
from stigmer.errors import StigmerError, UsageError

if TYPE_CHECKING:
    pass

__all__ = ["models"]

Row = dict[str, Any]


@click.group()
def models() -> None:
    """List the models of this machine and of the providers; fetch and remove model files."""


@models.command("list")
@json_option
def list_() -> int:
    """List the models on this machine, the providers, and what is known of their models.

    With --json one object a line; `kind` says what it is: file, ollama, provider or model.
    """
    from graphton.models import PROVIDERS

    from stigmer.cli._resolved import resolved_each

    found = resolved_each([{"provider": name} for name in PROVIDERS])
    settings = {name: one.settings for name, one in zip(PROVIDERS, found, strict=True)}
    ollama_url = str(settings["ollama"]["base_url"]["value"] or PROVIDERS["ollama"].base_url)
    files, served = list(_files()), _of_ollama(ollama_url)
    providers, known = list(_providers(settings)), list(_known())
    if asked().json:
        for row in [*files, *(served or ()), *providers, *known]:
            terminal().data(json.dumps(row, ensure_ascii=False) + "\n")
        return 0
    terminal().data(
        "\n".join(
            [
                *_local_lines(files),
                *_ollama_lines(served, ollama_url),
                *_provider_lines(providers),
                *_known_lines(known),
            ]
        )
        + "\n"
    )
    return 0


@models.command()
@click.argument("name")
@json_option
def pull(name: str) -> int:
    """Fetch the model NAME; goes on where an earlier download was broken off, and checks the file."""
    from stigmer.cli._pull import fetch

    path = fetch(name, terminal())
    if asked().json:
        terminal().data(json.dumps({"name": name, "path": path}) + "\n")
    else:
        terminal().data(path + "\n")
    return 0


@models.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def remove(name: str, yes: bool) -> int:
    """Remove the file of the model NAME, or a .gguf file in the folder of models, and free its room."""
    path = _own_file(name)
    size = path.stat().st_size
    if not yes and not _sure(name, path, size):
        terminal().say(f"{name} stays")
        return 1
    try:
        path.unlink()
    except OSError as error:
        raise StigmerError(f"{str(path)!r} cannot be removed: {error.strerror}") from error
    if asked().json:
        terminal().data(json.dumps({"name": name, "path": str(path), "bytes": size}) + "\n")
    else:
        terminal().say(f"removed {path} ({size_text(size)})")
    return 0


def _sure(name: str, path: Path, size: int) -> bool:
    """Whether the person here wants it gone."""
    if not person_here():
        raise UsageError(
            f"nobody is here to ask whether {name!r} may go", hint=f"stigmer models remove {name} --yes"
        )
    terminal().ask(f"Remove {harmless(str(path))} ({size_text(size)})? [y/N] ")
    answer = sys.stdin.readline()
    terminal().answered()
    return answer.strip().lower() in ("y", "yes")


def _own_file(name: str) -> Path:
    """The file that is meant: one of the catalogue, or one that lies in the folder of models."""
    from graphton import catalog

    folder = catalog.models_dir()
    if name.lower().endswith(".gguf"):
        path = folder / Path(name).expanduser()  # An absolute path stays itself.
        if os.path.realpath(path.parent) != os.path.realpath(folder):
            raise UsageError(
                f"{name!r} is not in the folder of models ({folder}): only what is there is removed",
                hint="remove a file of your own yourself",
            )
        if path.is_file():
            return path
    else:
        entry = next((one for one in catalog.CATALOG if one.name == name.strip().lower()), None)
        if entry is None:
            raise UsageError(
                f"{name!r} is none of the models that stigmer keeps on this machine",
                hint=f"stigmer models list; of an Ollama: ollama rm {name}",
            )
        path = folder / entry.file
        if path.is_file():
            return path
    raise StigmerError(
        f"{name!r} is not on this machine: there is no {str(path)!r}", hint="stigmer models list"
    )


# ---- what there is


def _files() -> Iterator[Row]:
    """The catalogue, with what of it is here, then other .gguf files in the folder of models."""
    from graphton import catalog

    for entry in catalog.CATALOG:
        path = catalog.path_of(entry.name)
        yield {
            "kind": "file",
            "name": entry.name,
            "bytes": entry.size,
            "installed": path is not None,
            "licence": entry.licence,
            "sha256": entry.sha256,
            "path": str(path) if path else None,
            "sources": [str(source) for source in entry.sources],
        }
    ours = {entry.file for entry in catalog.CATALOG}
    for file in sorted(catalog.models_dir().glob("*.gguf")):
        if file.name not in ours and file.is_file():
            yield {
                "kind": "file",
                "name": str(file),
                "bytes": file.stat().st_size,
                "installed": True,
                "licence": None,
                "sha256": None,
                "path": str(file),
                "sources": [],
            }


def _of_ollama(url: str) -> list[Row] | None:
    """What the Ollama at this address has installed; None where none answers."""
    from stigmer.preflight import ollama_models

    found = ollama_models(url)
    if found is None:
        return None
    return [
        {"kind": "ollama", "name": one.name, "bytes": one.size, "installed": True, "base_url": url}
        for one in found
    ]


def _providers(settings: dict[str, dict[str, Any]]) -> Iterator[Row]:
    """Each provider as a run with it would be resolved here; of its key only whether there is one, and where."""
    from graphton.models import PROVIDERS

    for row in PROVIDERS.values():
        key = settings[row.name]["api_key"]
        yield {
            "kind": "provider",
            "name": row.name,
            "default_model": _default_model(row.name),
            "base_url": settings[row.name]["base_url"]["value"],
            "local": row.local,
            "needs_key": row.needs_key,
            "key_variable": row.key_variable or None,
            "key_found": key["value"] is not None,
            "key_source": None if key["value"] is None else key["source"],
        }


def _default_model(provider: str) -> str:
    from graphton.models import PROVIDERS, api_id

    from stigmer.config import clock

    today = clock(os.environ).date()
    return api_id(provider, PROVIDERS[provider].default_model, today=today, default=True)[1]


def _known() -> Iterator[Row]:
    """The table of hosted models, the ids that are only other names for one among them."""
    from graphton.models import known_models

    from stigmer.config import clock

    today = clock(os.environ).date()
    for model in known_models():
        yield {
            "kind": "model",
            "provider": model.provider,
            "name": model.name or model.id,
            "id": model.id,
            "context_window": model.context_window,
            "max_output": model.max_output,
            "price_input": model.price_input,
            "price_output": model.price_output,
            "retires": model.retires.isoformat() if model.retires else None,
            "ended": bool(model.retires and today >= model.retires),
            "successor": model.successor or None,
            "default": _default_model(model.provider) == (model.name or model.id),
        }


# ---- how it is shown


def _local_lines(files: Sequence[Row]) -> list[str]:
    from graphton import catalog

    rows = [
        (
            row["name"] if row["licence"] else Path(row["path"]).name,
            size_text(row["bytes"]),
            row["licence"] or "-",
            (row["path"] or "") if row["installed"] else f"not installed: stigmer models pull {row['name']}",
        )
        for row in files
    ]
    head = f"On this machine, for the built-in llama.cpp ({harmless(str(catalog.models_dir()))})"
    return [head, *_columns(rows, right=(1,)), ""]


def _ollama_lines(served: Sequence[Row] | None, url: str) -> list[str]:
    if served is None:
        return [f"Ollama: none answers at {harmless(url)}", ""]
    rows = [(row["name"], size_text(row["bytes"]) if row["bytes"] else "-") for row in served]
    empty = ["  nothing is installed: ollama pull qwen2.5-coder:7b"]
    return [f"Ollama at {harmless(url)}", *(_columns(rows, right=(1,)) or empty), ""]


def _provider_lines(providers: Sequence[Row]) -> list[str]:
    rows = [("provider", "default model", "key")]
    for row in providers:
        if row["key_found"]:
            key = f"found: {row['key_source']}"
        elif row["needs_key"]:
            key = f"not found: set {row['key_variable']}, or stigmer secret set {row['key_variable']}"
        else:
            key = "none needed"
        rows.append((row["name"], row["default_model"], key))
    return ["Providers", *_columns(rows), ""]


def _known_lines(known: Sequence[Row]) -> list[str]:
    """One line a model: other ids of the same one, and those that have ended, are left to --json."""
    rows: list[tuple[str, ...]] = [("model", "window", "max out", "$ in", "$ out", "")]
    shown = [row for row in known if not row["ended"] and not _is_other_id(row, known)]
    for row in shown:
        end = f"until {row['retires']}, then {row['successor']}" if row["retires"] else ""
        rows.append(
            (
                f"{row['provider']}:{row['name']}",
                _count(row["context_window"]),
                _count(row["max_output"]),
                _price(row["price_input"]),
                _price(row["price_output"]),
                " · ".join(part for part in ("default" if row["default"] else "", end) if part),
            )
        )
    rest = len(known) - len(shown)
    head = "Known models of providers (USD per million tokens; any other name is allowed too)"
    return [
        head,
        *_columns(rows, right=(1, 2, 3, 4)),
        f"{rest} more ids, of the same models or of such that have ended: stigmer models list --json",
    ]


def _is_other_id(row: Row, known: Iterable[Row]) -> bool:
    """Whether an id is a second name of another row: dated, or Anthropic's alias of a dated one."""
    same = [one for one in known if one["provider"] == row["provider"] and one["id"] != row["id"]]
    plain = re.sub(r"-\d{4}-\d{2}-\d{2}$|-\d{4}$", "", row["id"])
    return any(
        (plain != row["id"] and one["id"] == plain)
        or (
            row["name"] == row["id"]
            and one["name"].replace(".", "-") == row["id"]
            and one["name"] != row["id"]
        )
        for one in same
    )


def _count(number: int | None) -> str:
    return f"{number:,}" if number is not None else "-"


def _price(usd: float | None) -> str:
    return f"{usd:.2f}" if usd is not None else "-"


def _columns(rows: Sequence[tuple[str, ...]], *, right: tuple[int, ...] = ()) -> list[str]:
    """The rows as an indented table; columns in `right` end where they end."""
    safe = [[harmless(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in safe) for i in range(len(safe[0]))] if safe else []
    return [
        "  "
        + "  ".join(
            f"{cell:>{widths[i]}}" if i in right else f"{cell:<{widths[i]}}" for i, cell in enumerate(row)
        ).rstrip()
        for row in safe
    ]
