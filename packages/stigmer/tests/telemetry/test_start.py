"""What server and worker say when they start, and that they say all that keeps them from it."""

from __future__ import annotations

from typing import Any

from stigmer import __version__


def test_a_server_says_what_it_is_and_how_it_is_set(stigmer: Any, telemetry_tools: Any) -> None:
    listen, http = telemetry_tools.free_address(), telemetry_tools.free_address()
    key = "sk-sentinel-0123456789abcdef"
    process = stigmer.start(
        *("serve", "--mode", "cloud", "--model", "openai:gpt-4.1", "--listen", listen, "--http", http),
        OPENAI_API_KEY=key,
        OTEL_METRICS_EXPORTER="prometheus",
    )
    lines = []
    for line in process.stderr:
        lines.append(line)
        if " ready " in line:
            break
    process.terminate()
    rest = process.communicate(timeout=60)[1]
    said = "".join(lines)
    assert f"starting version={__version__} engine=embedded" in said
    assert f"listen={listen} http={http} telemetry=metrics:prometheus" in said
    assert f"database={stigmer.home.path / 'stigmer.db'}" in said
    assert 'setting name=mode value="cloud"' in said
    assert 'setting name=model value="gpt-4.1"' in said
    assert "setting name=api_key value=\"***cdef\" source='env OPENAI_API_KEY'" in said
    assert key not in said + rest
    assert said.count("setting name=model ") == 1


def test_a_server_that_may_not_start_says_all_that_is_wrong(
    stigmer: Any, telemetry_tools: Any, no_opentelemetry: dict[str, str]
) -> None:
    refused = stigmer(
        *("serve", "--listen", "0.0.0.0:1", "--http", telemetry_tools.free_address(), "--max-tokens", "7"),
        STIGMER_LLM_TEMPERATURE="hot",
        STIGMER_LOG_FORMAT="xml",
        OTEL_METRICS_EXPORTER="prometheus",
        STIGMER_DATABASE_URL="postgresql://nobody:a-pass-word-1@127.0.0.1:1/none",
        **no_opentelemetry,
    )
    assert refused.returncode == 2
    told = refused.stderr[refused.stderr.index("error: ") :]
    for wrong in (
        "temperature",
        "mode",
        "STIGMER_LOG_FORMAT 'xml' is none of text, json",
        "pip install 'stigmer[telemetry]'",
        "'0.0.0.0:1' can be reached from elsewhere and has no TLS",
        "127.0.0.1:1",
    ):
        assert wrong in told, wrong
    assert "a-pass-word-1" not in refused.stderr


def test_a_variable_that_opentelemetry_cannot_read_is_told(
    stigmer: Any, fake: Any, telemetry_tools: Any
) -> None:
    wrong = {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_COMPRESSION": "zip"}
    wrong["OTEL_METRICS_EXPORTER"] = "otlp"
    listen = telemetry_tools.free_address()
    refused = stigmer("serve", "--mode", "local", "--listen", listen, "--http", "", **wrong)
    assert refused.returncode == 2
    assert 'OpenTelemetry cannot be set up by its OTEL_… variables: Invalid value "zip"' in refused.stderr
    fake.script({"text": "Done."})
    done = stigmer("run", "Go.", **wrong)
    assert (done.returncode, done.stdout) == (0, "Done.\n")
    assert "note: no trace is kept: OpenTelemetry cannot be set up" in done.stderr
    assert "setting problem=" in stigmer("logs").stdout


def test_a_worker_that_may_not_start_says_all_that_is_wrong(stigmer: Any) -> None:
    refused = stigmer(
        *("worker", "--server", "elsewhere.example:7244"),
        STIGMER_LLM_TEMPERATURE="hot",
        STIGMER_LOG_FORMAT="xml",
        OTEL_METRICS_EXPORTER="prometheus",
        TEMPORAL_DEPLOYMENT_NAME="stigmer",
    )
    assert refused.returncode == 2
    told = refused.stderr[refused.stderr.index("error: ") :]
    for wrong in (
        "STIGMER_API_KEY is not set",
        "write https://elsewhere.example:7244",
        "temperature",
        "mode",
        "STIGMER_LOG_FORMAT 'xml' is none of text, json",
        "there is no HTTP address to fetch /metrics from",
        "TEMPORAL_WORKER_BUILD_ID is not",
    ):
        assert wrong in told, wrong
    assert f"starting version={__version__} engine=temporal" in refused.stderr
