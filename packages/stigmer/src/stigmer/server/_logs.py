"""Logs go through the redaction choke point, whoever writes them: our modules, asyncio, a library.

A line is `words key=value …`, or with STIGMER_LOG_FORMAT=json a JSON object with the same keys. One that is about an
execution names it, and its trace where there is one.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from stigmer import redact, telemetry

__all__ = ["FORMAT", "format_problem", "formatter", "scrubbed_logs"]

FORMAT = "STIGMER_LOG_FORMAT"
_FORMATS = ("text", "json")
_FORMATTER = logging.Formatter()
_PLACE = re.compile(r"%[-#0 +]*\d*(?:\.\d+)?[a-zA-Z]")
_PAIR = re.compile(r"(?P<key>[A-Za-z_]+)=(?P<value>%[-#0 +]*\d*(?:\.\d+)?[a-zA-Z]|'[^']*'|\S+)")
_OURS = ("stigmer", "graphton")


_plain: Callable[..., logging.LogRecord] = logging.LogRecord
"""How records are made while nobody has them scrubbed."""
_wanted = 0
"""How many blocks want them scrubbed: two servers in one process may end in any order."""


@contextmanager
def scrubbed_logs() -> Iterator[None]:
    """Inside, every log record is masked when it is made, its trace included, before any handler sees it."""
    global _plain, _wanted
    if not _wanted:
        _plain = logging.getLogRecordFactory()
        logging.setLogRecordFactory(_scrubbed_record)
    _wanted += 1
    try:
        yield
    finally:
        _wanted -= 1
        if not _wanted:
            logging.setLogRecordFactory(_plain)


def _scrubbed_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
    record = _plain(*args, **kwargs)
    words, fields = _parts(record)
    text = redact.scrub(record.getMessage())
    for key, value in _about(fields).items():
        fields[key] = value
        text += f" {key}={value}"
    record.words, record.fields = redact.scrub(words), _scrubbed(fields)
    record.msg, record.args = text, ()
    if record.exc_info:
        record.exc_text, record.exc_info = redact.scrub(_FORMATTER.formatException(record.exc_info)), None
    return record


def formatter(environ: Mapping[str, str] | None = None) -> logging.Formatter:
    """How lines are written, as STIGMER_LOG_FORMAT says: text, or json."""
    if _said(os.environ if environ is None else environ) == "json":
        return _Json()
    form = logging.Formatter(
        "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    form.converter = time.gmtime
    return form


def format_problem(environ: Mapping[str, str] | None = None) -> str:
    """What is wrong with STIGMER_LOG_FORMAT; "" where nothing is."""
    said = _said(os.environ if environ is None else environ)
    return "" if said in _FORMATS else f"{FORMAT} {said!r} is none of {', '.join(_FORMATS)}"


def _said(environ: Mapping[str, str]) -> str:
    return environ.get(FORMAT, "").strip().lower() or "text"


class _Json(logging.Formatter):
    """One JSON object a line: time, level, logger and event, then what the line is about."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "event": getattr(record, "words", record.getMessage()),
        }
        for key, value in getattr(record, "fields", {}).items():
            line.setdefault(key, value)
        if record.exc_text:
            line["exception"] = record.exc_text
        return json.dumps(line, ensure_ascii=False, default=str)


def _parts(record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
    """What a line says, and what it says it about: `attempt started execution=%s` is an event with one field."""
    template, args = record.msg, record.args
    if (
        record.name.partition(".")[0] not in _OURS
        or not isinstance(template, str)
        or not isinstance(args, tuple)
    ):
        return record.getMessage(), {}
    pairs = list(_PAIR.finditer(template))
    if not pairs or len(_PLACE.findall(template)) != len(args):
        return record.getMessage(), {}
    values, fields, end = iter(args), {}, pairs[0].start()
    words = _filled(template[:end], values)
    for pair in pairs:
        fields[pair["key"]] = _filled(pair["value"], values)
        end = pair.end()
    if more := str(_filled(template[end:], values)).strip():
        fields["more"] = more
    return str(words).strip(), fields


def _filled(template: str, values: Iterator[Any]) -> Any:
    """The value of a template that is one placeholder, else its text with the next values in it."""
    places = _PLACE.findall(template)
    taken = tuple(next(values) for _ in places)
    if places == [template]:
        return taken[0]
    return (template % taken if taken else template).strip("'")


def _about(fields: Mapping[str, Any]) -> dict[str, str]:
    """What this task works on, as far as the line does not say it."""
    found = telemetry.about()
    if not found.execution or fields.get("execution", found.execution) != found.execution:
        return {}
    said = {"execution": found.execution, "trace": found.trace}
    return {key: value for key, value in said.items() if value and key not in fields}


def _scrubbed(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value if isinstance(value, (int, float, bool)) or value is None else redact.scrub(str(value))
        for key, value in fields.items()
    }
