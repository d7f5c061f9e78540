"""What the environment asks of telemetry, by OpenTelemetry's own variables. Imports nothing of OpenTelemetry.

The variables and their values are those of https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/;
what is not about whether there is telemetry (addresses, headers, sampling, intervals) the SDK reads itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import NamedTuple
from urllib.parse import unquote

__all__ = ["CONTENT", "Asked", "asked_of", "secrets_of"]

CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_CONTENT_WORDS = ("true", "1", "span_only", "span_and_event")
_MODULES = {
    "otlp": ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.grpc"),
    "prometheus": ("opentelemetry.sdk", "opentelemetry.exporter.prometheus"),
}
"""What each exporter needs to be installed."""


class Asked(NamedTuple):
    """Where traces and metrics are to go: names of exporters. Empty: there is no telemetry, and nothing is imported."""

    traces: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    content: bool = False
    """What models and tools said is to be on the spans, masked."""
    problems: tuple[str, ...] = ()
    """Why it cannot be had."""

    @property
    def anything(self) -> bool:
        """Whether somebody asked for telemetry, and it can be had."""
        return bool(self.traces or self.metrics) and not self.problems

    @property
    def words(self) -> str:
        """As it is told at a start: `traces=otlp metrics=prometheus`, or `off`."""
        named = [f"{n}:{'+'.join(v)}" for n, v in (("traces", self.traces), ("metrics", self.metrics)) if v]
        return ",".join(named) if self.anything else "off"


def asked_of(environ: Mapping[str, str], *, http: bool = True) -> Asked:
    """What these variables ask for. Without `http` there is no address where Prometheus could fetch anything."""
    said = {name: value.strip() for name, value in environ.items() if name.startswith("OTEL_")}
    if said.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return Asked()
    problems: list[str] = []
    traces = _exporters(said, "TRACES", ("otlp",), problems)
    metrics = _exporters(said, "METRICS", ("otlp", "prometheus"), problems)
    if "prometheus" in metrics and not http:
        problems.append(
            "OTEL_METRICS_EXPORTER names prometheus, and there is no HTTP address to fetch /metrics from: "
            "set --http HOST:PORT or STIGMER_LISTEN_HTTP"
        )
    needed = dict.fromkeys(module for name in (*traces, *metrics) for module in _MODULES[name])
    if missing := next((module for module in needed if not _there(module)), ""):
        problems.append(
            f"OTEL_… variables ask for telemetry, and {missing} is not installed: "
            "pip install 'stigmer[telemetry]'; OTEL_SDK_DISABLED=true does without"
        )
    return Asked(traces, metrics, said.get(CONTENT, "").lower() in _CONTENT_WORDS, tuple(problems))


def _exporters(
    said: Mapping[str, str], signal: str, known: tuple[str, ...], problems: list[str]
) -> tuple[str, ...]:
    """The exporters of one signal: those that are named, else OTLP where an address for it is set."""
    variable = f"OTEL_{signal}_EXPORTER"
    somewhere = said.get(_ENDPOINT) or said.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    words = said.get(variable) or ("otlp" if somewhere else "none")
    named = tuple(word for word in (part.strip().lower() for part in words.split(",")) if word)
    if strange := [word for word in named if word not in (*known, "none")]:
        problems.append(f"{variable} {strange[0]!r} is none of {', '.join((*known, 'none'))}")
    chosen = tuple(word for word in known if word in named)
    protocol = said.get(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL") or said.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if "otlp" in chosen and protocol not in (None, "", "grpc"):
        problems.append(
            f"OTEL_EXPORTER_OTLP_PROTOCOL {protocol!r} is not spoken here: set grpc, and the address of the "
            "collector's gRPC port (4317)"
        )
    return chosen


def _there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # A package above it is not there.
        return False


def secrets_of(environ: Mapping[str, str]) -> Iterable[str]:
    """The values of the headers that go to a collector: they let us in there, and are shown nowhere."""
    for name, value in environ.items():
        if name.startswith("OTEL_EXPORTER_OTLP") and name.endswith("HEADERS"):
            for pair in value.split(","):
                word = pair.partition("=")[2].strip()
                yield from (part for text in (word, unquote(word)) for part in (text, *text.split()))
