"""OpenTelemetry's SDK, set up: where spans and metrics go, and which trace an execution belongs to.

This and what it imports is the only place that imports OpenTelemetry. Its exporters have threads of their own, which
`close` ends; no global of OpenTelemetry is set, so that a program around us keeps its own.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags

from stigmer import __version__, redact
from stigmer.telemetry import _conventions as genai
from stigmer.telemetry._asked import Asked, secrets_of
from stigmer.telemetry._instruments import Instruments

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["Telemetry", "attempt_span", "context_of", "execution_span", "trace_of"]

CLOSE_SECONDS = 2.0
"""So long the last spans and metrics of a process may take on their way: nobody waits for a collector that is away."""
CONTENT_LIMIT = 8192
"""Characters of what was said, on one attribute."""
_EXECUTION = "execution"


class _Ids(RandomIdGenerator):
    """Ids at random, unless the next one is given: an execution's and an attempt's follow from their names."""

    trace_id = span_id = 0

    def generate_trace_id(self) -> int:
        given, self.trace_id = self.trace_id, 0
        return given or super().generate_trace_id()

    def generate_span_id(self) -> int:
        given, self.span_id = self.span_id, 0
        return given or super().generate_span_id()


class Telemetry:
    """What one process tells of itself."""

    def __init__(self, asked: Asked, *, service: str, hurry: bool = False) -> None:
        """`hurry`: a command; a collector that does not answer must not keep it waiting."""
        redact.remember(secrets_of(os.environ))
        self.content = asked.content
        resource = _resource(service)
        self._ids = _Ids()
        self._exporters: list[Any] = []
        self._traces = self._traced(resource, hurry) if asked.traces else None
        tracing = self._traces or trace.NoOpTracerProvider()
        self._tracer = tracing.get_tracer("stigmer", __version__, schema_url=genai.SCHEMA)
        self._registry: CollectorRegistry | None = None
        self._metrics: Any = None
        meters = self._measured(asked.metrics, resource) if asked.metrics else NoOpMeterProvider()
        self.instruments = Instruments(meters.get_meter("stigmer", __version__, genai.SCHEMA))

    def _traced(self, resource: Resource, hurry: bool) -> TracerProvider:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        provider = TracerProvider(resource=resource, shutdown_on_exit=False, id_generator=self._ids)
        self._exporters.append(OTLPSpanExporter(timeout=1 if hurry else None))
        provider.add_span_processor(BatchSpanProcessor(self._exporters[-1]))
        return provider

    def _measured(self, exporters: Sequence[str], resource: Resource) -> Any:
        from opentelemetry.sdk.metrics import MeterProvider

        readers: list[Any] = []
        if "otlp" in exporters:
            from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
            from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

            self._exporters.append(OTLPMetricExporter())
            readers.append(PeriodicExportingMetricReader(self._exporters[-1]))
        if "prometheus" in exporters:
            from opentelemetry.exporter.prometheus import PrometheusMetricReader
            from prometheus_client import CollectorRegistry

            self._registry = CollectorRegistry()
            readers.append(PrometheusMetricReader(scope_info_enabled=False, registry=self._registry))
        self._metrics = MeterProvider(readers, resource, shutdown_on_exit=False)
        return self._metrics

    @property
    def traces(self) -> bool:
        """Whether spans go anywhere."""
        return self._traces is not None

    def exposition(self) -> bytes | None:
        """The metrics as Prometheus fetches them; None where they are not for Prometheus."""
        if self._registry is None:
            return None
        from prometheus_client import generate_latest

        return generate_latest(self._registry)

    def close(self) -> None:
        """Sends what is left, as far as that is done within CLOSE_SECONDS, and ends the exporters' threads."""
        late = threading.Timer(CLOSE_SECONDS, self._give_up)
        late.start()
        try:
            for provider in (self._traces, self._metrics):
                if provider is not None:
                    provider.shutdown()
        finally:
            late.cancel()

    def _give_up(self) -> None:
        """What is on its way is broken off; the exporters try nothing again."""
        for exporter in self._exporters:
            exporter.shutdown()

    # Spans

    def start(
        self,
        name: str,
        parent: Context,
        *,
        attributes: Mapping[str, Any] | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        at: int | None = None,
        span_id: int = 0,
        trace_id: int = 0,
    ) -> Span:
        """A span below `parent`, from `at` (nanoseconds since the epoch; now) on, until its `end` is called."""
        self._ids.span_id, self._ids.trace_id = span_id, trace_id
        try:
            return self._tracer.start_span(name, parent, kind, attributes, start_time=at)
        finally:
            self._ids.span_id = self._ids.trace_id = 0

    def execution(self, id: str, caller: str) -> Context:
        """The place of an execution's span. Every process finds the same one: it follows from the id and from the
        trace context of whoever asked for the execution (`caller`, "" where there was none)."""
        above = context_of(caller)
        trace_id = trace.get_current_span(above).get_span_context().trace_id or trace_of(id)
        sampled = self._traces is not None and (
            self._traces.sampler.should_sample(above, trace_id, _EXECUTION).decision
            is Decision.RECORD_AND_SAMPLE
        )
        flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
        return _below(SpanContext(trace_id, execution_span(id), is_remote=True, trace_flags=flags))

    def said(self, text: str) -> str:
        """What was said, as it may stand on a span: without secrets, and of a moderate length."""
        text = redact.scrub(text)
        return text if len(text) <= CONTENT_LIMIT else text[:CONTENT_LIMIT] + "…"


def _resource(service: str) -> Resource:
    """Who speaks; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES go over it."""
    ours = {
        "service.name": service,
        "service.version": __version__,
        "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
        "host.name": socket.gethostname(),
    }
    return Resource.create({**ours, **OTELResourceDetector().detect().attributes})


def execution_span(id: str) -> int:
    """The span id of an execution."""
    return _number(8, "execution", id)


def attempt_span(id: str, attempt: int) -> int:
    """The span id of one attempt of an execution."""
    return _number(8, "attempt", id, str(attempt))


def trace_of(id: str) -> int:
    """The trace of an execution that nobody's trace context came with."""
    return _number(16, "trace", id)


def _number(size: int, *words: str) -> int:
    """A number of so many bytes that follows from these words, and is never 0."""
    digest = hashlib.sha256("\0".join(words).encode()).digest()
    return int.from_bytes(digest[:size]) or 1


def context_of(text: str) -> Context:
    """What a `traceparent` says; an empty context where it says nothing."""
    parts = text.split("-")
    if len(parts) < 4:
        return Context()
    number, span, flags = (int(part, 16) for part in parts[1:4])
    return _below(SpanContext(number, span, is_remote=True, trace_flags=TraceFlags(flags)))


def _below(place: SpanContext) -> Context:
    return trace.set_span_in_context(NonRecordingSpan(place), Context())
