"""Fetching a model: what is said before, and how it shows its progress."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from stigmer.cli._terminal import SPARSE_SECONDS, Terminal, person_here, size_text
from stigmer.errors import StigmerError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["fetch", "fetch_or_refuse", "wanted"]


def fetch_or_refuse(missing: StigmerError, talk: Terminal) -> None:
    """Fetches the model that a run needs, where somebody here says so; else raises what the daemon said."""
    details: dict[str, str] = getattr(missing, "details", {})
    name = details.get("name", "")
    size, source = int(details.get("size") or 0), details.get("source", "")
    if not size or not wanted(name, size=size, source=source, talk=talk):
        raise missing
    fetch(name, talk)


def wanted(name: str, *, size: int, source: str, talk: Terminal) -> bool:
    """Whether the missing model shall be fetched now: asks the person at the terminal, or STIGMER_PULL=always said so."""
    what = f"the model {name} ({size_text(size)}, from {source})" if size else f"the model {name}"
    if os.environ.get("STIGMER_PULL") == "always":
        talk.say(f"fetching {what}; once")
        return True
    if not person_here():
        return False
    talk.ask(f"{what} is not on this machine. Fetch it now? [Y/n] ")
    answer = sys.stdin.readline()
    talk.answered()
    return bool(answer) and answer.strip().lower() in ("", "y", "yes")


def fetch(name: str, talk: Terminal) -> str:
    """Fetches a model of the catalogue and gives the file's path; what is there already is left alone."""
    from graphton import catalog
    from graphton._download import pull

    entry = catalog.find(name)
    if not talk.updates:
        return str(pull(entry, _lines(talk, entry.name)))
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(entry.name, total=entry.size)

        def show(done: int, total: int, text: str) -> None:
            bar.update(
                task, completed=done, total=total, description=f"{entry.name}: {text}" if text else entry.name
            )

        return str(pull(entry, show))


def _lines(talk: Terminal, name: str) -> Callable[[int, int, str], None]:
    """Progress where no line can be updated: one when the text changes, else now and then."""
    last_text, last_time = "", 0.0

    def show(done: int, total: int, text: str) -> None:
        nonlocal last_text, last_time
        now = time.monotonic()
        if text != last_text or now - last_time >= SPARSE_SECONDS:
            last_text, last_time = text, now
            talk.say(f"{name}: {text}  {size_text(done)} of {size_text(total)}")

    return show
