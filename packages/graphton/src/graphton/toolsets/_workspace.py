"""The one folder that tools may touch, and the only code that opens something in it.

Every path is walked folder by folder from an open descriptor of the root, each step with O_NOFOLLOW. A symlink is
read as text and its target is walked again under the same rules, so the kernel never follows one for us, and swapping
a component between a check and its use cannot lead outside.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import pwd
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from graphton.errors import SettingError, ToolError

__all__ = ["Missing", "Place", "Workspace", "open_workspace"]

_DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_STEP = _DIRECTORY | getattr(os, "O_PATH", os.O_RDONLY)
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_MAX_LINKS = 40
_FEW = 12
"""Names that an error tells of a folder in which something was looked for."""
_PROTECTED = {".git", ".stigmer"}


class Missing(ToolError):
    """Nothing of that name is in the workspace; `near` are paths that may be meant."""

    near: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Workspace:
    """A folder by its real path, with folders in or around it that stay shut for every tool."""

    root: Path
    closed: tuple[Path, ...] = ()

    @contextlib.contextmanager
    def place(self, path: str, *, write: bool = False) -> Iterator[Place]:
        """Where `path` is: an open parent folder and a last name that was no symlink. `write` makes the parents."""
        walk = _Walk(self, path, write=write)
        try:
            yield walk.go()
        finally:
            walk.close()

    @contextlib.contextmanager
    def folder(self, path: str) -> Iterator[tuple[int, Place]]:
        """A readable descriptor of a folder."""
        with self.place(path) as place:
            if place.status is None:
                raise place.missing()
            if not stat.S_ISDIR(place.status.st_mode):
                raise ToolError(f"{place.shown!r} is a file, not a folder")
            fd = place.open(_DIRECTORY)
            try:
                yield fd, place
            finally:
                os.close(fd)

    @contextlib.contextmanager
    def file(self, path: str) -> Iterator[tuple[int, Place]]:
        """A readable descriptor of a regular file. Never waits: pipes, devices and sockets are refused."""
        with self.place(path) as place:
            place.check_file()
            fd = place.open(_READ)
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise ToolError(f"{place.shown!r} is not a regular file")
                yield fd, place
            finally:
                os.close(fd)

    def parts(self, path: str) -> list[str]:
        """The components of a path below the root, `..` kept; refuses an absolute path that is not below it."""
        if "\0" in path:
            raise ToolError(f"path {path!r} holds a zero byte")
        path = os.path.expanduser(path) if path == "~" or path.startswith("~/") else path
        if not path.startswith("/"):
            return _split(path)
        base = _split(str(self.root))
        for candidate in (path, os.path.realpath(path)):
            parts = _split(candidate)
            if parts[: len(base)] == base:
                return parts[len(base) :]
        raise self.outside(path)

    def outside(self, path: str) -> ToolError:
        return ToolError(f"{path!r} is outside the workspace {str(self.root)!r}; use a path inside it")


@dataclass(frozen=True, slots=True)
class Place:
    """A name in an open folder of the workspace. `name` is "" for the root itself."""

    workspace: Workspace
    folder: int
    name: str
    parts: tuple[str, ...]
    status: os.stat_result | None
    """What was there when the walk ended; None: nothing."""

    @property
    def shown(self) -> str:
        """The real path from the root, as the model sees it."""
        return _shown(self.parts)

    def open(self, flags: int) -> int:
        """Open what is there; refused when a symlink or something closed has taken its place meanwhile."""
        try:
            fd = os.open(self.name or ".", flags, dir_fd=self.folder)
        except OSError as error:
            raise _failed("open", self.shown, error) from error
        try:
            _refuse_closed(self.workspace, os.fstat(fd), self.parts)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def check_file(self) -> None:
        """Refuse what is no regular file, without opening it."""
        if self.status is None:
            raise self.missing()
        if stat.S_ISDIR(self.status.st_mode):
            raise ToolError(f"{self.shown!r} is a folder; list_files shows what is in it")
        if not stat.S_ISREG(self.status.st_mode):
            raise ToolError(f"{self.shown!r} is not a regular file (a pipe, socket or device)")

    def missing(self) -> Missing:
        return _missing(self.folder, self.name, self.parts)

    def failed(self, doing: str, error: OSError) -> ToolError:
        """The error for the model when `doing` (read, write, …) failed."""
        return _failed(doing, self.shown, error)


class _Walk:
    """One path on its way from the root. Holds a descriptor for each folder on the way, so `..` needs no lookup."""

    def __init__(self, workspace: Workspace, path: str, *, write: bool) -> None:
        self.workspace, self.path, self.write = workspace, path, write
        self.names: list[str] = []
        self.pending: deque[str] = deque(workspace.parts(path))
        self.links = 0
        self.folders: list[int] = []

    def close(self) -> None:
        for fd in self.folders:
            os.close(fd)
        self.folders.clear()

    def go(self) -> Place:
        try:
            self.folders.append(os.open(self.workspace.root, _STEP))
        except OSError as error:
            raise ToolError(
                f"the workspace {str(self.workspace.root)!r} cannot be opened: {error.strerror}"
            ) from error
        while self.pending:
            part = self.pending.popleft()
            if part == "..":
                self._up()
            elif (target := self._link(part)) is not None:
                self._follow(target)
            else:
                self._refuse_protected(part)
                if not self.pending:
                    return self._end(part)
                self._down(part)
        status = os.fstat(self.folders[-1])
        _refuse_closed(self.workspace, status, self.names)
        return Place(self.workspace, self.folders[-1], "", tuple(self.names), status)

    def _up(self) -> None:
        if not self.names:
            raise self.workspace.outside(self.path)
        self.names.pop()
        os.close(self.folders.pop())

    def _link(self, part: str) -> str | None:
        try:
            return os.readlink(part, dir_fd=self.folders[-1])
        except OSError:
            return None  # no link, or nothing there: the next step tells

    def _follow(self, target: str) -> None:
        self.links += 1
        if self.links > _MAX_LINKS:
            raise ToolError(f"{self.path!r} goes through more than {_MAX_LINKS} symlinks")
        if target.startswith("/"):
            try:
                parts = self.workspace.parts(target)
            except ToolError:
                raise self.workspace.outside(self.path) from None
            for fd in self.folders[1:]:
                os.close(fd)
            del self.folders[1:]
            self.names.clear()
        else:
            parts = _split(target)
        self.pending.extendleft(reversed(parts))

    def _refuse_protected(self, part: str) -> None:
        """Other programs run or obey what is in these folders: changing them needs a person's yes."""
        if self.write and part.casefold() in _PROTECTED:
            raise ToolError(
                f"{self.path!r} is in {part!r}, which file tools do not change; run_command can, and asks"
            )

    def _down(self, part: str) -> None:
        folder, names = self.folders[-1], [*self.names, part]
        try:
            fd = os.open(part, _STEP, dir_fd=folder)
        except FileNotFoundError:
            if not self.write:
                raise _missing(folder, part, names) from None
            fd = self._make(part, names)
        except OSError as error:
            raise self._not_a_folder(names, error) from error
        self.folders.append(fd)
        self.names.append(part)
        _refuse_closed(self.workspace, os.fstat(fd), self.names)

    def _make(self, part: str, names: list[str]) -> int:
        _refuse_closed(self.workspace, None, names)
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, dir_fd=self.folders[-1])
            return os.open(part, _STEP, dir_fd=self.folders[-1])
        except OSError as error:
            raise self._not_a_folder(names, error) from error

    def _not_a_folder(self, names: list[str], error: OSError) -> ToolError:
        shown = _shown(names)
        if isinstance(error, NotADirectoryError):
            return ToolError(f"{shown!r} is not a folder")
        return _failed("open", shown, error)

    def _end(self, part: str) -> Place:
        names = (*self.names, part)
        try:
            status = os.stat(part, dir_fd=self.folders[-1], follow_symlinks=False)
        except FileNotFoundError:
            status = None
        except OSError as error:
            raise _failed("open", _shown(names), error) from error
        _refuse_closed(self.workspace, status, names)
        return Place(self.workspace, self.folders[-1], part, names, status)


