"""How a download shows itself: a bar where a line can be updated, else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stigmer.cli._terminal import SPARSE_SECONDS, Terminal, harmless, size_text

__all__ = ["Show", "progress"]

Show = Callable[[int, int, str], None]
"""Bytes done, bytes in all (0: not known yet), and what is going on."""


@contextmanager
def progress(talk: Terminal, name: str, total: int = 0) -> Iterator[Show]:
    """What to call with each step."""
    if not talk.updates:
        yield _lines(talk, name)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.table import Column

    def whole() -> Column:
        return Column(no_wrap=True)

    columns = (
        # One line, however long the name: the text gives way, not the numbers.
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=1)),
        BarColumn(bar_width=16),
        DownloadColumn(table_column=whole()),
        TransferSpeedColumn(table_column=whole()),
        TimeRemainingColumn(table_column=whole()),
    )
    with Progress(*columns, console=Console(stderr=True), expand=True) as bar:
        task = bar.add_task(name, total=total or None)

        def show(done: int, total: int, text: str) -> None:
            description = f"{name}: {harmless(text)}" if text else name
            bar.update(task, completed=done, total=total or None, description=description)

        yield show


def _lines(talk: Terminal, name: str) -> Show:
    """Progress where no line can be updated: one when the text changes, else now and then."""
    last_text, last_time = "", 0.0

    def show(done: int, total: int, text: str) -> None:
        nonlocal last_text, last_time
        now = time.monotonic()
        if text != last_text or now - last_time >= SPARSE_SECONDS:
            last_text, last_time = text, now
            amount = f"  {size_text(done)} of {size_text(total)}" if total else ""
            talk.say(f"{name}: {harmless(text)}{amount}")

    return show
