"""OpenTelemetry's own variables say whether there is telemetry, and where it goes."""

from __future__ import annotations

from typing import Any

import pytest
from stigmer.telemetry._asked import asked_of, secrets_of

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}


@pytest.mark.parametrize(
    ("environ", "traces", "metrics"),
    [
        ({}, (), ()),
        ({"OTEL_SERVICE_NAME": "agents"}, (), ()),
        (ENDPOINT, ("otlp",), ("otlp",)),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t:4317"}, ("otlp",), ()),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "true"}, (), ()),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, (), ("otlp",)),
        ({**ENDPOINT, "OTEL_METRICS_EXPORTER": "prometheus"}, ("otlp",), ("prometheus",)),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_METRICS_EXPORTER": "none"}, ("otlp",), ()),
        ({"OTEL_METRICS_EXPORTER": "otlp, prometheus"}, (), ("otlp", "prometheus")),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "  "}, (), ()),
    ],
)
def test_what_the_variables_ask_for(environ: dict[str, str], traces: Any, metrics: Any) -> None:
    asked = asked_of(environ)
    assert (asked.traces, asked.metrics, asked.problems) == (traces, metrics, ())


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER 'zipkin' is none of otlp, none"),
        (
            {**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
            "OTEL_EXPORTER_OTLP_PROTOCOL 'http/protobuf' is not spoken here: set grpc",
        ),
    ],
)
def test_what_cannot_be_had_is_said_and_nothing_is_half_on(environ: dict[str, str], told: str) -> None:
    asked = asked_of(environ)
    assert told in " ".join(asked.problems)
    assert not asked.anything


def test_prometheus_needs_an_address_to_fetch_from() -> None:
    (problem,) = asked_of({"OTEL_METRICS_EXPORTER": "prometheus"}, http=False).problems
    assert "--http HOST:PORT" in problem


@pytest.mark.parametrize(
    ("said", "content"),
    [
        ("", False),
        ("false", False),
        ("no_content", False),
        ("event_only", False),
        ("true", True),
        ("SPAN_ONLY", True),
    ],
)
def test_content_is_taken_only_when_somebody_says_so(said: str, content: bool) -> None:
    asked = asked_of({**ENDPOINT, "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": said})
    assert asked.content is content


def test_a_collectors_headers_are_secrets() -> None:
    said = {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20abcdefgh12345678,x-team=blue"}
    assert {"abcdefgh12345678", "blue"} <= set(secrets_of(said))
