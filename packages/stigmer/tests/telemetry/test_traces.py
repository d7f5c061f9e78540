"""One trace through command, server, model and tools, as a collector gets it over the wire."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from stigmer.daemon import find

AGENT = """\
apiVersion: stigmer/v1
kind: Agent
metadata: {name: lead}
spec:
  instructions: You lead.
  tools: []
  subagents:
  - {name: reader, description: Reads., instructions: You read., tools: [list_files]}
"""


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"calls": [{"name": name, "arguments": arguments}]}


@pytest.fixture
def traced(collector: Any, stigmer: Any, fake: Any) -> Any:
    stigmer.environment |= collector.environment
    return stigmer


def test_a_run_is_one_trace_from_the_command_to_the_tool(traced: Any, fake: Any, collector: Any) -> None:
    fake.script(call("list_files"), {"text": "Nothing is here.", "input_tokens": 100, "cached_tokens": 40})
    assert traced("run", "What is here?").returncode == 0
    execution, command = collector.one("execution default"), collector.one("stigmer run")
    agent, tool = collector.one("invoke_agent default"), collector.one("execute_tool list_files")
    collector.wait_for(lambda: len(collector.named("chat test-model")) == 2, "both model calls")
    first, second = collector.named("chat test-model")
    assert {span.trace for span in collector.spans} == {command.trace}
    assert command.parent == ""
    assert execution.parent == command.id
    assert agent.parent == execution.id
    assert {first.parent, second.parent, tool.parent} == {agent.id}
    assert (command.service, execution.service, tool.service) == (
        "stigmer-cli",
        "stigmer-server",
        "stigmer-server",
    )
    assert first.end <= tool.start <= tool.end <= second.start
    assert execution.attributes["stigmer.outcome"] == "completed"
    assert second.attributes["gen_ai.provider.name"] == "openai"
    assert second.attributes["gen_ai.request.model"] == "test-model"
    assert second.attributes["gen_ai.usage.input_tokens"] == 100
    assert second.attributes["gen_ai.usage.cache_read.input_tokens"] == 40
    assert second.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert first.attributes["gen_ai.response.finish_reasons"] == ["tool_call"]
    assert tool.attributes["gen_ai.tool.call.id"] == "1.0"


def test_a_trace_that_the_caller_began_goes_on(traced: Any, fake: Any, collector: Any) -> None:
    fake.script({"text": "Done."})
    trace, above = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    parent = {"TRACEPARENT": f"00-{trace}-{above}-01", "OTEL_SERVICE_NAME": "nightly"}
    assert traced("run", "Go.", **parent).returncode == 0
    command = collector.one("stigmer run")
    assert (command.trace, command.parent, command.service) == (trace, above, "nightly")
    assert collector.one("execution default").trace == trace


@pytest.mark.parametrize("command_too", [True, False])
def test_what_the_sampler_leaves_out_is_left_out_everywhere(
    collector: Any, stigmer: Any, fake: Any, command_too: bool
) -> None:
    fake.script({"text": "Done."})
    asked = {**collector.environment, "OTEL_TRACES_SAMPLER": "parentbased_always_off"}
    assert stigmer("up", **asked).returncode == 0
    assert stigmer("run", "Go.", **(asked if command_too else {})).returncode == 0
    assert stigmer("down").returncode == 0
    assert collector.spans == []
    assert collector.sums("stigmer.executions.finished", "outcome") == {("completed",): 1}


def test_a_server_keeps_the_trace_of_a_run_whose_command_kept_none(
    collector: Any, stigmer: Any, fake: Any
) -> None:
    fake.script({"text": "Done."})
    assert stigmer("up", **collector.environment).returncode == 0
    assert stigmer("run", "Go.").returncode == 0
    execution, agent = collector.one("execution default"), collector.one("invoke_agent default")
    assert (execution.parent, agent.parent) == ("", execution.id)
    assert agent.trace == execution.trace


def test_waiting_and_the_decision_are_events_and_the_next_attempt_is_in_the_same_trace(
    traced: Any, fake: Any, collector: Any
) -> None:
    fake.script(call("run_command", command="echo yes"), {"text": "Done."})
    assert traced("run", "Write.").returncode == 4
    (execution,) = [word for word in traced("list", "execution").stdout.split() if word.startswith("exec_")]
    assert traced("approve", execution, "1.0").returncode == 0
    done = collector.one("execution default")
    assert done.events == ["approval requested", "waiting", "approval decided", "resumed"]
    collector.wait_for(lambda: len(collector.named("invoke_agent default")) == 2, "both attempts")
    first, second = collector.named("invoke_agent default")
    assert [one.attributes["stigmer.attempt.outcome"] for one in (first, second)] == ["waiting", "completed"]
    assert first.events == ["approval requested", "waiting"]
    assert {first.parent, second.parent} == {done.id}
    assert collector.one("execute_tool run_command").parent == second.id
    assert {span.trace for span in (first, second, done)} == {collector.one("stigmer run").trace}


def test_a_subagent_is_below_the_call_that_started_it(traced: Any, fake: Any, collector: Any) -> None:
    (traced.folder / "lead.yaml").write_text(AGENT)
    fake.script(
        call("task", agent="reader", task="Look."),
        call("list_files"),
        {"text": "Nothing."},
        {"text": "Done."},
    )
    assert traced("run", "--agent", "lead.yaml", "Go.").returncode == 0
    reader, task = collector.one("invoke_agent reader"), collector.one("execute_tool task")
    assert reader.parent == task.id
    assert reader.attributes["stigmer.path"] == "/reader@1.0"
    assert collector.one("execute_tool list_files").parent == reader.id
    assert task.parent == collector.one("invoke_agent lead").id


def test_a_model_that_fails_and_is_asked_again_is_two_calls(traced: Any, fake: Any, collector: Any) -> None:
    fake.script(
        {"status": 503, "error": "busy with sk-notforyou-0123456789", "retry_after": 0}, {"text": "Done."}
    )
    assert traced("run", "Go.").returncode == 0
    collector.wait_for(lambda: len(collector.named("chat test-model")) == 2, "both tries")
    first, second = collector.named("chat test-model")
    assert first.failed
    assert first.attributes["error.type"] == "503"
    assert not second.failed
    assert "waits before the next try" in collector.one("invoke_agent default").events
    assert b"busy with" not in b"".join(collector.bodies)


def test_a_run_that_fails_says_by_what(traced: Any, fake: Any, collector: Any) -> None:
    fake.script({"status": 400, "error": "no"})
    assert traced("run", "Go.").returncode == 1
    execution = collector.one("execution default")
    assert execution.failed
    assert execution.attributes["stigmer.outcome"] == "failed"
    assert (
        execution.attributes["error.type"] == collector.one("invoke_agent default").attributes["error.type"]
    )
    assert collector.one("chat test-model").failed


def test_a_retry_belongs_to_the_trace_of_the_command_that_asked_for_it(
    traced: Any, fake: Any, collector: Any
) -> None:
    fake.script({"status": 400, "error": "no"}, {"text": "Done."})
    assert traced("run", "Go.").returncode == 1
    first = collector.one("execution default")
    assert traced("retry", first.attributes["stigmer.execution.id"]).returncode == 0
    collector.wait_for(lambda: len(collector.named("execution default")) == 2, "the retry")
    _, again = collector.named("execution default")
    assert again.attributes["stigmer.retry_of"] == first.attributes["stigmer.execution.id"]
    assert again.parent == collector.one("stigmer retry").id
    assert again.trace != first.trace


def test_an_attempt_whose_process_was_killed_has_a_span_in_the_same_trace(
    traced: Any, fake: Any, collector: Any
) -> None:
    fake.script(call("run_command", command="sleep 600"), {"text": "It was cut off."})
    assert traced("run", "--yes", "--detach", "Sleep.").returncode == 0
    collector.wait_for(lambda: collector.named("chat test-model"), "the first model call")
    daemon = find(traced.home)
    os.kill(daemon.pid, signal.SIGKILL)
    traced.wait_for(lambda: find(traced.home) is None, "the daemon's end")
    assert traced("up").returncode == 0
    execution = collector.one("execution default")
    collector.wait_for(lambda: len(collector.named("invoke_agent default")) == 2, "both attempts")
    lost, last = collector.named("invoke_agent default")
    assert (lost.failed, lost.attributes["error.type"]) == (True, "lost")
    assert (lost.parent, last.parent) == (execution.id, execution.id)
    assert collector.named("chat test-model")[0].parent == lost.id
    assert execution.trace == collector.one("stigmer run").trace


def test_without_being_asked_nothing_of_opentelemetry_is_imported(
    stigmer: Any, fake: Any, no_opentelemetry: dict[str, str]
) -> None:
    fake.script({"text": "Done."})
    done = stigmer("run", "Go.", **no_opentelemetry)
    assert (done.returncode, done.stdout) == (0, "Done.\n")


def test_who_asks_for_a_trace_that_cannot_be_had_is_told_how_and_the_run_goes_on(
    collector: Any, stigmer: Any, fake: Any, no_opentelemetry: dict[str, str]
) -> None:
    fake.script({"text": "Done."})
    done = stigmer("run", "Go.", **no_opentelemetry, **collector.environment)
    assert done.returncode == 0
    assert "note: no trace is kept: OTEL_… variables ask for telemetry" in done.stderr
    assert "pip install 'stigmer[telemetry]'" in done.stderr
    assert "setting problem=" in stigmer("logs").stdout


def test_a_collector_that_is_away_is_no_concern_of_a_command(
    stigmer: Any, fake: Any, telemetry_tools: Any
) -> None:
    fake.script({"text": "Done."})
    nobody = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{telemetry_tools.free_address()}"}
    done = stigmer("run", "Go.", **nobody)
    assert (done.returncode, done.stdout) == (0, "Done.\n")
    assert "export" not in done.stderr
