"""Log lines are events with fields: as text, or as JSON; about an execution they name it and its trace."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from stigmer import redact, telemetry
from stigmer.server._logs import formatter, scrubbed_logs


@pytest.fixture
def line() -> Any:
    """Logs one record of ours and gives the line that is written."""

    def written(form: str, template: str, *values: Any, name: str = "stigmer.x") -> str:
        seen: list[str] = []

        class Handler(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                seen.append(self.format(record))

        handler = Handler()
        handler.setFormatter(formatter({"STIGMER_LOG_FORMAT": form}))
        log = logging.getLogger(name)
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        try:
            with scrubbed_logs():
                log.info(template, *values)
        finally:
            log.removeHandler(handler)
        return seen[0]

    return written


def test_json_has_the_fields_with_their_types(line: Any) -> None:
    told = json.loads(line("json", "attempt started execution=%s attempt=%d", "exec_1", 3))
    assert told.pop("time").endswith("Z")
    assert told == {
        "level": "INFO",
        "logger": "stigmer.x",
        "event": "attempt started",
        "execution": "exec_1",
        "attempt": 3,
    }


def test_two_servers_of_one_process_may_end_in_any_order(line: Any) -> None:
    before = logging.getLogRecordFactory()
    one, other = scrubbed_logs(), scrubbed_logs()
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert json.loads(line("json", "attempt started attempt=%d", 3))["attempt"] == 3
    other.__exit__(None, None, None)
    assert logging.getLogRecordFactory() is before


def test_values_that_stand_in_the_line_itself_are_fields_too(line: Any) -> None:
    told = json.loads(line("json", "ending reason='the home is gone'"))
    assert (told["event"], told["reason"]) == ("ending", "the home is gone")
    told = json.loads(line("json", "temporal answers address=127.0.0.1:%d", 7233))
    assert told["address"] == "127.0.0.1:7233"
    told = json.loads(line("json", "setting name=%s source=%r%s", "model", "env X", ' hides="q"'))
    assert (told["source"], told["more"]) == ("env X", 'hides="q"')


def test_lines_of_others_are_events_as_they_are(line: Any) -> None:
    told = json.loads(line("json", "a=%s b", "c", name="somebody.else"))
    assert told["event"] == "a=c b"


def test_keys_are_in_neither_form(line: Any) -> None:
    redact.remember(["a-secret-of-12"])
    for form in ("text", "json"):
        told = line(form, "refused reason=%r key=%s", "by a-secret-of-12", "sk-0123456789abcdef")
        assert "a-secret-of-12" not in told
        assert "sk-0123456789abcdef" not in told
        assert "***" in told


async def test_what_a_task_says_names_its_execution_and_trace(line: Any) -> None:
    telemetry.speak_of("exec_9", f"00-{'a' * 32}-{'b' * 16}-01")
    told = json.loads(line("json", "line broken reason=%r", "away"))
    assert (told["execution"], told["trace"]) == ("exec_9", "a" * 32)
    assert line("text", "line broken").endswith(f"line broken execution=exec_9 trace={'a' * 32}")
    told = json.loads(line("json", "attempt started execution=%s", "exec_1"))
    assert told["execution"] == "exec_1"
    assert "trace" not in told


def test_a_daemons_log_is_json_where_it_is_asked_for(collector: Any, stigmer: Any, fake: Any) -> None:
    fake.script({"text": "Done."})
    stigmer.environment |= {**collector.environment, "STIGMER_LOG_FORMAT": "json"}
    assert stigmer("run", "Go.").returncode == 0
    execution = collector.one("execution default")
    lines = [json.loads(text) for text in stigmer("logs").stdout.splitlines()]
    events = {told["event"]: told for told in lines}
    for event in ("execution accepted", "attempt started", "attempt ended"):
        assert events[event]["execution"] == execution.attributes["stigmer.execution.id"]
        assert events[event]["trace"] == execution.trace
    assert events["starting"]["version"]
