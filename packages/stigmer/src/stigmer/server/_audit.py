"""The audit log of a server for others: a line for every call that changes something or is refused.

It says who did what to which record, how it ended, and from where; never a task, a text or a secret. The lines are in the
log, and in a file of their own where STIGMER_AUDIT_LOG names one.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stigmer import redact
from stigmer.errors import ConfigError

__all__ = ["FILE", "Audit", "about", "audit_of"]

log = logging.getLogger("stigmer.audit")

FILE = "STIGMER_AUDIT_LOG"
LONGEST = 200
"""Characters of a value; callers choose some of them."""


def audit_of(environ: Mapping[str, str]) -> Audit:
    """The audit log that the environment asks for. Raises ConfigError where its file cannot be written."""
    named = environ.get(FILE, "").strip()
    path = Path(named).expanduser() if named else None
    if path is not None:
        try:
            _append(path, b"")
        except OSError as error:
            raise ConfigError([f"{FILE} {named!r} cannot be written: {error.strerror}"]) from error
    return Audit(path)


class Audit:
    """Writes the lines. A file that cannot be written is told once; the log has the line all the same."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._failing = False

    def tell(self, outcome: str, **said: Any) -> None:
        """One line: `outcome` is `ok`, or the code of the error; what is empty is left out."""
        line = {
            "outcome": outcome,
            **{name: value for name, value in said.items() if value not in ("", None)},
        }
        line = {name: _short(value) for name, value in line.items()}
        refused = outcome in ("unauthenticated", "forbidden", "too_many_calls")
        # Each value stands quoted, so that no caller can write a line of his own.
        words = " ".join(f"{name}=%r" for name in line)
        log.log(logging.WARNING if refused else logging.INFO, f"called {words}", *line.values())
        if self._path is not None:
            now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            self._write((json.dumps({"time": now, **line}) + "\n").encode())

    def _write(self, line: bytes) -> None:
        assert self._path is not None
        try:
            _append(self._path, line)
        except OSError as error:
            if not self._failing:
                log.error("audit file not written path=%r reason=%r", str(self._path), error.strerror)
            self._failing = True
        else:
            self._failing = False


def _append(path: Path, line: bytes) -> None:
    """Opened for each line: whoever puts the file aside for a new one needs to tell nobody."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, line)
    finally:
        os.close(fd)


def _short(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = redact.scrub(value)
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


def about(request: Any, answer: Any) -> dict[str, Any]:
    """What a call was about: ids, and of a decision or a key what was decided; nothing that anybody wrote."""
    found: dict[str, Any] = {}
    for name in ("execution", "session", "id", "call", "retry_of", "by"):
        found[name] = _text(request, name)
    found["execution"] = found["execution"] or _text(answer, "execution") or _id(answer, "execution")
    found["id"] = found["id"] or _id(answer, "key")
    fields = request.DESCRIPTOR.fields_by_name if request is not None else {}
    if "approve" in fields:
        found["decision"] = "approved" if request.approve else "rejected"
    if "scopes" in fields:
        found["scopes"] = " ".join(request.scopes)
    if "dry_run" in fields and request.dry_run:
        found["dry_run"] = True
    if "begin" in fields:
        found["execution"] = request.begin.execution
    return found


def _text(message: Any, name: str) -> str:
    value = getattr(message, name, "")
    return value if isinstance(value, str) else ""


def _id(message: Any, name: str) -> str:
    """The id of a record within an answer."""
    return _text(getattr(message, name, None), "id")
