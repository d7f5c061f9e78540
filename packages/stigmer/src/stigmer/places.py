"""Where the files of a run are: nowhere, on the disk of one worker, or on a volume that all workers share.

At home a run works in the folder that its caller names, and has no place. A place is decided when an execution is
accepted and stands in its record, so each attempt, and a retry, finds the same files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from stigmer.errors import StigmerError

if TYPE_CHECKING:
    from stigmer.api.event_pb2 import Event, WorkspacePlaced
    from stigmer.api.service_pb2 import CreateExecutionRequest

__all__ = [
    "OWN",
    "PLACES",
    "VOLUME",
    "PlaceError",
    "WorkerGone",
    "disk",
    "folder_of",
    "has_commands",
    "hold",
    "placed_at",
    "volume",
]

PLACES = ("none", "worker", "volume")
VOLUME, OWN = "STIGMER_WORKSPACE_VOLUME", "STIGMER_WORKSPACE_DIR"
"""The shared volume's folder; the folder on this machine's own disk."""
_ID = "id"
"""The file in that folder that says which disk it is."""


class PlaceError(StigmerError):
    """A run's files cannot be where they are to be."""

    code = "workspace"


class WorkerGone(StigmerError):
    """The files of a run are on the disk of another worker, and that one is gone."""

    code = "worker_gone"


def volume(environ: Mapping[str, str] | None = None) -> Path | None:
    """The folder of the shared volume, by STIGMER_WORKSPACE_VOLUME; None where it is not set. Raises PlaceError."""
    environ = os.environ if environ is None else environ
    return _absolute(VOLUME, environ)


def own(environ: Mapping[str, str] | None = None) -> Path:
    """The folder for files on this machine's own disk: STIGMER_WORKSPACE_DIR, else one below XDG_STATE_HOME.

    Raises PlaceError.
    """
    environ = os.environ if environ is None else environ
    named = _absolute(OWN, environ)
    if named is not None:
        return named
    state = environ.get("XDG_STATE_HOME", "").strip()
    base = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    return base / "stigmer" / "workspaces"


def _absolute(variable: str, environ: Mapping[str, str]) -> Path | None:
    named = environ.get(variable, "").strip()
    if not named:
        return None
    path = Path(named).expanduser()
    if not path.is_absolute():
        raise PlaceError(f"{variable} {named!r} is not an absolute path", hint=f"{variable}=/srv/workspaces")
    return path


def disk(environ: Mapping[str, str] | None = None) -> str:
    """A word for the disk that holds this machine's own workspaces: whoever has that folder has it, after a restart too.

    Raises PlaceError where the folder cannot be made.
    """
    folder = own(environ)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            _write_once(folder / _ID, os.urandom(8).hex())
        word = (folder / _ID).read_text("ascii").strip()
    except (OSError, ValueError) as error:
        raise PlaceError(
            f"this machine can keep no files of runs: {str(folder)!r}: {error}",
            hint=f"{OWN} names a folder that may be written to",
        ) from error
    if not word.isalnum():
        raise PlaceError(f"{str(folder / _ID)!r} holds no word", hint=f"rm {folder / _ID}")
    return word


def _write_once(path: Path, text: str) -> None:
    """Writes a file whole, where there is none. Raises FileExistsError."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(text + "\n", "ascii")
    try:
        os.link(new, path)
    finally:
        new.unlink()


def folder_of(request: CreateExecutionRequest) -> Path | None:
    """The folder of an execution's files on this machine, made where a place has none yet; None: it has no files.

    Raises PlaceError.
    """
    if not request.workspace or request.place == "none":
        return None
    if not request.place or request.workspace.startswith("/"):
        return Path(request.workspace)
    root = own() if request.place == "worker" else volume()
    if root is None:
        raise PlaceError(
            f"the files of this run are on the workers' volume, and {VOLUME} is not set on {_machine()}",
            hint=f"set {VOLUME} on every worker to where the volume is mounted",
        )
    folder = root / request.workspace
    try:
        if request.place == "worker":
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)  # A volume that is not mounted is not made up.
    except OSError as error:
        raise PlaceError(
            f"the folder {str(folder)!r} of this run's files cannot be made: {error.strerror}",
            hint=f"{VOLUME if request.place == 'volume' else OWN} names a folder that may be written to",
        ) from error
    return folder


def has_commands(request: CreateExecutionRequest) -> bool:
    """Whether a run may have the shell tool: commands are not confined, so at home alone, in the caller's own folder."""
    return not request.place


def placed_at(records: Iterable[Event]) -> WorkspacePlaced | None:
    """Where the files of an execution are, of those whose place is `worker`; None before its first attempt."""
    return next((record.workspace_placed for record in records if record.HasField("workspace_placed")), None)


def hold(placed: WorkspacePlaced | None) -> WorkspacePlaced:
    """The record that a run's files are here. Raises WorkerGone where they have been `placed` on another disk."""
    from stigmer.api.event_pb2 import WorkspacePlaced

    ours = disk()
    if placed is not None and placed.disk != ours:
        raise WorkerGone(
            f"the files of this run are on worker {placed.worker!r}, which is gone",
            hint="start that worker again with its disk, then: stigmer retry …; or begin anew. A run whose place is "
            "`volume` can go on with any worker",
        )
    return WorkspacePlaced(worker=_machine(), disk=ours)


def _machine() -> str:
    return os.uname().nodename
