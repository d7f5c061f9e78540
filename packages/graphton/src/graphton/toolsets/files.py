"""File tools: list, find, search, read, write and edit, all confined to one workspace."""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import functools
import itertools
import json
import os
import re
import secrets
import select
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from graphton.errors import ToolError
from graphton.tools import Effect, Knowledge, Tool, in_thread, tool
from graphton.toolsets._file_knowledge import Editing, Reading, Searching
from graphton.toolsets._workspace import Missing, Place, Workspace

__all__ = ["file_tools"]

MAX_SHOWN = 200
"""Names in one list_files or find_files result."""
MAX_ENTRIES = 20_000
"""Names looked at in one call."""
MAX_DEPTH = 40
MAX_MATCHES = 50
MAX_LINE = 240
"""Characters of a matching line that search_files shows."""
MAX_SEARCHED = 4 * 1024 * 1024
"""Bytes of one file that search_files looks at."""
MAX_READ = 16_000
"""Characters in one read_file result."""
MAX_FILE = 16 * 1024 * 1024
"""Bytes of a file that read_file and edit_file take."""
MAX_MEANT = 1_500
"""Bytes shown of a file whose name was searched for as if it were a text in files."""
SHORT_FILE = 600
"""Bytes of a file that an edit which does not fit is answered with whole."""
PEEKS = 5
"""So many of the largest files are listed with how they begin."""
PEEK = 60
"""Characters of a beginning."""
REGEX_SECONDS = 3
SKIPPED = {"node_modules", "__pycache__", "venv", "site-packages"}
"""Folders that find_files and search_files leave out, besides those with a leading dot, unless they are named."""

_WRITING = threading.Lock()
"""Two calls of one reply may edit the same file; each must see what the other wrote."""


def file_tools(workspace: Workspace) -> list[Tool]:
    """The six file tools of a workspace. The texts are short because every model call carries them."""

    @tool(effect=Effect.READ)
    def list_files(path: str = "") -> str:
        """List the files of a folder with their sizes, largest first."""
        return _list(workspace, path)

    @tool(effect=Effect.READ)
    async def find_files(pattern: str) -> str:
        """Find files by a pattern for their names, e.g. *.py."""
        return await in_thread(_find, workspace, pattern, threading.Event())

    @tool(effect=Effect.READ)
    async def search_files(text: str, path: str = "", regex: bool = False) -> str:
        """Find which files contain a word, and the lines with it."""
        return await in_thread(_search, workspace, text, path, regex, threading.Event())

    @tool(effect=Effect.READ)
    def read_file(path: str, start_line: int = 1, end_line: int | None = None) -> str:
        """Read a file by its path."""
        return _read(workspace, path, start_line, end_line)

    @tool(effect=Effect.IDEMPOTENT)
    def write_file(path: str, content: str) -> str:
        """Create or replace a file with exactly the given content."""
        return _write(workspace, path, content)

    @tool(effect=Effect.WRITE)
    def edit_file(path: str, old: str, new: str) -> str:
        """Replace a text, which must occur exactly once, in a file."""
        return _edit(workspace, path, old, new)

    # In this order, as measured: of a list, small models like to take what stands first.
    reads = replace(read_file, knowledge=Reading(workspace, functools.partial(_elsewhere, workspace)))
    searches = replace(search_files, knowledge=Searching(workspace, functools.partial(_occurs, workspace)))
    edits = replace(edit_file, knowledge=Editing(functools.partial(_text, workspace)))
    lists, finds = (replace(one, knowledge=Knowledge()) for one in (list_files, find_files))
    return [_lean(one) for one in (reads, searches, lists, write_file, edits, finds)]


def _occurs(workspace: Workspace, text: str, regex: bool) -> bool:
    """Whether a search for a text shows anything, lines or the files that it names."""
    stop = threading.Event()
    if _found_below(workspace, "", text, regex, stop)[0]:
        return True
    return bool(_meant(workspace, text) or _named(workspace, text, stop))


def _text(workspace: Workspace, path: str) -> str:
    data, _ = _bytes(workspace, path)
    return data.decode("utf-8-sig", errors="replace")


def _elsewhere(workspace: Workspace, name: str) -> list[str]:
    """The files of this name in any folder."""
    tree = _Tree(workspace, threading.Event())
    with workspace.folder("") as (fd, _):
        return ["/".join(p.parts) for p in tree.files(fd, ()) if p.name.casefold() == name.casefold()]


