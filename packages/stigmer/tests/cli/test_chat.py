"""`stigmer chat` and `--session`: one conversation over several runs, through the real command and daemon."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
from graphton.testing import tiny_gguf

COMMAND = {"calls": [{"name": "run_command", "arguments": {"command": "echo heron > made.txt"}}]}
READ = {"calls": [{"name": "read_file", "arguments": {"path": "notes.txt"}}]}
QUESTION = "or `r` and a reason: "
SLOW = {"text": "never", "first_token_delay": 60}


def said(request: dict[str, object]) -> list[str]:
    """What people said, as the model gets it."""
    body = request["json"] if "json" in request else request["body"]
    found = json.loads(body) if isinstance(body, str) else body
    return [m["content"] for m in found["messages"] if m["role"] == "user"]  # type: ignore[index,call-overload]


def test_piped_lines_are_turns_of_one_session(stigmer, fake) -> None:
    (stigmer.folder / "notes.txt").write_text("the word is heron\n")
    fake.script(READ, {"text": "It is heron."}, {"text": "You asked for the word."})
    done = stigmer("chat", stdin="Which word?\n\nWhat did I ask?\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "It is heron.\nYou asked for the word.\n"
    assert said(fake.requests[2]) == ["Which word?", "What did I ask?"]
    assert done.stderr.count("test-model") == 1  # The model is named once.
    [session] = [line.split()[1] for line in done.stderr.splitlines() if line.startswith("session ")]
    assert f"to go on: stigmer chat --session {session}" in done.stderr
    fake.script({"text": "Three things."})
    assert stigmer("chat", "--session", session, stdin="How many?\n/exit\nnot this\n").returncode == 0
    assert said(fake.requests[3]) == ["Which word?", "What did I ask?", "How many?"]


def test_a_turn_that_fails_gives_its_code_and_the_rest_goes_on(stigmer, fake) -> None:
    fake.script({"status": 400, "error": "no"}, {"text": "fine"})
    done = stigmer("chat", stdin="one\ntwo\n")
    assert (done.returncode, done.stdout) == (1, "fine\n"), done.stderr


def test_a_turn_that_waits_for_somebody_ends_a_piped_chat(stigmer, fake) -> None:
    fake.script(COMMAND)
    done = stigmer("chat", stdin="one\ntwo\n")
    assert done.returncode == 4, done.stderr
    assert "stigmer approve exec_" in done.stderr
    assert len(fake.requests) == 1


def test_a_person_talks_approves_and_leaves(at_a_terminal, stigmer, fake) -> None:
    fake.script(COMMAND, {"text": "made it"}, {"text": "as I said"})
    does = [("> ", "make it"), (QUESTION, "a"), ("> ", "what?"), ("> ", "/exit")]
    code, shown = at_a_terminal("chat", does=does)
    assert code == 0, shown
    assert (stigmer.folder / "made.txt").read_text() == "heron\n"
    assert shown.index("made it") < shown.index("as I said")
    assert shown.count("test-model") == 1
    assert "to go on: stigmer chat --session ses_" in shown


def test_ctrl_c_stops_the_turn_and_the_chat_stays(at_a_terminal, stigmer, fake) -> None:
    fake.script(SLOW, {"text": "here again"})
    does = [
        ("> ", "first"),
        ("test-model", signal.SIGINT),
        ("> ", "second"),
        ("> ", "\x04"),
    ]
    code, shown = at_a_terminal("chat", does=does)
    assert code == 0, shown
    assert "here again" in shown
    states = [json.loads(line)["state"] for line in stigmer("list", "--json").stdout.splitlines()]
    assert states == ["completed", "cancelled"]
    assert said(fake.requests[-1]) == ["first", "second"]


def test_an_unknown_session_is_told_before_anything_is_said(stigmer, fake) -> None:
    done = stigmer("chat", "--session", "ses_none", stdin="hi\n")
    assert done.returncode == 1
    assert "error: there is no session 'ses_none'" in done.stderr
    assert "hint: stigmer list session" in done.stderr
    assert fake.requests == []


def test_run_takes_part_in_a_session_and_sessions_are_shown_and_deleted(stigmer, fake) -> None:
    fake.script({"text": "one"}, {"text": "two"})
    events = stigmer.events("run", "first task", "--session", "new")
    session = events[0]["session"]
    assert session.startswith("ses_")
    assert stigmer("run", "second task", "--session", session).returncode == 0
    assert said(fake.requests[1]) == ["first task", "second task"]
    listed = stigmer("list", "sessions")
    assert session in listed.stdout
    assert "first task" in listed.stdout
    shown = stigmer("get", "session", session)
    assert shown.stdout.index("> first task") < shown.stdout.index("> second task")
    whole = json.loads(stigmer("get", "session", session, "--json").stdout)
    assert [one["task"] for one in whole["executions"]] == ["first task", "second task"]
    deleted = stigmer("delete", "session", session)
    assert f"deleted {session} and its 2 executions" in deleted.stderr
    assert stigmer("list", "session").stdout == ""
    assert "no sessions yet" in stigmer("list", "session").stderr
    again = stigmer("delete", "session", session)
    assert (again.returncode, "there is no session" in again.stderr) == (1, True)


def test_a_busy_session_refuses_and_is_interrupted_where_that_is_wished(stigmer, fake) -> None:
    fake.script(SLOW, {"text": "at once"})
    first = stigmer("run", "first", "--session", "new", "--detach").stdout.strip()
    fake.wait_for_requests(1)
    session = json.loads(stigmer("get", "execution", first, "--json").stdout)["session"]
    refused = stigmer("run", "second", "--session", session, "--if-running", "reject")
    assert refused.returncode == 1
    assert f"{first} of session '{session}' has not finished (running)" in refused.stderr
    done = stigmer("run", "third", "--session", session, "--if-running", "interrupt")
    assert (done.returncode, done.stdout) == (0, "at once\n"), done.stderr
    assert json.loads(stigmer("get", "execution", first, "--json").stdout)["state"] == "cancelled"
    assert "is about the runs of a session" in stigmer("run", "x", "--if-running", "reject").stderr


def test_a_queued_run_outlives_a_killed_daemon_and_runs_in_its_turn(stigmer, fake) -> None:
    fake.script(SLOW, {"text": "first, after all"}, {"text": "second"})
    first = stigmer("run", "one", "--session", "new", "--detach").stdout.strip()
    fake.wait_for_requests(1)
    session = json.loads(stigmer("get", "execution", first, "--json").stdout)["session"]
    second = stigmer("run", "two", "--session", session, "--detach").stdout.strip()
    state = json.loads(stigmer("get", "execution", second, "--json").stdout)
    assert state["state"] == "queued"
    os.kill(json.loads(stigmer("status", "--json").stdout)["pid"], signal.SIGKILL)
    # A key that only the shell had is not stored: a run from the same shell gives it again.
    fake.script({"text": "third"})
    third = stigmer("run", "three", "--session", session)
    assert (third.returncode, third.stdout) == (0, "third\n"), third.stderr
    answers = [stigmer("attach", one).stdout for one in (first, second)]
    assert answers == ["first, after all\n", "second\n"]
    assert said(fake.requests[-1]) == ["one", "two", "three"]


def test_ctrl_c_at_the_prompt_drops_the_line_and_stays(at_a_terminal, stigmer, fake) -> None:
    fake.script({"text": "still here"})
    does = [("> ", "not this\x03"), ("> ", "hello"), ("> ", "/exit")]
    code, shown = at_a_terminal("chat", does=does)
    assert code == 0, shown
    assert "still here" in shown
    assert said(fake.requests[0]) == ["hello"]


def test_the_local_model_is_loaded_while_somebody_types(at_a_terminal, stigmer, tmp_path) -> None:
    pytest.importorskip("xllamacpp")
    model = tiny_gguf(tmp_path / "small.gguf", {">": "fine", "fine": "</s>"})

    def once_it_is_loaded() -> str:
        deadline = time.monotonic() + 45
        while "small.gguf" not in stigmer("status").stdout:
            assert time.monotonic() < deadline
        return "hello"

    does = [("> ", once_it_is_loaded), ("> ", "/exit")]
    code, shown = at_a_terminal("chat", "--model", f"llamacpp:{model}", does=does)
    assert code == 0, shown
    assert "fine" in shown
    assert "loading" not in shown
