"""What the file tools know of a workspace: by it small models are led to what is there."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from graphton._file_names import file_names
from graphton.errors import ToolError
from graphton.tools import Knowledge, in_thread
from graphton.toolsets._workspace import Missing, Workspace

__all__ = ["Editing", "Reading", "Searching"]

MOST_LINES, LONGEST_LINE = 30, 160
"""Lines of a file among which an edit is to choose, and the characters of one."""
MOST_COMPARED = 2_000
"""Lines of a long file that are compared with what was to be replaced: about a tenth of a second."""


def is_there(workspace: Workspace, path: str) -> bool:
    with contextlib.suppress(ToolError), workspace.place(path) as place:
        return not place.name or place.status is not None
    return False


class Reading(Knowledge):
    """Of read_file."""

    def __init__(self, workspace: Workspace, elsewhere: Callable[[str], Sequence[str]]) -> None:
        self._workspace, self._elsewhere = workspace, elsewhere

    async def doubt(self, arguments: Mapping[str, Any], said: str) -> str:
        """Small models make up a file where the question is about none."""
        return _made_up(self._workspace, arguments, said)

    async def named(self, text: str) -> Sequence[str]:
        return [name for name in file_names(text) if is_there(self._workspace, name)]

    async def choices(self, arguments: Mapping[str, Any]) -> Mapping[str, Sequence[str]]:
        """The files of this name in other folders. One with a name like it may be another one: the error tells of it."""
        path = arguments.get("path")
        found = await in_thread(self._meant, path) if isinstance(path, str) else []
        return {"path": found} if found else {}

    def _meant(self, path: str) -> list[str]:
        try:
            with self._workspace.place(path) as place:
                place.check_file()
        except Missing:
            return list(self._elsewhere(path.rpartition("/")[2]))[:MOST_LINES]
        except ToolError:
            pass  # A folder, or closed to tools: the error says so.
        return []


class Searching(Knowledge):
    """Of search_files."""

    def __init__(self, workspace: Workspace, occurs: Callable[[str, bool], bool]) -> None:
        self._workspace, self._occurs = workspace, occurs

    async def doubt(self, arguments: Mapping[str, Any], said: str) -> str:
        """What no file holds may be no question about files; in a made-up folder even less. Elsewhere it is found."""
        text, path = arguments.get("text"), arguments.get("path")
        made_up = _made_up(self._workspace, arguments, said)
        if not isinstance(text, str) or not text or (path and not made_up):
            return ""
        try:
            found = await in_thread(self._occurs, text, bool(arguments.get("regex")))
        except ToolError:
            return ""  # The call itself tells what is wrong with it.
        return "" if found else f'{made_up} No file holds "{text}".'.strip()


class Editing(Knowledge):
    """Of edit_file."""

    def __init__(self, text: Callable[[str], str]) -> None:
        """`text` gives a file's text, or raises ToolError."""
        self._text = text

    async def choices(self, arguments: Mapping[str, Any]) -> Mapping[str, Sequence[str]]:
        """A line of the file: what small models take for its text, they make up again and again."""
        path, old, new = (arguments.get(key) for key in ("path", "old", "new"))
        if not isinstance(path, str) or not isinstance(old, str):
            return {}
        near = await in_thread(self._near, path, old, old == new)
        return {"path": [path], "old": near} if near else {}

    def _near(self, path: str, old: str, is_new: bool) -> list[str]:
        try:
            text = self._text(path)
        except ToolError:
            return []
        # What occurs more than once needs lines around it: no single line is the answer.
        return _passages(text, old) if is_new or old not in text else []


def _passages(text: str, old: str) -> list[str]:
    """Passages of a text, each there once, that may be meant: the nearest of as many words, and whole lines.

    Words with quotes or brackets are left to whole lines: small models put them back without.
    """
    lines = [line for line in dict.fromkeys(text.splitlines()) if line.strip() and len(line) <= LONGEST_LINE]
    if len(lines) > MOST_LINES:
        lines = difflib.get_close_matches(old, lines[:MOST_COMPARED], n=MOST_LINES, cutoff=0.3)
    parts = dict.fromkeys(part for line in lines for part in _parts(line, len(old.split())))
    near = difflib.get_close_matches(old, list(parts), n=3, cutoff=0.5)
    return [one for one in dict.fromkeys([*near, *lines]) if text.count(one) == 1]


def _parts(line: str, count: int) -> Iterator[str]:
    """Every so many words of a line, with what stands between them."""
    words = list(re.finditer(r"[^\s\"'`<>(){}\[\]]*\w", line))
    for first, last in zip(words, words[count - 1 :] if count else [], strict=False):
        part = line[first.start() : last.end()]
        if not _MARKS.search(part):
            yield part


_MARKS = re.compile(r"[\"'`<>(){}\[\]]")


def _made_up(workspace: Workspace, arguments: Mapping[str, Any], said: str) -> str:
    """That nothing is at the path and nobody spoke of it; "" where it may be meant."""
    path = arguments.get("path")
    if not isinstance(path, str) or not path.strip("./ "):
        return ""
    if path.strip("/ ").rpartition("/")[2].casefold() in said or is_there(workspace, path):
        return ""
    return f'There is no "{path}", and nobody spoke of it.'