def _shown(parts: Iterable[str]) -> str:
    """A path from the root as text; a byte that is no text (names may hold any) as a question mark."""
    return "/".join(parts).encode(errors="replace").decode() or "."


def _split(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _missing(folder: int, name: str, parts: Iterable[str]) -> Missing:
    """ "No such file", with the name that was probably meant."""
    shown = _shown(parts)
    try:
        fd = os.open(".", _DIRECTORY | os.O_RDONLY, dir_fd=folder)
    except OSError:
        return Missing(f"there is no {shown!r}")
    try:
        with os.scandir(fd) as entries:
            names = [_shown([entry.name]) for entry, _ in zip(entries, range(2000), strict=False)]
    finally:
        os.close(fd)
    folded = {one.casefold(): one for one in names}
    near = difflib.get_close_matches(name.casefold(), list(folded), n=3, cutoff=0.6)
    if not near:
        return Missing(f"there is no {shown!r}; {_there(names)}")
    above = shown[: -len(name)]
    paths = tuple(above + folded[one] for one in near)
    missing = Missing(f"there is no {shown!r}; did you mean {' or '.join(map(repr, paths))}?")
    missing.near = paths
    return missing


def _there(names: list[str]) -> str:
    """What a folder holds, as an error tells it; hidden files are not named."""
    visible = sorted(name for name in names if not name.startswith("."))
    if not visible:
        return "there are only hidden files" if names else "there are no files"
    return f"there is: {', '.join(visible[:_FEW])}{', …' if len(visible) > _FEW else ''}"


def _failed(doing: str, shown: str, error: OSError) -> ToolError:
    return ToolError(f"cannot {doing} {shown!r}: {error.strerror or type(error).__name__}")


def _refuse_closed(workspace: Workspace, status: os.stat_result | None, parts: Iterable[str]) -> None:
    """Refuse a closed folder by its path and by what it is (device and inode), and the kernel's own file systems."""
    path = workspace.root.joinpath(*parts)
    for shut in workspace.closed:
        if path == shut or (status is not None and _is_same(shut, status)):
            raise ToolError(f"{_shown(parts)!r} is closed to tools")
    if status is not None and status.st_dev in _kernel_devices():
        raise ToolError(f"{_shown(parts)!r} belongs to the kernel and is closed to tools")


def _is_same(path: Path, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), status)
    except OSError:
        return False  # it does not exist (yet): its path is compared above


