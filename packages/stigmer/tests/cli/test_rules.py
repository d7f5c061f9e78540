"""Approval rules of files, answers for always, and questions about lost writes, through the real command and daemon."""

from __future__ import annotations

import json
import os
import signal
import stat
from typing import Any

import psutil
import pytest
from stigmer.daemon import find

LIMIT = 60.0


def command(text: str) -> dict[str, Any]:
    return {"calls": [{"name": "run_command", "arguments": {"command": text}}]}


def writes(path: str, content: str) -> dict[str, Any]:
    return {"calls": [{"name": "write_file", "arguments": {"path": path, "content": content}}]}


def of(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["type"] == kind]


def user_file(stigmer, text: str) -> None:
    stigmer.home.create()
    stigmer.home.config.write_text(text)


def project_file(stigmer, text: str) -> None:
    (stigmer.folder / ".git").mkdir(exist_ok=True)
    (stigmer.folder / ".stigmer").mkdir(exist_ok=True)
    (stigmer.folder / ".stigmer" / "config.yaml").write_text(text)


RULES = """\
mode: local
approvals:
- tool: run_command
  when: {command: "touch *"}
  verdict: allow
- {tool: run_command, when: {command: "touch secret*"}, verdict: deny}
- {tool: write_file, verdict: ask}
"""


# --- rules of files -------------------------------------------------------------------------------------------


def test_rules_of_the_users_file_allow_and_deny_and_yes_never_answers_a_deny(stigmer, fake) -> None:
    user_file(stigmer, RULES)
    fake.script(command("touch a.txt"), command("touch secret.txt"), {"text": "done"})
    events = stigmer.events("run", "--yes", "go")
    assert events[-1]["text"] == "done"
    assert (stigmer.folder / "a.txt").exists()
    assert not (stigmer.folder / "secret.txt").exists()
    matched = {e["call"]: (e["verdict"], e["rule"]) for e in of(events, "rule_matched")}
    assert matched["1.0"][0] == "allow"
    assert matched["1.0"][1].endswith("/config.yaml:3")
    assert matched["2.0"] == (
        "deny",
        f"deny run_command (command: touch secret*), file {shown(stigmer)}:6",
    )
    assert "A rule forbids this call" in json.dumps(fake.requests[-1])
    assert events[0]["rules"] == [
        f"allow run_command (command: touch *), file {shown(stigmer)}:3",
        f"deny run_command (command: touch secret*), file {shown(stigmer)}:6",
        f"ask write_file, file {shown(stigmer)}:7",
    ]


def shown(stigmer) -> str:
    return f"~/{stigmer.home.config.relative_to(stigmer.environment['HOME'])}"


def test_rules_count_as_they_were_when_the_run_was_accepted(stigmer, fake) -> None:
    user_file(stigmer, RULES)
    fake.script(writes("a.txt", "1"), command("touch b.txt"), {"text": "done"})
    id = stigmer.events("run", "go")[0]["execution"]
    user_file(stigmer, "mode: local\n")
    assert stigmer("approve", id, "1.0").returncode == 0
    events = stigmer.events("attach", id)
    assert events[-1]["text"] == "done"
    assert of(events, "rule_matched")[-1]["verdict"] == "allow"


def test_what_is_wrong_with_rules_is_told_with_its_line(stigmer, fake) -> None:
    user_file(
        stigmer,
        "approvals:\n- {tool: run_command, verdict: maybe}\n- {tool: run_command, when: [x], verdict: ask}\n"
        "on_unknown: guess\n",
    )
    done = stigmer("run", "go")
    assert done.returncode == 2
    assert "'maybe', not allow, ask or deny" in done.stderr
    for line in (2, 3, 4):
        assert f"line {line}" in done.stderr
    assert "on_unknown 'guess'" in done.stderr
    shown_too = stigmer("config", "show")
    assert shown_too.returncode == 2
    assert "'maybe', not allow, ask or deny" in shown_too.stderr + shown_too.stdout


def test_a_projects_file_may_ask_and_deny_and_never_allows(stigmer, fake) -> None:
    project_file(stigmer, "approvals:\n- {tool: write_file, when: {path: a.txt}, verdict: deny}\n")
    fake.script(writes("a.txt", "1"), writes("b.txt", "1"), {"text": "done"})
    assert stigmer.events("run", "--yes", "go")[-1]["text"] == "done"
    assert not (stigmer.folder / "a.txt").exists()
    assert (stigmer.folder / "b.txt").exists()
    project_file(stigmer, "approvals:\n- {tool: run_command, verdict: allow}\n")
    stigmer("trust")
    done = stigmer("run", "go")
    assert done.returncode == 2
    assert "the rule `allow run_command` in file .stigmer/config.yaml, line 2" in done.stderr
    assert "may only ask and deny" in done.stderr


