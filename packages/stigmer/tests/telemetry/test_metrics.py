"""Metrics, as Prometheus fetches them and as a collector gets them; every name on the dashboard is one of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry, generate_latest
from stigmer.telemetry._instruments import _COUNTERS, _HISTOGRAMS, GAUGES, Cap, Instruments

ROOT = Path(__file__).parents[4]
PROMETHEUS = {"OTEL_METRICS_EXPORTER": "prometheus"}


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"calls": [{"name": name, "arguments": arguments}]}


def labelled(found: dict[Any, float], **labels: str) -> float:
    """The sum of the samples that have these labels."""
    return sum(value for said, value in found.items() if labels.items() <= dict(said).items())


def test_a_run_is_counted_where_prometheus_fetches_it(
    stigmer: Any, fake: Any, served: Any, telemetry_tools: Any
) -> None:
    fake.script(
        {"status": 503, "error": "busy", "retry_after": 0},
        call("list_files"),
        {"text": "Nothing is here.", "input_tokens": 100, "output_tokens": 7, "cached_tokens": 40},
    )
    http = served(**PROMETHEUS)
    assert stigmer("run", "What is here?").returncode == 0
    status, text = telemetry_tools.fetched(http)
    found = telemetry_tools.samples(text)
    assert status == 200
    assert labelled(found["stigmer_executions_accepted_total"]) == 1
    assert labelled(found["stigmer_executions_finished_total"], outcome="completed") == 1
    assert labelled(found["stigmer_attempts_total"], outcome="done") == 1
    assert labelled(found["stigmer_tool_calls_total"], gen_ai_tool_name="list_files", outcome="ok") == 1
    assert labelled(found["stigmer_model_retries_total"], status="503") == 1
    assert (
        labelled(found["stigmer_model_tokens_total"], kind="cached", gen_ai_request_model="test-model") == 40
    )
    assert labelled(found["stigmer_model_unpriced_total"]) == 2
    assert labelled(found["gen_ai_client_operation_duration_seconds_count"]) == 3
    assert labelled(found["gen_ai_client_operation_duration_seconds_count"], error_type="503") == 1
    assert labelled(found["gen_ai_client_operation_time_to_first_chunk_seconds_count"]) >= 1
    assert labelled(found["stigmer_step_duration_seconds_count"]) == 2
    assert labelled(found["stigmer_execution_queue_seconds_count"]) == 1
    assert labelled(found["stigmer_journal_append_duration_seconds_count"]) > 3

    def is_counted() -> bool:
        """Who has seen the run's end hangs up, mostly before the call is over."""
        calls = telemetry_tools.samples(telemetry_tools.fetched(http)[1]).get("stigmer_rpc_calls_total", {})
        return sum(labelled(calls, method="RunExecution", status=how) for how in ("OK", "CANCELLED")) == 1

    stigmer.wait_for(is_counted, "the call to be counted")
    assert labelled(found["stigmer_executions"], state="running") == 0
    assert labelled(found["stigmer_watch_streams"]) == 0


def test_an_approval_and_what_a_rule_forbids_are_counted_by_outcome(
    stigmer: Any, fake: Any, served: Any, telemetry_tools: Any
) -> None:
    fake.script(call("run_command", command="echo"), call("made_up_by_the_model_exec_123"), {"text": "Done."})
    http = served(**PROMETHEUS)
    assert stigmer("run", "Go.").returncode == 4
    (execution,) = [word for word in stigmer("list", "execution").stdout.split() if word.startswith("exec_")]
    assert stigmer("reject", execution, "1.0").returncode == 0
    assert stigmer("attach", execution).returncode == 0
    found = telemetry_tools.samples(telemetry_tools.fetched(http)[1])
    assert labelled(found["stigmer_approvals_total"], decision="requested") == 1
    assert labelled(found["stigmer_approvals_total"], decision="rejected") == 1
    assert labelled(found["stigmer_tool_calls_total"], outcome="refused") == 2
    assert labelled(found["stigmer_tool_calls_total"], outcome="ok") == 0
    values = {value for of_name in found.values() for said in of_name for _, value in said}
    assert "made_up_by_the_model_exec_123" not in values
    assert not [value for value in values if value.startswith(("exec_", "ses_"))]


