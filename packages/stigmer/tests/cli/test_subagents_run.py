"""Sub-agents from an agent file, the whole way: paths in events, questions by path, rules, limits, a killed daemon."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
from stigmer.api import event_pb2 as pb
from stigmer.daemon import find
from stigmer.store._sqlite import query

LIMIT = 60.0
AGENT = """\
apiVersion: stigmer/v1
kind: Agent
metadata: {name: lead}
spec:
  instructions: You lead.
  llm: {temperature: 0.25}
  tools: []
  subagents:
  - name: reader
    description: Reads.
    instructions: You read.
    tools: [list_files]
    llm: {temperature: 0.75, max_tokens: 777}
  - name: worker
    description: Works.
    instructions: You work.
    tools: [run_command]
"""


@pytest.fixture
def agent(stigmer) -> Path:
    path = stigmer.folder / "lead.yaml"
    path.write_text(AGENT)
    return path


def hands(*parts: tuple[str, str]) -> dict[str, Any]:
    """A reply that hands work to these agents."""
    return {"calls": [{"name": "task", "arguments": {"agent": name, "task": text}} for name, text in parts]}


def appends(command: str = "echo line >> out.txt") -> dict[str, Any]:
    return {"steps": "run_command", "arguments": {"command": command}, "answer": "worked"}


def of(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["type"] == kind]


def test_events_of_sub_agents_carry_their_path_and_their_settings_reach_the_wire(
    stigmer, fake, agent
) -> None:
    fake.script(
        hands(("reader", "STEPS=1 here"), ("reader", "STEPS=1 there")),
        {"text": "both read"},
        rules=[{"steps": "list_files", "arguments": {"path": ""}, "answer": "read"}],
    )
    events = stigmer.events("run", "--agent", "./lead.yaml", "--max-steps", "31", "go")
    assert (events[-1]["outcome"], events[-1]["text"]) == ("completed", "both read")
    paths = {"/reader@1.0", "/reader@1.1"}
    assert {e["path"] for e in of(events, "model_replied")} == {"", *paths}
    assert {e["path"] for e in of(events, "text_delta")} == {"", *paths}
    assert {(e["path"], e["name"]) for e in of(events, "tool_finished")} == {
        *((path, "list_files") for path in paths),
        ("", "task"),
    }
    started = of(events, "subagent_started")
    assert [(e["path"], e["call"], e["name"]) for e in started] == [
        ("", "1.0", "reader"),
        ("", "1.1", "reader"),
    ]
    assert [e["budget"]["steps"] for e in started] == [10, 10]
    assert {e["call"] for e in of(events, "subagent_finished")} == {"1.0", "1.1"}
    (config,) = of(events, "config_resolved")
    assert config["settings"]["temperature"]["value"] == 0.25
    theirs = config["subagents"]["reader"]
    assert theirs["temperature"]["value"] == 0.75
    assert theirs["temperature"]["source"].startswith("agent lead/reader@")
    assert list(config["subagents"]) == ["reader"]
    sent = [json.loads(request["body"]) for request in fake.requests]
    by_agent = {body["messages"][0]["content"].split(".")[0]: body for body in sent}
    assert by_agent["You lead"]["temperature"] == 0.25
    assert by_agent["You read"]["temperature"] == 0.75
    assert 777 in by_agent["You read"].values()
    assert 777 not in by_agent["You lead"].values()
    assert events[-1]["usage"]["input_tokens"] == sum(
        e["usage"]["input_tokens"] for e in of(events, "model_replied")
    )


def test_a_person_sees_one_line_for_each_sub_agent(stigmer, fake, agent) -> None:
    fake.script(
        hands(("reader", "STEPS=1 here")),
        {"text": "done"},
        rules=[{"steps": "list_files", "arguments": {"path": ""}, "answer": "read"}],
    )
    done = stigmer("run", "--agent", "./lead.yaml", "go")
    assert done.stdout == "done\n"
    assert "agent reader starts (1.0) with at most" in done.stderr
    assert "[/reader@1.0] > list_files" in done.stderr


def test_questions_of_sub_agents_are_answered_by_their_path(stigmer, fake, agent) -> None:
    fake.script(hands(("worker", "STEPS=1 a"), ("worker", "STEPS=1 b")), {"text": "done"}, rules=[appends()])
    asked = stigmer("run", "--agent", "./lead.yaml", "go")
    assert asked.returncode == 4
    (id,) = {word for word in asked.stderr.split() if word.startswith("exec_") and ";" not in word}
    for call in ("/worker@1.0:1.0", "/worker@1.1:1.0"):
        assert f"stigmer approve {id} {call}" in asked.stderr
    listed = [json.loads(line) for line in stigmer("approvals", "--json").stdout.splitlines()]
    assert {row["call"] for row in listed} == {"/worker@1.0:1.0", "/worker@1.1:1.0"}
    assert stigmer("approve", id, "/worker@1.0:1.0").returncode == 0
    stigmer.wait_for(
        lambda: (stigmer.folder / "out.txt").exists(), "the approved call, whatever the other waits for"
    )
    again = stigmer("approve", id, "/worker@1.0:1.0")
    assert again.returncode == 1
    assert "was approved by" in again.stderr
    assert stigmer("reject", id, "/worker@1.1:1.0", "--reason", "once is enough").returncode == 0
    events = stigmer.events("attach", id)
    assert (events[-1]["outcome"], events[-1]["text"]) == ("completed", "done")
    assert (stigmer.folder / "out.txt").read_text() == "line\n"
    results = {e["path"]: e["result"] for e in of(events, "tool_finished") if e["name"] == "run_command"}
    assert "once is enough" in results["/worker@1.1"]
    waits = of(events, "waiting")
    assert (waits[0]["reason"], waits[0]["path"]) == ("approval", "/worker@1.0")
    assert len(of(events, "subagent_started")) == 2


def test_rules_and_limits_of_the_file_hold_for_the_whole_tree(stigmer, fake, agent) -> None:
    agent.write_text(
        AGENT
        + "  approvals:\n"
        + "  - {tool: run_command, when: {command: 'touch *'}, verdict: allow}\n"
        + "  - {tool: run_command, when: {command: 'rm *'}, verdict: deny}\n"
        + "  budget: {steps: 20}\n"
    )
    fake.script(hands(("worker", "STEPS=1")), {"text": "done"}, rules=[appends("touch made.txt")])
    events = stigmer.events("run", "--agent", "./lead.yaml", "go")
    assert events[-1]["outcome"] == "completed"
    assert events[0]["budget"]["steps"] == 20
    (matched,) = of(events, "rule_matched")
    assert (matched["path"], matched["verdict"]) == ("/worker@1.0", "allow")
    assert matched["rule"].startswith("allow run_command (command: touch *), agent lead@")
    assert (stigmer.folder / "made.txt").exists()
    fake.script(hands(("worker", "STEPS=1 again")), {"text": "done"})
    fake.script(rules=[])
    flagged = stigmer.events("run", "--agent", "./lead.yaml", "--max-steps", "2", "go")
    assert flagged[0]["budget"]["steps"] == 2
    assert flagged[-1]["outcome"] == "budget_exceeded"
    assert len(of(flagged, "model_replied")) == 2


def records(home: Any) -> list[pb.Event]:
    db = sqlite3.connect(f"file:{home.database}?mode=ro", uri=True)
    try:
        rows = db.execute(query("replay"), {"first": 1 << 24, "end": 2 << 24}).fetchall()
    finally:
        db.close()
    return [pb.Event.FromString(body) for (body,) in rows]


@pytest.mark.parametrize(
    ("kind", "count"), [("subagent_started", 2), ("tool_dispatched", 4), ("tool_finished", 2)]
)
def test_a_daemon_killed_under_two_sub_agents_repeats_no_model_call_and_no_effect(
    stigmer, fake, agent, kind: str, count: int
) -> None:
    fake.script(
        hands(("worker", "STEPS=2 a"), ("worker", "STEPS=2 b")),
        {"text": "done"},
        {"text": "done"},
        rules=[appends("sleep 0.05; echo line >> out.txt")],
    )
    assert stigmer("run", "--agent", "./lead.yaml", "--yes", "--detach", "go").returncode == 0
    stigmer.wait_for(
        lambda: sum(record.WhichOneof("kind") == kind for record in records(stigmer.home)) >= count,
        f"{count} {kind}",
    )
    daemon = find(stigmer.home)
    assert daemon is not None
    os.kill(daemon.pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(daemon.pid)] if psutil.pid_exists(daemon.pid) else [], timeout=LIMIT)
    before = [(r.path, r.model_replied.step) for r in records(stigmer.home) if r.HasField("model_replied")]
    (id,) = [word for word in stigmer("list", "execution").stdout.split() if word.startswith("exec_")]
    events = stigmer.events("attach", id)
    assert (events[-1]["outcome"], events[-1]["text"]) == ("completed", "done")
    replied = Counter((e["path"], e["step"]) for e in of(events, "model_replied"))
    assert set(replied.values()) == {1}
    assert set(before) <= set(replied)
    commands = [e for e in of(events, "tool_dispatched") if e["name"] == "run_command"]
    assert set(Counter((e["path"], e["call"]) for e in commands).values()) == {1}
    whole = [e for e in of(events, "tool_finished") if e["name"] == "run_command" and not e["is_error"]]
    lines = (stigmer.folder / "out.txt").read_text().count("line\n")
    assert len(whole) <= lines <= len(commands)
    assert [e["seq"] for e in events if e["seq"]] == list(range(1, len([e for e in events if e["seq"]]) + 1))
    assert len(of(events, "subagent_started")) == len(of(events, "subagent_finished")) == 2


def test_an_untrusted_folder_may_deny_and_lower_limits_but_not_allow_or_raise_them(stigmer, fake) -> None:
    (stigmer.folder / ".git").mkdir()
    agents = stigmer.folder / ".stigmer" / "agents"
    agents.mkdir(parents=True)
    (agents / "lead.yaml").write_text(
        AGENT
        + "  approvals:\n"
        + "  - {tool: run_command, verdict: allow}\n"
        + "  - {tool: run_command, when: {command: 'rm *'}, verdict: deny}\n"
        + "  budget: {steps: 5000, tokens: 60000, children: 50}\n"
    )
    fake.script(hands(("worker", "STEPS=1")), {"text": "done"}, rules=[appends("touch made.txt")])
    asked = stigmer("run", "--agent", "lead", "--json", "go")
    assert asked.returncode == 4
    events = [json.loads(line) for line in asked.stdout.splitlines()]
    assert events[0]["budget"]["steps"] is None
    assert events[0]["budget"]["tokens"] == 60000
    (config,) = of(events, "config_resolved")
    assert (
        "allow rules of agent lead are left out: its folder is not trusted (stigmer trust)"
        in config["notices"]
    )
    assert of(events, "rule_matched") == []
    assert not (stigmer.folder / "made.txt").exists()
