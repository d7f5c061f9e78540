"""What the caller hands in besides flags: the task, from the command line or a pipe, and the workspace."""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from stigmer.cli._terminal import terminal
from stigmer.errors import UsageError
from stigmer.places import PLACES

__all__ = ["place_option", "read_task", "workspace"]


def read_task(given: str | None) -> str:
    """The task: the argument; or what is piped in, for `-` and for no argument; or both, the piped text below."""
    from_stdin = given in (None, "-")
    if from_stdin and given is None and not _is_piped():
        raise UsageError("no task", hint=f"say what to do: {_EXAMPLE}; or pipe it in")
    task = "" if given is None or from_stdin else given.strip()
    piped = _read_stdin().strip() if from_stdin or _is_piped() else ""
    whole = "\n\n".join(part for part in (task, piped) if part)
    if not whole:
        raise UsageError("the task is empty", hint=f"say what to do: {_EXAMPLE}")
    try:
        whole.encode()
    except UnicodeEncodeError as error:  # Bytes that are no text come in as lone surrogates.
        raise UsageError(
            f"the task is no UTF-8 text (character {error.start + 1})",
            hint="name the file in the task instead of handing in what is in it",
        ) from None
    return whole


_EXAMPLE = 'stigmer run "Which file in this folder is the largest?"'


def _is_piped() -> bool:
    """Whether somebody hands us text on stdin: a pipe, a socket or a file; no terminal, no /dev/null."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return False  # Closed.
    return stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _read_stdin() -> str:
    ready, _, _ = select.select([0], [], [], 1.0)
    if not ready:  # A pipe that nobody closes would otherwise look like a hang.
        terminal().say("reading standard input to its end (Ctrl-D, or `< /dev/null` for none) …")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"standard input is no UTF-8 text (byte {error.start})",
            hint="name the file in the task instead of piping it in",
        ) from None


def place_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--place`, of the commands that begin runs."""
    return click.option(
        "--place",
        type=click.Choice(PLACES),
        help="Where its files are, instead of in a folder of this machine: nowhere (none), on the disk of the worker that "
        "begins it, or on the volume that all workers share.",
    )(command)


def workspace(named: str | None, *, elsewhere: bool = False, place: str | None = None) -> Path:
    """The folder that the tools see. All of HOME, or of the disk, only where it is named by hand.

    With a run that is `elsewhere`, at a server, or whose files have a place, the tools see none of this machine's: the
    folder is where agents are looked for.
    """
    if elsewhere and named is not None:
        raise UsageError(
            f"--workspace {named!r} is a folder of this machine, and the run is at a server (--server, STIGMER_SERVER)",
            hint="leave --workspace out; --place volume, or worker, gives the run a folder there",
        )
    if place and named is not None:
        raise UsageError(
            f"--workspace {named!r} and --place {place} are both given", hint="leave one of them out"
        )
    elsewhere = elsewhere or bool(place)
    if named == "":  # What an unset variable comes to in a script.
        raise UsageError("--workspace is empty", hint="name a folder, e.g. --workspace .")
    try:
        folder = Path(named if named is not None else os.getcwd()).expanduser()
    except FileNotFoundError:
        raise UsageError("the current folder does not exist any more", hint="cd into another one") from None
    if elsewhere:
        return folder
    where = " (--workspace)" if named is not None else ""
    if not folder.exists():
        raise UsageError(f"the folder {str(folder)!r}{where} does not exist", hint=f"mkdir -p {folder}")
    if not folder.is_dir():
        raise UsageError(f"{str(folder)!r}{where} is not a folder", hint=f"--workspace {folder.parent}")
    folder = folder.resolve()
    if named is None and folder in (Path("/"), Path.home().resolve()):
        raise UsageError(
            f"the workspace would be all of {str(folder)!r}",
            hint=f"cd into the folder that the task is about, or name it: --workspace {folder}",
        )
    return folder
