"""Logs go through the redaction choke point, whoever writes them: our modules, asyncio, a library."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stigmer import redact

__all__ = ["scrubbed_logs"]

_FORMATTER = logging.Formatter()


@contextmanager
def scrubbed_logs() -> Iterator[None]:
    """Inside, every log record is masked when it is made, its trace included, before any handler sees it."""
    plain = logging.getLogRecordFactory()

    def scrubbed(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = plain(*args, **kwargs)
        record.msg, record.args = redact.scrub(record.getMessage()), ()
        if record.exc_info:
            record.exc_text, record.exc_info = redact.scrub(_FORMATTER.formatException(record.exc_info)), None
        return record

    logging.setLogRecordFactory(scrubbed)
    try:
        yield
    finally:
        logging.setLogRecordFactory(plain)
