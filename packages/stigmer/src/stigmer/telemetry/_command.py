"""A command's own span: the root of a trace, unless the environment's TRACEPARENT names one to go on with."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from stigmer.telemetry import _conventions as genai
from stigmer.telemetry import traceparent_of
from stigmer.telemetry._sdk import Telemetry, context_of

__all__ = ["span"]


@contextmanager
def span(telemetry: Telemetry, name: str) -> Iterator[None]:
    """The span of this command, current while the block runs, and sent when it ends."""
    # A collector that is away is no concern of whoever reads our stderr.
    logging.getLogger("opentelemetry").addHandler(logging.NullHandler())
    logging.getLogger("opentelemetry").propagate = False
    above = context_of(traceparent_of([("traceparent", os.environ.get("TRACEPARENT", "").strip())]))
    opened = telemetry.start(name, above, kind=SpanKind.CLIENT)
    try:
        with trace.use_span(opened, record_exception=False, set_status_on_exception=False):
            yield
    except BaseException as error:
        opened.set_attribute(genai.ERROR, str(getattr(error, "code", "") or type(error).__name__))
        opened.set_status(Status(StatusCode.ERROR))
        raise
    finally:
        opened.end()
        telemetry.close()
