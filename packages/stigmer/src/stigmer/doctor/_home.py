"""STIGMER_HOME: its rights, its room, its database, its socket, and the daemon that serves it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from stigmer import __version__
from stigmer._surroundings import differing
from stigmer.daemon import find
from stigmer.doctor._check import FAIL, OK, WARN, Check, check
from stigmer.doctor._database import sqlite_file
from stigmer.home import Home, HomeError

__all__ = ["LONGEST_SOCKET", "home_checks"]

LITTLE_ROOM, NO_ROOM = 500_000_000, 20_000_000
"""Bytes on the disk: below the first something is said, below the second the database may refuse the next write."""
LONGEST_SOCKET = 107
"""Bytes of a socket's path on Linux; macOS takes 103."""


def home_checks(home: Home, *, database_url: str, deep: bool) -> Iterator[Check]:
    """Everything about one home. `database_url`: a PostgreSQL one is asked elsewhere, and no file is looked at."""
    yield _folder(home)
    yield _room(home)
    if not database_url:
        yield sqlite_file(home.database, deep=deep)
    yield _socket(home)
    yield _daemon(home)
    yield from _surroundings(home)


def _folder(home: Home) -> Check:
    path = home.path
    shown = str(path)
    named = "STIGMER_HOME" if os.environ.get("STIGMER_HOME", "").strip() else "default"
    facts = {"path": shown, "source": named, "exists": path.is_dir()}
    if not os.path.lexists(path):
        above = _nearest_above(path)
        if not os.access(above, os.W_OK | os.X_OK):
            return check(
                "home.folder",
                FAIL,
                f"{shown!r} ({named}) is not there and cannot be made in {str(above)!r}",
                "name a folder that you may write to, e.g. STIGMER_HOME=~/.stigmer",
                **facts,
            )
        return check(
            "home.folder", OK, f"{shown} ({named}) is not there yet; the first run makes it", **facts
        )
    try:
        Home(path).create()
    except HomeError as error:
        return check("home.folder", FAIL, error.message, error.hint, **facts)
    if not os.access(path, os.W_OK | os.X_OK):
        return check(
            "home.folder", FAIL, f"{shown!r} ({named}) may not be written to", f"chmod u+wx {path}", **facts
        )
    mode = stat.S_IMODE(path.stat().st_mode)
    facts["mode"] = f"{mode:o}"
    if mode & 0o077:
        readable = _readable_by_others(home)
        what = f", and {', '.join(readable)} in it" if readable else ""
        return check(
            "home.folder",
            WARN,
            f"others on this machine may look into {shown}{what}",
            f"chmod -R go= {path}",
            **facts,
        )
    return check("home.folder", OK, f"{shown} ({named}), yours alone", **facts)


def _readable_by_others(home: Home) -> list[str]:
    """Files with secrets or prompts in them whose own mode keeps nobody out."""
    found = []
    for path in (home.token, home.database, home.config, home.log):
        with suppress(OSError):
            if path.stat().st_mode & 0o077:
                found.append(path.name)
    return found


def _nearest_above(path: Path) -> Path:
    return next(parent for parent in path.parents if parent.exists())


def _room(home: Home) -> Check:
    where = home.path if home.path.exists() else _nearest_above(home.path)
    free = shutil.disk_usage(where).free
    facts = {"free_bytes": free}
    text = f"{free / 1e9:.1f} GB free on its disk" if free >= 1e9 else f"{free / 1e6:.0f} MB free on its disk"
    if free < LITTLE_ROOM:
        return check(
            "home.disk", FAIL if free < NO_ROOM else WARN, text, f"make room: df -h {where}", **facts
        )
    return check("home.disk", OK, text, **facts)


def _socket(home: Home) -> Check:
    path = home.socket
    length = len(os.fsencode(path))
    facts = {"path": str(path), "bytes": length}
    if length > LONGEST_SOCKET:
        return check(
            "home.socket",
            FAIL,
            f"the socket's path is {length} bytes long, and the system takes {LONGEST_SOCKET}: {path}",
            "name a home with a shorter path, e.g. STIGMER_HOME=~/.stigmer",
            **facts,
        )
    return check("home.socket", OK, f"socket {path} ({length} bytes)", **facts)


def _daemon(home: Home) -> Check:
    found = find(home)
    if found is not None:
        facts = {"running": True, "pid": found.pid, "version": found.version, "stays": found.stays}
        if found.version != __version__:
            return check(
                "home.daemon",
                WARN,
                f"the running daemon (pid {found.pid}) is of version {found.version}, and this is {__version__}",
                "stigmer down; the next run starts a new one",
                **facts,
            )
        return check(
            "home.daemon",
            OK,
            f"the daemon runs (pid {found.pid}); it keeps the environment that it was started with",
            **facts,
        )
    pid = _lock_holder(home)
    if pid is not None:
        return check(
            "home.daemon",
            FAIL,
            f"a process (pid {pid}) holds {home.lock} and does not answer on the socket",
            "stigmer down",
            running=False,
            pid=pid,
        )
    return check("home.daemon", OK, "no daemon runs; the next run starts one", running=False, pid=None)


def _surroundings(home: Home) -> Iterator[Check]:
    """A daemon reaches servers as the shell could that started it; where this one could otherwise, it is told."""
    if find(home) is None:
        return
    try:
        others = differing(json.loads(home.address.read_text()).get("surroundings", {}))
    except (OSError, ValueError):
        return  # It ends just now.
    if others:
        yield check(
            "home.surroundings",
            WARN,
            f"the running daemon was started with another {', '.join(others)} than this shell has",
            "to use this shell's: stigmer down; the next run starts a new one",
            variables=others,
        )


def _lock_holder(home: Home) -> int | None:
    """The process that holds the home's lock; 0 where it has not said which it is. Leaves the lock as it is."""
    try:
        fd = os.open(home.lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        said = os.read(fd, 32).decode(errors="replace").strip()
        return int(said) if said.isdigit() else 0
    finally:
        os.close(fd)