@pytest.mark.parametrize("key", ["approvals", "on_unknown"])
def test_config_set_does_not_edit_rules_and_says_where_they_stand(stigmer, key: str) -> None:
    done = stigmer("config", "set", key, "x")
    assert done.returncode == 2
    assert f"{key!r} is not changed by this command" in done.stderr
    assert "config.yaml" in done.stderr


# --- answers for always ---------------------------------------------------------------------------------------

ASKS = "approvals:\n- {tool: write_file, verdict: ask}\n"


def test_an_answer_for_always_is_kept_listed_used_and_taken_back(stigmer, fake) -> None:
    user_file(stigmer, ASKS)
    fake.script(writes("n[1].txt", "1"), writes("n[1].txt", "2"), {"text": "done"})
    asked = stigmer("run", "go")
    assert asked.returncode == 4
    assert (
        "with --always all such calls may run from now on: allow write_file (path: n[[]1].txt)"
        in asked.stderr
    )
    (row,) = [json.loads(line) for line in stigmer("approvals", "--json").stdout.splitlines()]
    assert row["always"] == "allow write_file (path: n[[]1].txt)"
    assert row["expires"]
    done = stigmer("approve", row["execution"], row["call"], "--always")
    assert done.returncode == 0, done.stderr
    events = stigmer.events("attach", row["execution"])
    assert events[-1]["text"] == "done"
    (decided,) = of(events, "approval_decided")
    assert decided["rule"] == "allow write_file (path: n[[]1].txt)"
    assert of(events, "rule_matched")[-1]["rule"].startswith(
        "allow write_file (path: n[[]1].txt), always, said by "
    )
    stored = stigmer.home.path / "approvals.json"
    assert stat.S_IMODE(stored.stat().st_mode) == 0o600
    listed = stigmer("approvals", "rules")
    assert listed.stdout.startswith("1  agent default: allow write_file (path: n[[]1].txt), said by ")
    (rule,) = [json.loads(line) for line in stigmer("approvals", "rules", "--json").stdout.splitlines()]
    assert (rule["number"], rule["tool"], rule["when"]) == (1, "write_file", {"path": "n[[]1].txt"})
    fake.script(writes("n[1].txt", "3"), writes("other.txt", "3"))
    other = stigmer.events("run", "go")
    assert other[-1]["type"] != "finished"
    assert [row["call"] for row in of(other, "approval_requested")] == ["2.0"]
    wrong = stigmer("approvals", "rules", "remove", "2")
    assert (wrong.returncode, "there is no rule 2" in wrong.stderr) == (1, True)
    assert "removed" in stigmer("approvals", "rules", "remove", "1").stderr
    assert stigmer("approvals", "rules").stdout == ""
    fake.script(writes("n[1].txt", "4"))
    assert stigmer("run", "go").returncode == 4


def test_an_answer_for_always_never_goes_against_a_deny(stigmer, fake) -> None:
    user_file(stigmer, ASKS)
    fake.script(writes("a.txt", "1"), {"text": "done"})
    id = stigmer.events("run", "go")[0]["execution"]
    stigmer("approve", id, "1.0", "--always")
    assert stigmer.events("attach", id)[-1]["text"] == "done"
    user_file(stigmer, "approvals:\n- {tool: write_file, verdict: deny}\n")
    fake.script(writes("a.txt", "2"), {"text": "not done"})
    assert stigmer.events("run", "go")[-1]["text"] == "not done"
    assert (stigmer.folder / "a.txt").read_text() == "1"


def test_always_is_not_offered_for_a_command_and_decides_nothing_then(stigmer, fake) -> None:
    fake.script(command("touch a.txt"), {"text": "done"})
    asked = stigmer("run", "go")
    assert "--always" not in asked.stderr
    (row,) = [json.loads(line) for line in stigmer("approvals", "--json").stdout.splitlines()]
    assert row["always"] is None
    refused = stigmer("approve", row["execution"], "1.0", "--always")
    assert refused.returncode == 1
    assert "a command that is not confined is asked about each time" in refused.stderr
    assert not (stigmer.home.path / "approvals.json").exists()
    assert stigmer("approve", row["execution"], "1.0").returncode == 0


def test_a_person_at_a_terminal_answers_for_always(at_a_terminal, stigmer, fake) -> None:
    user_file(stigmer, ASKS)
    fake.script(writes("a.txt", "1"), writes("a.txt", "2"), {"text": "made it"})
    question = ", al[w]ays (allow write_file (path: a.txt)), [r]eject, or `r` and a reason: "
    code, seen = at_a_terminal("run", "go", does=[(question, "w")])
    assert code == 0, seen
    assert "made it" in seen
    assert (stigmer.folder / "a.txt").read_text() == "2"
    id = stigmer("list", "executions").stdout.split()[0]
    assert stigmer.events("attach", id)[0]["on_unknown"] == "ask"  # Somebody was there to be asked.