def test_who_is_refused_is_counted_by_status(
    stigmer: Any, fake: Any, served: Any, telemetry_tools: Any
) -> None:
    http = served(**PROMETHEUS)
    assert stigmer("get", "execution", "exec_nobody").returncode == 1
    found = telemetry_tools.samples(telemetry_tools.fetched(http)[1])
    assert labelled(found["stigmer_rpc_calls_total"], method="GetExecution", status="NOT_FOUND") == 1


def test_where_nobody_asked_for_metrics_there_are_none(
    stigmer: Any, fake: Any, served: Any, telemetry_tools: Any
) -> None:
    status, text = telemetry_tools.fetched(served())
    assert status == 404
    assert text == "no metrics are kept: start it with OTEL_METRICS_EXPORTER=prometheus\n"


def test_metrics_reach_a_collector_with_what_lets_us_in(collector: Any, stigmer: Any, fake: Any) -> None:
    fake.script({"text": "Done."})
    environment = {
        **collector.environment,
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-team=team-secret-12345",
    }
    assert stigmer("run", "Go.", **environment).returncode == 0
    collector.wait_for(lambda: collector.sums("stigmer.executions.finished", "outcome"), "the metrics")
    assert collector.sums("stigmer.executions.finished", "outcome") == {("completed",): 1}
    assert collector.headers[0]["x-team"] == "team-secret-12345"
    assert collector.spans == []


def test_names_beyond_the_cap_are_others() -> None:
    cap = Cap(2)
    assert [cap.label(name) for name in ("a", "b", "c", "a")] == ["a", "b", "other", "a"]


def exposed() -> set[str]:
    """Every name that Prometheus could fetch: each instrument, used once."""
    registry = CollectorRegistry()
    reader = PrometheusMetricReader(scope_info_enabled=False, registry=registry)
    meters = MeterProvider([reader], shutdown_on_exit=False)
    instruments = Instruments(meters.get_meter("test"))
    for name in _COUNTERS:
        getattr(instruments, name).add(1)
    for name in _HISTOGRAMS:
        getattr(instruments, name).record(1)
    for name in GAUGES:
        instruments.levels[name] = lambda: [(1, {})]
    text = generate_latest(registry).decode()
    meters.shutdown()
    return set(re.findall(r"^([a-z_A-Z0-9]+)[{ ]", text, flags=re.M))


def queries() -> list[str]:
    board = json.loads((ROOT / "deploy" / "grafana" / "stigmer.json").read_text("utf-8"))
    found = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    return found + [
        variable["query"]["query"]
        for variable in board["templating"]["list"]
        if "query" in variable and isinstance(variable["query"], dict)
    ]


def test_every_query_of_the_dashboard_names_a_metric_that_there_is() -> None:
    names = exposed()
    found = queries()
    assert len(found) > 20
    for query in found:
        named = set(
            re.findall(
                r"\b(?:stigmer|gen_ai)_[a-z_A-Z0-9]+",
                re.sub(r"by \([^)]*\)|\{(?!__name__)[^}]*\}", "", query),
            )
        )
        assert named, query
        assert named <= names, query


def test_every_metric_is_on_the_dashboard_and_in_the_guide() -> None:
    board = " ".join(queries())
    guide = (ROOT / "docs" / "telemetry.md").read_text("utf-8")
    for name, *_ in (*_COUNTERS.values(), *_HISTOGRAMS.values(), *((gauge,) for gauge in GAUGES)):
        assert name.replace(".", "_") in board, name
        assert f"`{name}`" in guide, name
