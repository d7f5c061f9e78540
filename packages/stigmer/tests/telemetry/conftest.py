"""A real OTLP receiver on a port of its own: what our processes export comes here over the wire."""

from __future__ import annotations

import os
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families
from stigmer.daemon import find

LIMIT = 60.0


@dataclass(frozen=True)
class Span:
    """One span as it came over the wire."""

    name: str
    service: str
    instance: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any]
    events: list[str]
    failed: bool
    start: int
    end: int


class Collector:
    """Takes spans and metrics, and keeps the bytes too."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.metrics: dict[str, list[Any]] = {}
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self._news = threading.Condition()
        self._server = grpc.server(ThreadPoolExecutor(2))
        for add, methods in (
            (trace_service_pb2_grpc.add_TraceServiceServicer_to_server, _Traces(self)),
            (metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server, _Metrics(self)),
        ):
            add(methods, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    @property
    def environment(self) -> dict[str, str]:
        """What brings telemetry here, soon."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_METRIC_EXPORT_INTERVAL": "200",
        }

    def named(self, name: str) -> list[Span]:
        """The spans of that name, the earliest first."""
        return sorted((span for span in self.spans if span.name == name), key=lambda span: span.start)

    def one(self, name: str) -> Span:
        """The only span of that name, waited for."""
        self.wait_for(lambda: self.named(name), f"a span {name!r}")
        (span,) = self.named(name)
        return span

    def wait_for(self, wanted: Callable[[], Any], what: str) -> None:
        """Until it is so; looked at whenever something has come."""
        deadline = time.monotonic() + LIMIT
        with self._news:
            while not wanted():
                left = deadline - time.monotonic()
                assert left > 0, f"waited in vain for {what}; there are {[span.name for span in self.spans]}"
                self._news.wait(left)

    def sums(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """A counter's last values by these labels, or a histogram's counts."""
        found: dict[tuple[str, ...], float] = {}
        for point in self.metrics.get(name, []):
            said = {pair.key: pair.value.string_value for pair in point.attributes}
            value = point.count if hasattr(point, "bucket_counts") else point.as_int or point.as_double
            found[tuple(said.get(label, "") for label in labels)] = value
        return found

    def take(self, request: Any, context: Any) -> None:
        with self._news:
            self.bodies.append(request.SerializeToString())
            self.headers.append(dict(context.invocation_metadata()))
            for resource in getattr(request, "resource_spans", ()):
                said = _attributes(resource.resource.attributes)
                for scope in resource.scope_spans:
                    self.spans += [_span(span, said) for span in scope.spans]
            for resource in getattr(request, "resource_metrics", ()):
                for scope in resource.scope_metrics:
                    for metric in scope.metrics:
                        data = getattr(metric, metric.WhichOneof("data"))
                        self.metrics[metric.name] = list(data.data_points)
            self._news.notify_all()

    def stop(self) -> None:
        self._server.stop(0).wait(LIMIT)


@dataclass
class _Traces(trace_service_pb2_grpc.TraceServiceServicer):
    collector: Collector

    def Export(self, request: Any, context: Any) -> Any:
        self.collector.take(request, context)
        return trace_service_pb2.ExportTraceServiceResponse()


@dataclass
class _Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    collector: Collector

    def Export(self, request: Any, context: Any) -> Any:
        self.collector.take(request, context)
        return metrics_service_pb2.ExportMetricsServiceResponse()


def _span(span: Any, resource: dict[str, Any]) -> Span:
    return Span(
        span.name,
        resource["service.name"],
        resource["service.instance.id"],
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        _attributes(span.attributes),
        [event.name for event in span.events],
        span.status.code == 2,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return (
        [_value(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind)
    )


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.stop()


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def no_opentelemetry(short_folder: Path) -> dict[str, str]:
    """An environment in which OpenTelemetry is not installed."""
    folder = short_folder / "without"
    (folder / "opentelemetry").mkdir(parents=True)
    missing = "raise ModuleNotFoundError(\"No module named 'opentelemetry'\", name='opentelemetry')\n"
    (folder / "opentelemetry" / "__init__.py").write_text(missing)
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))}


@pytest.fixture
def served(stigmer: Any, fake: Any) -> Iterator[Callable[..., str]]:
    """Starts `stigmer serve` for this home; gives its HTTP address once it is ready."""
    running = []

    def start(**environment: str) -> str:
        http = free_address()
        process = stigmer.start(
            "serve", "--mode", "local", "--listen", free_address(), "--http", http, **environment
        )
        running.append(process)
        stigmer.wait_for(lambda: process.poll() is not None or find(stigmer.home) is not None, "the server")
        assert process.poll() is None, process.communicate()[1]
        return http

    yield start
    for process in running:
        process.terminate()
        print(process.communicate(timeout=LIMIT)[1])


def fetched(http: str, path: str = "/metrics") -> tuple[int, str]:
    """What is answered over HTTP: the status and the text."""
    plain = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with plain.open(f"http://{http}{path}", timeout=LIMIT) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def samples(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Prometheus's own reading of what it fetched: name, then labels, then the value."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


@pytest.fixture
def telemetry_tools() -> Any:
    """The helpers of this file, for tests that are imported without it."""
    return SimpleNamespace(fetched=fetched, samples=samples, free_address=free_address)
