"""Configuration files, strictly read: one clear problem, with its line, for everything that can be wrong."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

__all__ = [
    "LIMIT",
    "MAPS",
    "Document",
    "ReadFile",
    "display_path",
    "load_yaml",
    "named_key_variables",
    "plain",
    "read_text",
    "read_yaml",
]

LIMIT = 1_000_000
"""Bytes. Nobody writes so much by hand; a larger file is something else under this name."""


MAPS = ("llm", "llm.timeouts", "models")
"""Keys below which settings stand."""


class ReadFile(NamedTuple):
    """A file's bytes, or why there are none."""

    data: bytes = b""
    problem: str = ""
    notices: tuple[str, ...] = ()


class Document(NamedTuple):
    """The settings of a file as (dotted key, value, line), or what is wrong with it."""

    leaves: tuple[tuple[str, object, int], ...] = ()
    problem: str = ""


def display_path(path: str | Path, home: str | Path | None = None) -> str:
    """A path as people write it: `~/.stigmer/config.yaml`."""
    full, base = os.path.abspath(path), os.path.abspath(home if home is not None else os.path.expanduser("~"))
    return "~" + full[len(base) :] if full.startswith(base.rstrip("/") + "/") else full


def read_text(path: str | Path, shown: str) -> ReadFile:
    """The bytes of a configuration file; a missing one is empty only where the caller looked before."""
    try:
        if os.path.isdir(path):
            return ReadFile(
                problem=f"file {shown} is a folder, not a file: move it away, or name another file"
            )
        # A pipe or a device under this name must not hold us up.
        if not os.path.isfile(path) and os.path.exists(path):
            return ReadFile(problem=f"file {shown} is no regular file: name a text file")
        with open(path, "rb") as file:
            data = file.read(LIMIT + 1)
            mode = os.fstat(file.fileno()).st_mode
    except FileNotFoundError:
        return ReadFile(problem=f"file {shown} does not exist: make it, or name another one")
    except OSError as error:
        reason = (error.strerror or "cannot be opened").lower()
        return ReadFile(problem=f"file {shown} cannot be read: {reason}; e.g. chmod 600 {shown}")
    notices = (f"file {shown} holds a key and others may read it: chmod 600 {shown}",) if mode & 0o077 else ()
    return ReadFile(data, notices=notices)


def named_key_variables(path: str | Path) -> list[str]:
    """The variables that a user's file names by `api_key_env`. Reading it as YAML would cost a command 50 ms."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(LIMIT)
    except OSError:
        return []  # None, or one that whoever resolves will complain of.
    return re.findall(r"\bapi_key_env\s*:\s*[\"']?([A-Za-z_][A-Za-z0-9_]*)", text)


def read_yaml(data: bytes, shown: str) -> Document:
    """The leaves of a settings file; anything but maps is a problem."""
    tree, problem = load_yaml(data, shown)
    if problem or tree is None:
        return Document(problem=problem)
    if not isinstance(tree, Mapping):
        return Document(problem=f"file {shown}, line 1: a list or a text, not settings, e.g. mode: local")
    return Document(tuple(_leaves(tree)))


def load_yaml(data: bytes, shown: str, *, what: str = "settings", levels: str = "two") -> tuple[Any, str]:
    """A YAML file's tree, which knows its lines (`tree.lc`), or None where it is empty; and what is wrong with it.

    Duplicate keys, tabs and other encodings are problems. `what` the file holds, and on how many levels, is told.
    """
    if len(data) > LIMIT:
        return (
            None,
            f"file {shown} is larger than 1 MB ({len(data):,} bytes or more): this is no {what} file",
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        return None, f"file {shown}, line {line}: not UTF-8 text; save it as UTF-8"
    if not text.strip():
        return None, ""
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        return YAML(typ="rt", pure=True).load(text), ""
    except DuplicateKeyError as error:
        return None, _duplicate(error, shown)
    except MarkedYAMLError as error:
        return None, _broken(error, text, shown)
    except YAMLError as error:
        return None, f"file {shown} is not YAML: {_first_line(str(error))}"
    except RecursionError:
        return None, f"file {shown} is nested too deep: {what} are {levels} levels deep"
    except ValueError as error:
        return None, f"file {shown} holds a value that cannot be read: {_first_line(str(error))}"


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, object, int]]:
    for key, value in tree.items():
        # A key that comes by `<<` has no place of its own; the map's is the nearest.
        place = (tree.lc.data or {}).get(key)
        name, line = f"{prefix}{key}", (place[0] if place else tree.lc.line or 0) + 1
        if name in MAPS and isinstance(value, Mapping):
            yield from _leaves(value, name + ".")
        elif not (name in MAPS and value is None):
            yield name, plain(value), line


def plain(value: object) -> object:
    """The YAML library's own kinds of text, number and list as Python's, so that messages show them plainly."""
    if isinstance(value, bool) or value is None:
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, list):
        return [item if isinstance(item, list) else plain(item) for item in value]
    return value


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no reason given"


def _duplicate(error: Any, shown: str) -> str:
    line = error.problem_mark.line + 1 if error.problem_mark else 1
    key = str(error.problem).partition('"')[2].partition('"')[0]
    return f"file {shown}, line {line}: key {key!r} stands there a second time; keep one"


def _broken(error: Any, text: str, shown: str) -> str:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    rows = text.splitlines()
    row = rows[line - 1] if line <= len(rows) else ""
    indent = row[: len(row) - len(row.lstrip())]
    if "\t" in indent or "\\t" in str(error.problem):
        return f"file {shown}, line {line}: a tab; YAML is indented with spaces"
    return f"file {shown}, line {line}: not YAML ({_first_line(str(error.problem or error))})"