def _lean(one: Tool) -> Tool:
    """Without defaults in the schema: leaving a field out says the same, and costs no tokens."""
    for schema in one.parameters["properties"].values():
        schema.pop("default", None)
    return one


# --- looking ---------------------------------------------------------------------------------------------------


def _list(workspace: Workspace, path: str) -> str:
    try:
        return _listing(workspace, path)
    except Missing as error:
        if error.near:
            raise
        # Small models make up a folder ("path/to/folder") where they were asked about the whole of it.
        return f"(there is no {path!r}; in the workspace there is:)\n{_listing(workspace, '')}"


def _listing(workspace: Workspace, path: str) -> str:
    with workspace.folder(path) as (fd, place):
        with os.scandir(fd) as entries:
            names = [entry.name for entry in itertools.islice(entries, MAX_ENTRIES + 1)]
        cut = len(names) > MAX_ENTRIES
        kinds = [(name, *_kind(fd, name)) for name in names[:MAX_ENTRIES]]
        files = sorted(
            ((name, size) for name, kind, size in kinds if kind == "file"), key=lambda one: (-one[1], one[0])
        )
        begins = [_beginning(workspace, fd, (*place.parts, name)) for name, _ in files[:PEEKS]]
    lines = [f"{name} ({size} bytes)" for name, size in files]
    if len(files) > 1 and files[0][1] > files[1][1]:
        lines[0] = f"{files[0][0]} ({files[0][1]} bytes, largest)"
    lines[: len(begins)] = [f"{line}{begin}" for line, begin in zip(lines, begins, strict=False)]
    lines += sorted(
        f"{name}{'/' if kind == 'folder' else ''} ({kind})" for name, kind, _ in kinds if kind != "file"
    )
    if not lines:
        return f"{place.shown!r} is empty"
    more = [f"(more than {MAX_ENTRIES} names; only the first {MAX_ENTRIES} were looked at)"] if cut else []
    if files:
        # Without it, small models answered that the content "is not provided".
        # The path is written out: they joined names of this list to other folders of it.
        path = "/".join((*place.parts, files[0][0]))
        more.append(f"(read_file {path} shows the whole file)")
    return "\n".join(_capped(lines, MAX_SHOWN) + more)


def _beginning(workspace: Workspace, folder: int, parts: tuple[str, ...]) -> str:
    """How a file begins, in a few words: whoever lists files mostly wants to know next what is in them."""
    name = parts[-1]
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        data = _content(Place(workspace, folder, name, parts, status), PEEK * 4)
    except (OSError, ToolError):
        return ""  # gone, unreadable or closed to tools: listed all the same
    words = " ".join((data or b"").decode(errors="replace").split())
    if not words:
        return ""
    return f" begins: {words[:PEEK]}{'…' if len(words) > PEEK or status.st_size > PEEK * 4 else ''}"


def _kind(folder: int, name: str) -> tuple[str, int]:
    """What a name is, and the bytes of a regular file."""
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return "gone", 0
    kinds = ((stat.S_ISREG, "file"), (stat.S_ISDIR, "folder"), (stat.S_ISLNK, "link"))
    return next((kind for test, kind in kinds if test(status.st_mode)), "special file"), status.st_size


def _capped(lines: list[str], limit: int) -> list[str]:
    if len(lines) <= limit:
        return lines
    return [*lines[:limit], f"({len(lines) - limit} more not shown; name a folder or a narrower pattern)"]


