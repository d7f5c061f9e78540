"""`models`: what runs on this machine without any server."""

from __future__ import annotations

import json

import click

from stigmer.cli._main import asked, json_option
from stigmer.cli._terminal import size_text, terminal

__all__ = ["models"]


@click.group()
def models() -> None:
    """List and fetch the models that run on this machine, without Ollama and without a key."""


@models.command("list")
@json_option
def list_() -> int:
    """List the catalogue: name, size, licence, and whether the file is here."""
    from graphton import catalog

    for entry in catalog.CATALOG:
        path = catalog.path_of(entry.name)
        if asked().json:
            row = {
                "name": entry.name,
                "bytes": entry.size,
                "licence": entry.licence,
                "sha256": entry.sha256,
                "path": str(path) if path else None,
                "sources": [str(source) for source in entry.sources],
            }
            terminal().data(json.dumps(row) + "\n")
        else:
            here = str(path) if path else "not here"
            terminal().data(f"{entry.name:<22} {size_text(entry.size):>8}  {entry.licence:<11} {here}\n")
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
