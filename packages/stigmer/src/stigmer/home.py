"""STIGMER_HOME: where everything of one user lives, and what each file in it is called. Imports nothing heavy."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stigmer.errors import StigmerError

__all__ = ["LOG_LIMIT", "Address", "Home", "HomeError"]

LOG_LIMIT = 5_000_000
"""Bytes of daemon.log after which it is put aside as daemon.log.1."""

_SOCKET_LIMIT = 100
"""Bytes. The kernel takes 108 (Linux) or 104 (macOS) with the closing zero; the rest is for gRPC's own prefix."""


class HomeError(StigmerError):
    """STIGMER_HOME cannot be used."""

    code = "home"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens, and the word that it wants to hear; `version` and `pid` are what it said of itself."""

    target: str
    """As gRPC takes it: `unix:/home/ann/.stigmer/stigmer.sock`."""
    token: str = field(repr=False)
    version: str = ""
    pid: int = 0
    stays: bool = False
    """Started by `stigmer up`; another one ends when it is idle."""
    engine: str = "embedded"
    """What drives the executions: embedded | temporal."""
    source: str = ""
    """Who named it, `--server` or a variable; "" is the daemon of a home of this user's."""
    tls: bool = False

    @property
    def remote(self) -> bool:
        """Whether somebody named it: a server that keeps its own keys and files, and is not ours to start."""
        return bool(self.source)

    @property
    def shown(self) -> str:
        """As somebody would write it."""
        return f"https://{self.target}" if self.tls else self.target


@dataclass(frozen=True, slots=True)
class Home:
    """One home folder and the names of its files; nothing is created before `create()`.

    >>> Home.find({"STIGMER_HOME": "/srv/stigmer"}).token
    PosixPath('/srv/stigmer/token')
    """

    path: Path

    @classmethod
    def find(cls, environ: Mapping[str, str] | None = None) -> Home:
        """The home that the environment names: STIGMER_HOME, else ~/.stigmer. An empty variable is not set."""
        environ = os.environ if environ is None else environ
        named = environ.get("STIGMER_HOME", "").strip()
        return cls(Path(os.path.abspath(os.path.expanduser(named or "~/.stigmer"))))

    def create(self) -> Home:
        """Makes the folder, for its owner alone, where it is not there yet."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise HomeError(
                f"STIGMER_HOME {str(self.path)!r} is not a folder",
                hint="name a folder, e.g. STIGMER_HOME=~/.stigmer, or unset the variable",
            ) from None
        except OSError as error:
            raise HomeError(
                f"STIGMER_HOME {str(self.path)!r} cannot be made: {error.strerror}",
                hint="name a folder that you may write to, e.g. STIGMER_HOME=~/.stigmer",
            ) from error
        _owned(self.path, "STIGMER_HOME")
        return self

    @property
    def config(self) -> Path:
        """The user file of the cascade."""
        return self.path / "config.yaml"

    @property
    def database(self) -> Path:
        return self.path / "stigmer.db"

    @property
    def token(self) -> Path:
        """What a caller must show on the socket: a random word, readable by the owner alone."""
        return self.path / "token"

    @property
    def address(self) -> Path:
        """JSON of the daemon that is ready: {address, pid, version}. Left over by a killed one, it does no harm."""
        return self.path / "address"

    @property
    def lock(self) -> Path:
        """Held by the daemon as long as it lives: at most one per home."""
        return self.path / "daemon.lock"

    @property
    def start_lock(self) -> Path:
        """Held by the command that starts a daemon until that daemon is ready."""
        return self.path / "start.lock"

    @property
    def log(self) -> Path:
        return self.path / "daemon.log"

    @property
    def tool_modes(self) -> Path:
        """How local models that we know nothing of use tools, as they were tried out. It may be deleted."""
        return self.path / "tool-modes.json"

    @property
    def reports(self) -> Path:
        """What went wrong by our own fault, a file each."""
        return self.path / "reports"

    @property
    def socket(self) -> Path:
        """`stigmer.sock` in the home, or in a short private folder where that path is too long for a socket."""
        plain = self.path / "stigmer.sock"
        if len(os.fsencode(plain)) < _SOCKET_LIMIT:
            return plain
        import hashlib  # Most homes need none.

        return _runtime_folder() / hashlib.sha256(os.path.realpath(self.path).encode()).hexdigest()[:16] / "s"

    def create_socket_folder(self) -> Path:
        """Makes the socket's folder, checks that it is the user's alone, and gives the socket's path."""
        socket = self.socket
        if socket.parent != self.path:
            for folder in (socket.parent.parent, socket.parent):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                _owned(folder, "the socket's folder")
        return socket


def _runtime_folder() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/") and len(os.fsencode(runtime)) < _SOCKET_LIMIT - 30:
        return Path(runtime) / "stigmer"
    import tempfile

    temporary = tempfile.gettempdir()
    if len(os.fsencode(temporary)) >= _SOCKET_LIMIT - 40:
        temporary = "/tmp"  # The one place that is short everywhere.
    return Path(temporary) / f"stigmer-{os.getuid()}"


def _owned(folder: Path, what: str) -> None:
    """Refuses a folder that another user owns or may write to: whoever can put a socket there can read prompts."""
    found = folder.stat()
    if found.st_uid != os.getuid():
        raise HomeError(
            f"{what} {str(folder)!r} belongs to another user (uid {found.st_uid})",
            hint="set STIGMER_HOME to a folder of your own, e.g. STIGMER_HOME=~/.stigmer",
        )
    if stat.S_IMODE(found.st_mode) & 0o022:
        raise HomeError(
            f"{what} {str(folder)!r} may be written to by other users (mode {stat.S_IMODE(found.st_mode):o})",
            hint=f"chmod 700 {folder}",
        )
