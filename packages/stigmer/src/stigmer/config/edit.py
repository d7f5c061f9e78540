"""Changing one value of a configuration file: comments and order stay, and the file is whole at every moment."""

from __future__ import annotations

import io
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from stigmer.config._files import read_text, read_yaml
from stigmer.config._settings import Setting
from stigmer.errors import ConfigError

__all__ = ["edited", "write_atomically"]


def edited(path: Path, row: Setting, value: object, *, shown: str) -> str:
    """The text of the file with the setting set to `value`. A file that cannot be read is an error and stays as it is."""
    data = b""
    if os.path.lexists(path):
        found = read_text(path, shown)
        if found.problem:
            raise ConfigError([found.problem])
        data = found.data
    document = read_yaml(data, shown)
    if document.problem:
        raise ConfigError([document.problem])
    from ruamel.yaml import YAML
    from ruamel.yaml.util import load_yaml_guess_indent

    text = data.decode("utf-8-sig")
    yaml = YAML(typ="rt", pure=True)
    yaml.preserve_quotes, yaml.width = True, 100_000
    _, indent, offset = load_yaml_guess_indent(text) if text.strip() else (None, None, None)
    step = re.search(r"^\w+:[^\n]*\n(?:\s*#[^\n]*\n|\s*\n)*( +)[^\s#-]", text, re.MULTILINE)
    yaml.indent(mapping=len(step[1]) if step else 2, sequence=indent or 2, offset=offset or 0)
    tree: Any = yaml.load(text) or {}
    place = tree
    *maps, last = row.key.split(".")
    for name in maps:
        if not isinstance(place.get(name), dict):
            place[name] = {}
        place = place[name]
    place[last] = _plain(value)
    out = io.StringIO()
    yaml.dump(tree, out)
    written = out.getvalue()
    if not _has_content(text):
        written = text + ("\n" if text and not text.endswith("\n") else "") + written
    return written.replace("\n", "\r\n") if "\r\n" in text else written


def _plain(value: object) -> object:
    """The value as people write it: 30, not 30.0."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return list(value) if isinstance(value, tuple) else value


def _has_content(text: str) -> bool:
    """Whether a YAML text holds more than comments and blank lines, which the library drops when it is all there is."""
    return any(line.strip() and not line.lstrip().startswith("#") for line in text.splitlines())


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file by a whole new one, readable by its owner alone. A link stays a link."""
    target = Path(os.path.realpath(path))
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)  # Made with mode 0600.
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