def test_a_person_at_a_terminal_answers_several_questions_of_sub_agents(at_a_terminal, stigmer, fake) -> None:
    (stigmer.folder / "lead.yaml").write_text(
        "apiVersion: stigmer/v1\nkind: Agent\nmetadata: {name: lead}\nspec:\n  instructions: You lead.\n"
        "  tools: []\n  subagents:\n  - {name: worker, description: Works., tools: [run_command]}\n"
    )
    calls = [{"name": "task", "arguments": {"agent": "worker", "task": f"STEPS=1 {n}"}} for n in "ab"]
    fake.script(
        {"calls": calls},
        {"text": "all done"},
        rules=[{"steps": "run_command", "arguments": {"command": "echo line >> out.txt"}, "answer": "ok"}],
    )
    answer = "or `r` and a reason: "
    code, seen = at_a_terminal("run", "--agent", "./lead.yaml", "go", does=[(answer, "a"), (answer, "a")])
    assert code == 0, seen
    assert "[/worker@1.0] run_command wants to run:" in seen
    assert "[/worker@1.1] run_command wants to run:" in seen
    assert (stigmer.folder / "out.txt").read_text() == "line\n" * 2


# --- a write that was cut off ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decision", "runs", "told"),
    [("approve", 2, "done"), ("reject", 1, "said not to run the call again. it is there")],
)
def test_a_lost_write_is_asked_about_where_the_users_file_says_so(
    stigmer, fake, decision: str, runs: int, told: str
) -> None:
    user_file(stigmer, "on_unknown: ask\n")
    work = "echo line >> out.txt; if [ ! -e once ]; then touch once; sleep 600; fi; echo done"
    fake.script(command(work), {"text": "over"})
    id = stigmer("run", "--yes", "--detach", "go").stdout.strip()
    stigmer.wait_for((stigmer.folder / "once").exists, "the command")
    daemon = find(stigmer.home)
    assert daemon is not None
    os.kill(daemon.pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(daemon.pid)] if psutil.pid_exists(daemon.pid) else [], timeout=LIMIT)
    attached = stigmer("attach", id)
    assert attached.returncode == 4
    assert "nobody knows whether it did its work" in attached.stderr
    assert "approve if it did not" in attached.stderr
    (row,) = [json.loads(line) for line in stigmer("approvals", "--json").stdout.splitlines()]
    assert (row["reason"], row["always"]) == ("outcome", None)
    assert stigmer("approve", id, "1.0", "--always").returncode == 1
    more = ("--reason", "it is there") if decision == "reject" else ()
    assert stigmer(decision, id, "1.0", *more).returncode == 0
    events = stigmer.events("attach", id)
    assert events[-1]["text"] == "over"
    assert [e["reason"] for e in of(events, "waiting")] == ["outcome"]
    assert events[0]["on_unknown"] == "ask"
    assert told in of(events, "tool_finished")[0]["result"]
    assert (stigmer.folder / "out.txt").read_text() == "line\n" * runs


def test_nobody_there_means_the_model_is_told(stigmer, fake) -> None:
    fake.script({"text": "done"})
    assert stigmer.events("run", "go")[0]["on_unknown"] == "tell"


def test_a_question_beside_a_call_that_runs_is_listed_and_decided_meanwhile(stigmer, fake) -> None:
    user_file(stigmer, "approvals:\n- {tool: run_command, when: {command: ./hold}, verdict: allow}\n")
    hold = stigmer.folder / "hold"
    hold.write_text("#!/bin/sh\ntouch began; until [ -e go ]; do sleep 0.02; done\n")
    hold.chmod(0o755)
    fake.script(
        {"calls": [*command("./hold")["calls"], *command("touch asked.txt")["calls"]]}, {"text": "done"}
    )
    id = stigmer("run", "--detach", "go").stdout.strip()
    stigmer.wait_for((stigmer.folder / "began").exists, "the command")
    (row,) = [json.loads(line) for line in stigmer("approvals", "--json").stdout.splitlines()]
    assert (row["execution"], row["call"]) == (id, "1.1")
    assert stigmer("approve", id, "1.1").returncode == 0
    assert stigmer("approvals").stdout == ""
    (stigmer.folder / "go").touch()
    events = stigmer.events("attach", id)
    assert (events[-1]["text"], of(events, "waiting")) == ("done", [])
    assert (stigmer.folder / "asked.txt").exists()