def _kernel_devices() -> set[int | None]:
    """/proc shows the memory and environment of processes, ours among them."""
    usual = os.stat("/").st_dev
    return {device for path in ("/proc", "/sys") if (device := _device(path)) not in (None, usual)}


def _device(path: str) -> int | None:
    try:
        return os.stat(path).st_dev
    except OSError:
        return None  # Not every system has them.


# --- choosing the folder ---------------------------------------------------------------------------------------


def open_workspace(path: Path | str, *, named: bool, closed: Iterable[Path | str] = ()) -> Workspace:
    """The folder that tools may touch. `named` says that a person wrote this path by hand.

    The home folder, and every folder above it, must be named: a command typed in the wrong place should not hand
    all of somebody's files to a model. `closed` folders stay shut for every tool, even inside the workspace.
    """
    root = Path(os.path.realpath(os.path.expanduser(path)))
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise SettingError(
            f"workspace {str(path)!r} {what}",
            hint=f"make it first: mkdir -p {str(path)!r}, or name another folder",
        )
    shut = tuple(Path(os.path.realpath(os.path.expanduser(one))) for one in closed)
    for one in shut:
        if root.is_relative_to(one):
            raise SettingError(
                f"workspace {str(root)!r} lies in {str(one)!r}, which is closed to tools",
                hint="run in another folder, e.g. cd ~/project",
            )
    if not named and (reason := _too_wide(root)):
        raise SettingError(
            f"{str(root)!r} is {reason}, and an agent may change every file in its workspace",
            hint=f"go to a project folder first, or name this one by hand: --workspace {str(root)!r}",
        )
    return Workspace(root, shut)


def _too_wide(root: Path) -> str:
    for home in _homes():
        if root == home:
            return "your home folder"
        if home.is_relative_to(root):
            return "the root of the file system" if root == Path("/") else "a folder around your home folder"
    return "the root of the file system" if root == Path("/") else ""


def _homes() -> list[Path]:
    """The home folder by environment and by user database: either may be set oddly."""
    homes = [os.environ.get("HOME", "")]
    with contextlib.suppress(KeyError):
        homes.append(pwd.getpwuid(os.getuid()).pw_dir)
    return [Path(os.path.realpath(home)) for home in homes if home.startswith("/") and home != "/"]