@dataclass
class _Tree:
    """A walk over regular files below a folder: no symlink is followed, closed and skipped folders are left out."""

    workspace: Workspace
    stop: threading.Event
    named: frozenset[str] = frozenset()
    """Skipped folders that the caller named, and so wants."""
    left: int = field(default=MAX_ENTRIES)

    def files(self, folder: int, parts: tuple[str, ...]) -> Iterator[Place]:
        """Each file, in order of names, with its folder open as long as the caller looks at it."""
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in itertools.islice(entries, self.left))
        for name in names:
            self.left -= 1
            if self.left <= 0 or self.stop.is_set():
                return
            try:
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            except OSError:
                continue  # gone since it was listed
            place = Place(self.workspace, folder, name, (*parts, name), status)
            if stat.S_ISREG(status.st_mode):
                yield place
            elif stat.S_ISDIR(status.st_mode) and self._wanted(name) and len(parts) < MAX_DEPTH:
                yield from self._below(place)

    def _wanted(self, name: str) -> bool:
        return name in self.named or not (name.startswith(".") or name in SKIPPED)

    def _below(self, place: Place) -> Iterator[Place]:
        try:
            fd = place.open(os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except ToolError:
            return  # closed to tools, unreadable, or no folder any more
        try:
            yield from self.files(fd, place.parts)
        finally:
            os.close(fd)

    @property
    def note(self) -> list[str]:
        return (
            [f"(stopped after {MAX_ENTRIES} names; name a folder to look further)"] if self.left <= 0 else []
        )


def _find(workspace: Workspace, pattern: str, stop: threading.Event) -> str:
    below = workspace.parts(pattern) if pattern.startswith(("/", "~/")) else pattern.split("/")
    below = [part for part in below if part not in ("", ".")]
    if not below or ".." in below:
        raise ToolError(f"pattern {pattern!r} must be a file name or a path in the workspace, e.g. '*.py'")
    if len(below) == 1:
        below.insert(0, "**")
    tree = _Tree(workspace, stop, frozenset(below))
    with workspace.folder("") as (fd, _):
        files = [place.parts for place in tree.files(fd, ())]
    found = [parts for parts in files if _matches(parts, tuple(below))]
    if not found and not set("*?[") & set(pattern):
        # A plain word: the model remembers a part of the name.
        found = [parts for parts in files if pattern.casefold() in "/".join(parts).casefold()]
    if not found:
        return "\n".join([f"no file matches {pattern!r}", *tree.note])
    names = _capped(["/".join(parts) for parts in found], MAX_SHOWN)
    return "\n".join([*names, *tree.note, "(names only; read_file shows what is in a file)"])


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """A glob over whole paths: `*` within one name, `**` over any number of folders."""

    @functools.cache
    def match(at: int, want: int) -> bool:
        if want == len(pattern):
            return at == len(parts)
        if pattern[want] == "**":
            return match(at, want + 1) or (at < len(parts) and match(at + 1, want))
        return at < len(parts) and fnmatch.fnmatchcase(parts[at], pattern[want]) and match(at + 1, want + 1)

    return match(0, 0)


def _search(workspace: Workspace, text: str, path: str, regex: bool, stop: threading.Event) -> str:
    if not text:
        raise ToolError("text is empty; give the text to search for")
    place = _existing(workspace, path)
    found, notes = _found_below(workspace, place, text, regex, stop)
    elsewhere = place != path
    if not found and place.strip("./"):
        # Small models make up a folder; what they look for is somewhere all the same.
        everywhere = _found_below(workspace, "", text, regex, stop)
        if elsewhere := bool(everywhere[0]):
            found, notes = everywhere
    if found and elsewhere:
        found.insert(0, f"(not in {path!r}, but elsewhere:)")
    if not found:
        notes += _meant(workspace, text) or _named(workspace, text, stop)
    return "\n".join(found + notes)


def _existing(workspace: Workspace, path: str) -> str:
    """The path, or "" where there is nothing of that name."""
    try:
        with workspace.place(path) as place:
            return path if not place.name or place.status is not None else ""
    except Missing:  # not even its folder
        return ""


def _found_below(
    workspace: Workspace, path: str, text: str, regex: bool, stop: threading.Event
) -> tuple[list[str], list[str]]:
    """The lines below a path that hold a text, and what must be said about the search."""
    tree = _Tree(workspace, stop, frozenset(path.split("/")))
    with contextlib.ExitStack() as stack:
        places = stack.enter_context(_below(workspace, path, tree))
        found, count = _regex_lines(text, places, stop) if regex else _literal_lines(text, places)
    notes = [] if found else [f"no line in {count} files holds {text!r}"]
    if len(found) >= MAX_MATCHES:
        notes.append(f"(stopped at {MAX_MATCHES} lines; search a folder or a longer text)")
    return found, notes + tree.note


def _meant(workspace: Workspace, text: str) -> list[str]:
    """Small models search for the name of a file when they should read it."""
    with contextlib.suppress(ToolError), workspace.file(text) as (_, place):
        data = _content(place, MAX_MEANT) or b""
        text = data.decode(errors="replace").strip() or "(nothing that is text)"
        rest = ["(read_file shows the rest)"] if len(data) == MAX_MEANT else []
        return [f"(but there is a file {place.shown!r}; this is in it:)", text, *rest]
    return []


def _named(workspace: Workspace, text: str, stop: threading.Event) -> list[str]:
    """They also search the lines of files for a pattern of names, such as *.md."""
    if not _PATTERN.fullmatch(text):
        return []
    tree = _Tree(workspace, stop)
    with workspace.folder("") as (fd, _):
        names = ["/".join(place.parts) for place in tree.files(fd, ()) if _fits_name(place.name, text)]
    return ["(but these are the files of such a name:)", *_capped(names, MAX_SHOWN)] if names else []


_PATTERN = re.compile(r"\*?\.[A-Za-z0-9]{1,8}|[^\s/]*\*[^\s/]*")
"""An ending, or one name with a star in it."""


def _fits_name(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern if "*" in pattern else f"*{pattern}")


@contextlib.contextmanager
def _below(workspace: Workspace, path: str, tree: _Tree) -> Iterator[Iterator[Place]]:
    """The files below a folder, or the one file that `path` names."""
    with workspace.place(path) as place:
        if place.status is not None and not stat.S_ISDIR(place.status.st_mode):
            place.check_file()
            yield iter([place])
            return
    with workspace.folder(path) as (fd, place):
        yield tree.files(fd, place.parts)


def _content(place: Place, limit: int = MAX_SEARCHED) -> bytes | None:
    """The first bytes of a file; None when it is not text or cannot be read."""
    try:
        fd = place.open(os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except ToolError:
        return None
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        data = file.read(limit)
    return None if _is_binary(data) else data


def _is_binary(data: bytes) -> bool:
    return b"\0" in data[:8192]


def _literal_lines(text: str, places: Iterator[Place]) -> tuple[list[str], int]:
    """Lines that hold the text, in any case of letters, and how many files were read."""
    wanted, found, count = text.casefold(), [], 0
    for place in places:
        data = _content(place)
        if data is None:
            continue
        count += 1
        content = data.decode(errors="replace")
        if wanted not in content.casefold():
            continue
        for number, line in enumerate(content.split("\n"), 1):
            if wanted in line.casefold():
                found.append(_line(place.shown, number, line, line.casefold().find(wanted)))
                if len(found) >= MAX_MATCHES:
                    return found, count
    return found, count


def _line(shown: str, number: int, line: str, at: int) -> str:
    line = line.rstrip("\r")
    if len(line) > MAX_LINE:
        start = max(0, min(at - MAX_LINE // 3, len(line) - MAX_LINE))
        line = ("..." if start else "") + line[start : start + MAX_LINE] + "..."
    return f"{shown}:{number}: {line.strip()}"


# A hostile or unlucky pattern can run for ever, and Python's `re` holds the interpreter lock meanwhile: the whole
# daemon would stand still. So patterns run in a process that the kernel ends.
_REGEX = """
import re, signal, sys
signal.setitimer(signal.ITIMER_VIRTUAL, float(sys.argv[2]))  # its own running time, not that of the disk
source, left = sys.stdin.buffer, int(sys.argv[3])
try:
    find = re.compile(sys.argv[1]).search
except (re.error, RecursionError, OverflowError) as error:
    sys.exit(print(error, end=""))
print()
while left and (head := source.readline()):
    size, name = head.rstrip(b"\\n").split(b" ", 1)
    for number, line in enumerate(source.read(int(size)).decode(errors="replace").split("\\n"), 1):
        if left and (match := find(line)):
            left -= 1
            print(name.decode(), number, match.start(), line)
"""


def _regex_lines(text: str, places: Iterator[Place], stop: threading.Event) -> tuple[list[str], int]:
    names: list[Place] = []
    output = bytearray()
    command = [
        sys.executable,
        "-I",
        "-S",
        "-X",
        "utf8",
        "-W",
        "ignore",
        "-c",
        _REGEX,
        text,
        str(REGEX_SECONDS),
        str(MAX_MATCHES),
    ]
    with (
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={}
        ) as process,
        ThreadPoolExecutor(1) as pool,
    ):
        feeding = pool.submit(_feed, process, places, names)
        assert process.stdout is not None
        while True:
            if stop.is_set():
                process.kill()
            if select.select([process.stdout], [], [], 0.1)[0]:
                data = os.read(process.stdout.fileno(), 65536)
                if not data:
                    break
                output += data
        feeding.result()
    if process.returncode < 0:
        raise ToolError(f"the pattern {text!r} took more than {REGEX_SECONDS} seconds; use a simpler one")
    error, *rows = output.decode(errors="replace").split("\n")
    if error:
        raise ToolError(f"{text!r} is not a regular expression: {error}")
    found = []
    for row in rows[:-1]:
        index, number, at, line = row.split(" ", 3)
        found.append(_line(names[int(index)].shown, int(number), line, int(at)))
    return found, len(names)


def _feed(process: subprocess.Popen[bytes], places: Iterator[Place], names: list[Place]) -> None:
    """Give the files to the process; it may end before it has taken all."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        for place in places:
            if (data := _content(place)) is not None:
                names.append(place)
                process.stdin.write(b"%d %d\n" % (len(data), len(names) - 1) + data)
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()


# --- reading ---------------------------------------------------------------------------------------------------


def _bytes(workspace: Workspace, path: str) -> tuple[bytes, Place]:
    """A file's content. Binary files are refused with their size."""
    with workspace.file(path) as (fd, place):
        assert place.status is not None
        size = place.status.st_size
        with open(fd, "rb", closefd=False) as file:
            try:
                # Asking for all that it could be would make room for all of it each time.
                data = file.read(min(size, MAX_FILE) + 1)
                if len(data) > size:  # It grows while it is read.
                    data += file.read(MAX_FILE + 1 - len(data))
            except OSError as error:
                raise place.failed("read", error) from error
    if _is_binary(data):
        raise ToolError(f"{place.shown!r} is a binary file of {size} bytes, not text")
    return data, place


def _not_misplaced(workspace: Workspace, path: str) -> None:
    """Small models invent a folder before the name of a file that lies in the workspace itself."""
    folder, _, name = path.rpartition("/")
    if not folder.strip("."):
        return
    with workspace.place(path) as place:
        if place.status is not None:
            return
    try:
        with workspace.file(name):
            pass
    except ToolError:
        return
    raise ToolError(f"there is no {place.shown!r}; did you mean {name!r}?")


def _read(workspace: Workspace, path: str, start_line: int, end_line: int | None) -> str:
    try:
        return _lines(workspace, path, start_line, end_line)
    except Missing as error:
        if not (found := _elsewhere(workspace, path.rpartition("/")[2])):
            raise
        raise ToolError(f"there is no {path!r}; did you mean {' or '.join(map(repr, found[:3]))}?") from error


def _lines(workspace: Workspace, path: str, start_line: int, end_line: int | None) -> str:
    _not_misplaced(workspace, path)
    data, place = _bytes(workspace, path)
    text = data[:MAX_FILE].decode("utf-8-sig", errors="replace")
    if not text:
        return f"({place.shown!r} is empty)"
    # Split at newlines only: other separators (form feed, U+2028) are part of a line in every editor.
    lines = text.removesuffix("\n").split("\n")
    total = f"more than {len(lines)}" if len(data) > MAX_FILE else str(len(lines))
    first = max(1, start_line)
    last = len(lines) if end_line is None else min(end_line, len(lines))
    if first > len(lines):
        raise ToolError(f"{place.shown!r} has {total} lines; line {start_line} is beyond its end")
    if last < first:
        raise ToolError(f"end_line {end_line} is before start_line {start_line}")
    shown: list[str] = []
    size = 0
    for line in lines[first - 1 : last]:
        size += len(line) + 1
        if size > MAX_READ and shown:
            break
        shown.append(line[:MAX_READ])
    end = first + len(shown) - 1
    notes = (
        [f"(line {first} is cut: it has {len(lines[first - 1])} characters)"]
        if size > MAX_READ and end == first
        else []
    )
    if end < len(lines):
        notes.append(f"(lines {first} to {end} of {total}; read on with start_line {end + 1})")
    return "\n".join(shown + notes)


# --- writing ---------------------------------------------------------------------------------------------------


def _write(workspace: Workspace, path: str, content: str) -> str:
    data = content.encode(errors="surrogatepass")
    with _WRITING, workspace.place(path, write=True) as place:
        existed = place.status is not None
        _replace(place, data)
    return f"{'replaced' if existed else 'created'} {place.shown} ({len(data)} bytes)"


def _replace(place: Place, data: bytes) -> None:
    """Put a whole new file in the place of the old one: readers see the one or the other, never a part."""
    if not place.name:
        raise ToolError("the path is a folder; name a file in it")
    if place.status is not None:
        place.check_file()
    beside = f".{place.name[:100]}.{secrets.token_hex(4)}.tmp"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(beside, flags, 0o666, dir_fd=place.folder)
        try:
            with open(fd, "wb") as file:
                file.write(data)
                file.flush()
                if place.status is not None:
                    _keep_owner_and_mode(fd, place.status)
                os.fsync(fd)
            os.rename(beside, place.name, src_dir_fd=place.folder, dst_dir_fd=place.folder)
        except BaseException:
            os.unlink(beside, dir_fd=place.folder)
            raise
    except OSError as error:
        raise place.failed("write", error) from error


def _keep_owner_and_mode(fd: int, old: os.stat_result) -> None:
    with contextlib.suppress(PermissionError):  # only the superuser can give files away
        os.fchown(fd, old.st_uid, old.st_gid)
    os.fchmod(fd, stat.S_IMODE(old.st_mode) & 0o777)


def _edit(workspace: Workspace, path: str, old: str, new: str) -> str:
    if not old and new:
        return _append(workspace, path, new)
    if old == new:
        raise ToolError("old and new are the same text")
    with _WRITING:
        data, place = _bytes(workspace, path)
        if len(data) > MAX_FILE:
            raise ToolError(f"{place.shown!r} is larger than {MAX_FILE} bytes; use run_command to change it")
        # Bytes, not text: whatever else the file holds stays as it is, in any encoding.
        want, put = old.encode(errors="surrogatepass"), new.encode(errors="surrogatepass")
        if want not in data and b"\r\n" in data:
            want, put = (re.sub(rb"\r?\n", b"\r\n", one) for one in (want, put))
        count = data.count(want)
        if count != 1:
            raise _not_once(place.shown, data, old, new, count)
        line = data[: data.index(want)].count(b"\n") + 1
        with workspace.place(path, write=True) as again:
            if again.status is None or again.status.st_mtime_ns != _mtime(place):
                raise ToolError(f"{place.shown!r} was changed by somebody else just now; read it again")
            _replace(again, data.replace(want, put))
    return f"edited {place.shown} at line {line}"


def _append(workspace: Workspace, path: str, new: str) -> str:
    with _WRITING:
        data, place = _bytes(workspace, path)
        end = b"\r\n" if b"\r\n" in data else b"\n"
        put = re.sub(rb"\r?\n", end, new.encode(errors="surrogatepass"))
        if data and not data.endswith(b"\n"):
            data += end
        if put and not put.endswith(b"\n"):
            put += end
        with workspace.place(path, write=True) as again:
            if again.status is None or again.status.st_mtime_ns != _mtime(place):
                raise ToolError(f"{place.shown!r} was changed by somebody else just now; read it again")
            _replace(again, data + put)
    return f"added to the end of {place.shown}"


def _mtime(place: Place) -> int:
    return place.status.st_mtime_ns if place.status else 0


def _not_once(shown: str, data: bytes, old: str, new: str, count: int) -> ToolError:
    lines = data.decode(errors="replace").split("\n")
    if count > 1:
        first = old.split("\n")[0]
        at = [str(number) for number, line in enumerate(lines, 1) if first in line][:10]
        return ToolError(
            f"old occurs {count} times in {shown!r} (lines {', '.join(at)}); add a line before or after it"
        )
    if old.strip() and old.strip() in new:
        return ToolError(f"{old!r} does not occur in {shown!r}; with an empty old, new is added at its end")
    if len(data) <= SHORT_FILE:
        text = data.decode("utf-8-sig", errors="replace").rstrip("\n")
        wanted = max(old.split("\n"), key=len).strip()
        near = difflib.get_close_matches(wanted, [line.strip() for line in lines], n=1, cutoff=0.3)
        line = json.dumps(near[0], ensure_ascii=False) if near else ""
        what = f"the nearest line is {line}. The file holds" if near else "copy it from what the file holds"
        return ToolError(f"old does not occur in {shown!r}; {what}:\n{text}")
    wanted = max(old.split("\n"), key=len).strip()
    near = difflib.get_close_matches(wanted, [line.strip() for line in lines[:5000]], n=1, cutoff=0.5)
    if not near:
        return ToolError(f"old does not occur in {shown!r}; read the file and copy the text exactly")
    number = next(number for number, line in enumerate(lines, 1) if line.strip() == near[0])
    return ToolError(
        f"old does not occur in {shown!r}; the nearest line is {number}: {json.dumps(lines[number - 1][:200], ensure_ascii=False)}"
    )
